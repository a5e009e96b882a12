import { ORDER_TABLES, PAGE_FILL, orderInMysql, planFor, short, type Plan } from './model.js';
import { PROCESSES, type Check, type Measured } from './measured.js';
import { settingRows } from './options.js';
import type { Assumptions } from './assumptions.js';

/** A crowd of the document, as a command that anybody can repeat. */
export interface Example {
  readonly title: string;
  readonly args: string;
  readonly crowd: Assumptions;
}

/** A plan as a text for a terminal, which is Markdown as well. */
export function planText(plan: Plan): string {
  const rows = plan.lines.map(({ group, name, value, unit, from }, index) => [
    plan.lines[index - 1]?.group === group ? '' : group,
    name,
    `${short(value)} ${unit}`,
    from,
  ]);
  const limits = plan.limits.map(({ name, wanted, most, unit, share, remedy }) => [
    name,
    `${short(wanted)} of ${short(most)}`,
    `${short(100 * share)} %`,
    `${unit}; ${remedy}`,
  ]);
  return [
    ...table(['Of', 'What', 'How much', 'From'], rows),
    '',
    ...table(['What cannot simply be added to', 'Wanted', 'Share', 'Of what; what may be done'], limits),
    '',
    `What is reached first: ${plan.bottleneck}`,
    '',
    ...plan.warnings.map((warning) => `- ${warning}`),
    '',
  ].join('\n');
}

export function checkText(check: Check): string {
  const { cores, partsMicros, wholeMicros, generatorMicros, restMicros } = check;
  const { predictedPerSecond: predicted, measuredPerSecond: found } = check;
  const compare = (a: number, b: number) => `${a > b ? '+' : '−'}${short(Math.abs((100 * (a - b)) / b))} %`;
  const rows = [
    [
      'whole purchases a second',
      short(predicted),
      short(found),
      compare(predicted, found),
      `(${cores} cores − ${short(restMicros / 1e6)} at rest) ÷ (${short(partsMicros)} µs + ${short(generatorMicros)} µs of the load generator)`,
    ],
    [
      'CPU of a purchase, µs',
      short(partsMicros),
      short(wholeMicros),
      compare(partsMicros, wholeMicros),
      'entry to purchase token + order to 202 + queued to decided, of known shoppers; without what is used at rest',
    ],
  ];
  return [
    ...table(['One machine for everything', 'Predicted', 'Measured', 'Difference', 'From'], rows),
    '',
    'The parts are measured apart from each other and from the whole. What the load generator uses is measured by nobody; unless it is',
    'said with --generator-micros, a request is taken to cost it what it costs a bare server. A closed load also leaves a core idle at times.',
    '',
  ].join('\n');
}

/** `docs/capacity.md`. */
export function documentOf(measured: Measured, check: Check | null, examples: readonly Example[]): string {
  const { bytes, rowBytes, rows } = orderInMysql();
  return [
    '# Capacity, on paper',
    '',
    'Written by `npm run capacity -- --write`; do not edit. How many machines an expected crowd takes, from what a benchmark has measured',
    'of each operation ([load-tests/bench/latest.md](../load-tests/bench/latest.md)) and from assumptions, all of them below. It is arithmetic: it',
    'knows no queueing beyond the share of a resource that may be used, and supposes that an operation costs the same however much is added. How',
    'true that is up to 4 processes of each service, 3 Redis masters, 64 buckets and 10,000 connections is what `npm run bench -- --growth` measures;',
    'nobody has measured more. Your own crowd:',
    '',
    '```sh',
    'npm run capacity -- --qps 1000000 --units 100000000 --buyers-per-unit 3',
    'npm run capacity -- --help',
    '```',
    '',
    ...(measured.isRough ? ['**The benchmark was a short run: all figures are rough.**', ''] : []),
    '## Checked against what was measured',
    '',
    check ? checkText(check) : 'The benchmark has no whole purchases to check with.\n',
    ...examples.flatMap(({ title, args, crowd }) => [
      `## ${title}`,
      '',
      '```sh',
      `npm run capacity -- ${args}`,
      '```',
      '',
      planText(planFor(crowd, measured)),
    ]),
    '## What is measured',
    '',
    `${capital(measured.source)}. CPU time of an operation by process, µs, without what it uses at rest,`,
    'of those who take part in it:',
    '',
    ...table(
      ['Operation', ...PROCESSES],
      Object.entries(measured.micros)
        .filter(
          ([operation, cost]) => operation !== 'payment' || Object.values(cost).some((value) => value > 0),
        )
        .map(([operation, cost]) => [operation, ...PROCESSES.map((process) => short(cost[process]))]),
    ),
    '',
    `One writer drains ${short(measured.writerOrdersPerSecond)} orders a second; Redis keeps ${short(measured.redisBytesPerOrder)} bytes for an order of one unit.`,
    ...(measured.overridden.length > 0
      ? [`Given by the caller instead of measured: ${measured.overridden.join(', ')}.`]
      : []),
    '',
    '## What is assumed',
    '',
    'Each may be said otherwise by an option. An entry that has to wait is taken to cost what a granted one costs, and a poll of an order what one',
    'of a waiting entry does. Refusals leave nothing in Redis. An edge, or an ingress, ends TLS and shares a few connections to the gateways. Traffic',
    'is counted without TLS, TCP and what services say to each other, which has the feed from inventory to each gateway in it. Event streams,',
    'repetitions after a 503, holds that are not ordered, cancellations, refunds and operators are not counted.',
    '',
    ...table(
      ['Option', 'Assumed', 'In', 'What'],
      settingRows().map(({ name, assumed, unit, meaning }) => [`\`${name}\``, assumed, unit, meaning]),
    ),
    '',
    `A paid order in MySQL is ${rows} rows of ${short(rowBytes)} bytes together; with indexes, and pages ${short(100 * PAGE_FILL)} % full, ${short(bytes)} bytes. Estimated from`,
    'the columns, for one order:',
    '',
    ...table(
      ['Table', 'Rows', 'Bytes of a row', 'of its entries in indexes'],
      ORDER_TABLES.map((one) => [one.table, String(one.rows), String(one.rowBytes), String(one.indexBytes)]),
    ),
    '',
  ].join('\n');
}

/** Padded, so that it can be read without being rendered; the last column is not, because it is long. */
function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const all = [head, ...rows].map((row) => row.map((cell) => cell.replaceAll('|', '\\|')));
  const widths = head.map((_, column) => Math.max(3, ...all.map((row) => row[column]?.length ?? 0)));
  const last = head.length - 1;
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell, column) => (column === last ? cell : cell.padEnd(widths[column] ?? 0))).join(' | ')} |`;
  const rule = widths.map((width, column) => '-'.repeat(column === last ? 3 : width));
  return [line(all[0] ?? []), line(rule), ...all.slice(1).map(line)];
}

const capital = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);
