import { parseArgs } from 'node:util';
import { readStoreAddresses, UsageError } from './env.js';
import { judge } from './invariants.js';
import { buildEvidence, type EvidenceOptions } from './read-stores.js';
import { renderReport, verdictOf } from './report.js';

/**
 * `audit --sale ID [--log FILE.jsonl] [--json] [--quiet-wait-ms N] [--faults]`: checks one sale after the fact and changes
 * nothing. Exit code 0: clean. 1: an invariant is broken. 2: called wrongly, or a store cannot be read.
 */
const USAGE = `Usage: npm run audit -- --sale ID [--log FILE.jsonl] [--json] [--quiet-wait-ms N] [--faults]

  --sale ID          the sale to check
  --log FILE         what the crowd sent and was answered, one JSON object per exchange (see read-log.ts);
                     without it, what only the crowd can know is not checked
  --json             the verdict as one JSON object on the last line of stdout
  --quiet-wait-ms N  how long to wait for the sale to come to rest (default 30000)
  --faults           faults were injected: an order may be refused visibly after its 202

The stores: REDIS_URL or REDIS_CLUSTER_NODES, KAFKA_BROKERS, MYSQL_URL; and, where they differ from the services' defaults,
ORDERS_TOPIC, ORDERS_DLQ_TOPIC, ORDERS_GROUP. With PURCHASE_TOKEN_KEYS the signatures of the tokens are verified too.`;

const DEFAULT_QUIET_WAIT_MS = 30_000;

interface Arguments extends EvidenceOptions {
  readonly json: boolean;
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
  return {
    saleId: values.sale ?? '',
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
  const evidence = await buildEvidence(options, readStoreAddresses());
  const judgements = judge(evidence);
  const verdict = verdictOf(evidence, judgements);
  console.log(renderReport(verdict, evidence, judgements));
  if (options.json) console.log(JSON.stringify(verdict));
  return verdict.invariants.broken.length === 0 ? 0 : 1;
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
