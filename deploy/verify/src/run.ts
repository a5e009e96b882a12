import { spawn } from 'node:child_process';

/** How a program ended. */
export interface Outcome {
  /** Its exit code; `null` where it could not be started, ran out of time or was ended by a signal. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly timeoutMs: number;
  readonly cwd?: string;
  /** The whole environment; absent: that of this process. */
  readonly env?: NodeJS.ProcessEnv;
  readonly input?: string;
}

/** Runs a program to its end. Never rejects: a program that is not there is an outcome too. */
export function run(command: string, args: readonly string[], options: RunOptions): Promise<Outcome> {
  const child = spawn(command, args, {
    stdio: ['pipe', 'pipe', 'pipe'],
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.env === undefined ? {} : { env: options.env }),
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  // A program that ends without reading its input is no error of ours; its exit code tells.
  child.stdin.on('error', () => undefined);
  child.stdin.end(options.input ?? '');
  return new Promise((resolve) => {
    // spawn's own time-out outlives a program that could not be started, and would keep this process waiting.
    const limit = setTimeout(() => child.kill('SIGKILL'), options.timeoutMs);
    const settle = (code: number | null, words: string) => {
      clearTimeout(limit);
      resolve({ code, stdout, stderr: stderr + words });
    };
    child.once('error', (error) => settle(null, error.message));
    child.once('close', (code, signal) => settle(code, signal ? `\nended by ${signal}` : ''));
  });
}

/** The end of what a failed program said, for a message. */
export function lastWords({ stdout, stderr }: Outcome): string {
  return `${stdout}\n${stderr}`.trim().split('\n').slice(-15).join('\n');
}
