import { readFileSync, writeFileSync } from 'node:fs';
import { cpus, release, totalmem, type } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import { chaos } from './chaos.js';
import { grpcRows } from './rows-grpc.js';
import { kafkaRows } from './rows-kafka.js';
import { mysqlRows } from './rows-mysql.js';
import { processRows } from './rows-processes.js';
import { redisRows } from './rows-redis.js';
import type { Outcome } from './runner.js';
import type { Scenario } from './scenario.js';

/** Every row of the table of faults, in its order. */
export const ROWS: readonly Scenario[] = [
  ...processRows,
  ...redisRows,
  ...kafkaRows,
  ...mysqlRows,
  ...grpcRows,
];

/** The rows and the last line, which is not played with the others. */
const LINES: readonly Scenario[] = [...ROWS, chaos(10, () => undefined)];

const Entry = z.object({
  name: z.string(),
  /** With which it passed since it last failed; those that failed where `passed` is false. */
  seeds: z.array(z.int()),
  passed: z.boolean(),
  shopperSaw: z.string(),
  note: z.string(),
});
/** One row of the table as it is kept: `docs/faults.json` is a list of these. */
export type Entry = z.infer<typeof Entry>;

/**
 * Merges what was played into the table by the rows' names. A pass adds its seeds to a pass before it; anything else
 * replaces what was known, because it says more about the suite as it is now.
 */
export function merge(before: readonly Entry[], outcomes: readonly Outcome[]): Entry[] {
  const entries = new Map(before.map((entry) => [entry.name, entry]));
  for (const outcome of outcomes) {
    const entry = entryOf(outcome);
    const known = entries.get(outcome.name);
    const seeds = known?.passed && entry.passed ? [...known.seeds, ...entry.seeds] : entry.seeds;
    entries.set(outcome.name, { ...entry, seeds: [...new Set(seeds)].toSorted((a, b) => a - b) });
  }
  const order = new Map(LINES.map(({ name }, index) => [name, index]));
  const place = ({ name }: Entry) => order.get(name) ?? LINES.length;
  return [...entries.values()].toSorted((a, b) => place(a) - place(b));
}

function entryOf({ name, seed, result, reasons, shopperSaw, notes }: Outcome): Entry {
  const found = result === 'not here' ? ['cannot be produced here', ...reasons] : [...reasons, ...notes];
  return {
    name,
    seeds: result === 'not here' ? [] : [seed],
    passed: result === 'passed',
    shopperSaw,
    note: found.join('; '),
  };
}

/** Reads the table in a folder, merges, and writes it as Markdown and JSON. */
export function mergeIntoFolder(folder: string, outcomes: readonly Outcome[], now: Date): void {
  const json = join(folder, 'faults.json');
  const entries = merge(readEntries(json), outcomes);
  writeFileSync(json, `${JSON.stringify(entries, null, 2)}\n`);
  writeFileSync(join(folder, 'faults.md'), markdownOf(entries, now));
}

function readEntries(file: string): Entry[] {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
  return z.array(Entry).parse(JSON.parse(text));
}

function markdownOf(entries: readonly Entry[], now: Date): string {
  const rows = new Map(LINES.map((row) => [row.name, row]));
  const [cpu] = cpus();
  const machine = [
    `${cpus().length} cores (${cpu?.model.trim() ?? 'unknown'})`,
    `${Math.round(totalmem() / 2 ** 30)} GiB`,
    `${type()} ${release().split('-')[0]}`,
    `Node ${process.version}`,
  ];
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  const missing = LINES.filter(({ name }) => !entries.some((entry) => entry.name === name));
  return [
    '# Faults',
    '',
    'Written by `npm run faults`; do not edit. Every row is a fault under a few hundred attempts a second against the real servers,',
    'followed by the whole auditor. A row passes when nothing was lost, nothing oversold, every unit of a scarce sale was sold, orders',
    'were accepted again and decided within 10 s of the healing without a hand, and what its own line says held.',
    '',
    `Last run: ${now.toISOString().slice(0, 16).replace('T', ' ')} UTC on ${machine.join(', ')}.`,
    '',
    line(['Row', 'Fault', 'Expected of it', 'Passed', 'Seeds', 'Shoppers saw meanwhile', 'Note']),
    line(['---', '---', '---', '---', '---', '---', '---']),
    ...entries.map((entry) => {
      const row = rows.get(entry.name);
      return line([
        `\`${entry.name}\``,
        row?.row ?? '',
        row?.shopperSees ?? '',
        entry.passed ? 'yes' : entry.seeds.length === 0 ? 'cannot be produced here' : '**no**',
        entry.seeds.join(', '),
        entry.shopperSaw,
        entry.note,
      ]);
    }),
    ...missing.map(({ name, row, shopperSees }) =>
      line([`\`${name}\``, row, shopperSees, 'not run yet', '', '', '']),
    ),
    '',
  ].join('\n');
}

/** For the terminal: one line a row. */
export function printedTable(outcomes: readonly Outcome[]): string {
  const width = Math.max(...outcomes.map(({ name }) => name.length));
  return outcomes
    .map(({ name, seed, result, shopperSaw, tookMs, reasons, notes }) => {
      const verdict = { passed: 'passed  ', failed: 'FAILED  ', 'not here': 'not here' }[result];
      const head = `${verdict}  ${name.padEnd(width)}  seed ${seed}  ${String(Math.round(tookMs / 1000)).padStart(3)} s`;
      return `${head}  saw ${shopperSaw}; ${[...reasons, ...notes].join('; ')}`;
    })
    .join('\n');
}
