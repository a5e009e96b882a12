import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { Delivery, deliveryHashOf, encodeOrderEvent } from '@flash-sale/contracts';
import { Database, DatabaseError, dropTestDatabase, migrate, type SqlRow } from '@flash-sale/database';
import {
  AttemptId,
  IdempotencyKey,
  SaleId,
  ShopperId,
  SkuId,
  attemptIdOf,
  decideOrders,
  parseSigningKeys,
  signPurchaseToken,
} from '@flash-sale/domain';
import { createLog } from '@flash-sale/service';
import { CommitProxy } from '@flash-sale/testing';
import type { DeadRecord, SourceRecord } from './dead-letters.js';
import type { Effect } from './write-chunk.js';
import { OrderWriter, type WriterOptions } from './writer.js';

/** Runs on the server of MYSQL_URL and, where MYSQL_REAL_URL names one, on a real MySQL as well. */
const servers: [string, string][] = [['MYSQL_URL', process.env['MYSQL_URL'] ?? '']];
if (process.env['MYSQL_REAL_URL']) servers.push(['MYSQL_REAL_URL', process.env['MYSQL_REAL_URL']]);
else process.stderr.write('order-writer: REAL MYSQL WAS NOT TESTED, because MYSQL_REAL_URL is not set\n');

const keys = parseSigningKeys(`k1:${Buffer.alloc(32, 7).toString('base64')}`);
const otherKeys = parseSigningKeys(`k1:${Buffer.alloc(32, 8).toString('base64')}`);
const delivery: Delivery = { name: '王小明', phone: '+86 138 0000 0000', address: '上海市 🏠 1' };
const skuId = SkuId.parse('sku');
const TOPIC = 'orders.test';

interface Wish {
  readonly saleId: SaleId;
  readonly shopper: string;
  readonly quantity?: number;
  readonly key?: string;
  readonly epoch?: number;
}

let nextOffset = 0;
function recordOf(wish: Wish, partition = 0): SourceRecord & { readonly key: AttemptId } {
  const shopperId = ShopperId.parse(wish.shopper);
  const attemptId = attemptIdOf(wish.saleId, shopperId, IdempotencyKey.parse(wish.key ?? 'one'));
  const claims = {
    attemptId,
    saleId: wish.saleId,
    skuId,
    shopperId,
    quantity: wish.quantity ?? 1,
    epoch: wish.epoch ?? 1,
    issuedAtMs: 1_000,
    expiresAtMs: 2_000,
  };
  const token = signPurchaseToken(claims, keys);
  nextOffset += 1;
  return {
    topic: TOPIC,
    partition,
    offset: BigInt(nextOffset),
    key: attemptId,
    value: encodeOrderEvent({ v: 1, token, delivery, deliveryHash: deliveryHashOf(delivery) }),
    headers: { 'request-id': `request-${wish.shopper}` },
    timestampMs: 1_763_700_000_000,
  };
}
const chunkOf = (messages: readonly SourceRecord[], partition = 0) => ({ topic: TOPIC, partition, messages });
const crowd = (saleId: SaleId, count: number, prefix = 's'): SourceRecord[] =>
  Array.from({ length: count }, (_, n) => recordOf({ saleId, shopper: `${prefix}${n}` }));

async function waitFor(what: string, condition: () => Promise<boolean> | boolean): Promise<void> {
  const deadlineMs = performance.now() + 10_000;
  while (!(await condition())) {
    if (performance.now() > deadlineMs) throw new Error(`waited 10 s in vain for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

describe.each(servers)('OrderWriter on %s', (_, server) => {
  const base = server.endsWith('/') ? server : `${server}/`;
  const url = new URL(`test_order_writer_${randomBytes(4).toString('hex')}`, base).href;
  let database: Database;
  let nextSale = 0;

  beforeAll(async () => {
    await migrate(url);
    database = new Database({ url, poolSize: 8 });
  });
  afterAll(async () => {
    await database.close();
    await dropTestDatabase(url);
  });

  async function addSale(total: number, limitPerShopper = 1): Promise<SaleId> {
    const saleId = SaleId.parse(`sale${(nextSale += 1)}`);
    await database.change(
      `INSERT INTO sale (sale_id, title, sku_id, allotment, unit_price, currency, opens_at, closes_at,
          limit_per_shopper, bucket_count, hold_ms, pay_ms, line_mode, admit_per_second, overbook, phase, created_at,
          updated_at)
        VALUES (?, 'A sale', 'sku', ?, 4200, 'CNY', NOW(3), NOW(3) + INTERVAL 1 DAY, ?, 1, 1000, 90000, 'off', 1000, 0,
          'warmed', NOW(3), NOW(3))`,
      [saleId, total, limitPerShopper],
    );
    await database.change('INSERT INTO sale_stock (sale_id, total, sold) VALUES (?, ?, 0)', [saleId, total]);
    return saleId;
  }

  function startWriter(options: Partial<WriterOptions> = {}) {
    const dead: DeadRecord[] = [];
    const effects: Effect[] = [];
    /** Of tries that were repeated. */
    const failures: string[] = [];
    const listening = createLog('order-writer-test', 'silent');
    listening.warn = (fields: unknown) => {
      const { err } = fields as { err: Error };
      failures.push(err instanceof DatabaseError ? err.failure : err.message);
    };
    const writer = new OrderWriter({
      database,
      deadLetters: {
        send: async (records) => {
          dead.push(...records);
        },
      },
      keys,
      announce: (told) => effects.push(...told),
      log: listening,
      ...options,
    });
    return { writer, dead, effects, failures };
  }

  const rows = <Row extends SqlRow>(table: string, saleId: SaleId) =>
    database.query<Row>(`SELECT * FROM ${table} WHERE sale_id = ?`, [saleId]);
  const statesOf = async (saleId: SaleId) => {
    const found = await rows<{ state: string; reason: string | null }>('orders', saleId);
    const counts: Record<string, number> = {};
    for (const { state, reason } of found) {
      const word = reason ?? state;
      counts[word] = (counts[word] ?? 0) + 1;
    }
    return counts;
  };
  const soldOf = async (saleId: SaleId) =>
    Number((await rows<{ sold: string }>('sale_stock', saleId))[0]?.sold);

  /** What must hold for a sale whatever happened: stock, quota, events, ledger and effects all say the same. */
  async function expectConsistent(saleId: SaleId): Promise<void> {
    const orders = await rows<{ order_id: string; state: string; quantity: number; shopper_id: string }>(
      'orders',
      saleId,
    );
    const live = orders.filter((order) => order.state === 'awaiting_payment');
    const units = live.reduce((sum, order) => sum + order.quantity, 0);
    expect(await soldOf(saleId)).toBe(units);
    const quotas = await rows<{ used: number }>('quota', saleId);
    expect(quotas.reduce((sum, quota) => sum + quota.used, 0)).toBe(units);
    const ledger = await rows<{ account: string; amount: string }>('ledger', saleId);
    const balance = (account: string) =>
      ledger.filter((leg) => leg.account === account).reduce((sum, leg) => sum + Number(leg.amount), 0);
    expect([balance('held') + 0, balance('sold')]).toEqual([-units + 0, units]);
    expect(ledger.length).toBe(2 * live.length);
    const effects = await rows<{ order_id: string; kind: string }>('effect', saleId);
    expect(effects.map((effect) => `${effect.order_id} ${effect.kind}`).sort()).toEqual(
      orders.map((order) => `${order.order_id} ${order.state === 'rejected' ? 'void' : 'confirm'}`).sort(),
    );
    const events = await database.query<{ order_id: string; seq: number; to_state: string }>(
      'SELECT e.* FROM order_event e JOIN orders o ON o.order_id = e.order_id WHERE o.sale_id = ?',
      [saleId],
    );
    expect(events.map((event) => `${event.order_id} ${event.seq} ${event.to_state}`).sort()).toEqual(
      orders.map((order) => `${order.order_id} 1 ${order.state}`).sort(),
    );
  }

  it('writes an order with everything that explains it', async () => {
    const saleId = await addSale(10, 2);
    const { writer, effects } = startWriter();
    const record = recordOf({ saleId, shopper: 'alice', quantity: 2, epoch: 3 }, 4);
    await writer.handle(chunkOf([record], 4));
    const [row] = await rows<SqlRow>('orders', saleId);
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
    const [waits] = await database.query<{ ms: string }>(
      'SELECT TIMESTAMPDIFF(MICROSECOND, created_at, pay_before) DIV 1000 AS ms FROM orders WHERE order_id = ?',
      [record.key],
    );
    expect(Number(waits?.ms)).toBe(90_000);
    expect(effects).toEqual([{ attemptId: record.key, shopperId: 'alice', kind: 'confirm', reason: null }]);
    await expectConsistent(saleId);
  });

  it('decides a duplicate within a chunk once, by its first copy', async () => {
    const saleId = await addSale(10);
    const { writer, effects } = startWriter();
    const first = recordOf({ saleId, shopper: 'bob' });
    const second = { ...first, offset: first.offset + 1n };
    await writer.handle(chunkOf([first, second, recordOf({ saleId, shopper: 'carol' })]));
    expect(await statesOf(saleId)).toEqual({ awaiting_payment: 2 });
    expect(effects.length).toBe(2);
    const [row] = await rows<{ kafka_offset: string }>('orders', saleId);
    expect(row?.kafka_offset).toBe(String(first.offset));
    await expectConsistent(saleId);
  });

  it('drops what an earlier chunk has decided, and tells nobody twice', async () => {
    const saleId = await addSale(10);
    const { writer, effects } = startWriter();
    const records = crowd(saleId, 5);
    await writer.handle(chunkOf(records));
    await writer.handle(chunkOf([...records, recordOf({ saleId, shopper: 'late' })]));
    expect(await statesOf(saleId)).toEqual({ awaiting_payment: 6 });
    expect(effects.length).toBe(6);
    await expectConsistent(saleId);
  });

  it('drops a record whose attempt has a tombstone', async () => {
    const saleId = await addSale(10);
    const { writer, effects } = startWriter();
    const record = recordOf({ saleId, shopper: 'slow' });
    await database.change(
      `INSERT INTO orders (order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, state, reason,
          batch_id, epoch, created_at, updated_at)
        VALUES (?, ?, 'slow', 'sku', 1, 4200, 'CNY', 'expired', 'hold_expired', 'sweeper', 1, NOW(3), NOW(3))`,
      [record.key, saleId],
    );
    await writer.handle(chunkOf([record]));
    expect(await statesOf(saleId)).toEqual({ hold_expired: 1 });
    expect([await soldOf(saleId), effects]).toEqual([0, []]);
  });

  it('rejects what is over the limit, in offset order, also over several chunks', async () => {
    const saleId = await addSale(100, 3);
    const { writer, effects } = startWriter();
    const wish = (key: string, quantity: number) => recordOf({ saleId, shopper: 'greedy', key, quantity });
    await writer.handle(chunkOf([wish('a', 2), wish('b', 2), wish('c', 1)]));
    await writer.handle(chunkOf([wish('d', 1)]));
    expect(await statesOf(saleId)).toEqual({ awaiting_payment: 2, limit: 2 });
    expect(effects.map(({ kind, reason }) => `${kind} ${reason}`)).toEqual([
      'confirm null',
      'void limit',
      'confirm null',
      'void limit',
    ]);
    expect(await soldOf(saleId)).toBe(3);
    await expectConsistent(saleId);
  });

  it('sells exactly the total and rejects the rest as sold out, in offset order', async () => {
    const saleId = await addSale(7);
    const { writer, dead } = startWriter();
    const records = crowd(saleId, 20);
    await writer.handle(chunkOf(records.slice(0, 5)));
    await writer.handle(chunkOf(records.slice(5)));
    expect(await statesOf(saleId)).toEqual({ awaiting_payment: 7, sold_out: 13 });
    const sold = await database.query<{ order_id: string }>(
      `SELECT order_id FROM orders WHERE sale_id = ? AND state = 'awaiting_payment' ORDER BY kafka_offset`,
      [saleId],
    );
    expect(sold.map((row) => row.order_id)).toEqual(records.slice(0, 7).map((record) => record.key));
    expect(dead).toEqual([]);
    await expectConsistent(saleId);
  });

  it('lets chunks of several partitions and sales share one transaction', async () => {
    const first = await addSale(50);
    const second = await addSale(50);
    const { writer } = startWriter();
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
    expect([await statesOf(first), await statesOf(second)]).toEqual([
      { awaiting_payment: 6 },
      { awaiting_payment: 6 },
    ]);
    const batches = await database.query('SELECT DISTINCT batch_id FROM orders WHERE sale_id IN (?)', [
      [first, second],
    ]);
    expect(batches.length).toBe(1);
    await expectConsistent(first);
    await expectConsistent(second);
  });

  it('never puts more than 500 records into one transaction', async () => {
    const saleId = await addSale(2_000);
    const { writer } = startWriter();
    await Promise.all([0, 1, 2].map((n) => writer.handle(chunkOf(crowd(saleId, 400, `p${n}-`)))));
    const batches = await database.query<{ size: string }>(
      'SELECT COUNT(*) AS size FROM orders WHERE sale_id = ? GROUP BY batch_id ORDER BY size',
      [saleId],
    );
    const sizes = batches.map((batch) => Number(batch.size));
    // On a slow machine transactions become smaller.
    expect(Math.max(...sizes)).toBe(500);
    expect(sizes.reduce((sum, size) => sum + size, 0)).toBe(1_200);
    await expectConsistent(saleId);
  });

  it('stays within the total when several writers get the same records in different orders', async () => {
    const saleId = await addSale(60);
    const records = crowd(saleId, 100);
    const writers = Array.from({ length: 4 }, () => startWriter());
    await Promise.all(
      writers.map(async ({ writer }, n) => {
        const mine = n % 2 === 0 ? records : records.toReversed();
        for (let at = 0; at < mine.length; at += 25) await writer.handle(chunkOf(mine.slice(at, at + 25)));
      }),
    );
    expect(await statesOf(saleId)).toEqual({ awaiting_payment: 60, sold_out: 40 });
    expect(writers.flatMap(({ effects }) => effects).length).toBe(100);
    expect(writers.flatMap(({ dead }) => dead)).toEqual([]);
    await expectConsistent(saleId);
  });

  describe('dead letters', () => {
    const token = (saleId: SaleId, signedBy = keys) => {
      const shopperId = ShopperId.parse('mallory');
      const attemptId = attemptIdOf(saleId, shopperId, IdempotencyKey.parse('one'));
      const claims = {
        attemptId,
        saleId,
        skuId,
        shopperId,
        quantity: 1,
        epoch: 1,
        issuedAtMs: 1,
        expiresAtMs: 2,
      };
      return signPurchaseToken(claims, signedBy);
    };
    const event = (fields: object) => Buffer.from(JSON.stringify({ v: 1, delivery, ...fields }));
    const hash = deliveryHashOf(delivery);
    const kinds: [string, string, (saleId: SaleId) => Partial<SourceRecord>][] = [
      ['without a value', 'empty', () => ({ value: null })],
      ['that is no JSON', 'not_json', () => ({ value: Buffer.from('{"v":1,') })],
      ['of another version', 'unknown_version', () => ({ value: event({ v: 2 }) })],
      ['of a version that is no number', 'unknown_version', () => ({ value: event({ v: '版本' }) })],
      ['of another shape', 'wrong_shape', () => ({ value: event({ token: 'x' }) })],
      ['that is huge', 'too_large', () => ({ value: Buffer.alloc(200_000, 'x') })],
      [
        'with a token signed by somebody else',
        'bad_signature',
        (saleId) => ({ value: event({ token: token(saleId, otherKeys), deliveryHash: hash }) }),
      ],
      [
        'under the key of another attempt',
        'wrong_key',
        (saleId) => ({
          key: recordOf({ saleId, shopper: 'victim' }).key,
          value: event({ token: token(saleId), deliveryHash: hash }),
        }),
      ],
      [
        'without a key',
        'wrong_key',
        (saleId) => ({ key: null, value: event({ token: token(saleId), deliveryHash: hash }) }),
      ],
      [
        'of a sale that nobody made',
        'unknown_sale',
        () => recordOf({ saleId: SaleId.parse('nowhere'), shopper: 'lost' }),
      ],
      // A signed epoch that the column cannot hold: only the database finds out.
      [
        'that the database refuses',
        'poison',
        (saleId) => recordOf({ saleId, shopper: 'poison', epoch: 3_000_000_000 }),
      ],
    ];

    it.each(kinds)('keeps a record %s with its cause (%s), and the others go on', async (_, cause, spoil) => {
      const saleId = await addSale(100);
      const { writer, dead } = startWriter();
      const good = crowd(saleId, 8);
      const spoiled: SourceRecord = { ...recordOf({ saleId, shopper: 'spoiled' }), ...spoil(saleId) };
      await writer.handle(chunkOf([...good.slice(0, 5), spoiled, ...good.slice(5)]));
      expect(await statesOf(saleId)).toEqual({ awaiting_payment: 8 });
      expect(dead.map((record) => [record.source.offset, record.cause])).toEqual([[spoiled.offset, cause]]);
      const noted = await database.query(
        'SELECT topic, order_id, cause, state FROM dead_letter WHERE record_offset = ?',
        [spoiled.offset],
      );
      expect(noted).toEqual([{ topic: TOPIC, order_id: spoiled.key, cause, state: 'pending' }]);
      await expectConsistent(saleId);
    });

    it('writes nothing while the dead letter itself is not safe', async () => {
      const saleId = await addSale(10);
      const send = async () => Promise.reject(new Error('Kafka did not acknowledge'));
      const { writer } = startWriter({ deadLetters: { send } });
      const spoiled = { ...recordOf({ saleId, shopper: 'spoiled' }), value: null };
      await expect(writer.handle(chunkOf([...crowd(saleId, 3), spoiled]))).rejects.toThrow('Kafka');
      expect(await statesOf(saleId)).toEqual({});
      expect(
        await database.query('SELECT 1 FROM dead_letter WHERE record_offset = ?', [spoiled.offset]),
      ).toEqual([]);
    });

    it('finds each of several poisoned records among many', async () => {
      const saleId = await addSale(1_000);
      const { writer, dead } = startWriter();
      const poisoned = [17, 18, 99].map((n) => recordOf({ saleId, shopper: `x${n}`, epoch: 3_000_000_000 }));
      const good = crowd(saleId, 97);
      const all = [...good.slice(0, 40), ...poisoned.slice(0, 2), ...good.slice(40), ...poisoned.slice(2)];
      await writer.handle(chunkOf(all));
      expect(await statesOf(saleId)).toEqual({ awaiting_payment: 97 });
      expect(dead.map((record) => record.source.offset)).toEqual(poisoned.map((record) => record.offset));
      await expectConsistent(saleId);
    });

    it('holds nothing against a record while a table is missing', async () => {
      const saleId = await addSale(10);
      const { writer, dead } = startWriter();
      const records = crowd(saleId, 3);
      await database.change('RENAME TABLE effect TO effect_away');
      await expect(writer.handle(chunkOf(records))).rejects.toThrow(DatabaseError);
      await database.change('RENAME TABLE effect_away TO effect');
      expect([dead, await statesOf(saleId)]).toEqual([[], {}]);
      await writer.handle(chunkOf(records));
      expect(await statesOf(saleId)).toEqual({ awaiting_payment: 3 });
    });
  });

  describe('the guards beneath the rule', () => {
    /** A rule that gives everybody everything. */
    const generous: typeof decideOrders = (orders, balances, used) => {
      const endless = new Map([...balances].map(([saleId, balance]) => [saleId, { ...balance, total: 1e9 }]));
      return decideOrders(orders, endless, used);
    };

    it('sells no unit beyond the total though the rule errs: the conditional update refuses', async () => {
      const saleId = await addSale(2);
      await database.change('ALTER TABLE sale_stock DROP CONSTRAINT sold_within_total');
      const { writer, dead } = startWriter({ decide: generous });
      await writer.handle(chunkOf(crowd(saleId, 3)));
      await database.change('ALTER TABLE sale_stock ADD CONSTRAINT sold_within_total CHECK (sold <= total)');
      expect([await soldOf(saleId), dead.length]).toEqual([2, 1]);
      await expectConsistent(saleId);
    });

    it('sells no unit beyond the total though the update errs: the table refuses', async () => {
      const saleId = await addSale(2);
      const overselling = database.change('UPDATE sale_stock SET sold = sold + 3 WHERE sale_id = ?', [
        saleId,
      ]);
      await expect(overselling).rejects.toMatchObject({ failure: 'check' });
    });
  });

  describe('when the database fails', () => {
    it('writes the chunk again after a deadlock, once', async () => {
      const saleId = await addSale(100);
      const { writer, dead, failures } = startWriter();
      const records = crowd(saleId, 10);
      let written: Promise<void> = Promise.resolve();
      // It changes many rows, so that the server chooses the writer as the victim.
      await database.transaction(async (statements) => {
        await statements.change(
          `INSERT INTO webhook_event (event_id, payment_id, result, received_at)
            SELECT CONCAT(?, '-', a.n, '-', b.n), 'p', 'captured', NOW(3) FROM ${digits('a')}, ${digits('b')}`,
          [saleId],
        );
        await statements.query('SELECT sold FROM sale_stock WHERE sale_id = ? FOR UPDATE', [saleId]);
        // The server may still list a statement just answered; now it lists this one, and the writer's is the only other.
        await statements.query('SELECT 1');
        written = writer.handle(chunkOf(records));
        await waitFor('the writer to wait for the stock row', () => isWaitingFor(database, 'sale_stock'));
        await statements.query('SELECT * FROM orders WHERE order_id = ? FOR UPDATE', [records[0]?.key ?? '']);
      });
      await written;
      expect(failures).toContain('deadlock');
      expect([await statesOf(saleId), dead]).toEqual([{ awaiting_payment: 10 }, []]);
      await expectConsistent(saleId);
    });

    it('waits for as long as somebody holds a lock, and never blames a record', async () => {
      const saleId = await addSale(100);
      const impatient = new Database({ url, poolSize: 2, queryTimeoutMs: 100 });
      const { writer, dead } = startWriter({ database: impatient });
      const records = crowd(saleId, 4);
      await database.transaction(async (statements) => {
        await statements.query('SELECT sold FROM sale_stock WHERE sale_id = ? FOR UPDATE', [saleId]);
        await expect(writer.handle(chunkOf(records))).rejects.toMatchObject({ retriable: true });
      });
      await writer.handle(chunkOf(records));
      expect([await statesOf(saleId), dead]).toEqual([{ awaiting_payment: 4 }, []]);
      await expectConsistent(saleId);
      await impatient.close();
    });

    it('writes the chunk again when its connection is killed in the middle of the transaction', async () => {
      const saleId = await addSale(100);
      const { writer, dead } = startWriter();
      let written: Promise<void> = Promise.resolve();
      await database.transaction(async (statements) => {
        await statements.query('SELECT sold FROM sale_stock WHERE sale_id = ? FOR UPDATE', [saleId]);
        // The server may still list a statement just answered; now it lists this one, and the writer's is the only other.
        await statements.query('SELECT 1');
        written = writer.handle(chunkOf(crowd(saleId, 10)));
        await waitFor('the writer to wait for the stock row', () => isWaitingFor(database, 'sale_stock'));
        for (const id of await waitersFor(database, 'sale_stock')) await database.change(`KILL ${id}`);
      });
      await written;
      expect([await statesOf(saleId), dead]).toEqual([{ awaiting_payment: 10 }, []]);
      await expectConsistent(saleId);
    });

    it('counts a chunk once when the answer to its COMMIT is lost: each try is a batch of its own', async () => {
      const saleId = await addSale(100);
      await throughProxy('after COMMIT', async (proxied, proxy) => {
        const { writer, dead, failures } = startWriter({ database: proxied });
        proxy.cutNext();
        await writer.handle(chunkOf(crowd(saleId, 10)));
        expect([proxy.cuts, dead, await statesOf(saleId)]).toEqual([1, [], { awaiting_payment: 10 }]);
        // The second try is the last: it recognises what the first one did.
        expect(failures).toEqual(['connection']);
      });
      expect(await soldOf(saleId)).toBe(10);
      await expectConsistent(saleId);
    });

    it('writes the chunk again when its COMMIT never arrived', async () => {
      const saleId = await addSale(100);
      await throughProxy('before COMMIT', async (proxied, proxy) => {
        const { writer, dead, failures } = startWriter({ database: proxied });
        proxy.cutNext();
        await writer.handle(chunkOf(crowd(saleId, 10)));
        expect([proxy.cuts, dead, await statesOf(saleId)]).toEqual([1, [], { awaiting_payment: 10 }]);
        expect(failures).toEqual(['connection']);
      });
      await expectConsistent(saleId);
    });

    it('hands the chunk back while there is no database, and writes it when there is one', async () => {
      const saleId = await addSale(100);
      const records = crowd(saleId, 5);
      await throughProxy('before COMMIT', async (proxied, proxy) => {
        const { writer, dead } = startWriter({ database: proxied });
        proxy.refuse(true);
        await expect(writer.handle(chunkOf(records))).rejects.toMatchObject({ failure: 'connection' });
        proxy.refuse(false);
        await writer.handle(chunkOf(records));
        expect(dead).toEqual([]);
      });
      expect(await statesOf(saleId)).toEqual({ awaiting_payment: 5 });
      await expectConsistent(saleId);
    });
  });

  /** Gives the work a database behind a proxy that can lose a COMMIT or its answer. */
  async function throughProxy(
    when: 'before COMMIT' | 'after COMMIT',
    work: (database: Database, proxy: CommitProxy) => Promise<void>,
  ): Promise<void> {
    const proxy = await CommitProxy.start(new URL(url), when);
    const proxied = new Database({ url: proxy.url, poolSize: 2, acquireTimeoutMs: 1_000 });
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
  // Of this test's own database only: others use the server too.
  const running = await database.query<{ Id: string; Info: string | null }>(
    'SELECT ID AS Id, INFO AS Info FROM information_schema.PROCESSLIST WHERE DB = DATABASE()',
  );
  return running
    .filter(({ Info }) => Info !== null && Info.includes(`FROM ${table} `) && Info.includes('FOR UPDATE'))
    .map(({ Id }) => Number(Id));
}
async function isWaitingFor(database: Database, table: string): Promise<boolean> {
  return (await waitersFor(database, table)).length > 0;
}
