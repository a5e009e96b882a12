import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { dropTestDatabase, migrate } from '@flash-sale/database';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { Redis } from 'ioredis';
import { CompressionTypes, Kafka, logLevel, type Message } from 'kafkajs';
import { createPool, type Pool } from 'mysql2/promise';
import { attemptIdOf, bucketKeys, homeBucketOf } from './grammar.js';

/**
 * A big sale is audited by the program with a heap in which it could never be kept as a whole. AUDIT_ORDERS makes it bigger:
 * the memory is that of a slice, so that a million orders need hardly more. Time and memory are printed:
 *
 *     AUDIT_ORDERS=1000000 npm test -- apps/auditor/src/memory.int.test.ts
 */
const ORDERS = Number(process.env['AUDIT_ORDERS'] ?? 40_000);
const HEAP_MB = ORDERS > 100_000 ? 128 : 112;
const BATCH = 5_000;
const BUCKETS = 8;
const PRICE = 100;

const MAIN = join(import.meta.dirname, '../dist/main.js');
const saleId = `big-${randomBytes(4).toString('hex')}`;
const mysqlUrl = new URL('/test_auditor_big', process.env['MYSQL_URL']).href;
const redisUrl = new URL('/4', process.env['REDIS_URL']).href;
const kafkaBrokers = process.env['KAFKA_BROKERS'] ?? '';
const topics = { orders: `aud_orders_${saleId}`, dead: `aud_dlq_${saleId}` };
const group = `aud_writer_${saleId}`;
const kafka = new Kafka({ brokers: kafkaBrokers.split(','), logLevel: logLevel.NOTHING });
const redis = new Redis(redisUrl, { disableClientInfo: true, protocol: 2 });
let mysql: Pool;

const startMs = Date.now() - 60_000;
const at = (ms: number) => new Date(startMs + ms);

beforeAll(async () => {
  await dropTestDatabase(mysqlUrl);
  await migrate(mysqlUrl);
  mysql = createPool({ uri: mysqlUrl, timezone: 'Z', connectionLimit: 4 });
  await writeSale();
}, 900_000);

afterAll(async () => {
  for (let bucket = 0; bucket < BUCKETS; bucket += 1) {
    await redis.unlink(...Object.values(bucketKeys(saleId, bucket)));
  }
  redis.disconnect();
  await mysql.end();
  const admin = kafka.admin();
  await admin.connect();
  await admin.deleteTopics({ topics: Object.values(topics) });
  await admin.deleteGroups([group]);
  await admin.disconnect();
  await dropTestDatabase(mysqlUrl);
}, 120_000);

async function insert(table: string, columns: string, rows: readonly (readonly unknown[])[]): Promise<void> {
  await mysql.query(`INSERT INTO ${table} (${columns}) VALUES ?`, [rows]);
}

async function writeSale(): Promise<void> {
  const admin = kafka.admin();
  await admin.connect();
  await admin.createTopics({
    topics: Object.values(topics).map((topic) => ({ topic, numPartitions: 1, replicationFactor: 1 })),
    waitForLeaders: true,
  });
  await insert(
    'sale',
    `sale_id, title, sku_id, allotment, unit_price, currency, opens_at, closes_at, limit_per_shopper, bucket_count, hold_ms,
     pay_ms, line_mode, admit_per_second, overbook, phase, created_at, updated_at`,
    [
      [
        saleId,
        'Big',
        'sku',
        ORDERS,
        PRICE,
        'CNY',
        at(-1_000),
        at(3_600_000),
        1,
        BUCKETS,
        60_000,
        60_000,
        'off',
        1,
        0,
        'warmed',
        at(-2_000),
        at(-2_000),
      ],
    ],
  );
  await insert('sale_stock', 'sale_id, total, sold', [[saleId, ORDERS, ORDERS]]);
  await insert('ledger', 'entry_id, account, sale_id, order_id, amount, at', [
    [`${saleId}:allot:1`, 'allotment', saleId, null, -ORDERS, at(-2_000)],
    [`${saleId}:allot:1`, 'free', saleId, null, ORDERS, at(-2_000)],
  ]);
  const producer = kafka.producer({ allowAutoTopicCreation: false });
  await producer.connect();
  const sold = Array.from({ length: BUCKETS }, () => 0);
  const orders = ordersByKey();
  for (let first = 0; first < ORDERS; first += BATCH) {
    const batch = orders.slice(first, first + BATCH);
    for (const { bucket } of batch) sold[bucket] = (sold[bucket] ?? 0) + 1;
    await Promise.all([
      writeRows(batch, first),
      writeHolds(batch),
      producer.send({
        topic: topics.orders,
        acks: -1,
        compression: CompressionTypes.GZIP,
        messages: batch.map(recordOf),
      }),
    ]);
  }
  for (const [bucket, units] of sold.entries()) {
    const none = { free: 0, held: 0, queued: 0, in: 0, out: 0 };
    await redis.hset(bucketKeys(saleId, bucket).account, { initial: units, sold: units, ...none });
  }
  await producer.disconnect();
  const partitions = [{ partition: 0, offset: String(ORDERS) }];
  await admin.setOffsets({ groupId: group, topic: topics.orders, partitions });
  await admin.disconnect();
}

interface Order {
  readonly orderId: string;
  readonly shopperId: string;
  readonly bucket: number;
}

/** All orders in the order of their keys, in which MySQL only appends. */
function ordersByKey(): Order[] {
  return Array.from({ length: ORDERS }, (_, n) => {
    const shopperId = `shopper-${n}`;
    const bucket = homeBucketOf(shopperId, BUCKETS);
    return { orderId: attemptIdOf(saleId, shopperId, 'k'), shopperId, bucket };
  }).sort((a, b) => (a.orderId < b.orderId ? -1 : 1));
}

/** The rows of some orders; what follows from an order's row is made of it by the database itself. */
async function writeRows(batch: readonly Order[], firstOffset: number): Promise<void> {
  await insert(
    'orders',
    `order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, state, batch_id, epoch, kafka_partition,
     kafka_offset, pay_before, version, created_at, updated_at`,
    batch.map(({ orderId, shopperId }, index) => [
      orderId,
      saleId,
      shopperId,
      'sku',
      1,
      PRICE,
      'CNY',
      'paid',
      'b',
      1,
      0,
      firstOffset + index,
      at(120_000),
      2,
      at(61_000),
      at(62_000),
    ]),
  );
  const range = [batch[0]?.orderId, batch.at(-1)?.orderId];
  const follow = (table: string, ...selects: readonly string[]) =>
    mysql.query(
      `INSERT INTO ${table} ${selects.map((columns) => `SELECT ${columns} FROM orders WHERE order_id BETWEEN ? AND ?`).join(' UNION ALL ')}`,
      selects.flatMap(() => range),
    );
  await Promise.all([
    follow(
      'order_event (order_id, seq, from_state, to_state, cause, at)',
      "order_id, 1, 'queued', 'awaiting_payment', 'test', created_at",
      "order_id, 2, 'awaiting_payment', 'paid', 'test', updated_at",
    ),
    follow(
      'ledger (entry_id, account, sale_id, order_id, amount, at)',
      "CONCAT(order_id, ':sell'), 'held', sale_id, order_id, -1, created_at",
      "CONCAT(order_id, ':sell'), 'sold', sale_id, order_id, 1, created_at",
    ),
    follow(
      `payment (payment_id, order_id, sale_id, shopper_id, idempotency_key, body_hash, amount, currency, method, state,
         created_at, updated_at)`,
      `CONCAT('p-', order_id), order_id, sale_id, shopper_id, 'k', 'x', unit_price, currency, 'test-card', 'captured',
         updated_at, updated_at`,
    ),
    follow('quota (sale_id, shopper_id, used)', 'sale_id, shopper_id, 1'),
    follow(
      'effect (order_id, kind, sale_id, shopper_id, created_at, applied_at)',
      "order_id, 'confirm', sale_id, shopper_id, created_at, created_at",
    ),
  ]);
}

async function writeHolds(batch: readonly Order[]): Promise<void> {
  const pipeline = redis.pipeline();
  for (const [bucket, orders] of Map.groupBy(batch, (order) => order.bucket)) {
    const keys = bucketKeys(saleId, bucket);
    const record = (shopperId: string) => `C|${shopperId}|1|${startMs}||0|1||${startMs}|1`;
    pipeline.hset(
      keys.attempts,
      orders.flatMap(({ orderId, shopperId }) => [orderId.slice(-22), record(shopperId)]),
    );
    pipeline.hset(
      keys.shoppers,
      orders.flatMap(({ shopperId }) => [shopperId, '1|']),
    );
  }
  await pipeline.exec();
}

function recordOf({ orderId, shopperId }: Order): Message {
  const claims = { a: orderId, k: 'sku', u: shopperId, q: 1, e: 1, i: startMs, x: startMs + 3_600_000 };
  const token = `v1.test.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.mac`;
  return { key: orderId, value: JSON.stringify({ v: 1, token, delivery: {}, deliveryHash: 'x' }) };
}

describe('the auditor', () => {
  it(`looks at ${ORDERS} orders with a heap of ${HEAP_MB} MB`, async () => {
    const began = Date.now();
    const printMemory = `process.on('exit', () => process._rawDebug('peak ' + process.resourceUsage().maxRSS))`;
    const child = spawn(
      process.execPath,
      [
        `--max-old-space-size=${HEAP_MB}`,
        `--import=data:text/javascript,${encodeURIComponent(printMemory)}`,
        MAIN,
        '--sale',
        saleId,
        '--json',
      ],
      {
        env: {
          PATH: process.env['PATH'],
          REDIS_URL: redisUrl,
          KAFKA_BROKERS: kafkaBrokers,
          MYSQL_URL: mysqlUrl,
          ORDERS_TOPIC: topics.orders,
          ORDERS_DLQ_TOPIC: topics.dead,
          ORDERS_GROUP: group,
        },
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    );
    let stdout = '';
    let stderr = '';
    child.stdout.on('data', (text: Buffer) => (stdout += text.toString()));
    child.stderr.on('data', (text: Buffer) => (stderr += text.toString()));
    const code = await new Promise((resolve) => child.once('close', resolve));
    const peakMb = Math.round(Number(/peak (\d+)/.exec(stderr)?.[1]) / 1_024);
    process.stdout.write(`${ORDERS} orders: ${Date.now() - began} ms, at most ${peakMb} MB of memory\n`);
    expect({ code, stdout: code === 0 ? '' : stdout + stderr }).toEqual({ code: 0, stdout: '' });
    expect(JSON.parse(stdout.trimEnd().split('\n').at(-1) ?? '')).toMatchObject({
      sold: ORDERS,
      oversold: 0,
      books: { mysql: { paid: ORDERS }, redis: { sold: ORDERS } },
      invariants: { broken: [] },
    });
  }, 600_000);
});
