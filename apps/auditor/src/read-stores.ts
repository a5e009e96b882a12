import { setTimeout as sleep } from 'node:timers/promises';
import type { StoreAddresses } from './env.js';
import type { Evidence } from './evidence.js';
import { KafkaReader } from './read-kafka.js';
import { readLog } from './read-log.js';
import { MysqlReader } from './read-mysql.js';
import { RedisReader } from './read-redis.js';

const POLL_MS = 250;

export interface EvidenceOptions {
  readonly saleId: string;
  /** The crowd's log; `null` for none. */
  readonly logFile: string | null;
  readonly faults: boolean;
  /** How long to wait for the sale to come to rest; after that it is read as it is. */
  readonly quietWaitMs: number;
}

/**
 * Reads everything about one sale, and writes nothing anywhere. The order matters where the sale still moves: committed
 * offsets first, then the rows (so every committed record must have its row), then Redis, then the records up to their
 * end (so every row must have its record).
 *
 * @throws UsageError where a store or the log cannot be read
 */
export async function buildEvidence(options: EvidenceOptions, addresses: StoreAddresses): Promise<Evidence> {
  const { saleId, faults, logFile } = options;
  const mysql = new MysqlReader(addresses.mysqlUrl);
  const redis = new RedisReader(addresses);
  const kafka = new KafkaReader(addresses);
  try {
    const log = logFile === null ? null : await readLog(logFile, saleId, addresses.tokenKeys);
    await mysql.connect();
    const bucketCount = await mysql.bucketCount(saleId);
    await redis.connect();
    await kafka.connect();
    const quiet = await waitUntilQuiet(options, async () => {
      const [held, effects, partitions] = await Promise.all([
        redis.unresolvedUnits(saleId, bucketCount),
        mysql.unappliedEffects(saleId),
        kafka.partitions(),
      ]);
      const lag = partitions.reduce(
        (sum, p) => sum + Math.max(0, p.high - Math.max(p.low, p.committed ?? 0)),
        0,
      );
      return describePending({ lag, held, effects });
    });
    const partitions = await kafka.partitions();
    const rows = await mysql.read(saleId);
    const buckets = await redis.read(saleId, bucketCount);
    const records = await kafka.read(saleId, partitions, addresses.tokenKeys);
    return { saleId, faults, quiet, log, mysql: rows, redis: buckets, kafka: records };
  } finally {
    redis.close();
    await Promise.allSettled([mysql.close(), kafka.close()]);
  }
}

/** What still moves, in words; empty when nothing does. */
function describePending({ lag, held, effects }: { lag: number; held: number; effects: number }): string {
  return [
    lag > 0 && `${lag} records not yet committed by the writer`,
    held > 0 && `${held} units held or queued`,
    effects > 0 && `${effects} effects not yet applied to Redis`,
  ]
    .filter((part) => part !== false)
    .join(', ');
}

async function waitUntilQuiet(
  { quietWaitMs }: EvidenceOptions,
  look: () => Promise<string>,
): Promise<Evidence['quiet']> {
  const startMs = performance.now();
  for (;;) {
    const pending = await look();
    const waitedMs = Math.round(performance.now() - startMs);
    if (pending === '' || waitedMs >= quietWaitMs) return { reached: pending === '', waitedMs, pending };
    await sleep(Math.min(POLL_MS, quietWaitMs - waitedMs));
  }
}
