import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { requireNginx } from '@flash-sale/stack';

const START = fileURLToPath(new URL('../start.sh', import.meta.url));
const READY_TIMEOUT_MS = 15_000;
const STOP_GRACE_MS = 17_000;
const KEPT_OUTPUT = 20_000;

export interface EdgeOptions {
  /** The variables of `deploy/edge/start.sh`; OPS_PORT, and PORT or TLS_PORT, among them. */
  readonly variables: Readonly<Record<string, string>>;
  /** Hears what nginx says, as it comes. */
  readonly onOutput?: (text: string) => void;
}

export interface Edge {
  /** The system's number of nginx' first process. */
  readonly pid: number | undefined;
  /** Rejects when it ends before it was told to. Never resolves. */
  readonly failure: Promise<never>;
  /** Has it answer what it has begun and end; returns when it is gone. Safe to call twice. */
  stop(): Promise<void>;
}

/**
 * Starts nginx on this machine, installing it where apt offers it; returns when it serves. It ends with this process, however
 * that ends.
 *
 * @throws with what it said when it does not start
 */
export async function startEdge({ variables, onOutput }: EdgeOptions): Promise<Edge> {
  await requireNginx();
  // Its standard input is held open by this process and nobody else: see END_WITH_STDIN.
  const child = spawn('sh', [START], {
    env: { PATH: process.env['PATH'] ?? '', ...variables, END_WITH_STDIN: 'true' },
    stdio: ['pipe', 'pipe', 'pipe'],
    // Ctrl-C in the terminal is for whoever started it, who then stops things in order.
    detached: true,
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output = (output + text).slice(-KEPT_OUTPUT);
      onOutput?.(text);
    });
  }
  child.stdin.on('error', () => {});
  let ending: string | undefined;
  let isStopping = false;
  let fail: (error: Error) => void = () => {};
  const failure = new Promise<never>((_, reject) => (fail = reject));
  // Only looked at while somebody waits for something else.
  failure.catch(() => {});
  const gone = new Promise<void>((resolve) => {
    const onEnd = (how: string) => {
      ending ??= how;
      child.stdin.destroy();
      if (!isStopping) fail(new Error(`the edge ${how}:\n${output.trimEnd()}`));
      resolve();
    };
    child.once('error', (error) => onEnd(`cannot be started: ${error.message}`));
    child.once('exit', (code, signal) =>
      onEnd(signal ? `was ended by ${signal}` : `ended with exit code ${code}`),
    );
  });
  const edge: Edge = {
    pid: child.pid,
    failure,
    async stop() {
      isStopping = true;
      if (ending !== undefined) return;
      child.kill('SIGQUIT');
      const late = setTimeout(() => child.kill('SIGKILL'), STOP_GRACE_MS);
      await gone;
      clearTimeout(late);
    },
  };
  try {
    await Promise.race([untilReady(`http://127.0.0.1:${variables['OPS_PORT'] ?? ''}/readyz`), failure]);
  } catch (error) {
    await edge.stop();
    throw error;
  }
  return edge;
}

async function untilReady(url: string): Promise<void> {
  const deadline = performance.now() + READY_TIMEOUT_MS;
  while (performance.now() < deadline) {
    const answer = await fetch(url, { signal: AbortSignal.timeout(2_000) }).catch(() => null);
    if (answer?.status === 200) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`the edge was not ready within ${READY_TIMEOUT_MS / 1_000} s: ${url} does not answer`);
}
