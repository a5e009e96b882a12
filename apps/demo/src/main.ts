import { randomBytes } from 'node:crypto';
import { appendFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { startEdge, type Edge } from '@flash-sale/edge';
import { stackHome, startStack } from '@flash-sale/stack';
import { ClientLog } from './client-log.js';
import { Crowd, type CrowdOptions } from './crowd.js';
import { readDemoEnv, type DemoEnv } from './env.js';
import { Figures } from './figures.js';
import { signAccessToken } from './identity.js';
import { Services } from './launch.js';
import { HELP, group, parseOptions, type DemoOptions } from './options.js';
import { Display } from './progress.js';
import { SaleDesk } from './sale.js';
import { planSuite, type Suite } from './suite.js';
import { audit, isClean, tell, verdictOf, type Audit } from './verdict.js';

/** Short where people wait for what is given back, so that it is sold again while one watches; else less of a hurry. */
const HURRIED = { holdSeconds: 4, paySeconds: 8 };
const UNHURRIED = { holdSeconds: 60, paySeconds: 180 };
const REHEARSAL = { shoppers: 600, perSecond: 400, seconds: 3 };
const LOOK_EVERY_MS = 500;
const REPORT_EVERY_MS = 3_000;
/** How long after closing the last purchases may take. */
const LAST_PURCHASES_MS = 30_000;
/** One Ctrl-C reaches this process twice: from the terminal, and passed on by npm. */
const SAME_KEYSTROKE_MS = 1_000;
const WATCH_NPM_MS = 500;

/** One demonstration, from the servers to the verdict. What it starts, {@link end} stops. */
class Demonstration {
  readonly #interruption = new AbortController();
  /** Run in reverse order at the end. */
  readonly #toStop: (() => Promise<void>)[] = [];
  readonly #run = newRunId();
  readonly #folder: string;
  #edge: Edge | undefined;

  constructor(
    private readonly options: DemoOptions,
    private readonly env: DemoEnv,
    private readonly display: Display,
  ) {
    this.#folder = join(stackHome(env.inherited), 'logs', this.#run);
  }

  interrupt(reason: Error): void {
    this.#interruption.abort(reason);
  }

  /** Runs until the verdict, and where asked for until somebody interrupts. Returns the exit code. */
  async run(): Promise<number> {
    const { display, options } = this;
    const signal = this.#interruption.signal;
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    display.say(display.dim('Starting Redis, Kafka and MySQL, or finding them'));
    // Installing and starting may take minutes; interrupted meanwhile, the stack cleans up as the process exits.
    const stack = await Promise.race([
      startStack({
        env: this.env.inherited,
        stopOnSignal: false,
        log: (line) => display.say(display.dim(`  ${line}`)),
      }),
      untilAborted(signal),
    ]);
    this.#toStop.push(() => stack.stop());

    const suite = await planSuite(this.#run, stack, options);
    const services = new Services({ logFolder: this.#folder, env: this.#serviceEnv(), signal });
    this.#toStop.push(() => services.stop());
    display.say(display.dim(`Starting the five services; their logs: ${this.#folder}`));
    await services.start(suite.services);
    await this.#startEdge(suite);
    if (options.serve) return this.#serve(suite, services);

    const figures = new Figures();
    const findings = await this.#guarded(services, this.#sell(suite, figures));
    const verdict = verdictOf(findings, figures);
    tell(verdict, findings.breaches, figures, display);
    display.say();
    display.say(display.dim(` To audit it again: ${this.#auditCommand(suite)}`));
    if (options.json) process.stdout.write(`${JSON.stringify(verdict)}\n`);
    const code = isClean(verdict) ? 0 : 1;
    if (options.once) return code;
    await this.#stayUp(suite, services);
    return code;
  }

  /** Stops what was started, latest first. What cannot be stopped is said and does not keep the rest from stopping. */
  async end(): Promise<void> {
    for (const stop of this.#toStop.splice(0).toReversed()) {
      await stop().catch((error: unknown) => this.display.say(this.display.red(messageOf(error))));
    }
  }

  async #startEdge({ edge }: Suite): Promise<void> {
    if (!edge) return;
    this.display.say(this.display.dim('Starting nginx in front of the gateway'));
    const log = join(this.#folder, 'edge.log');
    const variables = { ...edge.variables, EDGE_HOME: join(this.#folder, 'edge') };
    const started = startEdge({ variables, onOutput: (text) => appendFileSync(log, text) });
    // One that did not start has stopped itself.
    const stop = () =>
      started.then(
        (edge) => edge.stop(),
        () => {},
      );
    this.#toStop.push(stop);
    this.#edge = await Promise.race([started, untilAborted(this.#interruption.signal)]);
  }

  async #sell(suite: Suite, figures: Figures): Promise<Audit> {
    const { display, options } = this;
    const signal = this.#interruption.signal;
    const desk = this.#deskOf(suite, signal);
    display.say(
      display.dim('Rehearsing with a small sale, so that the code is as warm as in any service that has run'),
    );
    await this.#rehearse(desk, suite);
    const saleId = `sale-${this.#run}`;
    const sale = { saleId, skuId: 'phone-x', title: 'Phone X, one for each' };
    display.say(
      `Selling ${display.bold(group(options.units))} units to ${display.bold(group(options.shoppers))} shoppers ` +
        display.dim(`(${options.buckets} buckets, seed ${options.seed})`),
    );
    display.say(`You may try your luck among them: ${suite.shopOrigin}/?sale=${saleId}`);
    await desk.open({
      ...sale,
      allotment: options.units,
      buckets: options.buckets,
      ...(options.units < options.shoppers ? HURRIED : UNHURRIED),
      closesAfterSeconds: options.maxSeconds + 60,
    });

    const log = new ClientLog(join(this.#folder, 'crowd.jsonl'));
    const crowd = this.#startCrowd(suite, { ...options, ...sale, figures, log });
    display.follow(figures, options);
    try {
      await Promise.race([this.#untilDecided(desk, saleId, figures), crowd.done]);
      await desk.close(saleId);
      crowd.closeDoors();
      await Promise.race([crowd.done, sleep(LAST_PURCHASES_MS, undefined, { signal })]);
    } finally {
      display.finish();
    }
    await crowd.stop();
    await log.close();

    display.say(display.dim('Closed. Waiting until every hold and every order has ended'));
    await desk.settle(saleId);
    display.say(display.dim(`Settled. The auditor compares Redis, Kafka, MySQL and ${log.path}`));
    const env = { ...this.env.inherited, ...suite.stores };
    const reportFile = join(this.#folder, 'audit.txt');
    return audit({ saleId, clientLog: log.path, reportFile, env, signal });
  }

  /** Half of a small crowd buys, the other half is refused; then that sale is over and looked at no more. */
  async #rehearse(desk: SaleDesk, suite: Suite): Promise<void> {
    const saleId = `rehearsal-${this.#run}`;
    const sale = { saleId, skuId: 'rehearsal', title: 'Rehearsal' };
    const { buckets, seed } = this.options;
    const { shoppers, perSecond, seconds } = REHEARSAL;
    await desk.open({
      ...sale,
      allotment: shoppers / 2,
      buckets,
      ...UNHURRIED,
      closesAfterSeconds: 60,
    });
    const log = new ClientLog(join(this.#folder, 'rehearsal.jsonl'));
    const shares = { abandon: 0, decline: 0 };
    const crowd = this.#startCrowd(suite, {
      ...sale,
      ...shares,
      shoppers,
      perSecond,
      seed,
      figures: new Figures(),
      log,
    });
    await sleep(seconds * 1_000, undefined, { signal: this.#interruption.signal });
    crowd.closeDoors();
    await crowd.done;
    await desk.close(saleId);
    await crowd.stop();
    await log.close();
  }

  #startCrowd(suite: Suite, options: Omit<CrowdOptions, 'origin' | 'accessToken'>): Crowd {
    const { identity, shopOrigin: origin } = suite;
    const accessToken = (subject: string) => signAccessToken(identity, { subject });
    const crowd = new Crowd({ ...options, origin, accessToken });
    this.#toStop.push(() => crowd.stop());
    crowd.start();
    return crowd;
  }

  /** Returns when every unit is paid for, or the time is over. That the whole crowd has left is for others to notice. */
  async #untilDecided(desk: SaleDesk, saleId: string, figures: Figures): Promise<void> {
    const deadline = performance.now() + this.options.maxSeconds * 1_000;
    let nextReportAt = performance.now() + REPORT_EVERY_MS;
    while (performance.now() < deadline) {
      await sleep(LOOK_EVERY_MS, undefined, { signal: this.#interruption.signal });
      // The crowd may have missed an answer; the operators' report has not.
      if (figures.paid < this.options.units && performance.now() < nextReportAt) continue;
      nextReportAt = performance.now() + REPORT_EVERY_MS;
      const report = await desk.report(saleId).catch(() => undefined);
      if (report && report.mysql.paid >= this.options.units) return;
    }
    this.display.say(`${this.options.maxSeconds} s are over: closing the sale with what is left`);
  }

  /** Says in one line where everything is, for the program that asked, and stays up until that says stop. */
  async #serve(suite: Suite, services: Services): Promise<number> {
    const place = {
      api: suite.shopOrigin,
      ...(suite.edge ? { secureApi: suite.edge.secureOrigin } : {}),
      operator: suite.operatorOrigin,
      operatorTokenFile: this.#writeOperatorToken(suite),
      ops: suite.opsOrigins,
      stores: suite.stores,
    };
    process.stdout.write(`${JSON.stringify(place)}\n`);
    this.display.say(this.display.dim('Everything is up, until Ctrl-C or SIGTERM'));
    await this.#untilInterrupted(services);
    return 0;
  }

  async #stayUp(suite: Suite, services: Services): Promise<void> {
    const { display } = this;
    const saleId = `yours-${this.#run}`;
    // Closed at the end even when it was an interruption that ended it: a later run's shop would still show it as open.
    const desk = this.#deskOf(suite, new AbortController().signal);
    this.#toStop.push(() => desk.close(saleId));
    await desk.open({
      saleId,
      skuId: 'phone-y',
      title: 'Phone Y, for you to try',
      allotment: 100,
      buckets: this.options.buckets,
      holdSeconds: 120,
      paySeconds: 900,
      closesAfterSeconds: 12 * 3_600,
    });
    const operatorToken = this.#writeOperatorToken(suite);
    const lines = {
      'Buy one yourself': `${suite.shopOrigin}/?sale=${saleId}`,
      ...(suite.edge
        ? { 'By TLS': `${suite.edge.secureOrigin}/?sale=${saleId}  (the certificate is signed by itself)` }
        : {}),
      'API, described': `${suite.shopOrigin}/docs  and  ${suite.shopOrigin}/openapi.json`,
      'For operators': `${suite.operatorOrigin}/docs  with the bearer token in ${operatorToken}`,
      Metrics: Object.entries(suite.opsOrigins)
        .map(([name, origin]) => `${origin}/metrics  ${name}`)
        .join(`\n${' '.repeat(20)}`),
      Logs: this.#folder,
      'On the servers': `database ${suite.database}, topics ${suite.topics.join(' and ')}`,
    };
    display.say();
    for (const [name, text] of Object.entries(lines))
      display.say(` ${display.bold(name.padEnd(18))} ${text}`);
    display.say();
    display.say(' Everything stays up until Ctrl-C.');
    await this.#untilInterrupted(services);
  }

  /** The stores' addresses and names go through a file that only this user may read: passwords and keys are among them. */
  #auditCommand(suite: Suite): string {
    const file = join(this.#folder, 'stores.env');
    const quoted = (value: string) => `'${value.replaceAll("'", `'\\''`)}'`;
    const lines = Object.entries(suite.stores).map(([name, value]) => `${name}=${quoted(value)}\n`);
    writeFileSync(file, lines.join(''), { mode: 0o600 });
    const log = join(this.#folder, 'crowd.jsonl');
    return `(set -a; . ${file}; npm run audit -- --sale sale-${this.#run} --log ${log})`;
  }

  /** A file that only this user may read, so that the token stands in no log. */
  #writeOperatorToken(suite: Suite): string {
    const file = join(this.#folder, 'operator.jwt');
    const token = signAccessToken(suite.identity, { subject: 'operator', role: 'operator' });
    writeFileSync(file, token, { mode: 0o600 });
    return file;
  }

  /** Throws only if a service ends before. */
  async #untilInterrupted(services: Services): Promise<void> {
    await this.#guarded(services, untilAborted(this.#interruption.signal)).catch((error: unknown) => {
      if (!this.#interruption.signal.aborted) throw error;
    });
  }

  /** The work, unless a service ends or somebody interrupts before it is done. */
  async #guarded<T>(services: Services, work: Promise<T>): Promise<T> {
    const interrupted = untilAborted(this.#interruption.signal);
    return Promise.race([work, services.failure, interrupted, ...(this.#edge ? [this.#edge.failure] : [])]);
  }

  #deskOf(suite: Suite, signal: AbortSignal): SaleDesk {
    return new SaleDesk({
      operatorOrigin: suite.operatorOrigin,
      shopOrigin: suite.shopOrigin,
      accessToken: signAccessToken(suite.identity, { subject: 'operator', role: 'operator' }),
      signal,
    });
  }

  #serviceEnv(): NodeJS.ProcessEnv {
    const { inherited, logLevel } = this.env;
    return {
      ...inherited,
      LOG_LEVEL: logLevel,
      // No load balancer has to notice that a service stops.
      DRAIN_WAIT_MS: '0',
      // Traces cost time that nobody would look at, unless there is somewhere to send them.
      ...(inherited['OTEL_EXPORTER_OTLP_ENDPOINT'] ? {} : { OTEL_TRACES_SAMPLER_ARG: '0' }),
    };
  }
}

/** Sorts by time and is unlike any other: `20261121-124501-4f2a`. */
function newRunId(): string {
  const [date, time] = new Date().toISOString().split(/[T.]/);
  const digits = (text: string | undefined) => (text ?? '').replaceAll(/\D/g, '');
  return `${digits(date)}-${digits(time)}-${randomBytes(2).toString('hex')}`;
}

function untilAborted(signal: AbortSignal): Promise<never> {
  const promise = new Promise<never>((_, reject) => {
    const fail = () => reject(signal.reason as Error);
    if (signal.aborted) fail();
    else signal.addEventListener('abort', fail, { once: true });
  });
  // A loser of a race rejects later, with nobody left to hear it.
  promise.catch(() => {});
  return promise;
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

async function main(args: readonly string[]): Promise<number> {
  const parsed = parseOptions(args);
  if (parsed.kind === 'help') {
    process.stdout.write(HELP);
    return 0;
  }
  if (parsed.kind === 'faults') {
    for (const fault of parsed.faults) process.stderr.write(`${fault}\n`);
    process.stderr.write('npm start -- --help says what there is\n');
    return 2;
  }
  const env = readDemoEnv();
  const screen = parsed.options.json || parsed.options.serve ? process.stderr : process.stdout;
  const display = new Display(screen, env.colour);
  const demonstration = new Demonstration(parsed.options, env, display);
  let interruptedAtMs: number | undefined;
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(name, () => {
      if (interruptedAtMs === undefined) {
        interruptedAtMs = performance.now();
        demonstration.interrupt(new Error(`interrupted by ${name}`));
      } else if (performance.now() - interruptedAtMs > SAME_KEYSTROKE_MS) {
        // Whoever asks again does not want to wait; services and servers then end by hooks of their own.
        process.exit(130);
      }
    });
  }
  if (env.startedByNpm) {
    // Stopped by a signal to npm alone, npm and its shell go without telling us.
    const shell = process.ppid;
    const watch = () => process.ppid !== shell && demonstration.interrupt(new Error('npm is gone: stopping'));
    setInterval(watch, WATCH_NPM_MS).unref();
  }
  let code = 1;
  try {
    code = await demonstration.run();
  } catch (error) {
    display.finish();
    display.say(display.red(messageOf(error)));
    code = interruptedAtMs === undefined ? 1 : 130;
  } finally {
    if (interruptedAtMs !== undefined) display.say(display.dim('Stopping what was started'));
    await demonstration.end();
  }
  return code;
}

process.exit(await main(process.argv.slice(2)));
