import { mkdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { chaos } from './chaos.js';
import { Runner, type Outcome } from './runner.js';
import { ROWS, mergeIntoFolder, printedTable } from './table.js';

/**
 * `npm run faults`: plays the rows of the table of faults against real servers of its own and writes `docs/faults.md` and
 * `docs/faults.json`. Exit code 0: every row that was played passed. 1: a row failed. 2: called wrongly, or could not start.
 */
const USAGE = `Usage: npm run faults -- [--only NAME[,NAME…]] [--seed N] [--seeds K] [--list]
       npm run faults -- --chaos [--minutes M] [--seed N]

  --only NAME   plays these rows only; the others stay in the table as they are
  --seed N      the first seed (default: 1)
  --seeds K     plays each row with K seeds, N, N+1, … (default: 1)
  --chaos       all faults at random for M minutes (default: 10); the schedule is a function of the seed
  --list        names every row and says what it does
  --buyers B    people a second who come to buy (default: 40)
  --seekers S   people a second who come to the sale that is nearly sold out (default: 80)
  --slack F     multiplies every bound on a time, for a machine that does other things too (default: 1)
  --docs DIR    where the table is kept (default: docs)`;

const ROOT = resolve(import.meta.dirname, '../../../..');

interface Options {
  readonly names: readonly string[];
  readonly seeds: readonly number[];
  readonly chaosMinutes: number | null;
  readonly buyersPerSecond: number;
  readonly seekersPerSecond: number;
  readonly slack: number;
  readonly docs: string;
}

class UsageError extends Error {
  override readonly name = 'UsageError';
}

function readOptions(args: readonly string[]): Options | 'help' | 'list' {
  let values;
  try {
    ({ values } = parseArgs({
      args: [...args],
      options: {
        only: { type: 'string' },
        seed: { type: 'string', default: '1' },
        seeds: { type: 'string', default: '1' },
        chaos: { type: 'boolean', default: false },
        minutes: { type: 'string', default: '10' },
        buyers: { type: 'string', default: '40' },
        seekers: { type: 'string', default: '80' },
        docs: { type: 'string', default: join(ROOT, 'docs') },
        slack: { type: 'string', default: '1' },
        list: { type: 'boolean', default: false },
        help: { type: 'boolean', default: false },
      },
    }));
  } catch (error) {
    throw new UsageError(`${error instanceof Error ? error.message : String(error)}\n\n${USAGE}`);
  }
  if (values.help) return 'help';
  if (values.list) return 'list';
  const names = values.only?.split(',').map((name) => name.trim()) ?? ROWS.map(({ name }) => name);
  const unknown = names.filter((name) => !ROWS.some((row) => row.name === name));
  if (unknown.length > 0)
    throw new UsageError(`there is no row ${unknown.join(', ')}; see npm run faults -- --list`);
  const first = numberFrom('--seed', values.seed, 0, 2 ** 31 - 1);
  const count = numberFrom('--seeds', values.seeds, 1, 100);
  return {
    names,
    seeds: Array.from({ length: count }, (_, index) => first + index),
    chaosMinutes: values.chaos ? numberFrom('--minutes', values.minutes, 1, 24 * 60) : null,
    buyersPerSecond: numberFrom('--buyers', values.buyers, 1, 10_000),
    seekersPerSecond: numberFrom('--seekers', values.seekers, 0, 10_000),
    slack: numberFrom('--slack', values.slack, 1, 100),
    docs: resolve(values.docs),
  };
}

function numberFrom(name: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < least || value > most)
    throw new UsageError(`${name} must be a whole number from ${least} to ${most}, not "${text}"`);
  return value;
}

function say(line: string): void {
  process.stderr.write(`faults: ${line}\n`);
}

async function main(args: readonly string[]): Promise<number> {
  const options = readOptions(args);
  if (options === 'help') {
    process.stdout.write(`${USAGE}\n`);
    return 0;
  }
  if (options === 'list') {
    for (const { name, row, shopperSees } of ROWS) process.stdout.write(`${name}\t${row}\t${shopperSees}\n`);
    return 0;
  }
  mkdirSync(options.docs, { recursive: true });
  const runner = new Runner({
    buyersPerSecond: options.buyersPerSecond,
    seekersPerSecond: options.seekersPerSecond,
    scarceUnits: 150,
    holdSeconds: 5,
    slack: options.slack,
    failuresFolder: join(ROOT, '.flash-sale/faults'),
    progress: say,
  });
  const outcomes: Outcome[] = [];
  let interrupted = false;
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => {
      interrupted = true;
      say(`${signal}: ending what was started; once more ends at once and leaves it behind`);
      void runner.stop().finally(() => process.exit(1));
    });
  }
  try {
    for (const [scenario, again] of rowsOf(options)) {
      for (const seed of options.seeds) {
        if (interrupted) break;
        say(`${scenario.name}, seed ${seed} …`);
        const outcome = await runner.play(scenario, seed);
        if (interrupted) break;
        outcomes.push(outcome);
        // After each row: an interrupted run has lost nothing of what it has shown.
        mergeIntoFolder(options.docs, [outcome], new Date());
        say(printedTable([outcome]));
        if (outcome.result === 'failed') say(`repeat it: npm run faults -- ${again} --seed ${seed}`);
      }
    }
  } finally {
    await runner.stop();
  }
  const failed = outcomes.filter(({ result }) => result === 'failed').length;
  process.stdout.write(`${printedTable(outcomes)}\n\n${outcomes.length - failed} passed, ${failed} failed\n`);
  return failed > 0 ? 1 : 0;
}

/** What is to be played, each with the arguments that name it. Rows that share a world stand side by side. */
function rowsOf(options: Options) {
  if (options.chaosMinutes !== null)
    return [[chaos(options.chaosMinutes, say), `--chaos --minutes ${options.chaosMinutes}`] as const];
  const chosen = ROWS.filter(({ name }) => options.names.includes(name));
  const groups = Map.groupBy(chosen, ({ withoutProxies, world }) =>
    JSON.stringify([withoutProxies ?? false, world ?? {}]),
  );
  return [...groups.values()].flat().map((row) => [row, `--only ${row.name}`] as const);
}

// kafkajs computes a negative time-out on every connection, which Node 24 warns of; it means nothing.
process.removeAllListeners('warning');
process.on('warning', (warning) => {
  if (warning.name !== 'TimeoutNegativeWarning') say(`${warning.name}: ${warning.message}`);
});

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  process.exitCode = 2;
  say(
    error instanceof UsageError
      ? error.message
      : error instanceof Error
        ? (error.stack ?? '')
        : String(error),
  );
}
