import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { deliveryHashOf } from '@flash-sale/contracts';
import { Database, type SqlRow } from '@flash-sale/database';
import { decideOrders } from '@flash-sale/domain';
import { FaultProxy } from '@flash-sale/testing';
import { TestBooks, chunkOf, crowd, delivery, recordOf, servers, waitFor } from './fixtures/test-books.js';

describe.each(servers)('OrderWriter on %s', (_, server) => {
  let books: TestBooks;

  beforeAll(async () => {
    books = await TestBooks.open(server);
  });
  afterAll(() => books.close());

  it('writes an order with everything that explains it', async () => {
    const saleId = await books.addSale(10, 2);
    const { writer, effects } = books.startWriter();
    const record = recordOf({ saleId, shopper: 'alice', quantity: 2, epoch: 3 }, 4);
    await writer.handle(chunkOf([record], 4));
    const [row] = await books.rows<SqlRow>('orders', saleId);
    expect(row).toMatchObject({
      order_id: record.key,
      shopper_id: 'alice',
      sku_id: 'sku',
      quantity: 2,
      unit_price: '4200',
      currency: 'CNY',
      state: 'awaiting_payment',
      reason: null,
      epoch: 3,
      delivery: JSON.stringify(delivery),
      delivery_hash: deliveryHashOf(delivery),
      request_id: 'request-alice',
      token_expires_at: new Date(2_000),
      kafka_partition: 4,
      kafka_offset: String(record.offset),
      version: 1,
    });
    const [waits] = await books.database.query<{ ms: string }>(
      'SELECT TIMESTAMPDIFF(MICROSECOND, created_at, pay_before) DIV 1000 AS ms FROM orders WHERE order_id = ?',
      [record.key],
    );
    expect(Number(waits?.ms)).toBe(90_000);
    expect(effects).toEqual([{ attemptId: record.key, shopperId: 'alice', kind: 'confirm', reason: null }]);
    await books.expectConsistent(saleId);
  });

  it('decides a duplicate within a chunk once, by its first copy', async () => {
    const saleId = await books.addSale(10);
    const { writer, effects } = books.startWriter();
    const first = recordOf({ saleId, shopper: 'bob' });
    const second = { ...first, offset: first.offset + 1n };
    await writer.handle(chunkOf([first, second, recordOf({ saleId, shopper: 'carol' })]));
    expect(await books.statesOf(saleId)).toEqual({ awaiting_payment: 2 });
    expect(effects.length).toBe(2);
    const [row] = await books.rows<{ kafka_offset: string }>('orders', saleId);
    expect(row?.kafka_offset).toBe(String(first.offset));
    await books.expectConsistent(saleId);
  });

  it('drops what an earlier chunk has decided, and tells nobody twice', async () => {
    const saleId = await books.addSale(10);
    const { writer, effects } = books.startWriter();
    const records = crowd(saleId, 5);
    await writer.handle(chunkOf(records));
    await writer.handle(chunkOf([...records, recordOf({ saleId, shopper: 'late' })]));
    expect(await books.statesOf(saleId)).toEqual({ awaiting_payment: 6 });
    expect(effects.length).toBe(6);
    await books.expectConsistent(saleId);
  });

  it('drops a record whose attempt has a tombstone', async () => {
    const saleId = await books.addSale(10);
    const { writer, effects } = books.startWriter();
    const record = recordOf({ saleId, shopper: 'slow' });
    await books.database.change(
      `INSERT INTO orders (order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, state, reason,
          batch_id, epoch, created_at, updated_at)
        VALUES (?, ?, 'slow', 'sku', 1, 4200, 'CNY', 'expired', 'hold_expired', 'sweeper', 1, NOW(3), NOW(3))`,
      [record.key, saleId],
    );
    await writer.handle(chunkOf([record]));
    expect(await books.statesOf(saleId)).toEqual({ hold_expired: 1 });
    expect([await books.soldOf(saleId), effects]).toEqual([0, []]);
  });

  it('rejects what is over the limit, in offset order, also over several chunks', async () => {
    const saleId = await books.addSale(100, 3);
    const { writer, effects } = books.startWriter();
    const wish = (key: string, quantity: number) => recordOf({ saleId, shopper: 'greedy', key, quantity });
    await writer.handle(chunkOf([wish('a', 2), wish('b', 2), wish('c', 1)]));
    await writer.handle(chunkOf([wish('d', 1)]));
    expect(await books.statesOf(saleId)).toEqual({ awaiting_payment: 2, limit: 2 });
    expect(effects.map(({ kind, reason }) => `${kind} ${reason}`)).toEqual([
      'confirm null',
      'void limit',
      'confirm null',
      'void limit',
    ]);
    expect(await books.soldOf(saleId)).toBe(3);
    await books.expectConsistent(saleId);
  });

  it('sells exactly the total and rejects the rest as sold out, in offset order', async () => {
    const saleId = await books.addSale(7);
    const { writer, dead } = books.startWriter();
    const records = crowd(saleId, 20);
    await writer.handle(chunkOf(records.slice(0, 5)));
    await writer.handle(chunkOf(records.slice(5)));
    expect(await books.statesOf(saleId)).toEqual({ awaiting_payment: 7, sold_out: 13 });
    const sold = await books.database.query<{ order_id: string }>(
      `SELECT order_id FROM orders WHERE sale_id = ? AND state = 'awaiting_payment' ORDER BY kafka_offset`,
      [saleId],
    );
    expect(sold.map((row) => row.order_id)).toEqual(records.slice(0, 7).map((record) => record.key));
    expect(dead).toEqual([]);
    await books.expectConsistent(saleId);
  });

  it('lets chunks of several partitions and sales share one transaction', async () => {
    const first = await books.addSale(50);
    const second = await books.addSale(50);
    const { writer } = books.startWriter();
    await Promise.all(
      Array.from({ length: 6 }, (_, partition) =>
        writer.handle(
          chunkOf(
            [first, second].map((saleId) => recordOf({ saleId, shopper: `p${partition}` }, partition)),
            partition,
          ),
        ),
      ),
    );
    expect([await books.statesOf(first), await books.statesOf(second)]).toEqual([
      { awaiting_payment: 6 },
      { awaiting_payment: 6 },
    ]);
    const batches = await books.database.query('SELECT DISTINCT batch_id FROM orders WHERE sale_id IN (?)', [
      [first, second],
    ]);
    expect(batches.length).toBe(1);
    await books.expectConsistent(first);
    await books.expectConsistent(second);
  });

  it('never puts more than 500 records into one transaction', async () => {
    const saleId = await books.addSale(2_000);
    const { writer } = books.startWriter();
    await Promise.all([0, 1, 2].map((n) => writer.handle(chunkOf(crowd(saleId, 400, `p${n}-`)))));
    const batches = await books.database.query<{ size: string }>(
      'SELECT COUNT(*) AS size FROM orders WHERE sale_id = ? GROUP BY batch_id ORDER BY size',
      [saleId],
    );
    const sizes = batches.map((batch) => Number(batch.size));
    // On a slow machine transactions become smaller.
    expect(Math.max(...sizes)).toBe(500);
    expect(sizes.reduce((sum, size) => sum + size, 0)).toBe(1_200);
    await books.expectConsistent(saleId);
  });

  it('stays within the total when several writers get the same records in different orders', async () => {
    const saleId = await books.addSale(60);
    const records = crowd(saleId, 100);
    const writers = Array.from({ length: 4 }, () => books.startWriter());
    await Promise.all(
      writers.map(async ({ writer }, n) => {
        const mine = n % 2 === 0 ? records : records.toReversed();
        for (let at = 0; at < mine.length; at += 25) await writer.handle(chunkOf(mine.slice(at, at + 25)));
      }),
    );
    expect(await books.statesOf(saleId)).toEqual({ awaiting_payment: 60, sold_out: 40 });
    expect(writers.flatMap(({ effects }) => effects).length).toBe(100);
    expect(writers.flatMap(({ dead }) => dead)).toEqual([]);
    await books.expectConsistent(saleId);
  });

  describe('the guards beneath the rule', () => {
    /** A rule that gives everybody everything. */
    const generous: typeof decideOrders = (orders, balances, used) => {
      const endless = new Map([...balances].map(([saleId, balance]) => [saleId, { ...balance, total: 1e9 }]));
      return decideOrders(orders, endless, used);
    };

    it('sells no unit beyond the total though the rule errs: the conditional update refuses', async () => {
      const saleId = await books.addSale(2);
      await books.database.change('ALTER TABLE sale_stock DROP CONSTRAINT sold_within_total');
      const { writer, dead } = books.startWriter({ decide: generous });
      await writer.handle(chunkOf(crowd(saleId, 3)));
      await books.database.change(
        'ALTER TABLE sale_stock ADD CONSTRAINT sold_within_total CHECK (sold <= total)',
      );
      expect([await books.soldOf(saleId), dead.length]).toEqual([2, 1]);
      await books.expectConsistent(saleId);
    });

    it('sells no unit beyond the total though the update errs: the table refuses', async () => {
      const saleId = await books.addSale(2);
      const overselling = books.database.change('UPDATE sale_stock SET sold = sold + 3 WHERE sale_id = ?', [
        saleId,
      ]);
      await expect(overselling).rejects.toMatchObject({ failure: 'check' });
    });
  });

  describe('when the database fails', () => {
    it('writes the chunk again after a deadlock, once', async () => {
      const saleId = await books.addSale(100);
      const { writer, dead, failures } = books.startWriter();
      const records = crowd(saleId, 10);
      let written: Promise<void> = Promise.resolve();
      // It changes many rows, so that the server chooses the writer as the victim.
      await books.database.transaction(async (statements) => {
        await statements.change(
          `INSERT INTO webhook_event (event_id, payment_id, result, received_at)
            SELECT CONCAT(?, '-', a.n, '-', b.n), 'p', 'captured', NOW(3) FROM ${digits('a')}, ${digits('b')}`,
          [saleId],
        );
        await statements.query('SELECT sold FROM sale_stock WHERE sale_id = ? FOR UPDATE', [saleId]);
        // The server may still list a statement just answered; now it lists this one, and the writer's is the only other.
        await statements.query('SELECT 1');
        written = writer.handle(chunkOf(records));
        await waitFor('the writer to wait for the stock row', () =>
          isWaitingFor(books.database, 'sale_stock'),
        );
        await statements.query('SELECT * FROM orders WHERE order_id = ? FOR UPDATE', [records[0]?.key ?? '']);
      });
      await written;
      expect(failures).toContain('deadlock');
      expect([await books.statesOf(saleId), dead]).toEqual([{ awaiting_payment: 10 }, []]);
      await books.expectConsistent(saleId);
    });

    it('waits for as long as somebody holds a lock, and never blames a record', async () => {
      const saleId = await books.addSale(100);
      const impatient = new Database({ url: books.url, poolSize: 2, queryTimeoutMs: 100 });
      const { writer, dead } = books.startWriter({ database: impatient });
      const records = crowd(saleId, 4);
      await books.database.transaction(async (statements) => {
        await statements.query('SELECT sold FROM sale_stock WHERE sale_id = ? FOR UPDATE', [saleId]);
        await expect(writer.handle(chunkOf(records))).rejects.toMatchObject({ retriable: true });
      });
      await writer.handle(chunkOf(records));
      expect([await books.statesOf(saleId), dead]).toEqual([{ awaiting_payment: 4 }, []]);
      await books.expectConsistent(saleId);
      await impatient.close();
    });

    it('writes the chunk again when its connection is killed in the middle of the transaction', async () => {
      const saleId = await books.addSale(100);
      const { writer, dead } = books.startWriter();
      let written: Promise<void> = Promise.resolve();
      await books.database.transaction(async (statements) => {
        await statements.query('SELECT sold FROM sale_stock WHERE sale_id = ? FOR UPDATE', [saleId]);
        // The server may still list a statement just answered; now it lists this one, and the writer's is the only other.
        await statements.query('SELECT 1');
        written = writer.handle(chunkOf(crowd(saleId, 10)));
        await waitFor('the writer to wait for the stock row', () =>
          isWaitingFor(books.database, 'sale_stock'),
        );
        for (const id of await waitersFor(books.database, 'sale_stock'))
          await books.database.change(`KILL ${id}`);
      });
      await written;
      expect([await books.statesOf(saleId), dead]).toEqual([{ awaiting_payment: 10 }, []]);
      await books.expectConsistent(saleId);
    });

    it('counts a chunk once when the answer to its COMMIT is lost: each try is a batch of its own', async () => {
      const saleId = await books.addSale(100);
      await throughProxy(async (proxied, proxy) => {
        const { writer, dead, failures } = books.startWriter({ database: proxied });
        proxy.lose({ request: 'COMMIT', part: 'reply', connection: 'cut' });
        await writer.handle(chunkOf(crowd(saleId, 10)));
        expect([proxy.figures().lost, dead, await books.statesOf(saleId)]).toEqual([
          1,
          [],
          { awaiting_payment: 10 },
        ]);
        // The second try is the last: it recognises what the first one did.
        expect(failures).toEqual(['connection']);
      });
      expect(await books.soldOf(saleId)).toBe(10);
      await books.expectConsistent(saleId);
    });

    it('writes the chunk again when its COMMIT never arrived', async () => {
      const saleId = await books.addSale(100);
      await throughProxy(async (proxied, proxy) => {
        const { writer, dead, failures } = books.startWriter({ database: proxied });
        proxy.lose({ request: 'COMMIT', part: 'request', connection: 'cut' });
        await writer.handle(chunkOf(crowd(saleId, 10)));
        expect([proxy.figures().lost, dead, await books.statesOf(saleId)]).toEqual([
          1,
          [],
          { awaiting_payment: 10 },
        ]);
        expect(failures).toEqual(['connection']);
      });
      await books.expectConsistent(saleId);
    });

    it('hands the chunk back while there is no database, and writes it when there is one', async () => {
      const saleId = await books.addSale(100);
      const records = crowd(saleId, 5);
      await throughProxy(async (proxied, proxy) => {
        const { writer, dead } = books.startWriter({ database: proxied });
        proxy.refuse(true);
        await expect(writer.handle(chunkOf(records))).rejects.toMatchObject({ failure: 'connection' });
        proxy.refuse(false);
        await writer.handle(chunkOf(records));
        expect(dead).toEqual([]);
      });
      expect(await books.statesOf(saleId)).toEqual({ awaiting_payment: 5 });
      await books.expectConsistent(saleId);
    });
  });

  /** Gives the work a database behind a proxy that can lose a COMMIT or its answer. */
  async function throughProxy(work: (database: Database, proxy: FaultProxy) => Promise<void>): Promise<void> {
    const proxy = await FaultProxy.before('mysql', books.url);
    const proxied = new Database({ url: proxy.through(books.url), poolSize: 2, acquireTimeoutMs: 1_000 });
    try {
      await work(proxied, proxy);
    } finally {
      await proxied.close();
      await proxy.stop();
    }
  }
});

const digits = (name: string) =>
  `(SELECT 0 AS n ${Array.from({ length: 40 }, (_, n) => `UNION ALL SELECT ${n + 1}`).join(' ')}) AS ${name}`;

/** Connections whose running statement names the table and waits for a lock of another. */
async function waitersFor(database: Database, table: string): Promise<number[]> {
  // Of this test's own database only: others use the server too. MySQL cannot list a statement with an emoji in it and
  // fails while one runs; then it is looked at again.
  const running = await database
    .query<{ Id: string; Info: string | null }>(
      'SELECT ID AS Id, INFO AS Info FROM information_schema.PROCESSLIST WHERE DB = DATABASE()',
    )
    .catch(() => []);
  return running
    .filter(({ Info }) => Info !== null && Info.includes(`FROM ${table} `) && Info.includes('FOR UPDATE'))
    .map(({ Id }) => Number(Id));
}
async function isWaitingFor(database: Database, table: string): Promise<boolean> {
  return (await waitersFor(database, table)).length > 0;
}
