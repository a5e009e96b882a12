/**
 * Redis, Kafka and MySQL as plain processes on loopback, each with a folder of its own for data and
 * log. Whatever a crash left behind in those folders, the next start copes with it: half-made data has
 * never got its final name, and each server recovers its own finished data.
 */
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { spawnSync } from 'node:child_process';
import {
  chooseFreePort,
  lastLines,
  launch,
  listensOn,
  loopback,
  stopProcess,
  type ProcessIdentity,
} from './processes.js';
import { waitUntilServing, type ServerName } from './probe.js';
import {
  findProgram,
  programsForKafka,
  requireKafkaJars,
  requirePrograms,
  runQuietly,
  type InstallContext,
  type ProgramName,
} from './software.js';

export interface NativeServer {
  port: number;
  process: ProcessIdentity;
}

export interface NativeStart extends InstallContext {
  home: string;
  /** Taken where it is free, so that addresses in an open shell stay true over a restart. */
  preferredPort?: number;
  /** Where software that was fetched is kept; in `home` by default. */
  softwareHome?: string;
  /** Of the server's configuration: what differs from, or is added to, the suite's own. */
  settings?: Readonly<Record<string, string | number | boolean>>;
  /** Added to this process's own variables. */
  env?: NodeJS.ProcessEnv;
  /** Called as soon as there is a process, long before it serves: a crash must not lose track of it. */
  onProcess: (server: NativeServer) => void;
}

interface Preparation {
  command: string;
  args: string[];
  startTimeoutMs: number;
}

interface NativeKind {
  label: string;
  usualPort: number;
  programs: (home: string) => readonly ProgramName[];
  prepare(folder: string, port: number, start: NativeStart): Promise<Preparation>;
}

/** How long a server may take to end in good order: Kafka hands over, MySQL flushes. */
export const stopGraceMs = 30_000;

const kinds: Record<ServerName, NativeKind> = {
  redis: { label: 'Redis', usualPort: 16_379, programs: () => ['redisServer'], prepare: prepareRedis },
  kafka: { label: 'Kafka', usualPort: 19_092, programs: programsForKafka, prepare: prepareKafka },
  mysql: { label: 'MySQL', usualPort: 13_306, programs: () => ['mysqlServer'], prepare: prepareMysql },
};

/** One apt run for all of them, before any is started. */
export async function requireNativePrograms(
  names: readonly ServerName[],
  home: string,
  context: InstallContext,
): Promise<void> {
  await requirePrograms(
    names.flatMap((name) => kinds[name].programs(home)),
    context,
  );
}

/** A port that was free a moment ago may be another's by the time a server listens there; then another port is tried. */
const mostPortsTried = 3;
const portTaken = 'Address already in use';

/**
 * Starts one and returns when that very process serves.
 *
 * @throws with the end of its log when it does not start
 */
export async function startNative(name: ServerName, start: NativeStart): Promise<NativeServer> {
  const kind = kinds[name];
  const folder = join(start.home, name);
  const logFile = join(folder, 'server.log');
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  for (let portsTried = 1; ; portsTried += 1) {
    // The previous log may be what explains a crash.
    if (existsSync(logFile)) renameSync(logFile, join(folder, 'server.previous.log'));
    try {
      return await startOnFreePort(name, folder, logFile, start);
    } catch (error) {
      start.signal.throwIfAborted();
      const reason = error instanceof Error ? error.message : String(error);
      const end = lastLines(logFile, 15);
      if (portsTried < mostPortsTried && lastLines(logFile, 200).includes(portTaken)) {
        start.log(`another process took the port of ${kind.label} before it could; trying another`);
        continue;
      }
      throw new Error(`${kind.label} did not start: ${reason}\nThe end of ${logFile}:\n${end}`, {
        cause: error,
      });
    }
  }
}

async function startOnFreePort(
  name: ServerName,
  folder: string,
  logFile: string,
  start: NativeStart,
): Promise<NativeServer> {
  const kind = kinds[name];
  const port = await chooseFreePort(start.preferredPort ?? kind.usualPort);
  const { command, args, startTimeoutMs } = await kind.prepare(folder, port, start);
  start.signal.throwIfAborted();
  const env = start.env && { ...process.env, ...start.env };
  const { identity, ending } = await launch({ command, args, logFile, ...(env && { env }) });
  const server = { port, process: identity };
  start.onProcess(server);
  try {
    await waitUntilServing(
      name,
      { host: loopback, port },
      {
        timeoutMs: startTimeoutMs,
        signal: start.signal,
        givenUp: ending,
        isExpected: () => listensOn(identity, port),
      },
    );
  } catch (error) {
    await stopProcess(identity, stopGraceMs);
    throw error;
  }
  return server;
}

async function prepareRedis(folder: string, port: number, start: NativeStart): Promise<Preparation> {
  const config = join(folder, 'redis.conf');
  const settings = {
    bind: loopback,
    port,
    'protected-mode': 'yes',
    dir: JSON.stringify(folder),
    appendonly: 'yes',
    appendfsync: 'everysec',
    // The append-only file is the truth; snapshots beside it would only cost time.
    save: '""',
    // Losing a counter quietly would sell a unit twice; refusing a write does not.
    'maxmemory-policy': 'noeviction',
    ...start.settings,
  };
  writeFileSync(config, configLines(settings, ' '));
  return { command: findProgram('redisServer') ?? 'redis-server', args: [config], startTimeoutMs: 30_000 };
}

/**
 * Of a broker that lives for minutes on a few cores: there Java's second compiler uses more CPU time than all requests together,
 * and threads that collect garbage beside each other gain nothing.
 */
const FOR_A_SHORT_LIFE = ['-XX:TieredStopAtLevel=1', '-XX:+UseSerialGC'];

async function prepareKafka(folder: string, port: number, start: NativeStart): Promise<Preparation> {
  const classPath = await requireKafkaJars(start.softwareHome ?? start.home, start);
  const java = findProgram('java') ?? 'java';
  const data = join(folder, 'data');
  const controllerPort = await chooseFreePort();
  const settings = {
    'process.roles': 'broker,controller',
    'node.id': 1,
    'controller.quorum.voters': `1@${loopback}:${controllerPort}`,
    'controller.listener.names': 'CONTROLLER',
    'listener.security.protocol.map': 'CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT',
    listeners: `PLAINTEXT://${loopback}:${port},CONTROLLER://${loopback}:${controllerPort}`,
    'advertised.listeners': `PLAINTEXT://${loopback}:${port}`,
    'log.dirs': data,
    'auto.create.topics.enable': false,
    'log.message.timestamp.type': 'LogAppendTime',
    'log.retention.hours': 7 * 24,
    'offsets.topic.replication.factor': 1,
    'offsets.topic.num.partitions': 10,
    'transaction.state.log.replication.factor': 1,
    'transaction.state.log.min.isr': 1,
    'share.coordinator.state.topic.replication.factor': 1,
    'share.coordinator.state.topic.min.isr': 1,
    'group.initial.rebalance.delay.ms': 0,
    'group.min.session.timeout.ms': 1_000,
    // The default of 128 MB is a third of the heap below.
    'log.cleaner.dedupe.buffer.size': 16 * 1024 * 1024,
    ...start.settings,
  };
  const config = join(folder, 'server.properties');
  writeFileSync(config, configLines(settings, '='));
  // Written last of all by the format tool, so its absence means that formatting never finished.
  if (!existsSync(join(data, 'meta.properties'))) {
    rmSync(data, { recursive: true, force: true });
    const clusterId = `f${randomBytes(16).toString('base64url').slice(1)}`;
    const format = ['-cp', classPath, 'kafka.tools.StorageTool', 'format', '-t', clusterId, '-c', config];
    await runQuietly(java, format, {
      timeoutMs: 60_000,
      whatFails: 'formatting the Kafka storage',
      context: start,
    });
  }
  return {
    command: java,
    args: [
      '-Xmx384m',
      ...FOR_A_SHORT_LIFE,
      '-Dorg.slf4j.simpleLogger.defaultLogLevel=warn',
      '-Dorg.slf4j.simpleLogger.showDateTime=true',
      '-cp',
      classPath,
      'kafka.Kafka',
      config,
    ],
    // After kill -9 it first reads back every segment that was open.
    startTimeoutMs: 120_000,
  };
}

async function prepareMysql(folder: string, port: number, start: NativeStart): Promise<Preparation> {
  const server = findProgram('mysqlServer') ?? 'mariadbd';
  const flavour = mysqlFlavour(server);
  // The two cannot read each other's files.
  const data = join(folder, `data-${flavour}`);
  // Without being asked twice it refuses to run as root, which is who runs things in a container.
  const asRoot = process.getuid?.() === 0 ? ['--user=root'] : [];
  if (!existsSync(data)) {
    const partial = `${data}.partial`;
    rmSync(partial, { recursive: true, force: true });
    const context = { timeoutMs: 120_000, whatFails: 'creating the MySQL data folder', context: start };
    if (flavour === 'mysql') {
      await runQuietly(
        server,
        ['--no-defaults', '--initialize-insecure', ...asRoot, `--datadir=${partial}`],
        context,
      );
    } else {
      await requirePrograms(['mariadbInstall', 'mariadbDefaults'], start);
      const install = findProgram('mariadbInstall') ?? 'mariadb-install-db';
      const options = ['--auth-root-authentication-method=normal', '--skip-test-db', `--datadir=${partial}`];
      await runQuietly(install, ['--no-defaults', ...asRoot, ...options], context);
    }
    renameSync(partial, data);
  }
  // Names are not resolved, so the local root needs to be known by address too.
  const accounts = join(folder, 'accounts.sql');
  writeFileSync(
    accounts,
    `CREATE USER IF NOT EXISTS 'root'@'${loopback}';\nGRANT ALL PRIVILEGES ON *.* TO 'root'@'${loopback}' WITH GRANT OPTION;\n`,
  );
  const settings = {
    datadir: data,
    'bind-address': loopback,
    port,
    socket: socketPath(folder),
    'pid-file': join(folder, 'server.pid'),
    'init-file': accounts,
    'skip-name-resolve': 'ON',
    'character-set-server': 'utf8mb4',
    'default-time-zone': '+00:00',
    'innodb-flush-log-at-trx-commit': 1,
    'innodb-buffer-pool-size': '256M',
    'max-connections': 400,
    ...(flavour === 'mysql' ? { mysqlx: 'OFF', 'secure-file-priv': 'NULL' } : {}),
    ...start.settings,
  };
  const options = Object.entries(settings).map(([name, value]) => `--${name}=${value}`);
  return { command: server, args: ['--no-defaults', ...asRoot, ...options], startTimeoutMs: 90_000 };
}

function mysqlFlavour(server: string): 'mysql' | 'mariadb' {
  const answer = spawnSync(server, ['--no-defaults', '--version'], { encoding: 'utf8', timeout: 20_000 });
  if (answer.status !== 0)
    throw new Error(`${server} --version failed: ${(answer.stderr ?? '').trim() || answer.error?.message}`);
  return /mariadb/i.test(answer.stdout) ? 'mariadb' : 'mysql';
}

/** A socket's path may have 107 bytes at most, and a checkout may lie deep. */
function socketPath(folder: string): string {
  const beside = join(folder, 'server.sock');
  return Buffer.byteLength(beside) <= 100 ? beside : `/tmp/flash-sale-${randomBytes(6).toString('hex')}.sock`;
}

function configLines(settings: Record<string, string | number | boolean>, separator: string): string {
  return Object.entries(settings)
    .map(([key, value]) => `${key}${separator}${value}\n`)
    .join('');
}
