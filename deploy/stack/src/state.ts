/**
 * What runs for this checkout, in one file that every run reads: which servers, where, started for
 * whom. It outlives crashes, so nothing in it is believed before it was checked against the processes.
 */
import { randomUUID } from 'node:crypto';
import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isRunning, thisProcess, type ProcessIdentity } from './processes.js';
import type { ServerName } from './probe.js';

export interface ServerRecord {
  engine: 'native' | 'container';
  host: string;
  port: number;
  /** Only of native servers; containers belong to their engine. */
  process?: ProcessIdentity;
  /** The run that will stop it, or 'kept' when it runs until `stack down`. */
  owner: ProcessIdentity | 'kept';
}

export type StackState = Partial<Record<ServerName, ServerRecord>>;

const stateFormat = 1;

/** Starting may mean downloading; only a run that hangs takes longer. */
export const lockTimeoutMs = 15 * 60_000;

/** Where data, jars, logs and the state file live. */
export function stackHome(env: NodeJS.ProcessEnv = process.env): string {
  const chosen = env['FLASH_SALE_HOME'];
  return chosen ? resolve(chosen) : fileURLToPath(new URL('../../../.flash-sale', import.meta.url));
}

/** The form that clients and the environment variables take. */
export function addressOf(name: ServerName, { host, port }: ServerRecord): string {
  if (name === 'redis') return `redis://${host}:${port}`;
  return name === 'mysql' ? `mysql://root@${host}:${port}/` : `${host}:${port}`;
}

export class StateFile {
  readonly #file: string;
  readonly #lock: string;
  readonly #home: string;

  constructor(home: string) {
    this.#home = home;
    this.#file = join(home, 'stack.json');
    this.#lock = join(home, 'stack.lock');
  }

  /** An absent, damaged or foreign file is no state: the servers it might name are then left alone. */
  read(): StackState {
    try {
      const stored = JSON.parse(readFileSync(this.#file, 'utf8')) as {
        format?: number;
        servers?: StackState;
      };
      return stored.format === stateFormat && stored.servers ? stored.servers : {};
    } catch {
      return {};
    }
  }

  record(name: ServerName, record: ServerRecord): void {
    this.#write({ ...this.read(), [name]: record });
  }

  forget(name: ServerName): void {
    const { [name]: _forgotten, ...others } = this.read();
    this.#write(others);
  }

  #write(servers: StackState): void {
    const next = `${this.#file}.${process.pid}`;
    writeFileSync(next, `${JSON.stringify({ format: stateFormat, servers }, null, 2)}\n`, { mode: 0o600 });
    renameSync(next, this.#file);
  }

  /**
   * Runs the work while no other run starts or stops servers here. The bound is generous because the
   * other run may be downloading; a holder that has died is noticed at once.
   */
  async exclusively<T>(
    options: { timeoutMs: number; signal?: AbortSignal; onWait?: (holder: number) => void },
    work: () => Promise<T>,
  ): Promise<T> {
    mkdirSync(this.#home, { recursive: true, mode: 0o700 });
    writeFileSync(join(this.#home, '.gitignore'), '*\n');
    const mine = `${this.#lock}.${randomUUID()}`;
    writeFileSync(mine, JSON.stringify(thisProcess()), { mode: 0o600 });
    const deadline = Date.now() + options.timeoutMs;
    try {
      // A link, unlike a fresh file, appears together with its content.
      for (let told = false; !this.#takeLock(mine);) {
        options.signal?.throwIfAborted();
        const holder = this.#lockHolder();
        if (holder === 'free') continue;
        if (holder === 'dead') {
          this.#breakLock();
          continue;
        }
        if (Date.now() >= deadline) {
          throw new Error(
            `process ${holder.pid} has been starting or stopping servers in ${this.#home} for ` +
              `${Math.round(options.timeoutMs / 1_000)} s: wait for it or end it, then try again`,
          );
        }
        if (!told) options.onWait?.(holder.pid);
        told = true;
        await sleep(100);
      }
    } finally {
      rmSync(mine, { force: true });
    }
    try {
      return await work();
    } finally {
      rmSync(this.#lock, { force: true });
    }
  }

  #takeLock(mine: string): boolean {
    try {
      linkSync(mine, this.#lock);
      return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
      throw error;
    }
  }

  #lockHolder(): ProcessIdentity | 'dead' | 'free' {
    try {
      return livingHolder(readFileSync(this.#lock, 'utf8')) ?? 'dead';
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 'free';
      throw error;
    }
  }

  /** Moved away before it is judged again: between the two looks somebody else may have taken it. */
  #breakLock(): void {
    const broken = `${this.#lock}.${randomUUID()}`;
    try {
      renameSync(this.#lock, broken);
      if (livingHolder(readFileSync(broken, 'utf8'))) linkSync(broken, this.#lock);
    } catch {
      // Somebody else was faster; the next look decides.
    } finally {
      rmSync(broken, { force: true });
    }
  }
}

function livingHolder(content: string): ProcessIdentity | undefined {
  try {
    const holder = JSON.parse(content) as ProcessIdentity;
    return isRunning(holder) ? holder : undefined;
  } catch {
    return undefined;
  }
}
