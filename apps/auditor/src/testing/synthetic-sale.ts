import { createHmac, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { Kafka, logLevel, type Message } from 'kafkajs';
import { createPool, type Pool } from 'mysql2/promise';
import { attemptIdOf, bucketKeys, homeBucketOf } from '../grammar.js';

/**
 * A sale that never ran: every kind of attempt once or more, written by hand into real stores as the services would have
 * left it. It is clean; a test then breaks one thing in it.
 */

/** How an attempt ended: the row's state, for tombstones with the reason, or what its shopper was refused with. */
type Ending =
  | 'paid'
  | 'awaiting_payment'
  | 'cancelled'
  | 'unpaid'
  | 'refunded'
  | 'rejected'
  | 'hold_expired'
  | 'released'
  | 'dead_letter'
  | 'refused';

export interface Story {
  readonly ending: Ending;
  readonly attemptId: string;
  readonly shopperId: string;
  readonly key: string;
  readonly quantity: number;
  readonly bucket: number;
  readonly token: string;
  readonly refusal: string;
}

export type LogLine = Record<string, string | number>;
/** Column values by name, for inserting rows. */
export type SqlRecord = Record<string, string | number | Date | null>;

const LIMIT = 2;
const PRICE = 9_900;
const PARTITIONS = 3;
const BUCKETS = 2;
const SIGNING_SECRET = randomBytes(32);
const TOKEN_KEYS = `test:${SIGNING_SECRET.toString('base64')}`;

/** What each attempt does, in the order in which they are granted; refusals come after all units are taken. */
const SCRIPT: readonly (readonly [Ending, quantity: number, refusal?: string])[] = [
  ['paid', 2],
  ['paid', 1],
  ['paid', 1],
  ['paid', 1],
  ['paid', 1],
  ['awaiting_payment', 2],
  ['awaiting_payment', 1],
  ['cancelled', 1],
  ['cancelled', 1],
  ['unpaid', 1],
  ['unpaid', 2],
  ['refunded', 1],
  ['rejected', 1],
  ['hold_expired', 1],
  ['hold_expired', 1],
  ['released', 1],
  ['refused', 1, 'sold_out'],
  ['refused', 1, 'rate_limited'],
  ['refused', 1, 'sale_closed'],
  ['dead_letter', 1],
];
/** All units were taken at one time, so that `sold_out` was true then. */
export const TOTAL = 20;
/** Units that one bucket sent to the other, so that a transfer is part of the picture. */
const MOVED = 2;

const ORDERED: ReadonlySet<Ending> = new Set([
  'paid',
  'awaiting_payment',
  'cancelled',
  'unpaid',
  'refunded',
  'rejected',
]);
const LIVE: ReadonlySet<Ending> = new Set(['paid', 'awaiting_payment']);
const RETURNED: ReadonlySet<Ending> = new Set(['cancelled', 'unpaid', 'refunded']);

export class SyntheticSale {
  readonly saleId = `aud-${randomBytes(5).toString('hex')}`;
  readonly stories: readonly Story[];
  /** The environment that the auditor needs to find it. */
  readonly env: Record<string, string>;
  /** When the first unit was granted; everything else happens within two minutes after it. */
  readonly startMs = Date.now() - 180_000;
  readonly redis: Redis;
  readonly mysql: Pool;
  private readonly kafka: Kafka;
  readonly folder = mkdtempSync(join(tmpdir(), 'auditor-'));
  private readonly offsets = new Map<string, { partition: number; offset: number }>();

  constructor(servers: { redisUrl: string; kafkaBrokers: string; mysqlUrl: string }) {
    this.stories = this.tellStories();
    this.env = {
      REDIS_URL: servers.redisUrl,
      KAFKA_BROKERS: servers.kafkaBrokers,
      MYSQL_URL: servers.mysqlUrl,
      ORDERS_TOPIC: `aud_orders_${this.saleId}`,
      ORDERS_DLQ_TOPIC: `aud_dlq_${this.saleId}`,
      ORDERS_GROUP: `aud_writer_${this.saleId}`,
      PURCHASE_TOKEN_KEYS: TOKEN_KEYS,
    };
    this.redis = new Redis(servers.redisUrl, { disableClientInfo: true, protocol: 2 });
    this.mysql = createPool({ uri: servers.mysqlUrl, timezone: 'Z', connectionLimit: 2 });
    this.kafka = new Kafka({
      brokers: servers.kafkaBrokers.split(','),
      clientId: 'auditor-test',
      logLevel: logLevel.NOTHING,
    });
  }

  /** The first attempt with an ending; `skip` passes over so many of them. */
  story(ending: Ending, skip = 0): Story {
    const story = this.stories.filter((candidate) => candidate.ending === ending)[skip];
    if (!story) throw new Error(`there is no story ${ending} number ${skip}`);
    return story;
  }

  /** Where the order's record lies. */
  offsetOf({ attemptId }: Story): { partition: number; offset: number } {
    const offset = this.offsets.get(attemptId);
    if (!offset) throw new Error(`${attemptId} has no record`);
    return offset;
  }

  /** Writes the topics; once, since records cannot be taken back. */
  async writeKafka(): Promise<void> {
    const { ORDERS_TOPIC = '', ORDERS_DLQ_TOPIC = '', ORDERS_GROUP = '' } = this.env;
    const admin = this.kafka.admin();
    await admin.connect();
    // Producers give the times here, so that the past can be told; the services' topic stamps records itself.
    const configEntries = [{ name: 'message.timestamp.type', value: 'CreateTime' }];
    await admin.createTopics({
      topics: [
        { topic: ORDERS_TOPIC, numPartitions: PARTITIONS, replicationFactor: 1, configEntries },
        { topic: ORDERS_DLQ_TOPIC, numPartitions: 1, replicationFactor: 1, configEntries },
      ],
      waitForLeaders: true,
    });
    const producer = this.kafka.producer({ allowAutoTopicCreation: false });
    await producer.connect();
    const ends = Array.from({ length: PARTITIONS }, () => 0);
    for (const [index, story] of this.stories.entries()) {
      if (!ORDERED.has(story.ending) && story.ending !== 'dead_letter') continue;
      const partition = index % PARTITIONS;
      const message = this.record(story, partition);
      // The first order was retried: two records, one row.
      const messages = index === 0 ? [message, message] : [message];
      await producer.send({ topic: ORDERS_TOPIC, acks: -1, messages });
      this.offsets.set(story.attemptId, { partition, offset: ends[partition] ?? 0 });
      ends[partition] = (ends[partition] ?? 0) + messages.length;
    }
    // A record of another sale lies between them.
    await producer.send({
      topic: ORDERS_TOPIC,
      messages: [{ key: `other-${'x'.repeat(22)}`, value: '{}', partition: 0 }],
    });
    ends[0] = (ends[0] ?? 0) + 1;
    const dead = this.story('dead_letter');
    const { partition, offset } = this.offsetOf(dead);
    await producer.send({
      topic: ORDERS_DLQ_TOPIC,
      messages: [
        {
          key: dead.attemptId,
          value: 'not json',
          headers: {
            'dlq-topic': ORDERS_TOPIC,
            'dlq-partition': String(partition),
            'dlq-offset': String(offset),
            'dlq-cause': 'not_json',
            'dlq-schema': '',
          },
        },
      ],
    });
    await producer.disconnect();
    await admin.setOffsets({
      groupId: ORDERS_GROUP,
      topic: ORDERS_TOPIC,
      partitions: ends.map((end, partition) => ({ partition, offset: String(end) })),
    });
    await admin.disconnect();
  }

  /** Writes rows and buckets anew, as they are when nothing is broken. */
  async write(): Promise<void> {
    await this.writeRedis();
    await this.writeMysql();
  }

  /** The crowd's log as a file. */
  writeLog(lines: readonly LogLine[] = this.log()): string {
    const file = join(this.folder, `${randomBytes(4).toString('hex')}.jsonl`);
    writeFileSync(file, `${lines.map((line) => JSON.stringify(line)).join('\n')}\n`);
    return file;
  }

  async close(): Promise<void> {
    await this.redis.del(...this.allKeys());
    this.redis.disconnect();
    await this.mysql.end();
    const admin = this.kafka.admin();
    await admin.connect();
    await admin.deleteTopics({
      topics: [this.env['ORDERS_TOPIC'] ?? '', this.env['ORDERS_DLQ_TOPIC'] ?? ''],
    });
    await admin.deleteGroups([this.env['ORDERS_GROUP'] ?? '']);
    await admin.disconnect();
    rmSync(this.folder, { recursive: true, force: true });
  }

  private tellStories(): Story[] {
    const stories: Story[] = [];
    let number = 0;
    for (const [index, [ending, quantity, refusal = '']] of SCRIPT.entries()) {
      // Shoppers are picked so that the buckets take turns.
      do number += 1;
      while (homeBucketOf(`shopper-${number}`, BUCKETS) !== index % BUCKETS);
      const shopperId = `shopper-${number}`;
      const key = `key-${number}`;
      const attemptId = attemptIdOf(this.saleId, shopperId, key);
      const token = signToken({
        a: attemptId,
        k: 'sku-1',
        u: shopperId,
        q: quantity,
        e: 1,
        i: this.startMs + index * 10,
        x: this.startMs + 120_000,
      });
      const bucket = index % BUCKETS;
      stories.push({ ending, attemptId, shopperId, key, quantity, bucket, token, refusal });
    }
    return stories;
  }

  private record({ ending, attemptId, token }: Story, partition: number): Message {
    const value = { v: 1, token, delivery: {}, deliveryHash: 'x'.repeat(22) };
    return {
      key: attemptId,
      partition,
      timestamp: String(this.startMs + 1_000),
      value: ending === 'dead_letter' ? 'not json' : JSON.stringify(value),
    };
  }

  /** Runs a statement. */
  async sql(text: string, values: unknown[] = []): Promise<unknown> {
    const [result] = await this.mysql.query(text, values);
    return result;
  }

  /** Changes a bucket's account by some units. */
  async change(bucket: number, by: Record<string, number>): Promise<void> {
    const { account } = bucketKeys(this.saleId, bucket);
    for (const [field, units] of Object.entries(by)) await this.redis.hincrby(account, field, units);
  }

  /** Changes an attempt's record in Redis. */
  async setAttempt(story: Story, change: (packed: string) => string): Promise<void> {
    const { attempts } = bucketKeys(this.saleId, story.bucket);
    const tail = story.attemptId.slice(-22);
    await this.redis.hset(attempts, tail, change((await this.redis.hget(attempts, tail)) ?? ''));
  }

  /** Removes an order from MySQL as if it had never been decided. */
  async forget({ attemptId }: Story): Promise<void> {
    for (const table of ['orders', 'order_event', 'ledger', 'effect', 'payment']) {
      await this.sql('DELETE FROM ?? WHERE order_id = ?', [table, attemptId]);
    }
  }

  /** The log with one kind of exchange of a story changed. */
  logWith(story: Story, op: string, change: LogLine): LogLine[] {
    return this.log().map((line) => (isOf(line, story, op) ? { ...line, ...change } : line));
  }

  /** The log without one kind of exchange of a story. */
  logWithout(story: Story, op: string): LogLine[] {
    return this.log().filter((line) => !isOf(line, story, op));
  }

  /** What the crowd saw. */
  log(): LogLine[] {
    return this.stories.flatMap((story) => this.exchangesOf(story));
  }

  /** One exchange of a story, `atMs` after the sale's first grant. */
  exchange(story: Story, op: string, answer: LogLine & { atMs: number }): LogLine {
    const { atMs, ...rest } = answer;
    return {
      op,
      attemptId: story.attemptId,
      saleId: this.saleId,
      shopperId: story.shopperId,
      skuId: 'sku-1',
      quantity: story.quantity,
      key: story.key,
      sentMs: this.startMs + atMs,
      receivedMs: this.startMs + atMs + 20,
      code: '',
      state: '',
      contentType:
        Number(rest['http']) >= 400 ? 'application/problem+json; charset=utf-8' : 'application/json',
      ...([429, 503].includes(Number(rest['http'])) ? { retryAfter: '1' } : {}),
      deadlineMs: 10_000,
      bodyHash: op === 'order' ? 'delivery-1' : '',
      answeredId: op === 'entry' || Number(rest['http']) >= 400 ? '' : story.attemptId,
      ...rest,
    };
  }

  private exchangesOf(story: Story): LogLine[] {
    const { ending, token: purchaseToken, refusal } = story;
    if (ending === 'refused') {
      const http = refusal === 'sold_out' ? 410 : refusal === 'rate_limited' ? 429 : 409;
      return [this.exchange(story, 'entry', { atMs: 5_000, http, code: refusal, attemptId: '' })];
    }
    const lines = [this.exchange(story, 'entry', { atMs: 100, http: 201, state: 'granted', purchaseToken })];
    if (ending === 'rejected' || ending === 'dead_letter') {
      lines.push(this.exchange(story, 'order', { atMs: 990, http: 503, code: 'enqueue_unknown' }));
    } else if (ORDERED.has(ending)) {
      lines.push(
        this.exchange(story, 'order', { atMs: 990, http: 202, state: 'queued' }),
        this.exchange(story, 'order-status', {
          atMs: 3_000,
          http: 200,
          state: 'awaiting_payment',
          unitPrice: PRICE,
        }),
      );
    }
    // One shopper changed a mind about the number, under the same key.
    if (story === this.story('paid')) {
      const reused = { http: 422, code: 'idempotency_key_reused', attemptId: '', quantity: 1 };
      lines.push(this.exchange(story, 'entry', { atMs: 500, ...reused }));
    }
    if (ending === 'cancelled')
      lines.push(this.exchange(story, 'cancel', { atMs: 20_000, http: 200, state: 'cancelled' }));
    if (ending === 'released') lines.push(this.exchange(story, 'leave', { atMs: 20_000, http: 204 }));
    return lines;
  }

  /** What the services count when nothing is broken, in Prometheus' text format. */
  metrics(): string {
    const is = (endings: readonly Ending[]) =>
      this.stories.filter(({ ending }) => endings.includes(ending)).length;
    const written = is([...LIVE, ...RETURNED]);
    const sold = this.stories.reduce(
      (sum, { ending, quantity }) => sum + (LIVE.has(ending) ? quantity : 0),
      0,
    );
    const stock = Object.entries({ free: TOTAL - sold, held: 0, queued: 0, sold });
    return [
      '# HELP orders_placed_total Orders asked for, by how they were answered',
      '# TYPE orders_placed_total counter',
      `orders_placed_total{answer="accepted",otel_scope_name="x"} ${written}`,
      'orders_placed_total{answer="enqueue_unknown"} 2',
      `orders_written_total{state="awaiting_payment",reason=""} ${written} 1700000000000`,
      `inventory_tombstones_total{reason="hold_expired"} ${is(['hold_expired'])}`,
      `inventory_tombstones_total{reason="released"} ${is(['released'])}`,
      ...stock.map(([state, units]) => `sale_stock_units{sale="${this.saleId}",state="${state}"} ${units}`),
      'sale_stock_units{sale="another",state="free"} 7',
    ].join('\n');
  }

  private allKeys(): string[] {
    return Array.from({ length: BUCKETS }, (_, bucket) =>
      Object.values(bucketKeys(this.saleId, bucket)),
    ).flat();
  }

  private async writeRedis(): Promise<void> {
    await this.redis.del(...this.allKeys());
    for (let bucket = 0; bucket < BUCKETS; bucket += 1) {
      const keys = bucketKeys(this.saleId, bucket);
      const here = this.stories.filter((story) => story.bucket === bucket && story.ending !== 'refused');
      const live = here.filter(({ ending }) => LIVE.has(ending));
      const sold = live.reduce((sum, { quantity }) => sum + quantity, 0);
      const initial = bucket === 0 ? Math.ceil(TOTAL / BUCKETS) : Math.floor(TOTAL / BUCKETS);
      const [movedIn, movedOut] = bucket === 0 ? [0, MOVED] : [MOVED, 0];
      const free = initial + movedIn - movedOut - sold;
      const account = { initial, free, held: 0, queued: 0, sold, in: movedIn, out: movedOut };
      await this.redis.hset(keys.account, { sku: 'sku-1', epoch: 1, ...account });
      await this.redis.hset(keys.transfers, 'tid-1', bucket === 0 ? `done|${MOVED}|1` : `in|${MOVED}|0`);
      for (const { attemptId, shopperId, quantity, ending } of here) {
        const state = LIVE.has(ending) ? 'C' : 'V';
        const packed = `${state}|${shopperId}|${quantity}|${this.startMs + 120_000}|||||${this.startMs}|1`;
        await this.redis.hset(keys.attempts, attemptId.slice(this.saleId.length + 1), packed);
        await this.redis.hset(keys.shoppers, shopperId, `${LIVE.has(ending) ? quantity : 0}|`);
      }
      await this.redis.hset(keys.attempts, 'a'.repeat(22), `@|${'b'.repeat(22)}`);
    }
  }

  private async writeMysql(): Promise<void> {
    for (const table of TABLES) await this.mysql.query(`DELETE FROM ${table}`);
    const at = (ms: number) => new Date(this.startMs + ms);
    const { saleId } = this;
    await this.insert('sale', {
      sale_id: saleId,
      title: 'A test',
      sku_id: 'sku-1',
      allotment: TOTAL,
      unit_price: PRICE,
      currency: 'CNY',
      opens_at: at(-1_000),
      closes_at: at(100_000),
      limit_per_shopper: LIMIT,
      bucket_count: BUCKETS,
      hold_ms: 120_000,
      pay_ms: 60_000,
      line_mode: 'off',
      admit_per_second: 1_000,
      overbook: 0,
      phase: 'warmed',
      created_at: at(-60_000),
      updated_at: at(-60_000),
    });
    const sold = this.stories.reduce(
      (sum, { ending, quantity }) => sum + (LIVE.has(ending) ? quantity : 0),
      0,
    );
    await this.insert('sale_stock', { sale_id: saleId, total: TOTAL, sold });
    await this.move(`${saleId}:allot:1`, { from: 'allotment', to: 'free', units: TOTAL, at: at(-60_000) });
    for (const story of this.stories) {
      if (story.ending !== 'refused') await this.writeOrder(story, at);
    }
    const dead = this.offsetOf(this.story('dead_letter'));
    await this.insert('dead_letter', {
      topic: this.env['ORDERS_TOPIC'] ?? '',
      partition_number: dead.partition,
      record_offset: dead.offset,
      order_id: this.story('dead_letter').attemptId,
      cause: 'not_json',
      schema_version: '',
      state: 'dropped',
      at: at(2_000),
    });
  }

  private async writeOrder(story: Story, at: (ms: number) => Date): Promise<void> {
    const { ending, attemptId: orderId, shopperId, quantity } = story;
    const ordered = ORDERED.has(ending);
    const row = { sale_id: this.saleId, shopper_id: shopperId };
    const path = PATHS[ending];
    const state = path.at(-1) ?? '';
    const endedAt = at(path.length > 1 ? (ending === 'unpaid' ? 70_000 : 20_000) : ordered ? 1_100 : 30_000);
    const record = ordered ? this.offsetOf(story) : { partition: null, offset: null };
    await this.insert('orders', {
      order_id: orderId,
      ...row,
      sku_id: 'sku-1',
      quantity,
      unit_price: PRICE,
      currency: 'CNY',
      state,
      reason: REASONS[ending] ?? null,
      batch_id: 'batch-1',
      epoch: 1,
      token_expires_at: ordered ? at(120_000) : null,
      kafka_partition: record.partition,
      kafka_offset: record.offset,
      pay_before: ordered && ending !== 'rejected' ? at(61_100) : null,
      version: path.length,
      created_at: ordered ? at(1_100) : endedAt,
      updated_at: endedAt,
    });
    for (const [index, to] of path.entries()) {
      await this.insert('order_event', {
        order_id: orderId,
        seq: index + 1,
        from_state: path[index - 1] ?? 'queued',
        to_state: to,
        cause: 'test',
        at: index === 0 && ordered ? at(1_100) : endedAt,
      });
    }
    const effect = { order_id: orderId, ...row, created_at: endedAt, applied_at: endedAt };
    if (LIVE.has(ending) || RETURNED.has(ending)) {
      const units = { units: quantity, orderId, at: endedAt };
      await this.move(`${orderId}:sell`, { from: 'held', to: 'sold', ...units });
      await this.insert('effect', { ...effect, kind: 'confirm' });
      if (RETURNED.has(ending)) await this.move(`${orderId}:return`, { from: 'sold', to: 'free', ...units });
    }
    if (!LIVE.has(ending))
      await this.insert('effect', { ...effect, kind: 'void', reason: ending.slice(0, 20) });
    if (LIVE.has(ending))
      await this.insert('quota', { sale_id: this.saleId, shopper_id: shopperId, used: quantity });
    if (ending === 'paid') await this.pay(story, { id: 'won', refunded: false, at: endedAt });
    if (ending === 'refunded') await this.pay(story, { id: 'won', refunded: true, at: endedAt });
    // Money that came too late went back.
    if (ending === 'unpaid') await this.pay(story, { id: 'late', refunded: true, at: endedAt });
  }

  /** A captured payment of an order, refunded or not. */
  async pay(story: Story, { id, refunded, at }: { id: string; refunded: boolean; at: Date }): Promise<void> {
    const amount = PRICE * story.quantity;
    const payment_id = `${id}-${story.attemptId.slice(-22)}`;
    const times = { created_at: at, updated_at: at };
    await this.insert('payment', {
      payment_id,
      order_id: story.attemptId,
      sale_id: this.saleId,
      shopper_id: story.shopperId,
      idempotency_key: id,
      body_hash: 'x',
      amount,
      currency: 'CNY',
      method: 'test-card',
      state: 'captured',
      ...times,
    });
    if (!refunded) return;
    await this.insert('refund', { payment_id, order_id: story.attemptId, amount, state: 'done', ...times });
  }

  /** A ledger entry of two legs. */
  async move(
    entryId: string,
    leg: { from: string; to: string; units: number; at: Date; orderId?: string },
  ): Promise<void> {
    const row = { entry_id: entryId, sale_id: this.saleId, order_id: leg.orderId ?? null, at: leg.at };
    await this.insert('ledger', { ...row, account: leg.from, amount: -leg.units });
    await this.insert('ledger', { ...row, account: leg.to, amount: leg.units });
  }

  async insert(table: string, row: SqlRecord): Promise<void> {
    await this.mysql.query('INSERT INTO ?? SET ?', [table, row]);
  }
}

function isOf(line: LogLine, { attemptId }: Story, op: string): boolean {
  return line['attemptId'] === attemptId && line['op'] === op;
}

/** The states that a row went through. */
const PATHS: Readonly<Record<Ending, readonly string[]>> = {
  paid: ['awaiting_payment', 'paid'],
  awaiting_payment: ['awaiting_payment'],
  cancelled: ['awaiting_payment', 'cancelled'],
  unpaid: ['awaiting_payment', 'unpaid'],
  refunded: ['awaiting_payment', 'paid', 'refunding', 'refunded'],
  rejected: ['rejected'],
  hold_expired: ['expired'],
  released: ['expired'],
  dead_letter: ['rejected'],
  refused: [],
};

const REASONS: Readonly<Partial<Record<Ending, string>>> = {
  rejected: 'limit',
  dead_letter: 'poison',
  hold_expired: 'hold_expired',
  released: 'released',
};

const TABLES = [
  'sale',
  'sale_stock',
  'orders',
  'quota',
  'order_event',
  'ledger',
  'effect',
  'payment',
  'refund',
  'dead_letter',
];

function signToken(payload: Record<string, string | number>): string {
  const body = `v1.test.${Buffer.from(JSON.stringify(payload)).toString('base64url')}`;
  return `${body}.${createHmac('sha256', SIGNING_SECRET).update(body).digest('base64url')}`;
}
