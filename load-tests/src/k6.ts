import { spawn, type ChildProcessByStdio } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Readable } from 'node:stream';

/** The version that is built where none is installed. */
export const K6_VERSION = 'v1.8.1';
/** From 1.0 on k6 runs TypeScript as it is. */
const OLDEST = 1;
const BUILD_TIMEOUT_MS = 20 * 60_000;
const ASK_TIMEOUT_MS = 20_000;

/** Where the one that was built is kept. */
export function cachedK6(home: string): string {
  return join(home, 'tools', `k6-${K6_VERSION}`, 'k6');
}

/** The path of a usable k6 that is there already: on the PATH, or built before; undefined where there is none. */
export async function presentK6(home: string): Promise<string | undefined> {
  for (const candidate of ['k6', cachedK6(home)]) {
    if (candidate !== 'k6' && !existsSync(candidate)) continue;
    const answer = await ask(candidate, ['version']);
    if (answer !== undefined && majorOf(answer) >= OLDEST) return candidate;
  }
  return undefined;
}

/**
 * A k6 to run: a present one, or else one that is built now, once, from its source.
 *
 * @throws an error that says what is missing, what was tried and what to do
 */
export async function findK6(home: string, say: (line: string) => void): Promise<string> {
  const present = await presentK6(home);
  if (present !== undefined) return present;
  const whatToDo =
    'Install k6 1.0 or newer (https://grafana.com/docs/k6), or Go 1.24 or newer (https://go.dev/dl).';
  const go = await ask('go', ['version']);
  if (go === undefined) {
    throw new Error(`k6 is not on the PATH, and neither is go, with which it could be built.\n${whatToDo}`);
  }
  const folder = join(home, 'tools', `k6-${K6_VERSION}`);
  say(`k6 is not on the PATH: building ${K6_VERSION} once, into ${folder}; this takes about four minutes`);
  mkdirSync(folder, { recursive: true });
  const env = { ...process.env, GOBIN: folder, GOFLAGS: '-mod=mod' };
  const fault = await build(['install', `go.k6.io/k6@${K6_VERSION}`], env);
  if (fault !== undefined) {
    throw new Error(`k6 could not be built with ${go.trim()}:\n${fault}\n${whatToDo}`);
  }
  return cachedK6(home);
}

function majorOf(version: string): number {
  return Number(/k6(?:\.exe)? v(\d+)\./.exec(version)?.[1] ?? 0);
}

/** What a program says on stdout, or undefined where it is not there or fails. */
async function ask(command: string, args: readonly string[]): Promise<string | undefined> {
  const { code, stdout } = await finish(
    spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] }),
    ASK_TIMEOUT_MS,
  );
  return code === 0 ? stdout : undefined;
}

/** The end of what go said, where it failed. */
async function build(args: readonly string[], env: NodeJS.ProcessEnv): Promise<string | undefined> {
  const { code, stderr } = await finish(
    spawn('go', args, { env, stdio: ['ignore', 'pipe', 'pipe'] }),
    BUILD_TIMEOUT_MS,
  );
  return code === 0 ? undefined : stderr.trim().slice(-4_000);
}

function finish(
  child: ChildProcessByStdio<null, Readable, Readable>,
  withinMs: number,
): Promise<{ code: number | null; stdout: string; stderr: string }> {
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  return new Promise((resolve) => {
    // spawn's own time-out outlives a program that could not be started, and would keep this process waiting.
    const limit = setTimeout(() => child.kill('SIGKILL'), withinMs);
    const settle = (code: number | null, words: string) => {
      clearTimeout(limit);
      resolve({ code, stdout, stderr: stderr + words });
    };
    child.once('error', (error) => settle(null, error.message));
    child.once('close', (code, signal) => settle(code, signal ? `ended by ${signal}` : ''));
  });
}
