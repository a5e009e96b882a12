/** The same three servers as containers, by way of deploy/compose.yaml, for machines with Docker or Podman. */
import { createHash } from 'node:crypto';
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { chooseFreePort, loopback } from './processes.js';
import { waitUntilServing, type ServerName } from './probe.js';
import { findCommand, runQuietly } from './software.js';

const composeFile = fileURLToPath(new URL('../../compose.yaml', import.meta.url));
const startTimeoutMs = 120_000;

const portVariables: Record<ServerName, string> = {
  redis: 'FLASH_SALE_REDIS_PORT',
  kafka: 'FLASH_SALE_KAFKA_PORT',
  mysql: 'FLASH_SALE_MYSQL_PORT',
};

export class ContainerEngine {
  /** One compose project per home, so that two checkouts do not share containers. */
  readonly #project: string;
  readonly #command: string;

  private constructor(command: string, home: string) {
    this.#command = command;
    this.#project = `flash-sale-${createHash('sha256').update(home).digest('hex').slice(0, 8)}`;
  }

  /** The first engine that really answers and has compose; a client without its daemon does not count. */
  static async find(home: string): Promise<ContainerEngine | undefined> {
    for (const name of ['docker', 'podman']) {
      const command = findCommand(name);
      if (command === undefined) continue;
      if ((await succeeds(command, ['info'])) && (await succeeds(command, ['compose', 'version']))) {
        return new ContainerEngine(command, home);
      }
    }
    return undefined;
  }

  async start(
    names: readonly ServerName[],
    preferredPorts: ReadonlyMap<ServerName, number>,
    signal: AbortSignal,
    onPort: (name: ServerName, port: number) => void,
  ): Promise<Map<ServerName, number>> {
    const ports = new Map<ServerName, number>();
    const env: NodeJS.ProcessEnv = { ...process.env };
    for (const name of names) {
      const port = await chooseFreePort(preferredPorts.get(name));
      ports.set(name, port);
      env[portVariables[name]] = String(port);
      onPort(name, port);
    }
    await this.#compose(['up', '--detach', '--no-deps', ...names], { timeoutMs: 600_000, signal, env });
    await Promise.all(
      [...ports].map(async ([name, port]) => {
        try {
          await waitUntilServing(name, { host: loopback, port }, { timeoutMs: startTimeoutMs, signal });
        } catch (error) {
          signal.throwIfAborted();
          throw new Error(`the ${name} container was started, but ${(error as Error).message}`, {
            cause: error,
          });
        }
      }),
    );
    return ports;
  }

  /** Removes the containers of these servers, but not their data. */
  async stop(names: readonly ServerName[]): Promise<void> {
    await this.#compose(['down', ...names], { timeoutMs: 60_000 });
  }

  /** Containers, network and data. */
  async wipe(): Promise<void> {
    await this.#compose(['down', '--volumes'], { timeoutMs: 60_000 });
  }

  async #compose(
    args: readonly string[],
    options: { timeoutMs: number; signal?: AbortSignal; env?: NodeJS.ProcessEnv },
  ): Promise<void> {
    await runQuietly(this.#command, ['compose', '-p', this.#project, '-f', composeFile, ...args], {
      timeoutMs: options.timeoutMs,
      whatFails: `${this.#command} compose ${args[0]}`,
      context: { signal: options.signal ?? new AbortController().signal },
      ...(options.env ? { env: options.env } : {}),
    });
  }
}

function succeeds(command: string, args: readonly string[]): Promise<boolean> {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: 'ignore', timeout: 3_000, killSignal: 'SIGKILL' });
    child.once('error', () => resolve(false));
    child.once('close', (code) => resolve(code === 0));
  });
}
