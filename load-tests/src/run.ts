import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { stackHome } from '@flash-sale/stack';
import { readLoadEnv, type LoadEnv } from './env.js';
import { findK6 } from './k6.js';
import { separateLedger } from './ledger.js';
import { HELP, parseOptions, type LoadOptions } from './options.js';
import { arrivalsBySecond, arrivalsOf, planSpike, spikeStages, unwitnessed, type Plan } from './plan.js';
import { tell } from './report.js';
import { SaleDesk, TEST_SALE_PREFIX } from './sale.js';
import { startSuite, type RunningSuite } from './suite.js';
import { Audit, Summary, judge } from './verdict.js';

/** `npm run load -- spike`: a suite, a sale, the load, the auditor, a verdict. */
const RESULTS = fileURLToPath(new URL('../results', import.meta.url));
const SCENARIO = fileURLToPath(new URL('../src/scenarios/spike.ts', import.meta.url));
const AUDITOR = fileURLToPath(new URL('../../apps/auditor/dist/main.js', import.meta.url));
const EXIT_CODES = { PASS: 0, FAIL: 1, INVALID: 3 } as const;
const USAGE_EXIT_CODE = 2;
/** Beyond what the stages take: start-up, the last visits, the summary. */
const K6_MARGIN_MS = 120_000;
const AUDIT_TIMEOUT_MS = 180_000;

const say = (line: string) => void process.stdout.write(`${line}\n`);

async function run(
  options: LoadOptions,
  env: LoadEnv,
  stopLater: (suite: RunningSuite) => void,
): Promise<number> {
  const id = `${new Date().toISOString().replaceAll(/\D/g, '').slice(2, 14)}-${randomBytes(2).toString('hex')}`;
  const folder = join(RESULTS, id);
  mkdirSync(folder, { recursive: true });
  const k6 = await findK6(stackHome(env.inherited), (line) => say(`  ${line}`));

  const settings = { ...options, baselinePerSecond: env.baselinePerSecond };
  const stages = spikeStages(settings);
  const seconds = stages.reduce((sum, stage) => sum + stage.seconds, 0);
  const arrivals = arrivalsOf(stages);
  const units = options.units ?? Math.max(1, Math.round(arrivals / 10));

  const suite = await suiteFor(options, env);
  stopLater(suite);
  const desk = new SaleDesk(suite);
  const saleId = `${TEST_SALE_PREFIX}${id}`;
  const skuId = 'load-test';
  await desk.open({ saleId, skuId, units, buckets: options.buckets, openSeconds: seconds + 300 });

  const target = {
    baseUrl: suite.baseUrl,
    saleId,
    skuId,
    run: id,
    units,
    summaryFile: join(folder, 'summary.json'),
  };
  const plan = planSpike(settings, target);
  const blind = unwitnessed(plan.thresholds);
  if (blind.length > 0) throw new Error(`thresholds that a silent run would pass: ${blind.join(', ')}`);
  writeFileSync(join(folder, 'plan.json'), JSON.stringify(plan, null, 2));
  say(
    `Sending ${arrivals} arrivals in ${seconds} s to ${suite.baseUrl} for ${units} units, with ${plan.vus} VUs`,
  );
  const startedAtMs = await runK6(k6, plan, folder, seconds * 1_000 + K6_MARGIN_MS);

  const ledgerFile = join(folder, 'ledger.jsonl');
  const ledger = await separateLedger(join(folder, 'k6.log'), ledgerFile, startedAtMs);
  say('Sent. Waiting until every hold and every order has ended');
  const audit = await settleAndAudit(desk, saleId, ledgerFile, { ...env.inherited, ...suite.stores }, folder);
  const summary = existsSync(plan.summaryFile)
    ? Summary.parse(JSON.parse(readFileSync(plan.summaryFile, 'utf8')))
    : undefined;
  const verdict = judge({ asked: arrivals, thresholds: plan.thresholds, summary, audit });
  writeFileSync(join(folder, 'verdict.json'), JSON.stringify({ ...verdict, audit }, null, 2));
  for (const line of tell({ verdict, summary, audit, ledger, askedBySecond: arrivalsBySecond(stages) }))
    say(line);
  say(`Ledger, summary and the auditor's report: ${folder}`);
  return EXIT_CODES[verdict.result];
}

async function suiteFor({ target }: LoadOptions, env: LoadEnv): Promise<RunningSuite> {
  if (!target) {
    say('Starting servers and services');
    return startSuite(env.inherited);
  }
  const { operatorToken } = env;
  if (operatorToken === undefined)
    throw new Error('OPERATOR_TOKEN is not set: it is needed with --operator-url');
  return { ...target, operatorToken, stores: {}, stop: () => Promise.resolve() };
}

/** Resolves with when the load began, however k6 ended: what it found is in its summary. */
async function runK6(k6: string, plan: Plan, folder: string, timeoutMs: number): Promise<number> {
  const logFile = join(folder, 'k6.log');
  const args = [
    'run',
    '--quiet',
    '--no-usage-report',
    '--log-format',
    'raw',
    '--log-output',
    `file=${logFile}`,
    SCENARIO,
  ];
  const child = spawn(k6, args, {
    env: { ...process.env, LOAD_PLAN: JSON.stringify(plan) },
    stdio: ['ignore', 'ignore', 'inherit'],
    timeout: timeoutMs,
  });
  // Nothing is sent before all VUs are there; the first exchange then says more exactly when that was.
  const startedAtMs = Date.now();
  await new Promise<void>((resolve, reject) => {
    child.once('error', (error) => reject(new Error(`k6 cannot be started: ${error.message}`)));
    child.once('close', () => resolve());
  });
  if (!existsSync(logFile)) writeFileSync(logFile, '');
  return startedAtMs;
}

async function settleAndAudit(
  desk: SaleDesk,
  saleId: string,
  ledgerFile: string,
  env: NodeJS.ProcessEnv,
  folder: string,
): Promise<Audit | string> {
  try {
    await desk.settle(saleId);
  } catch (error) {
    // The auditor says more exactly what has not come to rest.
    say(`  ${error instanceof Error ? error.message : String(error)}`);
  }
  const child = spawn(process.execPath, [AUDITOR, '--sale', saleId, '--log', ledgerFile, '--json'], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: AUDIT_TIMEOUT_MS,
  });
  let output = '';
  let complaints = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (complaints += text));
  await new Promise<void>((resolve) => {
    child.once('error', () => resolve());
    child.once('close', () => resolve());
  });
  writeFileSync(join(folder, 'audit.txt'), `${output}${complaints}`);
  // A broken invariant also makes the exit code non-zero, so it is the last line that tells whether there was an audit.
  const parsed = Audit.safeParse(parseJson(output.trimEnd().split('\n').at(-1) ?? ''));
  return parsed.success
    ? parsed.data
    : `the auditor gave no verdict: ${`${complaints}${output}`.trim().slice(-1_500)}`;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

async function main(args: readonly string[]): Promise<number> {
  const parsed = parseOptions(args);
  if (parsed.kind === 'help') {
    say(HELP);
    return 0;
  }
  if (parsed.kind === 'faults') {
    for (const fault of parsed.faults) process.stderr.write(`${fault}\n`);
    process.stderr.write('npm run load -- --help says what there is\n');
    return USAGE_EXIT_CODE;
  }
  let suite: RunningSuite | undefined;
  const leave = () => {
    void (suite?.stop() ?? Promise.resolve()).finally(() => process.exit(130));
  };
  process.once('SIGINT', leave).once('SIGTERM', leave);
  try {
    return await run(parsed.options, readLoadEnv(), (started) => (suite = started));
  } catch (error) {
    process.stderr.write(`load: ${error instanceof Error ? error.message : String(error)}\n`);
    return EXIT_CODES.INVALID;
  } finally {
    await suite?.stop();
  }
}

process.exitCode = await main(process.argv.slice(2));
