import { parseArgs } from 'node:util';
import { SETTING_NAMES, assume, settingOf, type Assumptions, type SettingName } from './assumptions.js';
import { nameFault, type Overrides } from './measured.js';

/** What the caller of `npm run capacity` asks for. */
export interface CapacityOptions {
  /** Absent where no crowd is planned for: `check` or `write` alone. */
  readonly crowd: Assumptions | undefined;
  readonly isJson: boolean;
  readonly isCheck: boolean;
  readonly isWrite: boolean;
  /** A benchmark's JSON; by default the one that is kept. */
  readonly benchFile: string | undefined;
  readonly overrides: Overrides;
  /** CPU time of the load generator for a request, µs; by default that of the unit. */
  readonly generatorMicros: number | undefined;
}

export type ParsedOptions =
  | { readonly kind: 'run'; readonly options: CapacityOptions }
  | { readonly kind: 'help' }
  | { readonly kind: 'faults'; readonly faults: readonly string[] };

/** One line for each setting, for the help and for the document. */
export function settingRows(): Readonly<Record<'name' | 'assumed' | 'unit' | 'meaning', string>>[] {
  return SETTING_NAMES.map((name) => {
    const { assumed, unit, meaning } = settingOf(name);
    return { name: `--${name}`, assumed: assumed?.toLocaleString('en-US') ?? '', unit, meaning };
  });
}

export const HELP = `npm run capacity -- --units N (--people N | --buyers-per-unit N | --qps N) [options]
npm run capacity -- --check | --write

Turns an expected crowd into edge nodes, pods, Redis masters, partitions, brokers, database size and network, from the costs that a
benchmark has measured (npm run bench), and says what is reached first. Exit code 0, whatever is found; 1: it could not be
calculated; 2: called wrongly.

  --json              the plan as JSON
  --check             predicts the whole purchases a second of the machine of the benchmark from the costs of their parts, and
                      prints what was measured beside it
  --write             writes docs/capacity.md: worked examples, assumptions, measured inputs, the check
  --bench FILE        the JSON of a benchmark (load-tests/bench/latest.json)
  --micros OPERATION/PROCESS=N   CPU time of an operation, µs, instead of what was measured, as often as wanted;
                      e.g. --micros 'order to 202/gateway=80'
  --generator-micros N   for the check: CPU time of the load generator for a request (that of the unit)

${settingRows()
  .map(({ name, assumed, unit, meaning }) => {
    const usual = assumed === '' ? '' : ` (${assumed})`;
    return `  ${name.padEnd(26)} ${unit}: ${meaning}${usual}`;
  })
  .join('\n')}
`;

const text = { type: 'string' } as const;
const flag = { type: 'boolean', default: false } as const;

/** Reads the command line; every fault is told at once. */
export function parseOptions(args: readonly string[]): ParsedOptions {
  let values: Readonly<Record<string, string | boolean | (string | boolean)[] | undefined>>;
  try {
    const settings = Object.fromEntries(SETTING_NAMES.map((name) => [name, text]));
    const own = { json: flag, check: flag, write: flag, help: flag, bench: text, 'generator-micros': text };
    const micros = { micros: { type: 'string', multiple: true } } as const;
    ({ values } = parseArgs({ args: [...args], options: { ...settings, ...own, ...micros } }));
  } catch (error) {
    return { kind: 'faults', faults: [error instanceof Error ? error.message : String(error)] };
  }
  if (values['help'] === true) return { kind: 'help' };
  const faults: string[] = [];
  const numberOf = (name: string): number | undefined => {
    const given = values[name];
    if (typeof given !== 'string') return undefined;
    const value = parseNumber(given);
    if (value === null) faults.push(`--${name} is "${given}", but must be a number`);
    return value ?? undefined;
  };
  const given = Object.fromEntries(
    SETTING_NAMES.map((name) => [name, numberOf(name)]).filter(([, value]) => value !== undefined),
  ) as Partial<Record<SettingName, number>>;
  const generatorMicros = numberOf('generator-micros');
  const micros = microsOf([values['micros'] ?? []].flat().map(String), faults);
  if (values['bench'] === '') faults.push('--bench is empty, but must be a path');

  const isCheck = values['check'] === true;
  const isWrite = values['write'] === true;
  // Of measurements, not of a crowd: these may go with the check and the document, too.
  const {
    'writer-orders-per-second': writerOrdersPerSecond,
    'redis-bytes-per-order': redisBytesPerOrder,
    ...ofCrowd
  } = given;
  const hasCrowd = Object.keys(ofCrowd).length > 0;
  if (isWrite && (hasCrowd || isCheck || values['json'] === true))
    faults.push(
      '--write has worked examples of its own and goes with --bench, --micros and what is measured only',
    );
  let crowd: Assumptions | undefined;
  // A number that could not be read is told once.
  if (faults.length === 0 && (hasCrowd || (!isCheck && !isWrite))) {
    const assumed = assume(given);
    if (isFaulty(assumed)) faults.push(...assumed.faults);
    else crowd = assumed;
  }
  if (faults.length > 0) return { kind: 'faults', faults };
  return {
    kind: 'run',
    options: {
      crowd,
      isJson: values['json'] === true,
      isCheck,
      isWrite,
      benchFile: typeof values['bench'] === 'string' ? values['bench'] : undefined,
      overrides: { micros, writerOrdersPerSecond, redisBytesPerOrder },
      generatorMicros,
    },
  };
}

const isFaulty = (
  assumed: ReturnType<typeof assume>,
): assumed is Extract<typeof assumed, { readonly faults: readonly string[] }> => 'faults' in assumed;

function microsOf(pairs: readonly string[], faults: string[]): Map<string, number> {
  const micros = new Map<string, number>();
  for (const pair of pairs) {
    const at = pair.lastIndexOf('=');
    const name = pair.slice(0, Math.max(at, 0)).trim();
    const value = parseNumber(pair.slice(at + 1));
    const fault = nameFault(name);
    if (fault) faults.push(fault);
    else if (value === null) faults.push(`--micros ${pair}: "${pair.slice(at + 1)}" must be a number of µs`);
    else micros.set(name, value);
  }
  return micros;
}

/** Digits may be grouped as people write them: 1_000_000 or 1,000,000. */
function parseNumber(given: string): number | null {
  const plain = given.trim().replaceAll(/(?<=\d)[_,](?=\d{3}(?!\d))/g, '');
  return /^\d{1,15}(\.\d{1,9})?$/.test(plain) ? Number(plain) : null;
}
