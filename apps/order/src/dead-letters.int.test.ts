import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { DEAD_LETTER_HEADERS, deliveryHashOf, encodeOrderEvent } from '@flash-sale/contracts';
import { Database, dropTestDatabase, migrate, type SqlRow } from '@flash-sale/database';
import {
  IdempotencyKey,
  SaleId,
  ShopperId,
  SkuId,
  attemptIdOf,
  parseSigningKeys,
  saleIdOf,
  signPurchaseToken,
  type AttemptId,
} from '@flash-sale/domain';
import { BatchConsumer, KafkaAdmin, SupervisedProducer, type ConsumedMessage } from '@flash-sale/kafka';
import { createLog } from '@flash-sale/service';
import { FaultProxy } from '@flash-sale/testing';
import { DeadLetters, type DeadLetter, type DeadLettersOptions, type LetterOutcome } from './dead-letters.js';
import { OperatorLog } from './operator-log.js';

/** Dead letters between a real database and a real Kafka; the writer's part is played by hand. */

const id = randomBytes(4).toString('hex');
const server = process.env['MYSQL_URL'] ?? '';
const url = new URL(`test_order_dead_${id}`, server.endsWith('/') ? server : `${server}/`).href;
const brokers = (process.env['KAFKA_BROKERS'] ?? '').split(',');
const topic = `ord_dead_${id}`;
const keys = parseSigningKeys(`k1:${Buffer.alloc(32, 7).toString('base64')}`);
const log = createLog('order-test', 'silent');
const saleId = SaleId.parse('noon');
const delivery = { name: 'Alice', phone: '+86 138 0000 0000', address: 'Somewhere 1' };

const admin = new KafkaAdmin({ brokers, clientId: 'order-test' });
let database: Database;
let producer: SupervisedProducer;
let consumer: BatchConsumer;
const read: ConsumedMessage[] = [];

beforeAll(async () => {
  await migrate(url);
  database = new Database({ url, poolSize: 8 });
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
  consumer = new BatchConsumer({
    brokers,
    clientId: 'order-test',
    topic,
    groupId: `read_${id}`,
    handle: async ({ messages }) => {
      read.push(...messages);
    },
  });
  consumer.start();
}, 60_000);
afterAll(async () => {
  await consumer.stop();
  await producer.close();
  await admin.deleteTopic(topic);
  await admin.close();
  await database.close();
  await dropTestDatabase(url);
}, 60_000);

const open = (options: Partial<DeadLettersOptions> = {}) =>
  new DeadLetters({ database, producer, topic, keys, log, ...options });

interface Wish {
  readonly sale?: SaleId;
  readonly epoch?: number;
  readonly deliveryHash?: string;
  /** Instead of an honest record's; null where the writer keeps none. */
  readonly value?: Buffer | null;
  readonly cause?: string;
  /** Null: under no key of an attempt. */
  readonly orderId?: null;
}

let next = 0;
/** A pending letter, as the writer leaves it. */
async function addLetter(wish: Wish = {}) {
  const offset = (next += 1);
  const shopperId = ShopperId.parse(`shopper${offset}`);
  const attemptId = attemptIdOf(wish.sale ?? saleId, shopperId, IdempotencyKey.parse('one'));
  const token = signPurchaseToken(
    {
      attemptId,
      saleId: saleIdOf(attemptId),
      skuId: SkuId.parse('sku'),
      shopperId,
      quantity: 2,
      epoch: wish.epoch ?? 3,
      issuedAtMs: 1_000,
      expiresAtMs: 2_000,
    },
    keys,
  );
  const deliveryHash = wish.deliveryHash ?? deliveryHashOf(delivery);
  const value =
    wish.value === undefined ? encodeOrderEvent({ v: 1, token, delivery, deliveryHash }) : wish.value;
  const orderId = wish.orderId === null ? null : attemptId;
  await database.change(
    `INSERT INTO dead_letter (topic, partition_number, record_offset, order_id, cause, schema_version, record_value,
        record_headers, state, at)
      VALUES ('orders.old', 7, ?, ?, ?, '1', ?, ?, 'pending', NOW(3))`,
    [offset, orderId, wish.cause ?? 'poison', value, value && '{"request-id":"r1","schema":"1"}'],
  );
  const [row] = await database.query<{ letter_id: string }>(
    'SELECT letter_id FROM dead_letter WHERE record_offset = ?',
    [offset],
  );
  return { letterId: row?.letter_id ?? '', attemptId, shopperId, offset, token, value };
}

function done(outcome: LetterOutcome): DeadLetter {
  if (outcome.outcome === 'done') return outcome.letter;
  throw new Error(`${outcome.problem}: ${outcome.detail}`);
}
const problemIn = (outcome: LetterOutcome) => (outcome.outcome === 'problem' ? outcome.problem : 'none');

/** What the writer does when it has read the replay. */
const closeAsReplayed = (letterId: string) =>
  database.change(
    `UPDATE dead_letter SET state = 'replayed', closed_at = NOW(3), record_value = NULL, record_headers = NULL
      WHERE letter_id = ?`,
    [letterId],
  );
const orderOf = async (attemptId: AttemptId) =>
  (await database.query<SqlRow>('SELECT * FROM orders WHERE order_id = ?', [attemptId]))[0];
const logOf = async (letterId: string) =>
  (await database.query<SqlRow>('SELECT * FROM operator_log ORDER BY at, entry_id')).filter((entry) =>
    String(entry['detail']).includes(letterId),
  );

/** The records of an attempt in the topic; waits until the reader has seen everything that is there now. */
async function recordsOf(attemptId: AttemptId): Promise<ConsumedMessage[]> {
  const ends = await admin.endOffsets(topic);
  const there = [...ends.values()].reduce((sum, end) => sum + Number(end), 0);
  const deadlineMs = performance.now() + 20_000;
  while (read.length < there) {
    if (performance.now() > deadlineMs) throw new Error('waited 20 s in vain for the records');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return read.filter(({ key }) => key === attemptId);
}

describe('replaying a dead letter', () => {
  it('produces its record once more, under its key, with where it came from', async () => {
    const { letterId, attemptId, offset, value } = await addLetter();
    const letter = done(await open().replay(letterId, 'olga'));
    expect(letter).toMatchObject({
      letterId,
      orderId: attemptId,
      state: 'replaying',
      replayable: true,
      offset,
    });
    const records = await recordsOf(attemptId);
    expect(records.map((record) => record.value)).toEqual([value]);
    expect(records[0]?.headers).toMatchObject({
      'request-id': 'r1',
      schema: '1',
      [DEAD_LETTER_HEADERS.topic]: 'orders.old',
      [DEAD_LETTER_HEADERS.partition]: '7',
      [DEAD_LETTER_HEADERS.offset]: String(offset),
    });
    expect(await logOf(letterId)).toMatchObject([
      {
        operator: 'olga',
        operation: 'dead-letter-replay',
        sale_id: saleId,
        before_phase: 'pending',
        after_phase: 'replaying',
      },
    ]);
  });

  it('produces one record, however often and by however many it is asked for', async () => {
    const { letterId, attemptId } = await addLetter();
    const letters = open();
    const outcomes = await Promise.all(
      ['olga', 'omar', 'olga', 'omar'].map((operator) => letters.replay(letterId, operator)),
    );
    for (const outcome of outcomes) expect(done(outcome).state).toBe('replaying');
    await letters.replay(letterId, 'olga');
    await closeAsReplayed(letterId);
    expect(done(await letters.replay(letterId, 'omar'))).toMatchObject({ state: 'replayed' });
    expect([(await recordsOf(attemptId)).length, (await logOf(letterId)).length]).toEqual([1, 1]);
  });

  it('produces it again where the writer has not had it in its time', async () => {
    const { letterId, attemptId } = await addLetter();
    await open().replay(letterId, 'olga');
    const impatient = open({ replayWithinMs: 0 });
    expect(done(await impatient.replay(letterId, 'olga')).state).toBe('pending');
    expect([(await recordsOf(attemptId)).length, (await logOf(letterId)).length]).toEqual([2, 2]);
  });

  it('leaves the letter open while Kafka is away, and says what to do', async () => {
    const { letterId, attemptId } = await addLetter();
    const away = new SupervisedProducer({ brokers: ['127.0.0.1:9'], clientId: 'order-test' });
    const outcome = await open({ producer: away }).replay(letterId, 'olga');
    expect(outcome).toMatchObject({
      problem: 'unavailable',
      detail: expect.stringContaining('replay it again'),
    });
    await away.close();
    expect(done(await open().replay(letterId, 'olga')).state).toBe('replaying');
    expect((await recordsOf(attemptId)).length).toBe(1);
  });

  it('is refused where nothing could come of it', async () => {
    const letters = open();
    expect(problemIn(await letters.replay('nothing', 'olga'))).toBe('not_found');
    const huge = await addLetter({ value: null, cause: 'too_large' });
    expect(problemIn(await letters.replay(huge.letterId, 'olga'))).toBe('not_replayable');
    const dropped = await addLetter();
    await letters.drop(dropped.letterId, 'olga', 'a test');
    expect(problemIn(await letters.replay(dropped.letterId, 'olga'))).toBe('dead_letter_closed');
    expect(await recordsOf(dropped.attemptId)).toEqual([]);
  });
});

describe('dropping a dead letter', () => {
  it('ends its order as rejected, with event and effect, and records who did it and why', async () => {
    const { letterId, attemptId, shopperId } = await addLetter();
    const letter = done(await open().drop(letterId, 'omar', 'the shopper was told'));
    expect(letter).toMatchObject({ state: 'dropped', orderState: 'rejected', replayable: false });
    expect(await orderOf(attemptId)).toMatchObject({
      sale_id: saleId,
      shopper_id: shopperId,
      quantity: 2,
      unit_price: '4200',
      currency: 'CNY',
      state: 'rejected',
      reason: 'poison',
      epoch: 3,
      delivery: null,
      delivery_hash: deliveryHashOf(delivery),
      kafka_offset: null,
      version: 1,
    });
    const events = await database.query(
      'SELECT seq, from_state, to_state, cause FROM order_event WHERE order_id = ?',
      [attemptId],
    );
    expect(events).toEqual([{ seq: 1, from_state: 'queued', to_state: 'rejected', cause: 'dropped' }]);
    const effects = await database.query('SELECT kind, reason, applied_at FROM effect WHERE order_id = ?', [
      attemptId,
    ]);
    expect(effects).toEqual([{ kind: 'void', reason: 'poison', applied_at: null }]);
    const [entry] = await logOf(letterId);
    expect(entry).toMatchObject({ operator: 'omar', operation: 'dead-letter-drop', after_phase: 'dropped' });
    expect(JSON.parse(String(entry?.['detail']))).toMatchObject({
      orderId: attemptId,
      cause: 'poison',
      reason: 'the shopper was told',
    });
  });

  it('happens once, however often and by however many it is asked for', async () => {
    const { letterId, attemptId } = await addLetter();
    const letters = open();
    const outcomes = await Promise.all(
      ['olga', 'omar', 'olga'].map((operator) => letters.drop(letterId, operator, 'why')),
    );
    for (const outcome of outcomes) expect(done(outcome).state).toBe('dropped');
    expect(done(await letters.drop(letterId, 'olga', 'again')).state).toBe('dropped');
    expect([(await logOf(letterId)).length, (await orderOf(attemptId))?.['version']]).toEqual([1, 1]);
  });

  it('takes of the record only what any column holds', async () => {
    const { letterId, attemptId } = await addLetter({ epoch: 3_000_000_000, deliveryHash: '散'.repeat(22) });
    await open().drop(letterId, 'olga', 'why');
    expect(await orderOf(attemptId)).toMatchObject({
      state: 'rejected',
      epoch: 2 ** 31 - 1,
      delivery_hash: null,
    });
  });

  it('finds the token in a record of a version that nobody can read', async () => {
    const { letterId, attemptId, token, offset } = await addLetter();
    const value = Buffer.from(JSON.stringify({ v: 2, token, parcel: { to: 'Alice' } }));
    await database.change('UPDATE dead_letter SET record_value = ? WHERE record_offset = ?', [value, offset]);
    await open().drop(letterId, 'olga', 'why');
    expect(await orderOf(attemptId)).toMatchObject({ state: 'rejected', reason: 'poison' });
  });

  it.each<[string, Wish]>([
    ['that is not JSON', { value: Buffer.from('{') }],
    [
      'whose token is another attempt’s',
      { value: Buffer.from(JSON.stringify({ v: 1, token: 'v1.k1.x.y' })) },
    ],
    ['without the key of an attempt', { orderId: null, value: null }],
  ])('writes no row for a record %s: the sweeper knows what was held', async (_, wish) => {
    const { letterId, attemptId } = await addLetter(wish);
    expect(done(await open().drop(letterId, 'olga', 'why'))).toMatchObject({
      state: 'dropped',
      orderState: null,
    });
    expect([await orderOf(attemptId), (await logOf(letterId)).length]).toEqual([undefined, 1]);
  });

  it('leaves the order alone that another copy of the record has made', async () => {
    const { letterId, attemptId, shopperId } = await addLetter();
    await database.change(
      `INSERT INTO orders (order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, state, batch_id, epoch,
          created_at, updated_at)
        VALUES (?, ?, ?, 'sku', 2, 4200, 'CNY', 'awaiting_payment', 'b', 1, NOW(3), NOW(3))`,
      [attemptId, saleId, shopperId],
    );
    expect(done(await open().drop(letterId, 'olga', 'why'))).toMatchObject({
      orderState: 'awaiting_payment',
    });
    expect(await database.query('SELECT 1 FROM effect WHERE order_id = ?', [attemptId])).toEqual([]);
  });

  it('tells nobody of an order of a sale that nobody made', async () => {
    const { letterId, attemptId } = await addLetter({ sale: SaleId.parse('nowhere'), cause: 'unknown_sale' });
    await open().drop(letterId, 'olga', 'why');
    expect(await orderOf(attemptId)).toMatchObject({ state: 'rejected', unit_price: '0', currency: 'XXX' });
    expect(await database.query('SELECT 1 FROM effect WHERE order_id = ?', [attemptId])).toEqual([]);
  });

  it('is refused while the letter is being replayed, and once it was', async () => {
    const { letterId, attemptId } = await addLetter();
    const letters = open();
    await letters.replay(letterId, 'olga');
    expect(problemIn(await letters.drop(letterId, 'omar', 'why'))).toBe('in_progress');
    await closeAsReplayed(letterId);
    expect(problemIn(await letters.drop(letterId, 'omar', 'why'))).toBe('dead_letter_closed');
    expect(await orderOf(attemptId)).toBeUndefined();
  });

  it('leaves no trace where the writer closes the letter at the same moment', async () => {
    const { letterId, attemptId } = await addLetter();
    let dropping: Promise<LetterOutcome> | undefined;
    await database.transaction(async (statements) => {
      await statements.change(
        `UPDATE dead_letter SET state = 'replayed', closed_at = NOW(3) WHERE letter_id = ?`,
        [letterId],
      );
      dropping = open().drop(letterId, 'omar', 'why');
      const deadlineMs = performance.now() + 10_000;
      for (;;) {
        const waiting = await database.query(
          `SELECT 1 FROM information_schema.PROCESSLIST WHERE DB = DATABASE() AND INFO LIKE 'UPDATE dead_letter SET state = _dropped%'`,
        );
        if (waiting.length > 0) break;
        if (performance.now() > deadlineMs) throw new Error('the drop never came to the letter');
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    });
    expect(problemIn((await dropping) as LetterOutcome)).toBe('dead_letter_closed');
    expect([await orderOf(attemptId), await logOf(letterId)]).toEqual([undefined, []]);
  });
});

describe('when the answer to a COMMIT is lost', () => {
  it.each(['replay', 'drop'] as const)('a %s is done once, and recorded once', async (call) => {
    const { letterId, attemptId } = await addLetter();
    const proxy = await FaultProxy.before('mysql', url);
    const proxied = new Database({ url: proxy.through(url), poolSize: 2, acquireTimeoutMs: 1_000 });
    try {
      const letters = open({ database: proxied });
      proxy.lose({ request: 'COMMIT', part: 'reply', connection: 'cut' });
      const outcome =
        call === 'drop'
          ? await letters.drop(letterId, 'olga', 'why')
          : await letters.replay(letterId, 'olga');
      expect([proxy.figures().lost, done(outcome).state]).toEqual([
        1,
        call === 'drop' ? 'dropped' : 'replaying',
      ]);
    } finally {
      await proxied.close();
      await proxy.stop();
    }
    expect([(await logOf(letterId)).length, (await recordsOf(attemptId)).length]).toEqual([
      1,
      call === 'drop' ? 0 : 1,
    ]);
  });
});

describe('lists for operators', () => {
  it('give dead letters newest first, by state, a bounded page at a time', async () => {
    const letters = open();
    const added: string[] = [];
    for (let n = 0; n < 5; n += 1) added.push((await addLetter()).letterId);
    await closeAsReplayed(added[2] ?? '');
    const seen: string[] = [];
    let cursor: string | undefined = '';
    while (cursor !== undefined && !added.every((letterId) => seen.includes(letterId))) {
      const page: Awaited<ReturnType<typeof letters.list>> = await letters.list(undefined, cursor, 2);
      expect(page?.rows.length).toBeLessThanOrEqual(2);
      seen.push(...(page?.rows.map(({ letterId }) => letterId) ?? []));
      cursor = page?.nextCursor;
    }
    expect(new Set(seen).size).toBe(seen.length);
    expect(added.every((letterId) => seen.includes(letterId))).toBe(true);
    const replayed = await letters.list('replayed', '', 100);
    expect(replayed?.rows.map(({ letterId }) => letterId)).toContain(added[2]);
    expect(new Set(replayed?.rows.map(({ state }) => state))).toEqual(new Set(['replayed']));
    expect(await letters.list(undefined, 'what?', 10)).toBeUndefined();
  });

  it('give what operators did newest first, of one sale or of all', async () => {
    const operatorLog = new OperatorLog(database);
    const what = { operator: 'olga', saleId: '', before: '', after: '' };
    await operatorLog.record({ ...what, operation: 'degradation', detail: 'polling' });
    const { letterId } = await addLetter();
    await open().drop(letterId, 'omar', 'why');
    const all = await operatorLog.list('', '', 2);
    expect(all?.rows[0]).toMatchObject({
      operation: 'dead-letter-drop',
      saleId,
      before: 'pending',
      after: 'dropped',
    });
    const more = await operatorLog.list('', all?.nextCursor ?? '', 100);
    const operations = [...(all?.rows ?? []), ...(more?.rows ?? [])].map(({ operation }) => operation);
    expect(operations).toContain('degradation');
    const ofSale = await operatorLog.list(saleId, '', 100);
    expect(new Set(ofSale?.rows.map((entry) => entry.saleId))).toEqual(new Set([saleId]));
    expect(await operatorLog.list('', 'what?', 10)).toBeUndefined();
  });
});
