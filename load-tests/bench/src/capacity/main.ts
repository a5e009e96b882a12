import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { explain } from '../command.js';
import { Results } from '../report.js';
import { checkText, documentOf, planText, type Example } from './document.js';
import { checkAgainst, measuredFrom, type Check, type Measured } from './measured.js';
import { planFor } from './model.js';
import { HELP, parseOptions, type CapacityOptions } from './options.js';

/** `npm run capacity`: what an expected crowd takes, from measured costs. */
const ROOT = resolve(import.meta.dirname, '../../../..');
const KEPT_BENCH = join(ROOT, 'load-tests/bench/latest.json');
const DOCUMENT = join(ROOT, 'docs/capacity.md');

const EXAMPLES: readonly { readonly title: string; readonly args: string }[] = [
  {
    title: '200,000 people for 10,000 units within a minute',
    args: '--units 10000 --people 200000',
  },
  {
    title: '100,000 requests a second for a million units, nine of ten refused at the edge',
    args: '--units 1000000 --buyers-per-unit 20 --qps 100000 --refused-at-edge 0.9',
  },
  {
    title: 'A million requests a second for a hundred million units, all let in: what breaks first',
    args: '--units 100000000 --buyers-per-unit 3 --qps 1000000 --sale-seconds 86400',
  },
  {
    title: 'The same crowd, which tries again for hours and of which the edge lets in 3,500 a second',
    args: '--units 100000000 --buyers-per-unit 3 --qps 1000000 --sale-seconds 86400 --tries 100 --refused-at-edge 0.9965',
  },
];

/** Something to tell the caller, who needs no stack for it. */
class Refusal extends Error {}

function run(options: CapacityOptions): string {
  const results = readResults(options.benchFile);
  const measured = measuredFrom(results, options.overrides);
  if ('missing' in measured) {
    const [first = '', ...others] = measured.missing;
    const more = others.length > 0 ? ` and ${others.length} more` : '';
    const where = results
      ? 'the benchmark does not say what is needed; was it run in part?'
      : `there is no ${options.benchFile ?? 'load-tests/bench/latest.json'}.`;
    throw new Refusal(
      `${where} Run "npm run bench", name another result with --bench FILE, or say by --micros OPERATION/PROCESS=µs what it would have measured. Missing: ${first}${more}`,
    );
  }
  if (options.isWrite) return write(measured, results ? checkOf(results, measured, options) : null);
  const check = options.isCheck ? requiredCheck(results, measured, options) : undefined;
  const plan = options.crowd && planFor(options.crowd, measured);
  if (options.isJson) {
    const { source } = measured;
    return `${JSON.stringify({ source, assumptions: options.crowd, ...plan, check }, null, 2)}\n`;
  }
  return [plan && planText(plan), check && checkText(check)].filter(Boolean).join('\n');
}

function checkOf(results: Results, measured: Measured, { generatorMicros }: CapacityOptions): Check | null {
  return checkAgainst(results, measured, generatorMicros ?? results.unitMicros);
}

function requiredCheck(results: Results | undefined, measured: Measured, options: CapacityOptions): Check {
  const check = results && checkOf(results, measured, options);
  if (!check) throw new Refusal('--check needs a benchmark that has measured whole purchases: npm run bench');
  return check;
}

function write(measured: Measured, check: Check | null): string {
  const examples = EXAMPLES.map(({ title, args }): Example => {
    const parsed = parseOptions(args.split(' '));
    if (parsed.kind !== 'run' || !parsed.options.crowd)
      throw new Error(`an example is wrong: ${JSON.stringify(parsed)}`);
    return { title, args, crowd: parsed.options.crowd };
  });
  mkdirSync(dirname(DOCUMENT), { recursive: true });
  writeFileSync(DOCUMENT, documentOf(measured, check, examples));
  return `written: ${DOCUMENT}\n`;
}

/** @returns undefined where there is none */
function readResults(file: string = KEPT_BENCH): Results | undefined {
  if (!existsSync(file)) return undefined;
  try {
    return Results.parse(JSON.parse(readFileSync(file, 'utf8')));
  } catch (error) {
    throw new Refusal(`${file} is not the JSON of a benchmark`, { cause: error });
  }
}

function main(args: readonly string[]): number {
  const parsed = parseOptions(args);
  if (parsed.kind === 'help' || parsed.kind === 'faults') return explain(parsed, HELP, 'npm run capacity');
  try {
    process.stdout.write(run(parsed.options));
    return 0;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    process.stderr.write(`capacity: ${error.message}\n`);
    return 1;
  }
}

process.exitCode = main(process.argv.slice(2));
