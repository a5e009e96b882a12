import { spawn, type ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';

/** A suite that runs, and how to judge it afterwards. */
export interface RunningSuite {
  readonly baseUrl: string;
  readonly operatorUrl: string;
  readonly operatorToken: string;
  /** Variables by which the auditor finds this suite's stores. */
  readonly stores: Readonly<Record<string, string>>;
  /** Stops what was started for this run. Safe to call twice. */
  readonly stop: () => Promise<void>;
}

/** What the demonstration prints, as one line, once everything is up. */
const Announcement = z.looseObject({
  api: z.url(),
  operator: z.url(),
  /** A file, so that no token stands in a log. */
  operatorTokenFile: z.string(),
  stores: z.record(z.string(), z.string()),
});

const DEMO = fileURLToPath(new URL('../../apps/demo/dist/main.js', import.meta.url));
/** Stops it in good order when this process is gone, however it ended. */
const END_WITH_PARENT = new URL('../../apps/demo/dist/end-with-parent.js', import.meta.url).href;
const START_TIMEOUT_MS = 10 * 60_000;
const STOP_GRACE_MS = 60_000;

/**
 * Starts servers and services through the demonstration, which knows how; its progress goes to stderr.
 *
 * @throws when it ends before everything is up
 */
export async function startSuite(env: NodeJS.ProcessEnv): Promise<RunningSuite> {
  const child = spawn(process.execPath, ['--import', END_WITH_PARENT, DEMO, '--serve'], {
    env,
    stdio: ['ignore', 'pipe', 'inherit', 'ipc'],
    // A session of its own: Ctrl-C in the terminal reaches only this process, which stops things in order.
    detached: true,
  });
  const stop = () => end(child);
  try {
    const line = await firstLine(child);
    const { api, operator, operatorTokenFile, stores } = Announcement.parse(JSON.parse(line));
    const operatorToken = readFileSync(operatorTokenFile, 'utf8').trim();
    return {
      baseUrl: new URL(api).origin,
      operatorUrl: new URL(operator).origin,
      operatorToken,
      stores,
      stop,
    };
  } catch (error) {
    await stop();
    throw new Error(`the suite did not start: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
}

function firstLine(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    const limit = setTimeout(
      () => reject(new Error(`it was not up within ${START_TIMEOUT_MS / 60_000} minutes`)),
      START_TIMEOUT_MS,
    );
    const settle = (act: () => void) => {
      clearTimeout(limit);
      act();
    };
    child.once('error', (error) => settle(() => reject(error)));
    child.once('exit', (code, signal) =>
      settle(() => reject(new Error(`it ended (${signal ?? `exit code ${code}`})`))),
    );
    if (!child.stdout) throw new Error('its output is not piped');
    createInterface({ input: child.stdout }).once('line', (line) => settle(() => resolve(line)));
  });
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  child.kill('SIGTERM');
  const late = setTimeout(() => child.kill('SIGKILL'), STOP_GRACE_MS);
  await gone;
  clearTimeout(late);
}
