import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { dropTestDatabase, migrate } from '@flash-sale/database';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { auditSale } from './audit.js';
import { readStoreAddresses } from './env.js';
import { bucketKeys } from './grammar.js';
import { INVARIANTS } from './invariants.js';
import { MysqlReader } from './read-mysql.js';
import type { EvidenceOptions } from './read-stores.js';
import type { Verdict } from './report.js';
import { takeSnapshot } from './snapshot.js';
import { ANSWER_MUTATIONS } from './testing/answer-mutations.js';
import { STORE_MUTATIONS } from './testing/mutations.js';
import { SyntheticSale, TOTAL, type LogLine } from './testing/synthetic-sale.js';

/**
 * One mutation per invariant and more: a clean sale lies in real stores, one thing in it is broken, and the auditor must
 * name that invariant with a witness. Other invariants may break with it; the one that is asked for must not be missing.
 */

function address(name: 'REDIS_URL' | 'KAFKA_BROKERS' | 'MYSQL_URL', path = ''): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set; run the tests with npm test`);
  if (path === '') return value;
  const url = new URL(value);
  url.pathname = path;
  return url.href;
}

const MUTATIONS = [...STORE_MUTATIONS, ...ANSWER_MUTATIONS];

const mysqlUrl = address('MYSQL_URL', '/test_auditor');
let sale: SyntheticSale;
/** The ledger as it is while nothing is broken. */
let snapshotFile: string;
/** What the services say when they are asked for their counters. */
let metrics = '';
const metricsServer = createServer((_request, response) => response.end(metrics));
let metricsUrl: string;

beforeAll(async () => {
  metricsServer.listen(0, '127.0.0.1');
  await once(metricsServer, 'listening');
  metricsUrl = `http://127.0.0.1:${(metricsServer.address() as AddressInfo).port}/metrics`;
  await dropTestDatabase(mysqlUrl);
  await migrate(mysqlUrl);
  sale = new SyntheticSale({
    redisUrl: address('REDIS_URL', '/4'),
    kafkaBrokers: address('KAFKA_BROKERS'),
    mysqlUrl,
  });
  await sale.writeKafka();
  await sale.write();
  snapshotFile = join(sale.folder, 'ledger.jsonl');
  const mysql = new MysqlReader(mysqlUrl);
  await mysql.connect();
  await takeSnapshot(snapshotFile, sale.saleId, mysql);
  await mysql.close();
}, 60_000);

afterAll(async () => {
  metricsServer.close();
  await sale.close();
  await dropTestDatabase(mysqlUrl);
});

beforeEach(async () => {
  metrics = sale.metrics();
  await sale.write();
});

type Options = Partial<EvidenceOptions> & {
  readonly env?: Record<string, string>;
  readonly invariants?: typeof INVARIANTS;
};

async function audit(log: readonly LogLine[] | null = sale.log(), options: Options = {}): Promise<Verdict> {
  const { env, invariants, ...rest } = options;
  const { verdict } = await auditSale(
    {
      saleId: sale.saleId,
      logFile: log === null ? null : sale.writeLog(log),
      snapshotFile,
      metricsUrls: [metricsUrl],
      faults: false,
      healedAtMs: null,
      quietWaitMs: 0,
      ...rest,
    },
    readStoreAddresses({ ...sale.env, ...env }),
    invariants,
  );
  return verdict;
}

describe('a clean sale', () => {
  it('breaks nothing, leaves no invariant without something to look at, and gives every figure', async () => {
    const verdict = await audit();
    expect(verdict.breaches).toEqual([]);
    expect(verdict).toEqual({
      saleId: sale.saleId,
      quiet: true,
      allotment: TOTAL,
      sold: 9,
      oversold: 0,
      undersold: TOTAL - 9,
      accepted: 12,
      rejectedAfterAccept: 0,
      lost: 0,
      duplicates: 0,
      duplicateRecords: 1,
      refused: {
        enqueue_unknown: 2,
        idempotency_key_reused: 1,
        sold_out: 1,
        rate_limited: 1,
        sale_closed: 1,
      },
      latencyMs: {
        entry: { p50: 20, p95: 20, p99: 20 },
        order: { p50: 20, p95: 20, p99: 20 },
        acceptedToWritten: { p50: 100, p95: 100, p99: 100 },
      },
      books: {
        redis: { free: TOTAL - 9, held: 0, queued: 0, sold: 9, openTransfers: 0 },
        mysql: {
          total: TOTAL,
          sold: 9,
          paid: 6,
          returned: 6,
          ordersByState: {
            paid: 5,
            awaiting_payment: 2,
            cancelled: 2,
            unpaid: 2,
            refunded: 1,
            rejected: 2,
            expired: 3,
          },
          rejectedByReason: { limit: 1, poison: 1, hold_expired: 2, released: 1 },
          unappliedEffects: 0,
        },
        kafka: { endOffset: 16, committed: 16, lag: 0 },
      },
      invariants: { checked: INVARIANTS.length, broken: [], unchecked: [] },
      breaches: [],
      breachCounts: {},
    });
  });

  it('is judged the same however small the slices are that are looked at together', async () => {
    const whole = await audit();
    expect(await audit(sale.log(), { attemptsPerSlice: 1 })).toEqual(whole);
    expect(await audit(sale.log(), { attemptsPerSlice: 5 })).toEqual(whole);
  });

  it('is judged without a log, counters or a snapshot too, and says what could not be checked', async () => {
    const verdict = await audit(null, { snapshotFile: null, metricsUrls: [] });
    const { broken, unchecked, checked } = verdict.invariants;
    const needsLog = ['I5', 'I6', 'I8', 'I9', 'I11', 'I12', 'I13', 'I26', 'I27'];
    expect(broken).toEqual([]);
    expect(unchecked.filter(({ why }) => why.includes('--log')).map(({ id }) => id)).toEqual(needsLog);
    expect(unchecked.filter(({ why }) => why.includes('--metrics')).map(({ id }) => id)).toEqual(['I28']);
    expect(unchecked.filter(({ why }) => why.includes('--snapshot')).map(({ id }) => id)).toEqual(['I21']);
    expect(checked).toBe(INVARIANTS.length - needsLog.length - 1);
    expect(verdict.latencyMs.entry).toEqual({ p50: null, p95: null, p99: null });
  });

  it('may have a visible refusal after the 202 where faults were injected, and only there', async () => {
    const lines = sale.logWith(sale.story('rejected'), 'order', { http: 202, code: '', state: 'queued' });
    // Who was promised something is counted by the services as well.
    const metricsUrls: string[] = [];
    expect(await audit(lines, { metricsUrls })).toMatchObject({
      rejectedAfterAccept: 1,
      lost: 0,
      invariants: { broken: ['I6'] },
    });
    expect(await audit(lines, { faults: true })).toMatchObject({
      rejectedAfterAccept: 1,
      lost: 0,
      invariants: { broken: [] },
    });
  });

  it('may have lost an order whose record Kafka lost, where faults were injected', async () => {
    // An order was accepted; its row names an offset beyond the log's end, where the record was before a truncation.
    const story = sale.story('hold_expired');
    const accepted = sale.exchange(story, 'order', { atMs: 990, http: 202, state: 'queued' });
    await sale.sql(
      "UPDATE orders SET reason = 'lost', kafka_partition = 0, kafka_offset = 999 WHERE order_id = ?",
      [story.attemptId],
    );
    const lines = [...sale.log(), accepted];
    expect(await audit(lines, { faults: true })).toMatchObject({ lost: 0, invariants: { broken: [] } });
    expect((await audit(lines, { metricsUrls: [] })).invariants.broken).toEqual(['I9']);
  });

  it('is waited for until it is at rest, and read as it is after that', async () => {
    const story = sale.story('awaiting_payment');
    await sale.sql('UPDATE effect SET applied_at = NULL WHERE order_id = ?', [story.attemptId]);
    expect(await audit(sale.log(), { quietWaitMs: 300 })).toMatchObject({ quiet: false });
    const later = setTimeout(() => {
      void sale.sql('UPDATE effect SET applied_at = NOW(3) WHERE order_id = ?', [story.attemptId]);
    }, 400);
    expect(await audit(sale.log(), { quietWaitMs: 5_000 })).toMatchObject({ quiet: true });
    clearTimeout(later);
  });

  it('changes nothing by being audited', async () => {
    const keys = bucketKeys(sale.saleId, 0);
    const dump = async () => ({
      orders: await sale.sql('SELECT * FROM orders ORDER BY order_id'),
      redis: await sale.redis.hgetall(keys.attempts),
      keys: (await sale.redis.keys(`fs:{${sale.saleId}*`)).sort(),
    });
    const before = await dump();
    await audit();
    expect(await dump()).toEqual(before);
  });
});

describe('the auditor names', () => {
  it.each(MUTATIONS.map((mutation) => [mutation.breaks, mutation.when, mutation] as const))(
    '%s when %s',
    async (breaks, _when, mutation) => {
      const { log, witness, figures, env, healedAtMs } = mutation;
      await mutation.mutate?.(sale);
      if (mutation.metrics) {
        metrics = mutation.metrics(sale.metrics());
        expect(metrics).not.toBe(sale.metrics());
      }
      const healed = healedAtMs === undefined ? {} : { faults: true, healedAtMs: sale.startMs + healedAtMs };
      const verdict = await audit(log?.(sale), { ...(env ? { env } : {}), ...healed });
      expect(verdict.invariants.broken).toContain(breaks);
      const breaches = verdict.breaches.filter(({ invariant }) => invariant === breaks);
      expect(breaches).toContainEqual(
        expect.objectContaining({
          message: expect.any(String),
          witness: expect.objectContaining(witness(sale)),
        }),
      );
      if (figures) expect(verdict).toMatchObject(figures);
    },
  );

  it('I7 when an order has two rows, whatever the schema says', async () => {
    const { attemptId } = sale.story('awaiting_payment');
    await sale.sql('ALTER TABLE orders DROP PRIMARY KEY');
    try {
      await sale.sql('INSERT INTO orders SELECT * FROM orders WHERE order_id = ?', [attemptId]);
      const verdict = await audit();
      expect(verdict.duplicates).toBe(1);
      expect(verdict.breaches).toContainEqual(
        expect.objectContaining({ invariant: 'I7', witness: { order_id: attemptId } }),
      );
    } finally {
      await sale.sql('DELETE FROM orders');
      await sale.sql('ALTER TABLE orders ADD PRIMARY KEY (order_id)');
    }
  });

  it('nothing for a record that is a dead letter, though it has no row', async () => {
    await sale.forget(sale.story('dead_letter'));
    expect((await audit()).invariants.broken).not.toContain('I22');
  });

  it('at most five witnesses per invariant, and counts the rest', async () => {
    await sale.sql('UPDATE orders SET unit_price = 1');
    const verdict = await audit();
    expect(verdict.breaches.filter(({ invariant }) => invariant === 'I17')).toHaveLength(5);
    expect(verdict.breachCounts['I17']).toBeGreaterThan(5);
  });

  it('nothing it was not asked to look at: an invariant that has gone blind is missed by its mutations (I30)', async () => {
    const blind = INVARIANTS.map((invariant) =>
      invariant.id === 'I1' ? { ...invariant, begin: () => ({}) } : invariant,
    );
    await sale.sql('UPDATE sale_stock SET sold = sold + 1');
    expect((await audit(sale.log(), { invariants: blind })).invariants.broken).not.toContain('I1');
    expect((await audit()).invariants.broken).toContain('I1');
  });

  it('has a mutation for every invariant, and every number but that of its own test (I30)', () => {
    const mutated = new Set(MUTATIONS.map(({ breaks }) => breaks));
    expect(INVARIANTS.map(({ id }) => id).filter((id) => !mutated.has(id))).toEqual([]);
    expect(INVARIANTS.map(({ id }) => id)).toEqual(Array.from({ length: 29 }, (_, i) => `I${i + 1}`));
  });
});
