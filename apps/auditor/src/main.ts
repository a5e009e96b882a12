import { parseArgs } from 'node:util';
import { readStoreAddresses, UsageError } from './env.js';
import { auditSale } from './audit.js';
import { MysqlReader } from './read-mysql.js';
import type { EvidenceOptions } from './read-stores.js';
import { renderReport } from './report.js';
import { takeSnapshot } from './snapshot.js';

/**
 * `audit --sale ID [options]`: checks one sale after the fact and changes nothing. Exit code 0: clean. 1: an invariant is
 * broken. 2: called wrongly, or a store cannot be read.
 */
const USAGE = `Usage: npm run audit -- --sale ID [--log FILE.jsonl] [--json] [--quiet-wait-ms N] [--faults [--healed-at MS]]
                             [--metrics URL]… [--snapshot FILE]
       npm run audit -- --sale ID --take-snapshot FILE

  --sale ID            the sale to check
  --log FILE           what the crowd sent and was answered, one JSON object per exchange (see read-log.ts);
                       without it, what only the crowd can know is not checked, and the report says what that is
  --metrics URL        a service's metrics, e.g. http://127.0.0.1:9464/metrics; once for each process that runs
  --snapshot FILE      the ledger as it was in the middle of the sale: nothing of it may have changed since
  --take-snapshot FILE writes such a file and checks nothing
  --faults             faults were injected: an order may be refused visibly after its 202, and processes may have ended
  --healed-at MS       when the last fault was healed, in milliseconds since 1970; from then on times are judged
  --json               the verdict as one JSON object on the last line of stdout
  --quiet-wait-ms N    how long to wait for the sale to come to rest (default 30000)

It only reads: MySQL in one read-only snapshot, Redis without writing scripts, Kafka without committing an offset. What it cannot
keep in memory it puts aside in files in the folder of TMPDIR (about 2 kB for an attempt), and removes them.

The stores: REDIS_URL or REDIS_CLUSTER_NODES, KAFKA_BROKERS, MYSQL_URL; and, where they differ from the services' defaults,
ORDERS_TOPIC, ORDERS_DLQ_TOPIC, ORDERS_GROUP. With PURCHASE_TOKEN_KEYS the signatures of the tokens are verified too.`;

const DEFAULT_QUIET_WAIT_MS = 30_000;

interface Arguments extends EvidenceOptions {
  readonly json: boolean;
  /** Where a copy of the ledger is to be written; `null` for an audit. */
  readonly takeSnapshot: string | null;
}

function readArguments(args: readonly string[]): Arguments | 'help' {
  let values;
  try {
    ({ values } = parseArgs({
      args: [...args],
      options: {
        sale: { type: 'string' },
        log: { type: 'string' },
        json: { type: 'boolean', default: false },
        'quiet-wait-ms': { type: 'string', default: String(DEFAULT_QUIET_WAIT_MS) },
        faults: { type: 'boolean', default: false },
        'healed-at': { type: 'string' },
        metrics: { type: 'string', multiple: true, default: [] },
        snapshot: { type: 'string' },
        'take-snapshot': { type: 'string' },
        help: { type: 'boolean', default: false },
      },
    }));
  } catch (error) {
    throw new UsageError(`${error instanceof Error ? error.message : String(error)}\n\n${USAGE}`);
  }
  if (values.help) return 'help';
  if (!/^[A-Za-z0-9_-]{1,40}$/.test(values.sale ?? '')) {
    throw new UsageError(
      `--sale must be the id of a sale: 1 to 40 characters of A-Z a-z 0-9 _ -\n\n${USAGE}`,
    );
  }
  if (!/^\d{1,7}$/.test(values['quiet-wait-ms'])) {
    throw new UsageError(`--quiet-wait-ms must be a number of milliseconds below 10,000,000\n\n${USAGE}`);
  }
  const healedAt = values['healed-at'];
  if (healedAt !== undefined && !/^\d{13}$/.test(healedAt)) {
    throw new UsageError(`--healed-at must be milliseconds since 1970, e.g. ${Date.now()}\n\n${USAGE}`);
  }
  return {
    saleId: values.sale ?? '',
    healedAtMs: healedAt === undefined ? null : Number(healedAt),
    metricsUrls: values.metrics,
    snapshotFile: values.snapshot ?? null,
    takeSnapshot: values['take-snapshot'] ?? null,
    logFile: values.log ?? null,
    json: values.json,
    quietWaitMs: Number(values['quiet-wait-ms']),
    faults: values.faults,
  };
}

/** @returns the exit code */
async function main(args: readonly string[]): Promise<number> {
  const options = readArguments(args);
  if (options === 'help') {
    console.log(USAGE);
    return 0;
  }
  const addresses = readStoreAddresses();
  if (options.takeSnapshot !== null) {
    const legs = await copyLedger(options.takeSnapshot, options.saleId, addresses.mysqlUrl);
    console.log(
      `${options.takeSnapshot} has the ${legs} legs of the ledger of ${options.saleId} as they are now.`,
    );
    return 0;
  }
  const { sale, judgements, verdict } = await auditSale(options, addresses);
  console.log(renderReport(verdict, sale, judgements));
  if (options.json) console.log(JSON.stringify(verdict));
  return verdict.invariants.broken.length === 0 ? 0 : 1;
}

async function copyLedger(file: string, saleId: string, mysqlUrl: string): Promise<number> {
  const mysql = new MysqlReader(mysqlUrl);
  try {
    await mysql.connect();
    await mysql.bucketCount(saleId);
    return await takeSnapshot(file, saleId, mysql);
  } finally {
    await mysql.close();
  }
}

// kafkajs computes a negative time-out on every connection, which Node 24 warns of; it means nothing.
process.removeAllListeners('warning');
process.on('warning', (warning) => {
  if (warning.name !== 'TimeoutNegativeWarning') console.error(`${warning.name}: ${warning.message}`);
});

// kafkajs can reject where nobody listens; Node would end with 1, which means "broken" here.
process.on('unhandledRejection', (error) => {
  console.error('The audit could not be finished; run it again.', error);
  process.exit(2);
});

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  process.exitCode = 2;
  if (error instanceof UsageError) console.error(error.message);
  else console.error('The auditor itself failed; this is a defect of it, not of the sale.', error);
}
