/**
 * The programs a native stack needs: found on the machine, or fetched once. Nothing is installed
 * without saying so first, and what apt installs is kept from starting as a system service.
 */
import { spawn, spawnSync } from 'node:child_process';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';

export type Log = (line: string) => void;

export interface InstallContext {
  log: Log;
  signal: AbortSignal;
}

/** Redis 7 and Java 17 are what the suite, and Kafka 4, are written for. */
const oldestRedis = 7;
const oldestJava = 17;

const kafkaVersion = '4.3.1';
const kafkaArtifacts = [
  `org.apache.kafka:kafka_2.13:${kafkaVersion}`,
  `org.apache.kafka:kafka-tools:${kafkaVersion}`,
  // Without a binding Kafka's log, and with it the reason why it would not start, goes nowhere.
  'org.slf4j:slf4j-simple:1.7.36',
];

interface Program {
  /** Any of these will do; the first that is found is taken. */
  commands: readonly string[];
  /** Whether a command that was found has all that is needed of it. */
  isComplete?: (path: string) => boolean;
  aptPackages: readonly string[];
  /** Installed too where apt has them; nothing is missing without them. */
  optionalAptPackages?: readonly string[];
  whatFor: string;
}

const programs = {
  redisServer: { commands: ['redis-server'], aptPackages: ['redis-server'], whatFor: 'Redis' },
  redisCli: { commands: ['redis-cli'], aptPackages: ['redis-tools'], whatFor: 'Redis' },
  // The core packages have the server without the service, the system user and the system's database.
  mysqlServer: {
    commands: ['mysqld', 'mariadbd'],
    aptPackages: ['mariadb-server-core', 'mariadb-client-core'],
    whatFor: 'MySQL (MariaDB)',
  },
  mariadbInstall: {
    commands: ['mariadb-install-db'],
    aptPackages: ['mariadb-server-core'],
    whatFor: 'MySQL (MariaDB)',
  },
  mariadbDefaults: {
    commands: ['my_print_defaults'],
    aptPackages: ['mariadb-client-core'],
    whatFor: 'MySQL (MariaDB)',
  },
  java: { commands: ['java'], aptPackages: ['default-jre-headless'], whatFor: 'Kafka' },
  maven: { commands: ['mvn'], aptPackages: ['maven'], whatFor: "Kafka's jars" },
  browser: {
    commands: ['chromium', 'chromium-browser', 'google-chrome'],
    aptPackages: ['chromium'],
    whatFor: 'the tests of the page',
  },
  nginx: {
    commands: ['nginx'],
    isComplete: hasLua,
    aptPackages: ['nginx', 'libnginx-mod-http-lua', 'lua-cjson'],
    optionalAptPackages: ['libnginx-mod-http-brotli-filter', 'libnginx-mod-http-brotli-static'],
    whatFor: 'the edge',
  },
  openssl: { commands: ['openssl'], aptPackages: ['openssl'], whatFor: "the edge's self-signed certificate" },
  faketime: { commands: ['faketime'], aptPackages: ['faketime'], whatFor: 'the tests of wrong clocks' },
} as const satisfies Record<string, Program>;

export type ProgramName = keyof typeof programs;

/** Without these, a server that runs elsewhere will do. */
const SERVER_PROGRAMS: ReadonlySet<ProgramName> = new Set([
  'redisServer',
  'redisCli',
  'mysqlServer',
  'mariadbInstall',
  'mariadbDefaults',
  'java',
  'maven',
]);

/** Where system administration programs live, which an ordinary user's PATH leaves out. */
const extraFolders = ['/usr/local/sbin', '/usr/sbin', '/sbin', '/opt/homebrew/bin', '/usr/local/bin'];

export function findCommand(command: string): string | undefined {
  for (const folder of [...(process.env['PATH'] ?? '').split(delimiter), ...extraFolders]) {
    if (folder === '') continue;
    const path = join(folder, command);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // Not in this folder.
    }
  }
  return undefined;
}

export function findProgram(name: ProgramName): string | undefined {
  const { commands, isComplete = () => true }: Program = programs[name];
  return commands.map(findCommand).find((path) => path !== undefined && isComplete(path));
}

/**
 * Whether an nginx has Lua, a module in a package of its own, and that lua-cjson, which comes with neither. nginx itself is
 * asked, and ends with the answer before it serves anything.
 */
export function hasLua(nginx: string): boolean {
  const { stderr } = spawnSync(nginx, ['-V'], { encoding: 'utf8', timeout: 20_000 });
  const modules = ['ndk_http_module.so', 'ngx_http_lua_module.so']
    .map((file) => join(/--modules-path=(\S+)/.exec(stderr ?? '')?.[1] ?? '', file))
    .filter(existsSync);
  const folder = mkdtempSync(join(tmpdir(), 'flash-sale-nginx-'));
  try {
    const lines = [
      ...modules.map((path) => `load_module "${path}";`),
      'pid nginx.pid; events {}',
      'http { init_by_lua_block { os.exit(pcall(require, "cjson.safe") and 0 or 1) } }',
    ];
    writeFileSync(join(folder, 'nginx.conf'), lines.join('\n'));
    const args = ['-p', `${folder}/`, '-c', 'nginx.conf', '-e', 'stderr'];
    return spawnSync(nginx, args, { stdio: 'ignore', timeout: 20_000 }).status === 0;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Installs what is missing of these programs, all in one go, and checks the versions that matter. */
export async function requirePrograms(names: readonly ProgramName[], context: InstallContext): Promise<void> {
  const missing = names.filter((name) => findProgram(name) === undefined);
  if (missing.length > 0) {
    const packages = [...new Set(missing.flatMap((name) => programs[name].aptPackages))];
    const optional = missing.flatMap((name) => (programs[name] as Program).optionalAptPackages ?? []);
    await installWithApt(packages, optional, missing, context);
    const still = missing.filter((name) => findProgram(name) === undefined);
    if (still.length > 0) {
      throw new Error(`apt installed ${packages.join(' ')}, but ${commandsOf(still)} still cannot be found`);
    }
  }
  for (const name of names) checkVersion(name);
}

/**
 * The path of a Chromium or Chrome for tests of pages, installed where apt offers one. Nothing else in the suite needs it.
 */
export async function requireBrowser(
  log: Log = (line) => process.stderr.write(`stack: ${line}\n`),
): Promise<string> {
  await requirePrograms(['browser'], { log, signal: new AbortController().signal });
  return findProgram('browser') ?? 'chromium';
}

/** Installs what the edge (deploy/edge) consists of where apt offers it: nginx with Lua, and openssl. */
export async function requireNginx(
  log: Log = (line) => process.stderr.write(`stack: ${line}\n`),
): Promise<void> {
  await requirePrograms(['nginx', 'openssl'], { log, signal: new AbortController().signal });
}

/**
 * The variables with which a process sees a clock that differs from the machine's, by so much; installs the library for it
 * where apt offers one. Only the time of day moves: timers and time-outs go on as they are.
 */
export async function requireFaketime(
  offsetMs: number,
  log: Log = (line) => process.stderr.write(`stack: ${line}\n`),
): Promise<Record<string, string>> {
  let library = findFaketime();
  if (library === undefined) {
    await requirePrograms(['faketime'], { log, signal: new AbortController().signal });
    library = findFaketime();
  }
  if (library === undefined) throw new Error('faketime is installed, but its library cannot be found');
  const seconds = offsetMs / 1_000;
  return {
    LD_PRELOAD: library,
    FAKETIME: `${seconds < 0 ? '' : '+'}${seconds}`,
    FAKETIME_DONT_FAKE_MONOTONIC: '1',
    DONT_FAKE_MONOTONIC: '1',
  };
}

function findFaketime(): string | undefined {
  const folders = ['/usr/lib', '/usr/local/lib'].filter(existsSync);
  return folders
    .flatMap((folder) => [folder, ...readdirSync(folder).map((name) => join(folder, name))])
    .map((folder) => join(folder, 'faketime/libfaketimeMT.so.1'))
    .find(existsSync);
}

function commandsOf(names: readonly ProgramName[]): string {
  return names.map((name) => programs[name].commands.join(' or ')).join(', ');
}

function checkVersion(name: ProgramName): void {
  const oldest = name === 'redisServer' ? oldestRedis : name === 'java' ? oldestJava : undefined;
  const path = findProgram(name);
  if (oldest === undefined || path === undefined) return;
  const answer = spawnSync(path, [name === 'java' ? '-version' : '--version'], {
    encoding: 'utf8',
    timeout: 20_000,
  });
  const version = /(?:v=|version ")(\d+)/.exec(answer.stdout + answer.stderr)?.[1];
  if (version === undefined || Number(version) < oldest) {
    throw new Error(
      `${path} is ${version === undefined ? 'of an unknown version' : `version ${version}`}; ` +
        `${programs[name].whatFor} needs ${name === 'java' ? 'Java' : 'Redis'} ${oldest} or newer. ` +
        'Install that, start a container engine, or give the address of a server',
    );
  }
}

/**
 * The script that installs, as root; it is given the optional packages as one word, then the others. The policy file is how
 * Debian's own tools keep packages from starting services; one that is there already is the administrator's (or a container
 * image's) and stays as it is. Where systemd runs, a service that came with a package is also kept from starting at the next
 * boot. What was on the machine before is somebody's: no package of it is touched, and no service of it stopped.
 *
 * @param root the folder in which it finds the machine's folders
 */
export function aptScript(root = ''): string {
  return String.raw`
set -e
export DEBIAN_FRONTEND=noninteractive
optional=$1
shift
missing() {
  for package in "$@"; do
    dpkg -s "$package" 2> /dev/null | grep -q '^Status: .* installed$' || echo "$package"
  done
}
needed=$(missing "$@")
wished=$(missing $optional)
services=''
if [ -d ${root}/run/systemd/system ]; then
  for package in $needed $wished; do
    systemctl cat "$package.service" > /dev/null 2>&1 || services="$services $package.service"
  done
fi
policy=${root}/usr/sbin/policy-rc.d
if [ ! -e "$policy" ] || grep -q 'flash-sale: while installing' "$policy"; then
  trap 'rm -f "$policy"' EXIT
  trap 'exit 130' INT TERM HUP
  printf '#!/bin/sh\n# flash-sale: while installing\nexit 101\n' > "$policy"
  chmod 755 "$policy"
fi
install() { apt-get install -qq -y --no-install-recommends --no-remove -o DPkg::Lock::Timeout=120 "$@"; }
[ -z "$needed" ] || install $needed || { apt-get update -qq && install $needed; }
for package in $wished; do install "$package" || true; done
for service in $services; do systemctl disable --now "$service" 2> /dev/null || true; done
`;
}

async function installWithApt(
  packages: readonly string[],
  optional: readonly string[],
  missing: readonly ProgramName[],
  context: InstallContext,
): Promise<void> {
  const becomeRoot = rootPrefix();
  if (findCommand('apt-get') === undefined || becomeRoot === undefined) {
    const purposes = [...new Set(missing.map((name) => programs[name].whatFor))].join(', ');
    const tried = findCommand('apt-get')
      ? 'apt-get is here, but this is neither root nor a user with passwordless sudo'
      : 'there is no apt-get here';
    throw new Error(
      `missing: ${commandsOf(missing)} (for ${purposes}). ` +
        (missing.every((name) => !SERVER_PROGRAMS.has(name))
          ? `Tried: ${tried}. Install ${packages.join(' ')}`
          : `Tried: no container engine answers, and ${tried}. ` +
            `Do one of: start Docker or Podman; install ${packages.join(' ')}; ` +
            'or set REDIS_URL, KAFKA_BROKERS and MYSQL_URL to servers that run already'),
    );
  }
  context.log(`installing with apt, without starting any service: ${packages.join(' ')}`);
  const script = ['sh', '-c', aptScript(), 'install', optional.join(' '), ...packages];
  const [command = 'sh', ...before] = [...becomeRoot, ...script];
  await runQuietly(command, before, {
    timeoutMs: 600_000,
    whatFails: `apt-get install ${packages.join(' ')}`,
    context,
  });
}

function rootPrefix(): string[] | undefined {
  if (process.getuid?.() === 0) return [];
  const sudo = findCommand('sudo');
  if (sudo === undefined) return undefined;
  return spawnSync(sudo, ['-n', 'true'], { stdio: 'ignore', timeout: 5_000 }).status === 0
    ? [sudo, '-n']
    : undefined;
}

function kafkaJarsFolder(home: string): string {
  return join(home, `kafka-jars-${kafkaVersion}`);
}

/** What has to be on the machine for Kafka: Maven only until its jars have been fetched. */
export function programsForKafka(home: string): ProgramName[] {
  return existsSync(kafkaJarsFolder(home)) ? ['java'] : ['java', 'maven'];
}

/** The class path of Kafka, whose jars are fetched from Maven Central the first time. */
export async function requireKafkaJars(home: string, context: InstallContext): Promise<string> {
  const folder = kafkaJarsFolder(home);
  if (!existsSync(folder)) {
    context.log(`fetching Kafka ${kafkaVersion} from Maven Central (55 MB) into ${folder}`);
    await fetchJars(folder, context);
  }
  return join(folder, '*');
}

/** Only a complete folder gets the final name, so an interrupted fetch is simply done again. */
async function fetchJars(folder: string, context: InstallContext): Promise<void> {
  const work = `${folder}.partial`;
  rmSync(work, { recursive: true, force: true });
  mkdirSync(work, { recursive: true });
  writeFileSync(join(work, 'pom.xml'), pom(kafkaArtifacts));
  const args = [
    '--batch-mode',
    '--quiet',
    '--strict-checksums',
    `-Dmaven.repo.local=${join(work, 'repository')}`,
  ];
  const copy = [
    'dependency:copy-dependencies',
    '-DincludeScope=runtime',
    `-DoutputDirectory=${join(work, 'jars')}`,
  ];
  await runQuietly(findProgram('maven') ?? 'mvn', ['-f', join(work, 'pom.xml'), ...args, ...copy], {
    timeoutMs: 600_000,
    whatFails: `fetching Kafka ${kafkaVersion} from Maven Central`,
    context,
  });
  if (!readdirSync(join(work, 'jars')).some((jar) => jar.startsWith('kafka-server-'))) {
    throw new Error(`Maven ended well but left no Kafka in ${work}`);
  }
  renameSync(join(work, 'jars'), folder);
  rmSync(work, { recursive: true, force: true });
}

function pom(artifacts: readonly string[]): string {
  const dependencies = artifacts.map((artifact) => {
    const [group, id, version] = artifact.split(':');
    return `<dependency><groupId>${group}</groupId><artifactId>${id}</artifactId><version>${version}</version></dependency>`;
  });
  return `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>flash-sale</groupId><artifactId>kafka-jars</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>${dependencies.join('\n    ')}</dependencies>
</project>
`;
}

/** Runs a program whose output matters only when it fails. */
export function runQuietly(
  command: string,
  args: readonly string[],
  options: {
    timeoutMs: number;
    whatFails: string;
    context: { signal: AbortSignal };
    env?: NodeJS.ProcessEnv;
  },
): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      signal: options.context.signal,
      timeout: options.timeoutMs,
      ...(options.env ? { env: options.env } : {}),
    });
    let output = '';
    // The end of a long output is what explains a failure.
    const keep = (chunk: Buffer) => (output = (output + chunk.toString()).slice(-20_000));
    child.stdout.on('data', keep);
    child.stderr.on('data', keep);
    child.once('error', reject);
    child.once('close', (code, signal) => {
      if (code === 0) return resolve(output);
      const how = signal ? `was ended by ${signal}` : `failed with exit code ${code}`;
      reject(
        new Error(`${options.whatFails} ${how}:\n${output.trimEnd().split('\n').slice(-15).join('\n')}`),
      );
    });
  });
}
