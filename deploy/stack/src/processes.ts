/**
 * Starting, recognising and ending server processes.
 *
 * A process id alone proves nothing: after a crash the kernel may have given it to somebody else's
 * process. So a process is always named by its id together with its start time, and nothing is ever
 * signalled before both were compared.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { closeSync, existsSync, openSync, readFileSync, readdirSync, readlinkSync } from 'node:fs';
import { createServer, type AddressInfo, type Server } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** Every server listens here and nowhere else. */
export const loopback = '127.0.0.1';

/** What the user or the system sends to have this process end. */
export const endingSignals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

export interface ProcessIdentity {
  pid: number;
  /** Opaque: clock ticks since boot on Linux, a date elsewhere. Only ever compared for equality. */
  startTime: string;
}

export interface LaunchOptions {
  command: string;
  args: readonly string[];
  logFile: string;
  env?: NodeJS.ProcessEnv;
}

export interface Launched {
  identity: ProcessIdentity;
  /** Undefined while the process runs; afterwards how it ended, in words. */
  ending: () => string | undefined;
}

/** The identity of a running process; undefined when there is none, or only its unreaped remains. */
export function identifyProcess(pid: number): ProcessIdentity | undefined {
  try {
    if (existsSync('/proc/self/stat')) {
      // The command name, in parentheses, may itself contain spaces and parentheses.
      const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      const [state] = fields;
      const startTime = fields[19];
      return state === 'Z' || startTime === undefined ? undefined : { pid, startTime };
    }
    const line = execFileSync('ps', ['-o', 'stat=,lstart=', '-p', String(pid)], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: 3_000,
    }).trim();
    return line === '' || line.startsWith('Z')
      ? undefined
      : { pid, startTime: line.slice(line.indexOf(' ')).trim() };
  } catch {
    return undefined;
  }
}

export function isRunning(identity: ProcessIdentity): boolean {
  return identifyProcess(identity.pid)?.startTime === identity.startTime;
}

export function thisProcess(): ProcessIdentity {
  const identity = identifyProcess(process.pid);
  if (!identity) throw new Error('this process cannot read its own start time');
  return identity;
}

/** Starts a server in a session of its own, so that neither Ctrl-C nor our exit reaches it unasked. */
export async function launch(options: LaunchOptions): Promise<Launched> {
  const log = openSync(options.logFile, 'a', 0o600);
  try {
    const child = spawn(options.command, options.args, {
      detached: true,
      stdio: ['ignore', log, log],
      ...(options.env ? { env: options.env } : {}),
    });
    let ended: string | undefined;
    child.once('exit', (code, signal) => {
      ended = signal ? `killed by ${signal}` : `exit code ${code}`;
    });
    await new Promise<void>((resolve, reject) => {
      child.once('spawn', resolve);
      child.once('error', reject);
    });
    child.unref();
    const identity = child.pid === undefined ? undefined : identifyProcess(child.pid);
    if (!identity) {
      throw new Error(`${options.command} ended at once (${ended ?? 'no reason given'})`);
    }
    return { identity, ending: () => ended };
  } finally {
    closeSync(log);
  }
}

/** Asks the process to end, insists after the grace period, and returns once it is gone. */
export async function stopProcess(identity: ProcessIdentity, graceMs: number): Promise<void> {
  if (!signalProcess(identity, 'SIGTERM')) return;
  // A process that a fault test has paused would otherwise never see the request.
  signalProcess(identity, 'SIGCONT');
  if (await goneWithin(identity, graceMs)) return;
  signalProcess(identity, 'SIGKILL');
  if (await goneWithin(identity, 5_000)) return;
  throw new Error(`process ${identity.pid} does not end, not even by SIGKILL`);
}

/** False when that very process no longer runs. Never signals another one. */
export function signalProcess(identity: ProcessIdentity, signal: NodeJS.Signals): boolean {
  if (!isRunning(identity)) return false;
  try {
    process.kill(identity.pid, signal);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
    throw error;
  }
}

async function goneWithin(identity: ProcessIdentity, timeoutMs: number): Promise<boolean> {
  const deadline = Date.now() + timeoutMs;
  while (isRunning(identity)) {
    if (Date.now() >= deadline) return false;
    await sleep(50);
  }
  return true;
}

/**
 * Whether it is this very process that listens on a loopback port, and not another one that took the port in the moment
 * between its being found free and its being used: whoever believes any answer there serves himself from a stranger's data.
 */
export function listensOn(identity: ProcessIdentity, port: number): boolean {
  if (!isRunning(identity)) return false;
  if (!existsSync('/proc/net/tcp')) {
    const question = ['-nP', '-a', '-p', String(identity.pid), `-iTCP:${port}`, '-sTCP:LISTEN'];
    return spawnSync('lsof', question, { stdio: 'ignore', timeout: 3_000 }).status === 0;
  }
  const sockets = new Set(['tcp', 'tcp6'].flatMap((table) => listeningSockets(table, port)));
  try {
    const folder = `/proc/${identity.pid}/fd`;
    return readdirSync(folder).some((descriptor) => sockets.has(linkOf(`${folder}/${descriptor}`)));
  } catch {
    return false;
  }
}

/** As /proc names them among a process's open files; by the table's columns in proc(5). */
function listeningSockets(table: string, port: number): string[] {
  const listening = '0A';
  const suffix = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  const lines = readFileSync(`/proc/net/${table}`, 'latin1').trim().split('\n').slice(1);
  return lines
    .map((line) => line.trim().split(/\s+/))
    .filter(([, local, , state]) => local?.endsWith(suffix) && state === listening)
    .map((fields) => `socket:[${fields[9]}]`);
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    // Closed since the folder was listed.
    return '';
  }
}

/** A loopback port nobody listens on: the preferred one where it is free, else one at random. */
export async function chooseFreePort(preferred?: number): Promise<number> {
  if (preferred !== undefined) {
    const server = await listen(preferred).catch(() => undefined);
    if (server) return release(server);
  }
  const [port] = await chooseFreePorts(1);
  if (port === undefined) throw new Error(`no free port on ${loopback}`);
  return port;
}

/** Below what systems give to outgoing connections, which would take the port of a server that is being restarted. */
const portsToChooseFrom = { from: 10_240, to: 32_768 } as const;
const mostTriesPerPort = 100;

/**
 * Held all at once, so that they differ; at random, so that two runs that start together rarely choose the same.
 *
 * @throws when there are none
 */
export async function chooseFreePorts(count: number): Promise<number[]> {
  const servers: Server[] = [];
  for (let tries = 0; servers.length < count; tries += 1) {
    if (tries === count * mostTriesPerPort) {
      await Promise.all(servers.map(release));
      throw new Error(`no ${count} free ports on ${loopback} among ${tries} that were tried`);
    }
    const server = await listen(randomInt(portsToChooseFrom.from, portsToChooseFrom.to)).catch(
      () => undefined,
    );
    if (server) servers.push(server);
  }
  return Promise.all(servers.map(release));
}

function listen(port: number): Promise<Server> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen({ port, host: loopback, exclusive: true }, () => resolve(server));
  });
}

function release(server: Server): Promise<number> {
  const { port } = server.address() as AddressInfo;
  return new Promise((resolve) => server.close(() => resolve(port)));
}

export function lastLines(file: string, count: number): string {
  try {
    return readFileSync(file, 'utf8').trimEnd().split('\n').slice(-count).join('\n');
  } catch {
    return '(no log)';
  }
}
