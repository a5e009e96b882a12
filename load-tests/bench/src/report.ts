import { z } from 'zod';
import type { Sample } from './bench.js';
import { MOST_GROWTH_PERCENT, type Growth } from './growth.js';
import { areApart, changePercent, latencyOf, median, spreadOf, type Spread } from './statistics.js';

const Ends = z.object({ median: z.number(), min: z.number(), max: z.number() });
const ByProcess = z.record(z.string(), z.number());

const Operation = z.object({
  name: z.string(),
  /** CPU time of all processes per operation, µs and units: medians. */
  micros: z.number(),
  units: z.number(),
  /** The unit of these: a bare server's cost of a request at the same rate, µs. */
  unitMicros: z.number(),
  /** In the cost of a request to a bare server that is kept busy. */
  busyUnits: z.number(),
  /** Null where the budget says nothing. */
  budgetUnits: z.number().nullable(),
  byProcess: ByProcess,
  perSecond: z.number(),
  /** From when a request was due; of two requests for a whole purchase. Null where nobody waits for it. */
  latencyMs: z
    .object({ count: z.number(), p50: z.number(), p99: z.number(), p999: z.number(), max: z.number() })
    .nullable(),
  peakMiB: ByProcess,
  spread: z.object({ micros: Ends, units: Ends, perSecond: Ends }),
});
export type Operation = z.infer<typeof Operation>;

/** The name of a figure that others look for. */
export const REDIS_BYTES_PER_UNIT = 'Redis, data per sold unit';

/** Something that is bounded and no CPU time. */
const Figure = z.object({
  name: z.string(),
  unit: z.string(),
  value: z.number(),
  spread: Ends,
  bound: z.number(),
  /** Whether the bound is the least that it must be, rather than the most. */
  isLeast: z.boolean(),
});
export type Figure = z.infer<typeof Figure>;

/** What a run has found: `latest.json`. */
export const Results = z.object({
  at: z.string(),
  machine: z.object({
    cores: z.number(),
    cpu: z.string(),
    memoryGiB: z.number(),
    system: z.string(),
    node: z.string(),
    redis: z.string(),
    mysql: z.string(),
  }),
  commit: z.string(),
  isShort: z.boolean(),
  repetitions: z.number(),
  /** Of a bare server that is kept busy. */
  unitMicros: z.number(),
  unitSpread: Ends,
  operations: z.array(Operation),
  figures: z.array(Figure),
  growth: z.array(
    z.object({
      dimension: z.string(),
      from: z.number(),
      to: z.number(),
      unitsFrom: Ends,
      unitsTo: Ends,
      changePercent: z.number(),
    }),
  ),
  /** CPU time per second while nobody asks for anything, µs. */
  restMicrosPerSecond: ByProcess,
  /** How late open loads were sent, 99th percentile at worst: part of their latencies. */
  latenessMs: z.number(),
});
export type Results = z.infer<typeof Results>;

/** @throws when nothing was measured */
export function operationOf(
  name: string,
  budgetUnits: number | null,
  samples: readonly Sample[],
  latenciesMs: readonly number[],
): Operation {
  const spread = {
    micros: spreadOf(samples.map(({ micros }) => micros)),
    units: spreadOf(samples.map(({ units }) => units)),
    perSecond: spreadOf(samples.map(({ perSecond }) => perSecond)),
  };
  return {
    name,
    micros: spread.micros.median,
    units: spread.units.median,
    unitMicros: median(samples.map(({ unitMicros }) => unitMicros)),
    busyUnits: median(samples.map(({ busyUnits }) => busyUnits)),
    budgetUnits,
    byProcess: medians(samples.map(({ byProcess }) => byProcess)),
    perSecond: spread.perSecond.median,
    latencyMs: latencyOf(latenciesMs),
    peakMiB: medians(samples.map(({ peakMiB }) => peakMiB)),
    spread,
  };
}

export function figureOf(
  name: string,
  unit: string,
  values: readonly number[],
  bound: { readonly least: number } | { readonly most: number },
): Figure {
  const spread = spreadOf(values);
  const isLeast = 'least' in bound;
  return {
    name,
    unit,
    value: spread.median,
    spread,
    bound: isLeast ? bound.least : bound.most,
    isLeast,
  };
}

function medians(each: readonly Readonly<Record<string, number>>[]): Record<string, number> {
  const names = Object.keys(each[0] ?? {});
  return Object.fromEntries(names.map((name) => [name, median(each.map((one) => one[name] ?? 0))]));
}

/** By how many per cent a bound is missed; null where it holds. */
export function missedByPercent(value: number, bound: number, isLeast: boolean): number | null {
  const beyond = isLeast ? bound - value : value - bound;
  return beyond > 0 ? (100 * beyond) / bound : null;
}

// ── As a text ─────────────────────────────────────────────────────────────────────────────────────────────────────────

type Row = readonly (string | number)[];

function table(head: Row, rows: readonly Row[]): string[] {
  const line = (cells: Row) => `| ${cells.map((cell) => String(cell).replaceAll('|', '\\|')).join(' | ')} |`;
  return [line(head), line(head.map((_, column) => (column === 0 ? '---' : '---:'))), ...rows.map(line), ''];
}

/** Digits as many as mean something. */
export function rounded(value: number): string {
  const size = Math.abs(value);
  if (size >= 100) return Math.round(value).toLocaleString('en-US');
  return value.toFixed(size >= 10 ? 1 : 2);
}

const withEnds = ({ median: middle, min, max }: Spread) =>
  `${rounded(middle)} (${rounded(min)}–${rounded(max)})`;

function verdictOf(missed: number | null): string {
  return missed === null ? 'holds' : `**missed by ${rounded(missed)} %**`;
}

/** The whole report as Markdown; with an earlier run also what has changed since. */
export function markdownOf(results: Results, earlier?: Results): string {
  const { machine, commit, at, repetitions, operations, isShort } = results;
  const { cores, cpu, memoryGiB, system, node, redis, mysql } = machine;
  return [
    '# Benchmark',
    '',
    'Written by `npm run bench`; do not edit. CPU time is that of all our processes with Redis, Kafka and MySQL, without the load',
    'generator. A unit is what one request costs a bare `node:http` server that gets as many requests a second as the operation did,',
    'measured right after it; beside it stands the same in requests to a bare server that is kept busy, measured right before it: a',
    'server that reads many requests at a time does each for less than half of what one costs that comes alone (docs/adr/0012).',
    `Each figure is the median of ${repetitions} interleaved repetitions, with the least and the most in parentheses.`,
    'Costs are measured with 64 calls always under way, by as many distinct shoppers as requests; latencies at 60 % of the rate so',
    'reached, counted from when each request was due, whether or not it could be sent then.',
    '',
    `${at.slice(0, 16).replace('T', ' ')} UTC, commit ${commitText(commit)}, on ${cores} cores (${cpu}), ${memoryGiB} GiB, ${system}, ` +
      `Node ${node}, Redis ${redis}, MySQL ${mysql}.${isShort ? ' A short run: its figures are rough.' : ''}`,
    `A request to the bare server that is kept busy: ${withEnds(results.unitSpread)} µs. Open loads were sent at most ${rounded(results.latenessMs)} ms late (p99), which is part of the latencies.`,
    '',
    ...costTable(operations),
    ...processTable('CPU time by process, µs per operation', operations, ({ byProcess }) => byProcess),
    `At rest, ms of CPU time per second: ${Object.entries(results.restMicrosPerSecond)
      .map(([name, micros]) => `${name} ${rounded(micros / 1_000)}`)
      .join(', ')}.`,
    '',
    ...processTable('Peak of resident memory by process, MiB', operations, ({ peakMiB }) => peakMiB),
    ...figuresTable(results.figures),
    ...growthTable(results.growth),
    ...(earlier ? changesTable(results, earlier) : []),
  ].join('\n');
}

function costTable(operations: readonly Operation[]): string[] {
  const rows = operations.map(({ name, spread, units, unitMicros, busyUnits, budgetUnits, latencyMs }) => [
    name,
    withEnds(spread.micros),
    rounded(unitMicros),
    withEnds(spread.units),
    rounded(busyUnits),
    budgetUnits ?? '–',
    budgetUnits === null ? '–' : verdictOf(missedByPercent(units, budgetUnits, false)),
    withEnds(spread.perSecond),
    ...(latencyMs ? [latencyMs.p50, latencyMs.p99, latencyMs.p999].map(rounded) : ['–', '–', '–']),
  ]);
  const head = [
    'Operation',
    'CPU, µs',
    'Unit, µs',
    'Units',
    'of a busy server',
    'At most',
    'Budget',
    'A second',
    'p50, ms',
    'p99, ms',
    'p99.9, ms',
  ];
  return table(head, rows);
}

function processTable(
  title: string,
  operations: readonly Operation[],
  figuresOf: (operation: Operation) => Readonly<Record<string, number>>,
): string[] {
  const names = [...new Set(operations.flatMap((operation) => Object.keys(figuresOf(operation))))];
  const rows = operations.map((operation) => [
    operation.name,
    ...names.map((name) => rounded(figuresOf(operation)[name] ?? 0)),
  ]);
  return [`## ${title}`, '', ...table(['Operation', ...names], rows)];
}

function figuresTable(figures: readonly Figure[]): string[] {
  if (figures.length === 0) return [];
  const rows = figures.map(({ name, unit, value, spread, bound, isLeast }) => [
    name,
    `${withEnds(spread)} ${unit}`,
    `${isLeast ? '≥' : '≤'} ${rounded(bound)}`,
    verdictOf(missedByPercent(value, bound, isLeast)),
  ]);
  return ['## Rates and memory', '', ...table(['Figure', 'Found', 'Bound', 'Budget'], rows)];
}

function growthTable(growth: readonly Growth[]): string[] {
  if (growth.length === 0) return [];
  const rows = growth.map(({ dimension, from, to, unitsFrom, unitsTo, changePercent: percent }) => [
    dimension,
    `${from.toLocaleString('en-US')} → ${to.toLocaleString('en-US')}`,
    withEnds(unitsFrom),
    withEnds(unitsTo),
    signed(percent),
    verdictOf(percent > MOST_GROWTH_PERCENT ? percent - MOST_GROWTH_PERCENT : null),
  ]);
  return [
    '## Growth',
    '',
    `A whole purchase, in requests to a bare server that is kept busy, at a constant number of calls in flight per process; its cost may grow by ${MOST_GROWTH_PERCENT} %.`,
    '',
    ...table(['Of', 'From → to', 'Units before', 'Units after', 'Change', 'Budget'], rows),
  ];
}

function changesTable(results: Results, earlier: Results): string[] {
  const rows = results.operations.map((now) => {
    const before = earlier.operations.find(({ name }) => name === now.name);
    if (!before) return [now.name, '–', withEnds(now.spread.units), 'new', ''];
    return [
      now.name,
      withEnds(before.spread.units),
      withEnds(now.spread.units),
      signed(changePercent(before.units, now.units)),
      areApart(before.spread.units, now.spread.units) ? 'beyond the spread' : 'within the spread',
    ];
  });
  const sameMachine = JSON.stringify(earlier.machine) === JSON.stringify(results.machine);
  return [
    '## Change',
    '',
    `In units, since commit ${commitText(earlier.commit)} of ${earlier.at.slice(0, 10)}${sameMachine ? '' : ', **which was measured on another machine**'}.`,
    '',
    ...table(['Operation', 'Before', 'Now', 'Change', ''], rows),
  ];
}

const signed = (percent: number) =>
  `${percent > 0 ? '+' : percent < 0 ? '−' : ''}${rounded(Math.abs(percent))} %`;

/** As short as people write it; what comes after a comma stays. */
const commitText = (commit: string) => commit.replace(/^([0-9a-f]{12})[0-9a-f]+/, '$1');
