import { dropTestDatabase, migrate } from '@flash-sale/database';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { readStoreAddresses } from './env.js';
import { bucketKeys } from './grammar.js';
import { INVARIANTS, judge } from './invariants.js';
import { buildEvidence, type EvidenceOptions } from './read-stores.js';
import { verdictOf, type Verdict } from './report.js';
import { MUTATIONS } from './testing/mutations.js';
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

const mysqlUrl = address('MYSQL_URL', '/test_auditor');
let sale: SyntheticSale;

beforeAll(async () => {
  await dropTestDatabase(mysqlUrl);
  await migrate(mysqlUrl);
  sale = new SyntheticSale({
    redisUrl: address('REDIS_URL', '/4'),
    kafkaBrokers: address('KAFKA_BROKERS'),
    mysqlUrl,
  });
  await sale.writeKafka();
}, 60_000);

afterAll(async () => {
  await sale.close();
  await dropTestDatabase(mysqlUrl);
});

beforeEach(() => sale.write());

async function audit(
  log: readonly LogLine[] | null = sale.log(),
  options: Partial<EvidenceOptions> & { env?: Record<string, string> } = {},
): Promise<Verdict> {
  const { env, ...rest } = options;
  const logFile = log === null ? null : sale.writeLog(log);
  const evidence = await buildEvidence(
    { saleId: sale.saleId, logFile, faults: false, quietWaitMs: 0, ...rest },
    readStoreAddresses({ ...sale.env, ...env }),
  );
  return verdictOf(evidence, judge(evidence));
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
      refused: { enqueue_unknown: 2, sold_out: 1, rate_limited: 1, sale_closed: 1 },
      latencyMs: {
        entry: { p50: 20, p95: 20, p99: 20 },
        order: { p50: 20, p95: 20, p99: 20 },
        acceptedToWritten: { p50: 100, p95: 100, p99: 100 },
      },
      invariants: { checked: INVARIANTS.length, broken: [] },
      breaches: [],
      breachCounts: {},
    });
  });

  it('is judged without a log too, by fewer invariants', async () => {
    const verdict = await audit(null);
    expect(verdict.invariants).toEqual({ checked: INVARIANTS.length - 4, broken: [] });
    expect(verdict.latencyMs.entry).toEqual({ p50: null, p95: null, p99: null });
  });

  it('may have a visible refusal after the 202 where faults were injected, and only there', async () => {
    const lines = sale.logWith(sale.story('rejected'), 'order', { http: 202, code: '', state: 'queued' });
    expect(await audit(lines)).toMatchObject({
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
    expect((await audit(lines)).invariants.broken).toEqual(['I9']);
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
    async (breaks, _when, { mutate, log, witness, figures, env }) => {
      await mutate?.(sale);
      const verdict = await audit(log?.(sale), env ? { env } : {});
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

  it('has a mutation for every invariant', () => {
    const mutated = new Set(MUTATIONS.map(({ breaks }) => breaks));
    expect(INVARIANTS.map(({ id }) => id).filter((id) => !mutated.has(id))).toEqual([]);
  });
});
