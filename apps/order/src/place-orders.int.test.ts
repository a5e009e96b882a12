import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { decodeOrderEvent, deliveryHashOf, type inventory, type order } from '@flash-sale/contracts';
import { Database, dropTestDatabase, migrate } from '@flash-sale/database';
import {
  IdempotencyKey,
  SaleId,
  ShopperId,
  SkuId,
  attemptIdOf,
  parseSigningKeys,
  signPurchaseToken,
  type AttemptId,
} from '@flash-sale/domain';
import { BatchConsumer, KafkaAdmin, SupervisedProducer, type ConsumedMessage } from '@flash-sale/kafka';
import { createLog } from '@flash-sale/service';
import { OrderPlacer, type OrderPlacerOptions } from './place-orders.js';
import { OrderReader } from './read-orders.js';
import { WriterLag } from './writer-lag.js';

const id = randomBytes(4).toString('hex');
const server = process.env['MYSQL_URL'] ?? '';
const url = new URL(`test_order_${id}`, server.endsWith('/') ? server : `${server}/`).href;
const brokers = (process.env['KAFKA_BROKERS'] ?? '').split(',');
const topic = `ord_place_${id}`;
const keys = parseSigningKeys(`k1:${Buffer.alloc(32, 7).toString('base64')}`);
const log = createLog('order-test', 'silent');
const saleId = SaleId.parse('noon');
const delivery = { name: 'Alice', phone: '+86 138 0000 0000', address: 'Somewhere 1' };
const soon = () => performance.now() + 5_000;
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function waitFor(what: string, condition: () => Promise<boolean> | boolean): Promise<void> {
  const deadlineMs = performance.now() + 10_000;
  while (!(await condition())) {
    if (performance.now() > deadlineMs) throw new Error(`waited 10 s in vain for: ${what}`);
    await sleep(20);
  }
}

let database: Database;
let producer: SupervisedProducer;
const admin = new KafkaAdmin({ brokers, clientId: 'order-test' });

beforeAll(async () => {
  await migrate(url);
  database = new Database({ url, poolSize: 4 });
  await database.change(
    `INSERT INTO sale (sale_id, title, sku_id, allotment, unit_price, currency, opens_at, closes_at, limit_per_shopper,
        bucket_count, hold_ms, pay_ms, line_mode, admit_per_second, overbook, phase, created_at, updated_at)
      VALUES (?, 'A sale', 'sku', 1000, 4200, 'CNY', NOW(3), NOW(3), 10, 1, 1000, 60000, 'off', 1000, 0, 'warmed', NOW(3),
        NOW(3))`,
    [saleId],
  );
  await admin.ensureTopic({ topic, partitions: 3 });
  producer = new SupervisedProducer({ brokers, clientId: 'order-test' });
  await producer.connect();
}, 60_000);
afterAll(async () => {
  await producer.close();
  await admin.deleteTopic(topic);
  await admin.close();
  await database.close();
  await dropTestDatabase(url);
});

const shopperId = ShopperId.parse('alice');
let nextKey = 0;
const newAttempt = () => attemptIdOf(saleId, shopperId, IdempotencyKey.parse(`key${(nextKey += 1)}`));
const tokenOf = (attemptId: AttemptId) =>
  signPurchaseToken(
    {
      attemptId,
      saleId,
      skuId: SkuId.parse('sku'),
      shopperId,
      quantity: 2,
      epoch: 3,
      issuedAtMs: 1_000,
      expiresAtMs: 2_000,
    },
    keys,
  );
const itemOf = (attemptId: AttemptId, changes: Partial<order.PlaceItem> = {}): order.PlaceItem => ({
  purchaseToken: tokenOf(attemptId),
  shopperId,
  delivery,
  context: { traceparent: '', requestId: 'request-1' },
  ...changes,
});

async function addRow(
  attemptId: AttemptId,
  row: { state: string; reason?: string; deliveryHash?: string | null; owner?: string; createdAt?: Date },
): Promise<void> {
  await database.change(
    `INSERT INTO orders (order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, state, reason, batch_id,
        epoch, delivery_hash, created_at, updated_at)
      VALUES (?, ?, ?, 'sku', 2, 4200, 'CNY', ?, ?, 'b', 1, ?, ?, NOW(3))`,
    [
      attemptId,
      saleId,
      row.owner ?? shopperId,
      row.state,
      row.reason ?? null,
      row.deliveryHash === undefined ? deliveryHashOf(delivery) : row.deliveryHash,
      row.createdAt ?? new Date(),
    ],
  );
}

const written = async () => {
  const ends = await admin.endOffsets(topic);
  return [...ends.values()].reduce((sum, end) => sum + Number(end), 0);
};

describe('OrderPlacer', () => {
  let asked: inventory.QueueItem[] = [];
  let recorded: inventory.RecordOffsetItem[] = [];
  beforeEach(() => {
    asked = [];
    recorded = [];
  });

  function startPlacer(outcome: inventory.QueueResult['outcome'], options: Partial<OrderPlacerOptions> = {}) {
    const reader = new OrderReader({
      database,
      stock: { findHold: async () => ({ outcome: 'UNKNOWN', hold: undefined }) },
      lag: { hasWritten: async () => true },
    });
    return new OrderPlacer({
      keys,
      stock: {
        queue: async (item) => {
          asked.push(item);
          return { outcome };
        },
        recordOffsets: async ({ items }) => {
          recorded.push(...items);
          return {};
        },
      },
      reader,
      lag: { isWithinBound: () => true },
      producer,
      topic,
      enqueueWindowMs: 10_000,
      ackWindowMs: 1_500,
      log,
      ...options,
    });
  }

  it('promises an order that Kafka has, and notes where it lies', async () => {
    const attemptId = newAttempt();
    const placer = startPlacer('QUEUED');
    expect(await placer.place(itemOf(attemptId), soon())).toEqual({
      outcome: 'placed',
      orderId: attemptId,
      state: 'queued',
    });
    expect(asked).toMatchObject([
      { attemptId, shopperId, quantity: 2, epoch: 3, deliveryHash: deliveryHashOf(delivery) },
    ]);
    const message = await readMessage(attemptId);
    const decoded = decodeOrderEvent(message.value);
    expect(decoded).toEqual({
      outcome: 'ok',
      event: { v: 1, token: tokenOf(attemptId), delivery, deliveryHash: deliveryHashOf(delivery) },
    });
    expect(message.headers).toMatchObject({ 'request-id': 'request-1', schema: '1' });
    await placer.drain();
    expect(recorded).toMatchObject([{ attemptId, shopperId, offset: String(message.offset) }]);
  });

  it('takes a token signed by us for its shopper only, and then asks nobody', async () => {
    const placer = startPlacer('QUEUED');
    const attemptId = newAttempt();
    const forged = `${tokenOf(attemptId).slice(0, -2)}xx`;
    const answers = [
      await placer.place(itemOf(attemptId, { purchaseToken: forged }), soon()),
      await placer.place(itemOf(attemptId, { shopperId: 'mallory' }), soon()),
      await placer.place(itemOf(attemptId, { delivery: { ...delivery, phone: 'x' } }), soon()),
    ];
    expect(answers).toMatchObject([
      { problem: 'invalid_token' },
      { problem: 'forbidden' },
      { problem: 'invalid' },
    ]);
    expect(asked).toEqual([]);
  });

  it.each([
    ['EXPIRING', 'enqueue_unknown'],
    ['TOKEN_EXPIRED', 'token_expired'],
    ['OTHER_DELIVERY', 'idempotency_key_reused'],
    ['UNAVAILABLE', 'unavailable'],
    ['DECIDED', 'enqueue_unknown'],
    ['UNSPECIFIED', 'enqueue_unknown'],
  ] as const)('produces nothing when the hold is %s, and answers %s', async (outcome, problem) => {
    const before = await written();
    expect(await startPlacer(outcome).place(itemOf(newAttempt()), soon())).toEqual({
      outcome: 'problem',
      problem,
    });
    expect(await written()).toBe(before);
  });

  it('answers a decided order with its state', async () => {
    const attemptId = newAttempt();
    await addRow(attemptId, { state: 'rejected', reason: 'limit' });
    expect(await startPlacer('DECIDED').place(itemOf(attemptId), soon())).toEqual({
      outcome: 'placed',
      orderId: attemptId,
      state: 'rejected',
    });
  });

  describe('when Redis has forgotten the hold', () => {
    it('produces, so that MySQL decides', async () => {
      const attemptId = newAttempt();
      const before = await written();
      expect(await startPlacer('MISSING').place(itemOf(attemptId), soon())).toMatchObject({
        state: 'queued',
      });
      expect(await written()).toBe(before + 1);
    });

    it.each([
      ['an order', { state: 'paid' }, { state: 'paid' }],
      [
        'an order for another address',
        { state: 'paid', deliveryHash: 'x' },
        { problem: 'idempotency_key_reused' },
      ],
      [
        'the tombstone of a hold',
        { state: 'expired', reason: 'hold_expired', deliveryHash: null },
        { problem: 'token_expired' },
      ],
      [
        'an order that Kafka lost',
        { state: 'expired', reason: 'lost', deliveryHash: null },
        { state: 'expired' },
      ],
    ])('produces nothing where MySQL has %s', async (_, row, answer) => {
      const attemptId = newAttempt();
      await addRow(attemptId, row);
      const before = await written();
      expect(await startPlacer('MISSING').place(itemOf(attemptId), soon())).toMatchObject(answer);
      expect(await written()).toBe(before);
    });
  });

  describe('what is not known', () => {
    const unknown = { outcome: 'problem', problem: 'enqueue_unknown' };

    it('is no promise: an acknowledgement that came too late', async () => {
      const placer = startPlacer('QUEUED', {
        producer: {
          enqueue: async () => ({
            topic,
            partition: 0,
            offset: 7n,
            sentAtMs: performance.now() - 1_501,
            settledAtMs: performance.now(),
          }),
        },
      });
      expect(await placer.place(itemOf(newAttempt()), soon())).toEqual(unknown);
      await placer.drain();
      expect(recorded).toEqual([]);
    });

    it('is no promise: one that was in time but handled late, because this process slept', async () => {
      const placer = startPlacer('QUEUED', {
        ackWindowMs: 40,
        producer: {
          enqueue: async () => {
            const sentAtMs = performance.now();
            const sent = { topic, partition: 0, offset: 7n, sentAtMs, settledAtMs: sentAtMs + 1 };
            while (performance.now() < sentAtMs + 60);
            return sent;
          },
        },
      });
      expect(await placer.place(itemOf(newAttempt()), soon())).toEqual(unknown);
    });

    it('is no promise: a send that failed', async () => {
      const enqueue = () => Promise.reject(new Error('Kafka did not acknowledge'));
      expect(
        await startPlacer('QUEUED', { producer: { enqueue } }).place(itemOf(newAttempt()), soon()),
      ).toEqual(unknown);
    });

    it('is no promise: inventory did not answer', async () => {
      const stock = {
        queue: () => Promise.reject(new Error('DEADLINE_EXCEEDED')),
        recordOffsets: async () => ({}),
      };
      const before = await written();
      expect(await startPlacer('QUEUED', { stock }).place(itemOf(newAttempt()), soon())).toEqual(unknown);
      expect(await written()).toBe(before);
    });

    it('never begins to produce when too long has passed since the hold was queued', async () => {
      const stock = {
        queue: async () => {
          await sleep(60);
          return { outcome: 'QUEUED' as const };
        },
        recordOffsets: async () => ({}),
      };
      const before = await written();
      const placer = startPlacer('QUEUED', { stock, enqueueWindowMs: 50 });
      expect(await placer.place(itemOf(newAttempt()), soon())).toEqual(unknown);
      expect(await written()).toBe(before);
    });

    it('never begins to produce when the caller has gone', async () => {
      const before = await written();
      expect(await startPlacer('QUEUED').place(itemOf(newAttempt()), performance.now() - 1)).toEqual(unknown);
      expect(await written()).toBe(before);
    });
  });

  it('keeps its promise though the place in Kafka could not be noted', async () => {
    const stock = {
      queue: async () => ({ outcome: 'QUEUED' as const }),
      recordOffsets: () => Promise.reject(new Error('UNAVAILABLE')),
    };
    const placer = startPlacer('QUEUED', { stock });
    expect(await placer.place(itemOf(newAttempt()), soon())).toMatchObject({ state: 'queued' });
    await placer.drain();
  });

  it('notes the places of a burst in few calls', async () => {
    let calls = 0;
    const stock = {
      queue: async () => ({ outcome: 'QUEUED' as const }),
      recordOffsets: async ({ items }: inventory.RecordOffsetsRequest) => {
        calls += 1;
        recorded.push(...items);
        return {};
      },
    };
    const placer = startPlacer('QUEUED', { stock });
    await Promise.all(Array.from({ length: 300 }, () => placer.place(itemOf(newAttempt()), soon())));
    await placer.drain();
    expect(recorded.length).toBe(300);
    expect(calls).toBeLessThan(30);
  });

  it('takes no new order while the writer is too far behind, but answers what is decided', async () => {
    const placer = startPlacer('QUEUED', { lag: { isWithinBound: () => false } });
    const decided = newAttempt();
    await addRow(decided, { state: 'awaiting_payment' });
    expect(await placer.place(itemOf(newAttempt()), soon())).toMatchObject({ problem: 'unavailable' });
    expect(await placer.place(itemOf(decided), soon())).toMatchObject({ state: 'awaiting_payment' });
    expect(asked).toEqual([]);
  });

  async function readMessage(key: string): Promise<ConsumedMessage> {
    const found: ConsumedMessage[] = [];
    const consumer = new BatchConsumer({
      brokers,
      clientId: 'order-test',
      topic,
      groupId: `read_${key}`,
      handle: async ({ messages }) => {
        found.push(...messages.filter((message) => message.key === key));
      },
    });
    consumer.start();
    await waitFor('the order in Kafka', () => found.length > 0);
    await consumer.stop();
    const [first] = found;
    if (!first) throw new Error('unreachable');
    return first;
  }
});

describe('OrderReader.find', () => {
  const hold: inventory.Hold = {
    attemptId: '',
    shopperId,
    skuId: 'sku',
    quantity: 2,
    epoch: 1,
    grantedAtMs: 1_000,
    deadlineMs: 2_000,
    reason: '',
  };
  const find = (
    orderId: string,
    outcome: inventory.FindHoldResult['outcome'],
    hasWritten: () => Promise<boolean> = async () => true,
  ) =>
    new OrderReader({
      database,
      stock: {
        findHold: async () =>
          outcome === 'UNSPECIFIED' ? Promise.reject(new Error('no answer')) : { outcome, hold },
      },
      lag: { hasWritten },
    }).find(orderId, shopperId, soon());

  it('shows a queued order with the terms of its sale', async () => {
    const orderId = newAttempt();
    expect(await find(orderId, 'QUEUED')).toMatchObject({
      outcome: 'found',
      order: {
        orderId,
        saleId,
        state: 'queued',
        quantity: 2,
        unitPrice: 4200,
        currency: 'CNY',
        payBefore: null,
      },
    });
  });

  it('shows the row where there is one, whatever Redis says', async () => {
    const orderId = newAttempt();
    await addRow(orderId, { state: 'awaiting_payment' });
    expect(await find(orderId, 'QUEUED')).toMatchObject({ order: { state: 'awaiting_payment' } });
  });

  it('does not find somebody else’s, a hold that was never ordered, or what is no id', async () => {
    const [others, never] = [newAttempt(), newAttempt()];
    await addRow(others, { state: 'paid', owner: 'bob' });
    await addRow(never, { state: 'expired', reason: 'released', deliveryHash: null });
    for (const orderId of [others, never, newAttempt(), 'x']) {
      expect(await find(orderId, 'UNKNOWN')).toEqual({ outcome: 'problem', problem: 'not_found' });
    }
  });

  it('shows an order that Kafka lost as expired', async () => {
    const orderId = newAttempt();
    await addRow(orderId, { state: 'expired', reason: 'lost', deliveryHash: null });
    expect(await find(orderId, 'VOID')).toMatchObject({ order: { state: 'expired', reason: 'lost' } });
  });

  it.each(['HELD', 'UNKNOWN'] as const)(
    'does not say that an order is not there while the writer may still write it (%s in Redis)',
    async (outcome) => {
      expect(await find(newAttempt(), outcome, async () => false)).toEqual({
        outcome: 'problem',
        problem: 'unavailable',
      });
    },
  );

  it.each(['HELD', 'UNKNOWN', 'CONFIRMED', 'VOID'] as const)(
    'finds the row that was written while it looked (%s in Redis)',
    async (outcome) => {
      const orderId = newAttempt();
      const reader = new OrderReader({
        database,
        stock: {
          findHold: async () => {
            if (outcome === 'CONFIRMED' || outcome === 'VOID') await addRow(orderId, { state: 'paid' });
            return { outcome, hold };
          },
        },
        lag: {
          hasWritten: async () => {
            await addRow(orderId, { state: 'paid' });
            return true;
          },
        },
      });
      expect(await reader.find(orderId, shopperId, soon())).toMatchObject({ order: { state: 'paid' } });
    },
  );

  it.each(['UNAVAILABLE', 'UNSPECIFIED', 'CONFIRMED'] as const)(
    'is not available rather than not found when Redis says %s and there is no row',
    async (outcome) => {
      expect(await find(newAttempt(), outcome)).toEqual({ outcome: 'problem', problem: 'unavailable' });
    },
  );
});

describe('OrderReader.list', () => {
  it('gives a shopper’s orders page by page, newest first, without holds that were never ordered', async () => {
    const reader = new OrderReader({
      database,
      stock: { findHold: async () => ({ outcome: 'UNKNOWN', hold: undefined }) },
      lag: { hasWritten: async () => true },
    });
    const owner = 'lister';
    const orderIds = Array.from({ length: 5 }, newAttempt);
    for (const [n, orderId] of orderIds.entries()) {
      // Two at the same moment: the cursor must tell them apart.
      const createdAt = new Date(1_800_000_000_000 + Math.floor(n / 2));
      await addRow(orderId, { state: 'paid', owner, createdAt });
    }
    await addRow(newAttempt(), { state: 'expired', reason: 'released', deliveryHash: null, owner });
    const seen: string[] = [];
    let cursor = '';
    do {
      const page = await reader.list(owner, cursor, 2);
      seen.push(...(page?.rows.map((row) => row.orderId) ?? []));
      cursor = page?.nextCursor ?? '';
    } while (cursor !== '');
    const at = (n: number) => orderIds[n] ?? '';
    const pair = (one: number, other: number) => [at(one), at(other)].sort().toReversed();
    expect(seen).toEqual([at(4), ...pair(2, 3), ...pair(0, 1)]);
    expect(await reader.list(owner, 'no cursor', 2)).toBeUndefined();
  });
});

describe('WriterLag', () => {
  it('knows how far the writer is behind, and waits until it has passed an order', async () => {
    const group = `ord_lag_${id}`;
    const lagTopic = `ord_lag_${id}`;
    await admin.ensureTopic({ topic: lagTopic, partitions: 2 });
    const lag = new WriterLag({
      admin,
      topic: lagTopic,
      group,
      maxLag: 5,
      log,
      pollEveryMs: 50,
      staleAfterMs: 400,
    });
    expect(lag.isWithinBound()).toBe(false);
    lag.start();
    await waitFor('the lag to be known', () => lag.wasKnown());
    expect(lag.isWithinBound()).toBe(true);
    const messages = Array.from({ length: 12 }, (_, n) => ({ key: `order${n}`, value: 'x' }));
    await producer.send(lagTopic, messages);
    await waitFor('the lag to be seen', () => !lag.isWithinBound());
    expect(await lag.hasWritten('order3', performance.now() + 200)).toBe(false);
    const consumer = new BatchConsumer({
      brokers,
      clientId: 'order-test',
      topic: lagTopic,
      groupId: group,
      handle: async () => undefined,
    });
    consumer.start();
    expect(await lag.hasWritten('order3', performance.now() + 15_000)).toBe(true);
    await waitFor('the lag to be gone', () => lag.isWithinBound());
    await consumer.stop();
    await lag.stop();
    // What was known is not known any more after a while.
    await sleep(450);
    expect(lag.isWithinBound()).toBe(false);
    await admin.deleteTopic(lagTopic);
  }, 60_000);

  it('does not say that an order was written when Kafka cannot be asked', async () => {
    const broken = {
      logBounds: () => Promise.reject(new Error('no broker')),
      committedOffsets: async () => new Map(),
    };
    const lag = new WriterLag({ admin: broken, topic, group: 'g', maxLag: 5, log });
    expect(await lag.hasWritten('order', soon())).toBe(false);
  });
});
