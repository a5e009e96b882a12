/**
 * One Redis, one Kafka and one MySQL for the suite, from wherever they can be had: given by the
 * environment, running already for this checkout, as containers, or as plain processes.
 */
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ContainerEngine } from './containers.js';
import { checkGiven, givenAddresses } from './given.js';
import { requireNativePrograms, startNative, stopGraceMs } from './native.js';
import { endingSignals, isRunning, loopback, signalProcess, stopProcess, thisProcess } from './processes.js';
import { probe, serverNames, type ServerName } from './probe.js';
import type { Log } from './software.js';
import { addressOf, lockTimeoutMs, stackHome, StateFile, type ServerRecord } from './state.js';

export type EngineKind = 'given' | 'container' | 'native';

export interface StackOptions {
  /** Where data, jars, logs and the state file live. By default FLASH_SALE_HOME, else .flash-sale at the root. */
  home?: string;
  env?: NodeJS.ProcessEnv;
  /** Progress, one line at a time; by default to stderr. */
  log?: Log;
  /** Leave the servers running after this process, until `stack down`. */
  keep?: boolean;
  /**
   * Stop on SIGINT, SIGTERM and SIGHUP what was started here, then end by that signal. On by default;
   * a program that handles these itself turns it off and calls stop().
   */
  stopOnSignal?: boolean;
}

export interface Stack {
  redisUrl: string;
  /** Comma-separated, as in KAFKA_BROKERS. */
  kafkaBrokers: string;
  /** Without a database name, of a user who may create databases. */
  mysqlUrl: string;
  engine: Record<ServerName, EngineKind>;
  /** Stops what this very call started, and nothing else. Safe to call twice. */
  stop(): Promise<void>;
}

/** A server of ours that is alive but silent may be recovering; after this it is replaced. */
const recoveryTimeoutMs = 20_000;
/** Stopping goes on without the lock after this, as whoever holds it may be downloading. */
const stopLockTimeoutMs = 3_000;

export function startStack(options: StackOptions = {}): Promise<Stack> {
  return new StackRun(options).start();
}

class StackRun {
  readonly #log: Log;
  readonly #env: NodeJS.ProcessEnv;
  readonly #home: string;
  readonly #state: StateFile;
  readonly #keep: boolean;
  readonly #stopOnSignal: boolean;
  readonly #me = thisProcess();
  readonly #interruption = new AbortController();
  /** What this run started, or took over from a run that died, as it was recorded. */
  readonly #mine = new Map<ServerName, ServerRecord>();
  #providing: Promise<Map<ServerName, ServerRecord>> | undefined;
  #stopping: Promise<void> | undefined;

  constructor(options: StackOptions) {
    this.#log = options.log ?? ((line) => process.stderr.write(`stack: ${line}\n`));
    this.#env = options.env ?? process.env;
    this.#home = options.home ? resolve(options.home) : stackHome(this.#env);
    this.#state = new StateFile(this.#home);
    this.#keep = options.keep ?? false;
    this.#stopOnSignal = options.stopOnSignal ?? true;
  }

  async start(): Promise<Stack> {
    const given = givenAddresses(this.#env);
    await checkGiven(given);
    const addresses: Record<ServerName, string> = { redis: '', kafka: '', mysql: '', ...given };
    const engine: Record<ServerName, EngineKind> = { redis: 'given', kafka: 'given', mysql: 'given' };
    const wanted = serverNames.filter((name) => given[name] === undefined);
    if (wanted.length > 0) {
      for (const [name, record] of await this.#provideOrStop(wanted)) {
        addresses[name] = addressOf(name, record);
        engine[name] = record.engine;
      }
    }
    return {
      redisUrl: addresses.redis,
      kafkaBrokers: addresses.kafka,
      mysqlUrl: addresses.mysql,
      engine,
      stop: () => this.stop(),
    };
  }

  stop(): Promise<void> {
    this.#stopping ??= this.#stopMine();
    return this.#stopping;
  }

  async #provideOrStop(wanted: readonly ServerName[]): Promise<Map<ServerName, ServerRecord>> {
    process.on('exit', this.#onExit);
    if (this.#stopOnSignal) for (const signal of endingSignals) process.on(signal, this.#onSignal);
    const { signal } = this.#interruption;
    const onWait = (pid: number) =>
      this.#log(`waiting for process ${pid}, which is starting or stopping servers`);
    this.#providing = this.#state.exclusively({ timeoutMs: lockTimeoutMs, signal, onWait }, async () => {
      const records = await this.#provide(wanted);
      signal.throwIfAborted();
      if (this.#keep) this.#release();
      return records;
    });
    try {
      return await this.#providing;
    } catch (error) {
      await this.stop();
      throw error;
    }
  }

  async #provide(wanted: readonly ServerName[]): Promise<Map<ServerName, ServerRecord>> {
    const records = new Map<ServerName, ServerRecord>();
    const previousPorts = new Map<ServerName, number>();
    for (const [name, record] of Object.entries(this.#state.read()) as [ServerName, ServerRecord][]) {
      if (!wanted.includes(name)) continue;
      previousPorts.set(name, record.port);
      if (await this.#isUsable(name, record)) records.set(name, this.#adopt(name, record));
      else this.#state.forget(name);
    }
    const missing = wanted.filter((name) => !records.has(name));
    if (missing.length === 0) return records;
    if (!(await this.#startContainers(missing, previousPorts))) {
      await this.#startNatives(missing, previousPorts);
    }
    for (const name of missing) {
      const started = this.#mine.get(name);
      if (started) records.set(name, started);
    }
    return records;
  }

  async #isUsable(name: ServerName, record: ServerRecord): Promise<boolean> {
    for (const deadline = Date.now() + recoveryTimeoutMs; ; await sleep(200)) {
      this.#interruption.signal.throwIfAborted();
      if (record.process && !isRunning(record.process)) return false;
      const fault = await probe(name, record, 2_000);
      if (fault === undefined) return true;
      if (record.process && Date.now() < deadline) continue;
      this.#log(`${name} on port ${record.port} does not serve (${fault}); starting it anew`);
      if (record.process) await stopProcess(record.process, stopGraceMs);
      return false;
    }
  }

  /** A server of a living run stays that run's; one whose run has died becomes ours to stop. */
  #adopt(name: ServerName, record: ServerRecord): ServerRecord {
    const owned = record.owner === 'kept' || isRunning(record.owner);
    const owner = this.#keep ? 'kept' : owned ? record.owner : this.#me;
    const adopted = { ...record, owner };
    if (owner !== record.owner) this.#state.record(name, adopted);
    if (owner === this.#me) this.#mine.set(name, adopted);
    return adopted;
  }

  /** False where there is no container engine, or none that can start these. */
  async #startContainers(
    missing: readonly ServerName[],
    previousPorts: ReadonlyMap<ServerName, number>,
  ): Promise<boolean> {
    const engine = await ContainerEngine.find(this.#home);
    if (!engine) return false;
    this.#log(`starting as containers: ${missing.join(', ')} (the first time this downloads images)`);
    try {
      await engine.start(missing, previousPorts, this.#interruption.signal, (name, port) =>
        this.#remember(name, { engine: 'container', host: loopback, port }),
      );
      return true;
    } catch (error) {
      this.#interruption.signal.throwIfAborted();
      await engine.stop(missing).catch(() => undefined);
      for (const name of missing) this.#forget(name);
      this.#log(`${(error as Error).message}\ntrying without containers`);
      return false;
    }
  }

  async #startNatives(
    missing: readonly ServerName[],
    previousPorts: ReadonlyMap<ServerName, number>,
  ): Promise<void> {
    const context = { log: this.#log, signal: this.#interruption.signal };
    await requireNativePrograms(missing, this.#home, context);
    this.#log(`starting natively: ${missing.join(', ')}`);
    // All settled: the failure of one must not leave another half started behind our back.
    const outcomes = await Promise.allSettled(
      missing.map((name) => {
        const preferredPort = previousPorts.get(name);
        return startNative(name, {
          ...context,
          home: this.#home,
          ...(preferredPort === undefined ? {} : { preferredPort }),
          onProcess: (server) => this.#remember(name, { engine: 'native', host: loopback, ...server }),
        });
      }),
    );
    this.#interruption.signal.throwIfAborted();
    const faults = outcomes.flatMap((outcome) =>
      outcome.status === 'rejected' ? [(outcome.reason as Error).message] : [],
    );
    if (faults.length > 0) throw new Error(faults.join('\n'));
  }

  #remember(name: ServerName, server: Omit<ServerRecord, 'owner'>): void {
    const record: ServerRecord = { ...server, owner: this.#me };
    this.#mine.set(name, record);
    this.#state.record(name, record);
  }

  #forget(name: ServerName): void {
    this.#mine.delete(name);
    this.#state.forget(name);
  }

  /** From now on the servers belong to nobody but `stack down`. */
  #release(): void {
    for (const [name, record] of this.#mine) this.#state.record(name, { ...record, owner: 'kept' });
    this.#letGo();
  }

  #letGo(): void {
    // #provide has handed out its own map of records by now.
    this.#mine.clear();
    process.off('exit', this.#onExit);
    for (const signal of endingSignals) process.off(signal, this.#onSignal);
  }

  readonly #onSignal = (signal: NodeJS.Signals): void => {
    // A second Ctrl-C ends the process at once; what then stays behind, the next run takes over.
    for (const each of endingSignals) process.off(each, this.#onSignal);
    this.#log(`${signal}: stopping what was started`);
    this.#interruption.abort(new Error(`interrupted by ${signal}`));
    void this.stop()
      .catch((error: Error) => this.#log(error.message))
      .finally(() => process.kill(process.pid, signal));
  };

  /** Nothing can be awaited any more: the servers are only asked to end, which each does in good order. */
  readonly #onExit = (): void => {
    for (const [, { process: server }] of this.#stillMine()) if (server) signalProcess(server, 'SIGTERM');
  };

  async #stopMine(): Promise<void> {
    // A start that was interrupted first gives up the lock.
    await this.#providing?.catch(() => undefined);
    if (this.#mine.size > 0) {
      let begun = false;
      const stopAll = () => {
        begun = true;
        return this.#stopServers();
      };
      await this.#state.exclusively({ timeoutMs: stopLockTimeoutMs }, stopAll).catch((error: Error) => {
        if (begun) throw error;
        return stopAll();
      });
    }
    this.#letGo();
  }

  async #stopServers(): Promise<void> {
    const servers = this.#stillMine();
    const results = await Promise.allSettled(
      servers.map(async ([, { process: server }]) => {
        if (server) await stopProcess(server, stopGraceMs);
      }),
    );
    const contained = servers.filter(([, { engine }]) => engine === 'container').map(([name]) => name);
    if (contained.length > 0) await (await ContainerEngine.find(this.#home))?.stop(contained);
    for (const [name] of servers) this.#forget(name);
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  /** Meanwhile `stack up` may have decided to keep a server, or somebody may have started it anew. */
  #stillMine(): [ServerName, ServerRecord][] {
    const now = this.#state.read();
    return [...this.#mine].filter(([name, mine]) => {
      const owner = now[name]?.owner;
      return (
        owner !== undefined &&
        owner !== 'kept' &&
        owner.pid === this.#me.pid &&
        now[name]?.port === mine.port &&
        now[name].process?.pid === mine.process?.pid
      );
    });
  }
}
