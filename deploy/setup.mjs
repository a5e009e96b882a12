// Makes the working copy ready to run: installs what the lockfile names, with the Node and pnpm that it names,
// and builds what has changed. Runs before every npm script, on any Node from 20 on with nothing but npm, so it
// is plain JavaScript without dependencies, and quick when there is nothing to do. Says what it does on stderr
// only: stdout belongs to the script that follows.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const nodeVersion = '24.21.0';
const pnpmVersion = '12.21.0';
const oldestNode = 20;
const installTimeoutMs = 15 * 60_000;
const buildTimeoutMs = 10 * 60_000;
const slowAfterMs = 3_000;
const mostLinesShown = 60;

const root = fileURLToPath(new URL('..', import.meta.url));
const binaries = join(root, 'node_modules', '.bin');
const stampFile = join(root, 'node_modules', '.flash-sale-setup');
const env = { ...process.env, PATH: binaries + delimiter + (process.env.PATH ?? '') };

const say = (line) => process.stderr.write(`setup: ${line}\n`);

/** Exits with what failed, what it said, and what to do about it. */
function fail(what, output, whatToDo) {
  const end = output.trim().split('\n').slice(-mostLinesShown).join('\n');
  say(`${what}${end === '' ? '' : `:\n${end}`}`);
  say(whatToDo);
  process.exit(1);
}

function run(command, args, { timeoutMs, extraEnv = {}, slowNotice }) {
  return new Promise((resolve) => {
    // npm and its likes are command files on Windows.
    const shell = process.platform === 'win32';
    const child = spawn(command, args, {
      cwd: root,
      env: { ...env, ...extraEnv },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: timeoutMs,
      shell,
    });
    const notice = slowNotice && setTimeout(() => say(slowNotice), slowAfterMs);
    let output = '';
    child.stdout.on('data', (chunk) => (output += chunk));
    child.stderr.on('data', (chunk) => (output += chunk));
    const finish = (ok) => {
      clearTimeout(notice);
      resolve({ ok, output });
    };
    child.once('error', (error) => {
      output += error.message;
      finish(false);
    });
    child.once('close', (code, signal) => {
      if (signal) output += `\nended by ${signal}`;
      finish(code === 0);
    });
  });
}

/** Everything an installation depends on besides the registry. Undefined without a lockfile. */
function fingerprint() {
  const hash = createHash('sha256').update(`${process.platform} ${process.arch}\n`);
  for (const file of ['pnpm-lock.yaml', 'pnpm-workspace.yaml', 'package.json']) {
    const path = join(root, file);
    if (!existsSync(path)) return undefined;
    hash.update(readFileSync(path)).update('\n');
  }
  return hash.digest('hex');
}

function isInstalled(expected) {
  return (
    existsSync(join(root, 'node_modules', '.modules.yaml')) &&
    existsSync(stampFile) &&
    readFileSync(stampFile, 'utf8') === expected
  );
}

/** The lockfile's own pnpm once it is there, else one on the PATH, else both Node and pnpm through npx. */
async function installCommand() {
  const found = await run('pnpm', ['--version'], { timeoutMs: 20_000 });
  if (found.ok && found.output.trim().startsWith(`${pnpmVersion.split('.')[0]}.`)) {
    return { how: 'pnpm', command: 'pnpm', args: ['install', '--frozen-lockfile'] };
  }
  const tools = ['-y', '-p', `node@${nodeVersion}`, '-p', `pnpm@${pnpmVersion}`];
  return {
    how: 'npx, fetching Node and pnpm first',
    command: 'npx',
    args: [...tools, '-c', 'pnpm install --frozen-lockfile'],
  };
}

async function install() {
  const expected = fingerprint();
  if (expected === undefined) {
    fail('pnpm-lock.yaml, pnpm-workspace.yaml or package.json is missing', '', 'Restore it from git.');
  }
  if (isInstalled(expected)) return;
  const { how, command, args } = await installCommand();
  say(`installing the dependencies (through ${how}); the first time this takes a minute or two`);
  // CI: pnpm then asks nothing, not even whether it may replace the node_modules of some other tool.
  const result = await run(command, args, { timeoutMs: installTimeoutMs, extraEnv: { CI: 'true' } });
  if (!result.ok) {
    const advice = /ERR_PNPM_OUTDATED_LOCKFILE/.test(result.output)
      ? 'A package.json was changed without its lockfile: run `node_modules/.bin/pnpm install` and commit pnpm-lock.yaml.'
      : 'Check that the npm registry is reachable (npm ping) and the disk is not full; then run the same command again.';
    fail('the dependencies could not be installed', result.output, advice);
  }
  writeFileSync(stampFile, expected);
}

async function build() {
  const result = await run('nx', ['run-many', '-t', 'build'], {
    timeoutMs: buildTimeoutMs,
    extraEnv: { NX_DAEMON: 'false', FORCE_COLOR: '0' },
    slowNotice: 'building what has changed',
  });
  if (result.ok) return;
  // What precedes the first failing project is the list of those that went well.
  const firstFailure = Math.max(result.output.indexOf('\n> nx run'), 0);
  fail(
    'the build failed',
    result.output.slice(firstFailure),
    'Correct what is named above; then run the same command again.',
  );
}

if (Number(process.versions.node.split('.')[0]) < oldestNode) {
  fail(
    `this is Node ${process.versions.node}`,
    '',
    `Install Node ${oldestNode} or newer; everything else is fetched.`,
  );
}
await install();
await build();
