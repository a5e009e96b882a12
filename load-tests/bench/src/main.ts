import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus, release, totalmem, type } from 'node:os';
import { join, resolve } from 'node:path';
import { Bench, WHOLE, type Size } from './bench.js';
import { explain, commandWith, say, type Started } from './command.js';
import { gatewayMiBWith, redisBytesPerUnit } from './figures.js';
import { measureGrowth } from './growth.js';
import { BUDGET_UNITS, PARTS, measurePart, type OperationName, type Part } from './operations.js';
import { HELP, parseOptions, type BenchOptions } from './options.js';
import { requireProc } from './processes.js';
import {
  REDIS_BYTES_PER_UNIT,
  Results,
  figureOf,
  markdownOf,
  operationOf,
  rounded,
  type Figure,
} from './report.js';
import { OwnServers } from './servers.js';
import { median, spreadOf } from './statistics.js';
import { Suite } from './suite.js';

/** `npm run bench`: what each operation costs, as a table against its budget. */
const HERE = resolve(import.meta.dirname, '..');
const ROOT = resolve(HERE, '../..');
/** Where runs that are not whole are written: among the working files, which are not kept. */
const WORKING_FOLDER = join(ROOT, '.flash-sale/bench');
const SHORT: Size = { requests: 1_000, unitRequests: 2_000, latencyRequests: 300 };
const OPEN_CONNECTIONS = 10_000;
/** At most: ten measurements each, of which some sell only a few hundred a second. */
const GROWTH_REPETITIONS = 3;

async function run(options: BenchOptions, started: Started): Promise<void> {
  requireProc();
  const earlier = options.compareWith === undefined ? undefined : readResults(options.compareWith);
  say('starting servers and services');
  const servers = started.keep(await OwnServers.start(say));
  const plain = started.keep(await Suite.start(servers));
  const bench = started.keep(await Bench.start(options.isShort ? SHORT : WHOLE, say));
  const together = options.parts.filter((part) => part !== 'uncoalesced');
  await repeat(bench, plain, together, options.repetitions);
  if (options.parts.includes('uncoalesced')) {
    const alone = await Suite.start(servers, { coalesce: false });
    try {
      await repeat(bench, alone, ['uncoalesced'], options.repetitions);
    } finally {
      await alone.stop();
    }
  }
  const restMicrosPerSecond = await bench.measureRest(plain);
  const isWhole = options.parts.length === PARTS.length;
  const figures = await figuresOf(bench, plain, servers, isWhole || options.isShort);
  const growth = options.withGrowth
    ? await measureGrowth(bench, plain, servers, Math.min(options.repetitions, GROWTH_REPETITIONS))
    : [];

  const results: Results = {
    at: new Date().toISOString(),
    machine: await machineOf(servers),
    commit: commitOf(),
    isShort: options.isShort,
    repetitions: options.repetitions,
    unitMicros: median(bench.unitMicros),
    unitSpread: spreadOf(bench.unitMicros),
    operations: (Object.keys(BUDGET_UNITS) as OperationName[]).flatMap((name) => {
      const samples = bench.samples.get(name);
      if (!samples) return [];
      return [operationOf(name, BUDGET_UNITS[name], samples, bench.latenciesMs.get(name) ?? [])];
    }),
    figures,
    growth,
    restMicrosPerSecond,
    latenessMs: bench.latenessMs,
  };
  const out = options.out ?? (isWhole && !options.isShort ? HERE : WORKING_FOLDER);
  mkdirSync(out, { recursive: true });
  const text = markdownOf(results, earlier);
  writeFileSync(join(out, 'latest.json'), `${JSON.stringify(results, null, 2)}\n`);
  writeFileSync(join(out, 'latest.md'), text);
  process.stdout.write(text);
  say(`written to ${out}`);
}

async function runUnit(started: Started): Promise<void> {
  requireProc();
  const bench = started.keep(await Bench.start(WHOLE, say));
  for (const { load, micros } of await bench.measureUnitAlone())
    process.stdout.write(`${rounded(micros).padStart(6)} µs  ${load}\n`);
}

/** All parts in turn, again and again; the first time only makes everybody warm. */
async function repeat(
  bench: Bench,
  suite: Suite,
  parts: readonly Part[],
  repetitions: number,
): Promise<void> {
  for (let repetition = 0; repetition <= repetitions; repetition += 1) {
    bench.warmingUp = repetition === 0;
    if (repetition > 0) say(`repetition ${repetition} of ${repetitions}`);
    for (const part of parts) await measurePart(part, bench, suite);
  }
}

async function figuresOf(
  bench: Bench,
  suite: Suite,
  servers: OwnServers,
  withMemory: boolean,
): Promise<Figure[]> {
  const ratesOf = (name: OperationName) => (bench.samples.get(name) ?? []).map(({ perSecond }) => perSecond);
  const figures: Figure[] = [];
  const purchases = ratesOf('whole purchase, 256 at a time');
  if (purchases.length > 0)
    figures.push(
      figureOf('whole purchases, 256 at a time, with everything on this machine', 'a second', purchases, {
        least: 2_000,
      }),
    );
  const drained = ratesOf('queued to decided');
  if (drained.length > 0)
    figures.push(
      figureOf('backlog drained by the writer alone', 'orders a second', drained, { least: 6_000 }),
    );
  if (!withMemory) return figures;
  const bytes = await redisBytesPerUnit(bench, suite, servers);
  figures.push(figureOf(REDIS_BYTES_PER_UNIT, 'bytes', [bytes], { most: 400 }));
  const { now, peak } = await gatewayMiBWith(bench, suite, OPEN_CONNECTIONS);
  figures.push(
    figureOf(`gateway, resident with ${OPEN_CONNECTIONS} open connections`, 'MiB', [now], { most: 150 }),
    figureOf('the same, its peak since it was started', 'MiB', [peak], { most: 150 }),
  );
  return figures;
}

function readResults(file: string): Results {
  try {
    return Results.parse(JSON.parse(readFileSync(file, 'utf8')));
  } catch (error) {
    throw new Error(`--compare ${file}: it is not the JSON of an earlier run`, { cause: error });
  }
}

async function machineOf(servers: OwnServers): Promise<Results['machine']> {
  const all = cpus();
  return {
    cores: all.length,
    cpu: all[0]?.model.trim() ?? 'unknown',
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    system: `${type()} ${release().split('-')[0]}`,
    node: process.versions.node,
    ...(await servers.versions()),
  };
}

function commitOf(): string {
  const git = (...args: string[]) =>
    execFileSync('git', args, { cwd: ROOT, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  try {
    const isChanged = git('status', '--porcelain', '--untracked-files=no') !== '';
    return `${git('rev-parse', 'HEAD')}${isChanged ? ', changed' : ''}`;
  } catch {
    return 'unknown';
  }
}

async function main(args: readonly string[]): Promise<number> {
  const parsed = parseOptions(args);
  if (parsed.kind === 'help' || parsed.kind === 'faults') return explain(parsed, HELP, 'npm run bench');
  if (parsed.kind === 'unit') return commandWith(runUnit);
  return commandWith((started) => run(parsed.options, started));
}

process.exitCode = await main(process.argv.slice(2));
