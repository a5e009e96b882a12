import { setTimeout as sleep } from 'node:timers/promises';
import type { StoreAddresses } from './env.js';
import type {
  LedgerLeg,
  RecordedAttempt,
  RedisAttempt,
  RedisShopper,
  Sale,
  ShopperSlice,
  Slice,
} from './evidence.js';
import { LIVE } from './grammar.js';
import { KafkaReader, type OrderRecord } from './read-kafka.js';
import { loggedAttempts, readLog } from './read-log.js';
import { readCounters } from './read-metrics.js';
import { addLeg, MysqlReader } from './read-mysql.js';
import { RedisReader } from './read-redis.js';
import { readSnapshot } from './snapshot.js';
import { Slices, Spill } from './spill.js';

const POLL_MS = 250;
/** Clocks differ, and a sale's row may be younger than what it is asked about; no record of a sale is older than this. */
const BEFORE_THE_SALE_MS = 3_600_000;
/** Two retries of one order carry the same token; more different ones than this are a breach already. */
const MAX_TOKENS = 4;

export interface EvidenceOptions {
  readonly saleId: string;
  /** The crowd's log; `null` for none. */
  readonly logFile: string | null;
  readonly faults: boolean;
  /** When the last fault was healed, ms since 1970; `null` where nobody knows. */
  readonly healedAtMs: number | null;
  /** A copy of the ledger that was made while the sale ran; `null` for none. */
  readonly snapshotFile: string | null;
  /** Where the services show their counters. */
  readonly metricsUrls: readonly string[];
  /** How long to wait for the sale to come to rest; after that it is read as it is. */
  readonly quietWaitMs: number;
  /** How many attempts are looked at together; what a machine of a gigabyte can bear by default. */
  readonly attemptsPerSlice?: number;
}

/** Whoever looks at a sale's evidence as it comes. */
export interface Beholder {
  /** Called once, before anything else. */
  begin(sale: Sale): void;
  slice(slice: Slice): void;
  /** After the last slice of attempts. */
  shoppers(slice: ShopperSlice): void;
}

/**
 * Reads everything about one sale, and writes nothing to any store. The order matters where the sale still moves: committed
 * offsets first, then the rows (so every committed record must have its row), then Redis, then the records up to their
 * end (so every row must have its record). What comes unordered is put aside in files, so that memory is that of a slice.
 *
 * @throws UsageError where a store or a file cannot be read
 */
export async function showEvidence(
  options: EvidenceOptions,
  addresses: StoreAddresses,
  beholder: Beholder,
): Promise<void> {
  const { saleId } = options;
  const mysql = new MysqlReader(addresses.mysqlUrl);
  const redis = new RedisReader(addresses);
  const kafka = new KafkaReader(addresses);
  let spill: Spill | null = null;
  try {
    await mysql.connect();
    const bucketCount = await mysql.bucketCount(saleId);
    await redis.connect();
    await kafka.connect();
    const quiet = await waitUntilQuiet(options, { mysql, redis, kafka, bucketCount });
    const attempts = Math.max(await mysql.orderCount(saleId), await redis.attemptCount(saleId, bucketCount));
    spill = new Spill(new Slices(saleId, attempts, options.attemptsPerSlice));
    const sale = await readSale(options, addresses, { mysql, redis, kafka, spill, quiet, bucketCount });
    beholder.begin(sale);
    await showSlices(sale, { mysql, spill }, beholder);
    await mysql.endSnapshot();
  } finally {
    spill?.remove();
    redis.close();
    await Promise.allSettled([mysql.close(), kafka.close()]);
  }
}

interface Readers {
  readonly mysql: MysqlReader;
  readonly redis: RedisReader;
  readonly kafka: KafkaReader;
  readonly bucketCount: number;
}

async function readSale(
  { saleId, faults, healedAtMs, logFile, snapshotFile, metricsUrls }: EvidenceOptions,
  addresses: StoreAddresses,
  readers: Readers & { readonly spill: Spill; readonly quiet: Sale['quiet'] },
): Promise<Sale> {
  const { mysql, redis, kafka, spill, quiet, bucketCount } = readers;
  const log = logFile === null ? null : await readLog(logFile, { saleId, keys: addresses.tokenKeys }, spill);
  if (snapshotFile !== null) await readSnapshot(snapshotFile, saleId, spill);
  const partitions = await kafka.partitions();
  await mysql.beginSnapshot();
  const figures = await mysql.figures(saleId, addresses.ordersTopic);
  await mysql.readQuotas(saleId, spill);
  const buckets = await redis.read(saleId, bucketCount, spill);
  const sinceMs = figures.sale.createdAtMs - BEFORE_THE_SALE_MS;
  const records = await kafka.read({ saleId, sinceMs, partitions }, spill);
  const counters = await readCounters(metricsUrls, saleId);
  return {
    saleId,
    faults,
    healedAtMs,
    quiet,
    log,
    mysql: figures,
    redis: { buckets },
    kafka: records,
    counters,
    hasSnapshot: snapshotFile !== null,
  };
}

async function showSlices(
  sale: Sale,
  { mysql, spill }: { readonly mysql: MysqlReader; readonly spill: Spill },
  beholder: Beholder,
): Promise<void> {
  const { slices } = spill;
  for (let number = 0; number < slices.count; number += 1) {
    const slice = await readSlice(sale, number, { mysql, spill });
    for (const { shopperId, state, quantity } of slice.orders) {
      if (LIVE.has(state)) spill.put('live', slices.ofShopper(shopperId), [shopperId, quantity]);
    }
    beholder.slice(slice);
  }
  for (let number = 0; number < slices.count; number += 1) {
    const live = new Map<string, number>();
    for (const [shopperId, units] of spill.take<[string, number]>('live', number)) {
      live.set(shopperId, (live.get(shopperId) ?? 0) + units);
    }
    const quota = new Map(spill.take<[string, number]>('quota', number));
    const used = new Map<string, RedisShopper>();
    for (const shopper of spill.take<RedisShopper>('used', number)) {
      // JSON has no NaN.
      used.set(shopper.shopperId, Number.isInteger(shopper.used) ? shopper : { ...shopper, used: NaN });
    }
    beholder.shoppers({ sale, live, quota, redis: used });
  }
}

async function readSlice(
  sale: Sale,
  number: number,
  { mysql, spill }: { readonly mysql: MysqlReader; readonly spill: Spill },
): Promise<Slice> {
  const { saleId } = sale;
  const rows = await mysql.slice(saleId, spill.slices.range(number));
  if (number === 0) {
    for (const [entryId, legs] of await mysql.otherEntries(saleId)) rows.ledger.set(entryId, legs);
  }
  // What Redis showed twice while it was changing counts as it was shown last.
  const holds = new Map<string, RedisAttempt>();
  for (const hold of spill.take<RedisAttempt>('hold', number)) holds.set(hold.attemptId, hold);
  const snapshot = new Map<string, LedgerLeg[]>();
  for (const [entryId, leg] of spill.take<[string, LedgerLeg]>('snapshot', number))
    addLeg(snapshot, entryId, leg);
  return {
    sale,
    ...rows,
    logged: sale.log ? loggedAttempts(spill, number) : null,
    snapshot,
    holds,
    due: new Map(spill.take<[string, number]>('due', number)),
    recorded: recordedAttempts(spill.take<OrderRecord>('record', number)),
  };
}

function recordedAttempts(records: Iterable<OrderRecord>): Map<string, RecordedAttempt> {
  const recorded = new Map<string, RecordedAttempt>();
  for (const { key, at, token } of records) {
    let attempt = recorded.get(key);
    if (!attempt) {
      attempt = { positions: [], tokens: [] };
      recorded.set(key, attempt);
    }
    attempt.positions.push(at);
    if (!token || attempt.tokens.length >= MAX_TOKENS) continue;
    if (!attempt.tokens.some(({ hash }) => hash === token.hash)) attempt.tokens.push(token);
  }
  return recorded;
}

/**
 * Waits until nothing of the sale is held or queued, Redis knows every decision, and the writer has passed what was in the
 * topic by then. What others sell meanwhile keeps nobody waiting.
 */
async function waitUntilQuiet(
  { saleId, faults, quietWaitMs }: EvidenceOptions,
  { mysql, redis, kafka, bucketCount }: Readers,
): Promise<Sale['quiet']> {
  const startMs = performance.now();
  let ends: ReadonlyMap<number, number> | null = null;
  for (;;) {
    const [units, effects, stock, partitions] = await Promise.all([
      redis.units(saleId, bucketCount),
      mysql.unappliedEffects(saleId),
      mysql.stock(saleId),
      kafka.partitions(),
    ]);
    const held = units.held + units.queued;
    if (held + effects > 0) ends = null;
    ends ??= new Map(partitions.map(({ partition, high }) => [partition, high]));
    const lag = partitions.reduce(
      (sum, { partition, low, committed }) =>
        sum + Math.max(0, (ends?.get(partition) ?? 0) - Math.max(low, committed ?? 0)),
      0,
    );
    // Where Redis was lost it is put right with two looks at it; without faults a difference is a finding, not a state.
    const differs = faults && (units.sold !== stock.sold || units.free + units.sold !== stock.total);
    const pending = describePending({ lag, held, effects, frozen: units.frozen, differs });
    const waitedMs = Math.round(performance.now() - startMs);
    if (pending === '' || waitedMs >= quietWaitMs) return { reached: pending === '', waitedMs, pending };
    await sleep(Math.min(POLL_MS, quietWaitMs - waitedMs));
  }
}

/** What still moves, in words; empty when nothing does. */
function describePending(moving: {
  readonly lag: number;
  readonly held: number;
  readonly effects: number;
  readonly frozen: number;
  readonly differs: boolean;
}): string {
  const { lag, held, effects, frozen, differs } = moving;
  return [
    lag > 0 && `${lag} records not yet committed by the writer`,
    held > 0 && `${held} units held or queued`,
    effects > 0 && `${effects} effects not yet applied to Redis`,
    frozen > 0 && `${frozen} buckets frozen by a rebuild`,
    differs && 'Redis not yet put right after a fault',
  ]
    .filter((part) => part !== false)
    .join(', ');
}
