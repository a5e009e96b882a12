/** The sweeper on a real Kafka, with a reader in the writer's place that only commits, and MySQL. */
import { randomBytes } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import { BatchConsumer, KafkaAdmin, SupervisedProducer } from '@flash-sale/kafka';
import { until } from '@flash-sale/testing';
import { TestInventory, wishOf } from './fixtures/test-inventory.js';
import type { Inventory } from './inventory.js';
import { bucketKeys } from './keys.js';
import type { KnownSale } from './sale-book.js';

const brokers = (process.env['KAFKA_BROKERS'] ?? '').split(',');
const topic = `inv_${randomBytes(4).toString('hex')}`;
const groupId = `${topic}_writer`;
const kafka = new KafkaAdmin({ brokers, clientId: 'inventory-test' });
const producer = new SupervisedProducer({ brokers, clientId: 'inventory-test' });
const readers: BatchConsumer[] = [];

let world: TestInventory;
let inventory: Inventory;
let second: Inventory;

beforeAll(async () => {
  await kafka.ensureTopic({ topic, partitions: 2 });
  await producer.connect();
  world = await TestInventory.open({ kafka, ordersTopic: topic, ordersGroup: groupId, leaseMs: 300 });
  inventory = await world.instance();
  second = await world.instance();
}, 60_000);
afterEach(() => stopReading());
afterAll(async () => {
  await world.close();
  await producer.close();
  await kafka.deleteTopic(topic);
  await kafka.close();
});

/** Commits everything that is in the topic, like a writer without anything to write. */
async function read(): Promise<void> {
  const reader = new BatchConsumer({
    brokers,
    clientId: 'reader',
    topic,
    groupId,
    handle: () => Promise.resolve(),
  });
  readers.push(reader);
  reader.start();
  await until('the reader to have committed everything', 20_000, async () => {
    const { ends } = await kafka.logBounds(topic);
    const committed = await kafka.committedOffsets(groupId, topic);
    return [...ends].every(([partition, end]) => end === 0n || committed.get(partition) === end);
  });
}
async function stopReading(): Promise<void> {
  await Promise.all(readers.splice(0).map((reader) => reader.stop(5_000)));
}
const produce = async (key: string) => {
  const [sent] = await producer.send(topic, [{ key, value: '{}' }]);
  if (!sent) throw new Error('nothing was sent');
  return sent;
};

const rowOf = async (attemptId: string) =>
  (
    await world.database.query(
      'SELECT state, reason, version, unit_price, kafka_partition, kafka_offset, batch_id FROM orders WHERE order_id = ?',
      [attemptId],
    )
  )[0];
const holdOf = async (sale: KnownSale, shopper: string) => {
  const [found] = await inventory.stock.findHolds([wishOf(sale, shopper)]);
  return found?.outcome === 'hold' ? found.hold : undefined;
};
/** A sale in which holds are over almost at once, known to both instances. */
const briefSale = async (changes: object = {}) => {
  const sale = await world.openSale(inventory, { holdMs: 1, bucketCount: 2, ...changes });
  await second.book.refresh();
  return sale;
};
const pause = (ms = 20) => new Promise((resolve) => setTimeout(resolve, ms));
const insertOrder = (sale: KnownSale, shopper: string, state: string, reason: string | null = null) =>
  world.database.change(
    `INSERT INTO orders (order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, state, reason, batch_id,
       epoch, created_at, updated_at) VALUES (?, ?, ?, 'sku', 1, 1, 'CNY', ?, ?, 'writer', 1, NOW(3), NOW(3))`,
    [wishOf(sale, shopper).attemptId, sale.saleId, shopper, state, reason],
  );

describe('Sweeper', () => {
  it('ends an overdue hold with a tombstone, its event and its effect, and then returns the units', async () => {
    const sale = await briefSale({ allotment: 1 });
    const { attemptId } = wishOf(sale, 'alice');
    await inventory.stock.grant([wishOf(sale, 'alice')]);
    expect((await inventory.stock.grant([wishOf(sale, 'bob')]))[0]?.outcome).toBe('sold_out');
    await pause();
    await Promise.all([inventory.sweeper.pass(), second.sweeper.pass()]);
    expect(await rowOf(attemptId)).toMatchObject({
      state: 'expired',
      reason: 'hold_expired',
      version: 1,
      unit_price: '1999',
    });
    expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'void', reason: 'hold_expired' });
    const events = await world.database.query(
      'SELECT seq, from_state, to_state, cause FROM order_event WHERE order_id = ?',
      [attemptId],
    );
    expect(events).toEqual([{ seq: 1, from_state: 'queued', to_state: 'expired', cause: 'hold_expired' }]);
    const [effect] = await world.database.query('SELECT kind, applied_at FROM effect WHERE order_id = ?', [
      attemptId,
    ]);
    expect(effect).toMatchObject({ kind: 'void', applied_at: expect.any(Date) });
    const [counted] = await world.database.query('SELECT sold FROM sale_stock WHERE sale_id = ?', [
      sale.saleId,
    ]);
    expect(counted).toEqual({ sold: '0' });
    // Bought by somebody else.
    expect((await second.stock.grant([wishOf(sale, 'bob')]))[0]?.outcome).toBe('hold');
  });

  it('returns no unit before the tombstone is committed', async () => {
    const sale = await briefSale({ allotment: 1 });
    const { attemptId } = wishOf(sale, 'alice');
    await inventory.stock.grant([wishOf(sale, 'alice')]);
    await pause();
    let release: (() => void) | undefined;
    const blocked = new Promise<void>((resolve) => {
      release = resolve;
    });
    // Somebody has the row of this attempt, and has not committed it.
    const other = world.database
      .transaction(async (statements) => {
        await statements.change(
          `INSERT INTO orders (order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, state, batch_id, epoch,
             created_at, updated_at) VALUES (?, ?, 'alice', 'sku', 1, 1, 'CNY', 'awaiting_payment', 'w', 1, NOW(3), NOW(3))`,
          [attemptId, sale.saleId],
        );
        await blocked;
        throw new Error('rolled back');
      })
      .catch(() => {});
    await pause(100);
    const sweeping = inventory.sweeper.pass();
    await pause(500);
    expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'expiring' });
    expect([await world.total(sale, 'free'), await world.total(sale, 'held')]).toEqual([0, 1]);
    release?.();
    await Promise.all([other, sweeping]);
    expect(await rowOf(attemptId)).toMatchObject({ state: 'expired' });
    expect([await world.total(sale, 'free'), await world.total(sale, 'held')]).toEqual([1, 0]);
  });

  it('inserts no tombstone while MySQL is away, and keeps the units held', async () => {
    const sale = await briefSale({ allotment: 1 });
    await inventory.stock.grant([wishOf(sale, 'alice')]);
    await pause();
    await world.database.change('RENAME TABLE orders TO orders_away');
    try {
      await expect(inventory.sweeper.pass()).rejects.toThrow(/orders/);
      expect([await world.total(sale, 'free'), await world.total(sale, 'held')]).toEqual([0, 1]);
    } finally {
      await world.database.change('RENAME TABLE orders_away TO orders');
    }
    await pause(350);
    await second.sweeper.pass();
    expect(await world.total(sale, 'free')).toBe(1);
  });

  it('waits until the writer has passed all that was in Kafka, even across passes', async () => {
    const sale = await briefSale();
    const { attemptId } = wishOf(sale, 'alice');
    await inventory.stock.grant([wishOf(sale, 'alice')]);
    await produce(attemptId);
    await pause();
    await inventory.sweeper.pass();
    expect(await rowOf(attemptId)).toBeUndefined();
    expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'expiring' });
    expect(await world.total(sale, 'held')).toBe(1);
    await read();
    await stopReading();
    // Later records are not waited for: this sweeper remembers how far it was when the hold began to expire.
    await produce('somebody-else');
    await produce('and-another-one');
    await pause(350);
    await inventory.sweeper.pass();
    expect(await rowOf(attemptId)).toMatchObject({ state: 'expired' });
    await read();
  }, 60_000);

  it('rejects an attempt whose dead letter was dropped unread, instead of letting it expire', async () => {
    const sale = await briefSale();
    const { attemptId } = wishOf(sale, 'alice');
    await inventory.stock.grant([wishOf(sale, 'alice')]);
    await world.database.change(
      `INSERT INTO dead_letter (topic, partition_number, record_offset, order_id, cause, schema_version, state, at)
       VALUES ('t', 0, 2, ?, 'not_json', '', 'dropped', NOW(3))`,
      [attemptId],
    );
    await pause();
    await inventory.sweeper.pass();
    expect(await rowOf(attemptId)).toMatchObject({ state: 'rejected', reason: 'poison' });
    const events = await world.database.query('SELECT to_state, cause FROM order_event WHERE order_id = ?', [
      attemptId,
    ]);
    expect(events).toEqual([{ to_state: 'rejected', cause: 'poison' }]);
    expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'void', reason: 'poison' });
  });

  it('inserts no tombstone for a hold of an epoch that is over: it may have been ordered with since', async () => {
    const sale = await briefSale();
    const { attemptId } = wishOf(sale, 'alice');
    await inventory.stock.grant([wishOf(sale, 'alice')]);
    await pause();
    const late = await world.instance({
      kafka: {
        logBounds: (name) => kafka.logBounds(name),
        committedOffsets: async (group, name) => {
          await world.database.change(
            'UPDATE sale SET epoch = epoch + 1, version = version + 1 WHERE sale_id = ?',
            [sale.saleId],
          );
          return kafka.committedOffsets(group, name);
        },
      },
    });
    await late.book.refresh();
    await late.sweeper.pass();
    expect(await rowOf(attemptId)).toBeUndefined();
  });

  it('takes up what a dead sweeper had begun, when its lease is over', async () => {
    const sale = await briefSale();
    await inventory.stock.grant([wishOf(sale, 'alice')]);
    await pause();
    const dying = await world.instance({
      kafka: {
        logBounds: () => Promise.reject(new Error('died here')),
        committedOffsets: () => Promise.resolve(new Map()),
      },
    });
    await dying.book.refresh();
    await expect(dying.sweeper.pass()).rejects.toThrow('died here');
    expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'expiring' });
    await second.sweeper.pass();
    expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'expiring' });
    await pause(350);
    await second.sweeper.pass();
    expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'void' });
  });

  it.each([
    ['awaiting_payment', null, 'confirmed', ''],
    ['paid', null, 'confirmed', ''],
    ['rejected', 'limit', 'void', 'limit'],
    ['cancelled', null, 'void', 'cancelled'],
    ['refunded', null, 'void', 'refunding'],
  ])('lets the row decide that came first: %s', async (state, reason, held, because) => {
    const sale = await briefSale();
    await inventory.stock.grant([wishOf(sale, 'alice')]);
    await insertOrder(sale, 'alice', state, reason);
    await pause();
    await inventory.sweeper.pass();
    expect(await holdOf(sale, 'alice')).toMatchObject({ state: held, reason: because });
    expect(await rowOf(wishOf(sale, 'alice').attemptId)).toMatchObject({ state, batch_id: 'writer' });
    const effects = await world.database.query('SELECT kind FROM effect WHERE sale_id = ?', [sale.saleId]);
    expect(effects).toEqual([]);
  });

  it('leaves an attempt alone that lies in the dead letters', async () => {
    const sale = await briefSale();
    const { attemptId } = wishOf(sale, 'alice');
    await inventory.stock.grant([wishOf(sale, 'alice'), wishOf(sale, 'bob')]);
    await world.database.change(
      `INSERT INTO dead_letter (topic, partition_number, record_offset, order_id, cause, schema_version, state, at)
       VALUES ('t', 0, 1, ?, 'bad_signature', '1', 'pending', NOW(3))`,
      [attemptId],
    );
    await pause();
    await inventory.sweeper.pass();
    expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'expiring' });
    expect(await holdOf(sale, 'bob')).toMatchObject({ state: 'void' });
    expect(await inventory.reports.findUnresolved(sale)).toContain('1 dead letters are not decided');
    await world.database.change("UPDATE dead_letter SET state = 'dropped' WHERE order_id = ?", [attemptId]);
    await insertOrder(sale, 'alice', 'rejected', 'poison');
    await pause(350);
    await inventory.sweeper.pass();
    expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'void', reason: 'poison' });
  });

  it('ends a released hold at once, without waiting for the grace', async () => {
    const patient = await world.instance({ graceMs: 60_000 });
    const sale = await world.openSale(patient, { allotment: 1 });
    await patient.stock.grant([wishOf(sale, 'alice')]);
    expect(await patient.stock.release([wishOf(sale, 'alice')])).toEqual(['released']);
    await patient.sweeper.pass();
    expect(await rowOf(wishOf(sale, 'alice').attemptId)).toMatchObject({
      state: 'expired',
      reason: 'released',
    });
    expect(await world.total(sale, 'free')).toBe(1);
  });

  describe('an acknowledged order, overdue', () => {
    const acknowledged = async (
      place: (attemptId: string) => Promise<{ partition: number; offset: bigint }>,
    ) => {
      const hasty = await world.instance({ queuedMs: 1, acknowledgedMs: 1 });
      const sale = await world.openSale(hasty, { holdMs: 300, bucketCount: 1 });
      const wanted = wishOf(sale, 'alice');
      await hasty.stock.grant([wanted]);
      expect(await hasty.stock.queue([{ ...wanted, epoch: 1, deliveryHash: 'd' }])).toEqual(['queued']);
      const { partition, offset } = await place(wanted.attemptId);
      await hasty.stock.recordOffsets([{ ...wanted, partition, offset: String(offset) }]);
      await pause(350);
      await inventory.book.refresh();
      return { sale, attemptId: wanted.attemptId };
    };

    it('is confirmed where its row is there', async () => {
      const { sale } = await acknowledged(produce);
      await insertOrder(sale, 'alice', 'awaiting_payment');
      await inventory.sweeper.pass();
      expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'confirmed' });
    });

    it('is left alone while the writer is only behind', async () => {
      const { sale, attemptId } = await acknowledged(produce);
      await inventory.sweeper.pass();
      expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'queued' });
      expect(await rowOf(attemptId)).toBeUndefined();
    });

    it.each([
      [
        'the writer has passed it without a row',
        async (attemptId: string) => {
          const sent = await produce(attemptId);
          await read();
          return sent;
        },
      ],
      [
        'the log ends before it',
        async () => {
          await read();
          return Promise.resolve({ partition: 0, offset: 1_000_000n });
        },
      ],
    ])(
      'ends as lost, with an alarm and its place in Kafka, where %s',
      async (_, place) => {
        const { sale, attemptId } = await acknowledged(place);
        const where = (await holdOf(sale, 'alice'))?.placedAt;
        await inventory.sweeper.pass();
        expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'expiring', reason: 'lost' });
        await inventory.sweeper.pass();
        expect(await rowOf(attemptId)).toMatchObject({
          state: 'expired',
          reason: 'lost',
          kafka_partition: where?.partition,
          kafka_offset: String(where?.offset),
        });
        expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'void', reason: 'lost' });
        expect(world.lines).toContainEqual(
          expect.objectContaining({ level: 'error', message: expect.stringContaining('Kafka acknowledged') }),
        );
      },
      60_000,
    );
  });

  it('applies effects that nobody has applied, confirmed before void, and marks them then', async () => {
    const sale = await world.openSale(inventory);
    await inventory.stock.grant(['alice', 'bob'].map((shopper) => wishOf(sale, shopper)));
    const effects = (shopper: string, kind: string) =>
      world.database.change('INSERT INTO effect VALUES (?, ?, ?, ?, ?, NOW(3) - INTERVAL 5 SECOND, NULL)', [
        wishOf(sale, shopper).attemptId,
        kind,
        sale.saleId,
        shopper,
        kind === 'void' ? 'cancelled' : null,
      ]);
    await effects('bob', 'void');
    await effects('bob', 'confirm');
    await effects('alice', 'confirm');
    await effects('stranger', 'void');
    await Promise.all([inventory.sweeper.pass(), second.sweeper.pass()]);
    expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'confirmed' });
    expect(await holdOf(sale, 'bob')).toMatchObject({ state: 'void', reason: 'cancelled' });
    expect([await world.total(sale, 'sold'), await world.total(sale, 'free')]).toEqual([1, 9]);
    const [open] = await world.database.query(
      'SELECT COUNT(*) AS n FROM effect WHERE sale_id = ? AND applied_at IS NULL',
      [sale.saleId],
    );
    expect(Number(open?.['n'])).toBe(0);
  });

  it('applies at once what was written before the clock of the database was set back', async () => {
    const sale = await world.openSale(inventory);
    await inventory.stock.grant([wishOf(sale, 'alice')]);
    await world.database.change(
      "INSERT INTO effect VALUES (?, 'confirm', ?, 'alice', NULL, NOW(3) + INTERVAL 5 MINUTE, NULL)",
      [wishOf(sale, 'alice').attemptId, sale.saleId],
    );
    await inventory.sweeper.pass();
    expect(await holdOf(sale, 'alice')).toMatchObject({ state: 'confirmed' });
  });

  it('keeps the effects of a sale that Redis has lost, without holding up those of others', async () => {
    const [lost, well] = [
      await world.openSale(inventory, { bucketCount: 1 }),
      await world.openSale(inventory),
    ];
    await inventory.stock.grant([wishOf(lost, 'alice'), wishOf(well, 'alice')]);
    for (const sale of [lost, well]) {
      await world.database.change(
        "INSERT INTO effect VALUES (?, 'confirm', ?, 'alice', NULL, NOW(3), NULL)",
        [wishOf(sale, 'alice').attemptId, sale.saleId],
      );
    }
    await world.redis.del(bucketKeys(lost.saleId, 0).account);
    await pause();
    await inventory.sweeper.pass();
    const open = await world.database.query('SELECT sale_id FROM effect WHERE applied_at IS NULL');
    expect(open).toEqual([{ sale_id: lost.saleId }]);
    expect(await holdOf(well, 'alice')).toMatchObject({ state: 'confirmed' });
  });

  it('marks no effect of which Redis could not be told', async () => {
    const sale = await world.openSale(inventory, { bucketCount: 1 });
    await inventory.stock.grant([wishOf(sale, 'alice')]);
    await world.database.change("INSERT INTO effect VALUES (?, 'confirm', ?, 'alice', NULL, NOW(3), NULL)", [
      wishOf(sale, 'alice').attemptId,
      sale.saleId,
    ]);
    const { account } = bucketKeys(sale.saleId, 0);
    await world.redis.rename(account, `${account}-away`);
    const effect = { ...wishOf(sale, 'alice'), kind: 'confirm', reason: '' } as const;
    expect(await inventory.effects.apply([effect])).toBe(0);
    const open = () =>
      world.database.query('SELECT kind FROM effect WHERE sale_id = ? AND applied_at IS NULL', [sale.saleId]);
    expect(await open()).toHaveLength(1);
    await world.redis.rename(`${account}-away`, account);
    expect(await inventory.effects.apply([effect])).toBe(1);
    expect(await open()).toHaveLength(0);
  });

  it('says aloud when MySQL sells what Redis knows to be void, but not when an order has only left again', async () => {
    const sale = await world.openSale(inventory);
    await inventory.stock.grant(['alice', 'bob'].map((shopper) => wishOf(sale, shopper)));
    const effect = (shopper: string, kind: 'confirm' | 'void', reason = '') => ({
      ...wishOf(sale, shopper),
      kind,
      reason,
    });
    await inventory.effects.apply([
      effect('alice', 'void', 'cancelled'),
      effect('bob', 'void', 'hold_expired'),
    ]);
    world.lines.length = 0;
    await inventory.effects.apply([effect('alice', 'confirm'), effect('bob', 'confirm')]);
    expect(world.lines.filter(({ level }) => level === 'error').map(({ message }) => message)).toEqual([
      expect.stringMatching(/MySQL has an order .* that Redis knows to be void \(hold_expired\)/),
    ]);
    expect(await world.total(sale, 'sold')).toBe(0);
  });
});
