import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import {
  DEAD_LETTER_HEADERS,
  DEAD_LETTER_TOPIC_CONFIG,
  ORDERS_TOPIC_CONFIG,
  deliveryHashOf,
  encodeOrderEvent,
  type inventory,
} from '@flash-sale/contracts';
import { Database, dropTestDatabase, migrate } from '@flash-sale/database';
import {
  IdempotencyKey,
  SaleId,
  ShopperId,
  SkuId,
  attemptIdOf,
  parseSigningKeys,
  signPurchaseToken,
} from '@flash-sale/domain';
import {
  BatchConsumer,
  KafkaAdmin,
  SupervisedProducer,
  hasPassed,
  type ConsumedMessage,
  type ConsumerOptions,
} from '@flash-sale/kafka';
import { createLog } from '@flash-sale/service';
import { EffectAnnouncer } from './announce-effects.js';
import { DeadLetterTopic } from './dead-letters.js';
import { OrderWriter } from './writer.js';

/** The writer between a real Kafka and a real database: what it consumes, commits, and puts aside. */

const id = randomBytes(4).toString('hex');
const server = process.env['MYSQL_URL'] ?? '';
const url = new URL(`test_order_writer_${id}`, server.endsWith('/') ? server : `${server}/`).href;
const brokers = (process.env['KAFKA_BROKERS'] ?? '').split(',');
const kafka = { brokers, clientId: 'order-writer-test' };
const topic = `ord_write_${id}`;
const deadTopic = `ord_write_${id}_dlq`;
const keys = parseSigningKeys(`k1:${Buffer.alloc(32, 7).toString('base64')}`);
const log = createLog('order-writer-test', 'silent');
const delivery = { name: 'Alice', phone: '+86 138 0000 0000', address: 'Somewhere 1' };
const saleId = SaleId.parse('noon');

const admin = new KafkaAdmin(kafka);
let database: Database;
let producer: SupervisedProducer;
let deadProducer: SupervisedProducer;

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
  await database.change('INSERT INTO sale_stock (sale_id, total, sold) VALUES (?, 1000, 0)', [saleId]);
  await admin.ensureTopic({ topic, partitions: 3, config: ORDERS_TOPIC_CONFIG });
  await admin.ensureTopic({ topic: deadTopic, partitions: 1, config: DEAD_LETTER_TOPIC_CONFIG });
  producer = new SupervisedProducer(kafka);
  deadProducer = new SupervisedProducer({ ...kafka, maxBatch: 1, maxInFlight: 4 });
  await Promise.all([producer.connect(), deadProducer.connect()]);
}, 60_000);
afterAll(async () => {
  await Promise.all([producer.close(), deadProducer.close()]);
  await admin.deleteTopic(topic);
  await admin.deleteTopic(deadTopic);
  await admin.close();
  await database.close();
  await dropTestDatabase(url);
}, 60_000);

async function waitFor(what: string, condition: () => Promise<boolean> | boolean): Promise<void> {
  const deadlineMs = performance.now() + 30_000;
  while (!(await condition())) {
    if (performance.now() > deadlineMs) throw new Error(`waited 30 s in vain for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

function messageOf(shopper: string) {
  const shopperId = ShopperId.parse(shopper);
  const attemptId = attemptIdOf(saleId, shopperId, IdempotencyKey.parse('one'));
  const claims = {
    attemptId,
    saleId,
    skuId: SkuId.parse('sku'),
    shopperId,
    quantity: 1,
    epoch: 1,
    issuedAtMs: 1,
    expiresAtMs: 2,
  };
  const token = signPurchaseToken(claims, keys);
  const value = encodeOrderEvent({ v: 1, token, delivery, deliveryHash: deliveryHashOf(delivery) });
  return { key: attemptId, value, headers: { 'request-id': `request-${shopper}` } };
}

function startConsumer(
  groupId: string,
  apply: (effects: inventory.ApplyEffectsRequest) => Promise<void>,
  options: Partial<ConsumerOptions> = {},
) {
  const announcer = new EffectAnnouncer(
    {
      applyEffects: async (request) => {
        await apply(request);
        return { applied: request.effects.length };
      },
    },
    log,
  );
  const writer = new OrderWriter({
    database,
    deadLetters: new DeadLetterTopic(deadProducer, deadTopic),
    keys,
    announce: announcer.announce,
    log,
  });
  const consumer = new BatchConsumer({
    ...kafka,
    topic,
    groupId,
    handle: (chunk) => writer.handle(chunk),
    concurrency: 3,
    ...options,
  });
  consumer.start();
  return { consumer, announcer };
}

async function hasReadAll(groupId: string): Promise<boolean> {
  const { ends, lows } = await admin.logBounds(topic);
  return hasPassed(await admin.committedOffsets(groupId, topic), ends, lows);
}

const orderCount = async () =>
  Number((await database.query<{ n: string }>('SELECT COUNT(*) AS n FROM orders'))[0]?.n);
const soldCount = async () =>
  Number((await database.query<{ sold: string }>('SELECT sold FROM sale_stock'))[0]?.sold);

describe('the order-writer', () => {
  it('writes what is queued, commits its offsets, puts poison aside with its origin, and tells inventory', async () => {
    const told: string[] = [];
    const orders = Array.from({ length: 60 }, (_, n) => messageOf(`s${n}`));
    const huge = Buffer.alloc(900_000, 'x');
    await producer.send(topic, [...orders.slice(0, 30), ...orders.slice(0, 5)]);
    await producer.send(topic, [{ key: 'poison', value: 'not json', headers: { traceparent: 'x' } }]);
    await producer.send(topic, [{ key: 'huge', value: huge }]);
    await producer.send(topic, orders.slice(30));
    const { consumer, announcer } = startConsumer(`ord_w1_${id}`, async ({ effects }) => {
      told.push(...effects.map((effect) => `${effect.kind} ${effect.attemptId}`));
    });
    await waitFor('all to be read', () => hasReadAll(`ord_w1_${id}`));
    await consumer.stop();
    await announcer.drain();
    expect([await orderCount(), await soldCount()]).toEqual([60, 60]);
    expect(told.sort()).toEqual(orders.map((order) => `CONFIRM ${order.key}`).sort());

    const letters = await readAll(deadTopic, 2);
    expect(letters.map((letter) => letter.value?.length)).toEqual(expect.arrayContaining([8, huge.length]));
    const poison = letters.find((letter) => letter.key === 'poison');
    expect(poison?.headers).toMatchObject({
      [DEAD_LETTER_HEADERS.topic]: topic,
      [DEAD_LETTER_HEADERS.cause]: 'not_json',
    });
    const noted = await database.query<{ partition_number: number; record_offset: string }>(
      `SELECT partition_number, record_offset FROM dead_letter WHERE cause = 'not_json'`,
    );
    expect(noted).toEqual([
      {
        partition_number: Number(poison?.headers[DEAD_LETTER_HEADERS.partition]),
        record_offset: poison?.headers[DEAD_LETTER_HEADERS.offset],
      },
    ]);
  }, 90_000);

  it('changes nothing when everything is delivered again, to another group or after a rewind', async () => {
    const before = [await orderCount(), await soldCount()];
    let told = 0;
    const { consumer } = startConsumer(`ord_w2_${id}`, async ({ effects }) => {
      told += effects.length;
    });
    await waitFor('all to be read again', () => hasReadAll(`ord_w2_${id}`));
    await consumer.stop();
    expect([await orderCount(), await soldCount(), told]).toEqual([...before, 0]);
    const letters = await database.query<{ n: string }>('SELECT COUNT(*) AS n FROM dead_letter');
    expect(Number(letters[0]?.n)).toBe(2);
  }, 90_000);

  it('goes on writing while inventory does not answer', async () => {
    const before = await orderCount();
    const release: (() => void)[] = [];
    const { consumer, announcer } = startConsumer(`ord_w1_${id}`, () => {
      return new Promise((resolve) => release.push(resolve));
    });
    for (let n = 0; n < 8; n += 1) {
      await producer.send(topic, [messageOf(`slow${n}`)]);
      await waitFor('the order to be written', async () => (await orderCount()) === before + n + 1);
    }
    // What is under way is bounded; the outbox has the others.
    expect(release.length).toBe(4);
    for (const done of release) done();
    await announcer.drain();
    await consumer.stop();
    const [waiting] = await database.query<{ n: string }>(
      'SELECT COUNT(*) AS n FROM effect WHERE applied_at IS NULL',
    );
    expect(Number(waiting?.n)).toBe(before + 8);
  }, 90_000);

  it('rests while the database is read-only, longer than a session, and stays in its group', async () => {
    const groupId = `ord_w1_${id}`;
    const before = await orderCount();
    const sessionTimeoutMs = 6_000;
    let joined = 0;
    const noting = createLog('order-writer-test', 'silent');
    noting.info = (_: unknown, message?: string) => {
      if (message === 'joined the consumer group') joined += 1;
    };
    // The server's own answer while it is read-only, by errno; the shared server cannot be made so.
    await database.change(
      `CREATE TRIGGER refuse BEFORE INSERT ON orders FOR EACH ROW
        SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1290, MESSAGE_TEXT = 'running with the --read-only option'`,
    );
    await producer.send(topic, [
      ...Array.from({ length: 30 }, (_, n) => messageOf(`late${n}`)),
      { key: 'late poison', value: 'not json' },
    ]);
    const { consumer } = startConsumer(groupId, async () => undefined, { log: noting, sessionTimeoutMs });
    await waitFor('all partitions to rest', () => consumer.figures().restingPartitions === 3);
    const joins = joined;
    const untilMs = performance.now() + 1.5 * sessionTimeoutMs;
    await waitFor('more than a session to pass', () => performance.now() > untilMs);
    expect([joined, consumer.isHealthy(), await hasReadAll(groupId), await orderCount()]).toEqual([
      joins,
      true,
      false,
      before,
    ]);
    expect(consumer.figures().lagRecords).toBe(31);
    await database.change('DROP TRIGGER refuse');
    await waitFor('all to be written', () => hasReadAll(groupId));
    await consumer.stop();
    expect([await orderCount(), joined]).toEqual([before + 30, joins]);
    // Of the records put aside one is new; the outage made none.
    const letters = await database.query<{ n: string }>('SELECT COUNT(*) AS n FROM dead_letter');
    expect(Number(letters[0]?.n)).toBe(3);
  }, 90_000);

  async function readAll(from: string, count: number): Promise<ConsumedMessage[]> {
    const found: ConsumedMessage[] = [];
    const consumer = new BatchConsumer({
      ...kafka,
      topic: from,
      groupId: `read_${id}`,
      handle: async ({ messages }) => {
        found.push(...messages);
      },
    });
    consumer.start();
    await waitFor('the dead letters', () => found.length >= count);
    await consumer.stop();
    return found;
  }
});
