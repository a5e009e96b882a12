import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { request } from 'undici';
import { z } from 'zod';

/** One service of the suite, as it is to be started. */
export interface ServiceSpec {
  /** Its folder under apps/. */
  readonly name: string;
  readonly opsPort: number;
  /** Its own variables. */
  readonly env: Readonly<Record<string, string>>;
}

export interface LaunchOptions {
  /** Where each service's output goes, as `<name>.log`. */
  readonly logFolder: string;
  /** Variables of all services. */
  readonly env: NodeJS.ProcessEnv;
  /** Gives up waiting; what was started keeps running until {@link Services.stop}. */
  readonly signal: AbortSignal;
}

interface Running {
  readonly spec: ServiceSpec;
  readonly child: ChildProcess;
  readonly logFile: string;
  /** In words; undefined while it runs. */
  ending: string | undefined;
}

const READY_TIMEOUT_MS = 60_000;
const STOP_GRACE_MS = 25_000;
const LOG_TAIL_LINES = 12;
const APPS = fileURLToPath(new URL('../..', import.meta.url));
const END_WITH_PARENT = new URL('./end-with-parent.js', import.meta.url).href;

/** The five services as child processes: started together, watched, and stopped by their own ids. */
export class Services {
  /** Rejects when a service ends before it was told to. Never resolves. */
  readonly failure: Promise<never>;
  readonly #running: Running[] = [];
  #stopping: Promise<void> | undefined;
  #fail: (error: Error) => void = () => {};

  constructor(private readonly options: LaunchOptions) {
    this.failure = new Promise((_, reject) => {
      this.#fail = reject;
    });
    // It is looked at only while somebody waits; unhandled it would end the process in the middle of stopping.
    this.failure.catch(() => {});
  }

  /** Starts all of them at once; resolves when each says that it is ready. Throws with the end of the log of the one that is not. */
  async start(specs: readonly ServiceSpec[]): Promise<void> {
    for (const spec of specs) this.#running.push(this.#spawn(spec));
    await Promise.race([Promise.all(this.#running.map((each) => this.#untilReady(each))), this.failure]);
  }

  /** Asks every service to end, insists after a while, and returns once all are gone. Safe to call twice. */
  stop(): Promise<void> {
    this.#stopping ??= Promise.all(this.#running.map(stopOne)).then(() => {});
    return this.#stopping;
  }

  #spawn(spec: ServiceSpec): Running {
    const folder = join(APPS, spec.name);
    const logFile = join(this.options.logFolder, `${spec.name}.log`);
    const log = openSync(logFile, 'a', 0o600);
    const preload = ['--import', END_WITH_PARENT, '--import', '@flash-sale/service/instrumentation'];
    // A session of its own: Ctrl-C in the terminal reaches the demonstration alone, which then stops things in order.
    const child = spawn(process.execPath, [...preload, 'dist/main.js'], {
      cwd: folder,
      env: { ...this.options.env, SERVICE_NAME: spec.name, OPS_PORT: String(spec.opsPort), ...spec.env },
      stdio: ['ignore', log, log, 'ipc'],
      detached: true,
    });
    closeSync(log);
    const running: Running = { spec, child, logFile, ending: undefined };
    child.once('error', (error) => this.#onEnd(running, `cannot be started: ${error.message}`));
    child.once('exit', (code, signal) => {
      this.#onEnd(running, signal ? `was ended by ${signal}` : `ended with exit code ${code}`);
    });
    return running;
  }

  #onEnd(running: Running, ending: string): void {
    running.ending ??= ending;
    if (!this.#stopping) this.#fail(complaint(running, ending));
  }

  async #untilReady(running: Running): Promise<void> {
    const deadline = Date.now() + READY_TIMEOUT_MS;
    let answer = 'nothing answers';
    while (Date.now() < deadline) {
      this.options.signal.throwIfAborted();
      if (running.ending !== undefined) throw complaint(running, running.ending);
      try {
        const reply = await request(`http://127.0.0.1:${running.spec.opsPort}/readyz`, {
          signal: AbortSignal.any([this.options.signal, AbortSignal.timeout(3_000)]),
        });
        const text = await reply.body.text();
        if (reply.statusCode === 200) return;
        answer = `/readyz says ${reply.statusCode} ${text.slice(0, 300)}`;
      } catch {
        // Not listening yet; the deadline bounds this.
      }
      await sleep(100);
    }
    throw complaint(running, `was not ready within ${READY_TIMEOUT_MS / 1_000} s (${answer})`);
  }
}

async function stopOne(running: Running): Promise<void> {
  const { child } = running;
  if (running.ending !== undefined || child.pid === undefined) return;
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  child.kill('SIGTERM');
  const late = setTimeout(() => child.kill('SIGKILL'), STOP_GRACE_MS);
  await gone;
  clearTimeout(late);
}

function complaint({ spec, logFile }: Running, what: string): Error {
  return new Error(`${spec.name} ${what}\nThe end of ${logFile}:\n${lastLines(logFile)}`);
}

/** The log's end for people: from each JSON line its level, message and error. */
function lastLines(file: string): string {
  const end = readFileSync(file, 'utf8')
    .trimEnd()
    .split('\n')
    .slice(-3 * LOG_TAIL_LINES);
  // A stack trace ends with its least telling lines, so it is shown from the error on.
  const error = end.findLastIndex((line) => /^\w*Error\b/.test(line));
  const from = error < 0 ? Math.max(0, end.length - LOG_TAIL_LINES) : error;
  const lines = end.slice(from, from + LOG_TAIL_LINES);
  return lines.map((line) => `  ${readable(line)}`).join('\n');
}

const LogLine = z.object({
  level: z.union([z.string(), z.number()]),
  message: z.string(),
  err: z.object({ message: z.string() }).optional(),
});

function readable(line: string): string {
  try {
    const entry = LogLine.parse(JSON.parse(line));
    const cause = entry.err === undefined ? '' : ` (${entry.err.message})`;
    return `${entry.level} ${entry.message}${cause}`;
  } catch {
    return line;
  }
}

/**
 * Ports of this machine that nobody listens on. They lie below the range from which Linux takes ports for outgoing
 * connections, so that a port found free here is not lost to a connection before its service binds it.
 *
 * @param preferred is the first of them if it is free
 */
export async function findFreePorts(count: number, preferred?: number): Promise<[number, ...number[]]> {
  const found: number[] = [];
  if (preferred !== undefined && (await isFree(preferred))) found.push(preferred);
  for (let tries = 0; found.length < count && tries < 1_000; tries += 1) {
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    if (!found.includes(port) && (await isFree(port))) found.push(port);
  }
  const [first, ...rest] = found;
  if (first === undefined || found.length < count) throw new Error(`no ${count} free ports on 127.0.0.1`);
  return [first, ...rest];
}

/** On every address, because a service may listen on all of them. */
function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen({ port, exclusive: true }, () => server.close(() => resolve(true)));
  });
}
