/** A server of somebody's own, natively, in a folder of its own: for tests that kill it, starve it or move its clock. */
import { join } from 'node:path';
import { requireNativePrograms, startNative, stopGraceMs } from './native.js';
import {
  chooseFreePort,
  endingSignals,
  isRunning,
  loopback,
  signalProcess,
  stopProcess,
  type ProcessIdentity,
} from './processes.js';
import type { ServerName } from './probe.js';
import type { Log } from './software.js';
import { stackHome } from './state.js';

/** Names and values of the server's own configuration. */
export type ServerSettings = Readonly<Record<string, string | number | boolean>>;

export interface PrivateServerOptions {
  /** Keeps data, configuration and log; what is there already is served again. */
  readonly folder: string;
  /** Taken where it is free; a free one by default. */
  readonly port?: number;
  readonly settings?: ServerSettings;
  /** Added to this process's variables. */
  readonly env?: NodeJS.ProcessEnv;
  readonly log?: Log;
}

export interface PrivateServer {
  readonly host: string;
  readonly port: number;
  /** Where its files are. */
  readonly folder: string;
  readonly logFile: string;
  /** The system's number of its process. */
  readonly pid: number;
  isRunning(): boolean;
  /** False when it no longer runs. */
  signal(signal: NodeJS.Signals): boolean;
  /** Ends it in good order, or after 30 s at all. */
  stop(): Promise<void>;
}

/** Killed at the latest when this process ends. */
const running = new Set<ProcessIdentity>();

function killAll(): void {
  for (const server of running) signalProcess(server, 'SIGKILL');
}

function onEndingSignal(signal: NodeJS.Signals): void {
  killAll();
  for (const each of endingSignals) process.off(each, onEndingSignal);
  process.kill(process.pid, signal);
}

function keepTrackOf(server: ProcessIdentity): void {
  if (running.size === 0) {
    process.on('exit', killAll);
    for (const signal of endingSignals) process.on(signal, onEndingSignal);
  }
  running.add(server);
}

function loseTrackOf(server: ProcessIdentity): void {
  running.delete(server);
  if (running.size > 0) return;
  process.off('exit', killAll);
  for (const signal of endingSignals) process.off(signal, onEndingSignal);
}

/**
 * Starts one and returns when it serves. Nothing of it is recorded for other runs: it belongs to this process alone.
 *
 * @throws with the end of its log when it does not start
 */
export async function startPrivateServer(
  name: ServerName,
  options: PrivateServerOptions,
): Promise<PrivateServer> {
  const context = {
    log: options.log ?? ((line: string) => process.stderr.write(`stack: ${line}\n`)),
    signal: new AbortController().signal,
  };
  const softwareHome = stackHome();
  await requireNativePrograms([name], softwareHome, context);
  const server = await startNative(name, {
    ...context,
    home: options.folder,
    softwareHome,
    preferredPort: options.port ?? (await chooseFreePort()),
    ...(options.settings && { settings: options.settings }),
    ...(options.env && { env: options.env }),
    onProcess: ({ process: identity }) => keepTrackOf(identity),
  });
  const folder = join(options.folder, name);
  return {
    host: loopback,
    port: server.port,
    folder,
    logFile: join(folder, 'server.log'),
    pid: server.process.pid,
    isRunning: () => isRunning(server.process),
    signal: (signal) => signalProcess(server.process, signal),
    async stop() {
      await stopProcess(server.process, stopGraceMs);
      loseTrackOf(server.process);
    },
  };
}
