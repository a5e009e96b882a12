import { parseArgs } from 'node:util';
import { PARTS, type Part } from './operations.js';

/** What the caller of `npm run bench` asks for. */
export interface BenchOptions {
  /** Little of everything, for a machine that only shows that nothing has become much worse. */
  readonly isShort: boolean;
  /** Whether the table of growth is measured as well; it takes longer than everything else. */
  readonly withGrowth: boolean;
  readonly parts: readonly Part[];
  /** How often each operation is measured, after a warm-up. */
  readonly repetitions: number;
  /** An earlier run's JSON to compare with. */
  readonly compareWith: string | undefined;
  /** Where the report is written; by default beside the sources, or for a short run among the working files. */
  readonly out: string | undefined;
}

export type ParsedOptions =
  | { readonly kind: 'run'; readonly options: BenchOptions }
  | { readonly kind: 'help' }
  | { readonly kind: 'unit' }
  | { readonly kind: 'faults'; readonly faults: readonly string[] };

export const HELP = `npm run bench -- [options]

Measures what each operation costs: CPU time of all processes involved, in microseconds and in units of a bare HTTP request
measured beside it; throughput, latencies and memory. Starts servers and services of its own. Nothing else should run on the
machine meanwhile. Writes load-tests/bench/latest.md and latest.json. Exit code 0, whatever was found; 1: it could not be
measured; 2: called wrongly.

  --short            little of everything, in less than two minutes; written to .flash-sale/bench
  --growth           also how the cost of a purchase grows with units, buckets, connections, processes and Redis masters
  --compare FILE     shows the change since an earlier run's JSON
  --only PART,PART   measures these only: ${PARTS.join(', ')};
                     written to .flash-sale/bench
  --repetitions N    how often each operation is measured, 1 to 50 (5)
  --unit             measures nothing but a request to the bare server, under loads of several kinds (docs/adr/0012)
  --out DIR          where the report is written
`;

const DEFAULT_REPETITIONS = 5;
const MOST_REPETITIONS = 50;

/** Reads the command line; every fault is told at once. */
export function parseOptions(args: readonly string[]): ParsedOptions {
  let values;
  try {
    const text = { type: 'string' } as const;
    const flag = { type: 'boolean', default: false } as const;
    ({ values } = parseArgs({
      args: [...args],
      options: {
        short: flag,
        growth: flag,
        compare: text,
        only: text,
        repetitions: text,
        out: text,
        unit: flag,
        help: flag,
      },
    }));
  } catch (error) {
    return { kind: 'faults', faults: [error instanceof Error ? error.message : String(error)] };
  }
  if (values.help) return { kind: 'help' };
  if (values.unit) return { kind: 'unit' };
  const faults: string[] = [];
  const asked = values.only?.split(',').map((name) => name.trim());
  for (const name of asked ?? []) {
    if (!PARTS.some((part) => part === name))
      faults.push(`--only has "${name}", but there are ${PARTS.join(', ')}`);
  }
  const { repetitions = String(DEFAULT_REPETITIONS) } = values;
  const count = /^\d{1,3}$/.test(repetitions) ? Number(repetitions) : 0;
  if (count < 1 || count > MOST_REPETITIONS) {
    faults.push(
      `--repetitions is "${repetitions}", but must be a whole number from 1 to ${MOST_REPETITIONS}`,
    );
  }
  for (const name of ['compare', 'out'] as const) {
    if (values[name] === '') faults.push(`--${name} is empty, but must be a path`);
  }
  if (faults.length > 0) return { kind: 'faults', faults };
  return {
    kind: 'run',
    options: {
      isShort: values.short,
      withGrowth: values.growth,
      parts: PARTS.filter((part) =>
        // Not in a short run: it needs a second suite, whose start takes too long.
        asked ? asked.includes(part) : part !== 'uncoalesced' || !values.short,
      ),
      repetitions: count,
      compareWith: values.compare,
      out: values.out,
    },
  };
}
