import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { requireBrowser, requireNginx, startStack } from '@flash-sale/stack';
import { z } from 'zod';

/**
 * `npm test [-- PATH … | -t NAME …]`: starts real servers (or takes those that the environment names), runs jest on
 * everything below the paths given, stops what it started, and closes with one line that counts passed and failed tests.
 * Rows of faults are played after everything else, by themselves: what they show on a busy machine is the machine.
 */

const ROOT = resolve(import.meta.dirname, '../../..');

const JEST = join(ROOT, 'node_modules/jest/bin/jest.js');

const EDGE_TESTS = join(ROOT, 'deploy/edge/');
const FAULT_ROWS = 'src/faults/selection\\.e2e\\.test';
const WHOLE: readonly (readonly string[])[] = [
  ['--maxWorkers=2', '--testPathIgnorePatterns', '/node_modules/', '/dist/', FAULT_ROWS],
  ['--runInBand', '--testPathPatterns', FAULT_ROWS],
];

const JestResults = z.object({
  success: z.boolean(),
  numPassedTests: z.int(),
  numFailedTests: z.int(),
  numPendingTests: z.int(),
  numTodoTests: z.int(),
  numRuntimeErrorTestSuites: z.int(),
});

async function main(): Promise<number> {
  const stack = await startStack();
  const scratch = mkdtempSync(join(tmpdir(), 'flash-sale-tests-'));
  const resultsFile = join(scratch, 'results.json');
  try {
    process.stderr.write(
      process.env['MYSQL_REAL_URL']
        ? 'tests: the writer is tested on a real MySQL too (MYSQL_REAL_URL)\n'
        : `tests: REAL MYSQL WAS NOT TESTED. MYSQL_REAL_URL is not set; the writer is tested on the ${stack.engine.mysql} server only\n`,
    );
    const asked = process.argv.slice(2);
    if (asked.length === 0 || areAmong(EDGE_TESTS, asked)) {
      // Nothing else needs nginx: without it everything else is tested, and the edge's tests fail with the same words.
      await requireNginx().catch((error: Error) =>
        process.stderr.write(`tests: THE TESTS OF THE EDGE WILL FAIL. ${error.message}\n`),
      );
    }
    const servers = {
      REDIS_URL: stack.redisUrl,
      KAFKA_BROKERS: stack.kafkaBrokers,
      MYSQL_URL: stack.mysqlUrl,
      CHROMIUM_PATH: process.env['CHROMIUM_PATH'] ?? (await requireBrowser()),
    };
    let [passed, broken, skipped, succeeded] = [0, 0, 0, true];
    for (const args of asked.length > 0 ? [['--maxWorkers=2', ...asked]] : WHOLE) {
      const status = await jest(resultsFile, args, servers);
      const results = JestResults.parse(JSON.parse(readFileSync(resultsFile, 'utf8')));
      rmSync(resultsFile);
      passed += results.numPassedTests;
      broken += results.numFailedTests + results.numRuntimeErrorTestSuites;
      skipped += results.numPendingTests + results.numTodoTests;
      succeeded &&= status === 0 && results.success;
    }
    if (passed === 0) process.stderr.write('tests: no test was executed\n');
    process.stdout.write(
      `\n${passed} passed, ${broken} failed${skipped > 0 ? `, ${skipped} skipped` : ''}\n`,
    );
    return succeeded && passed > 0 ? 0 : 1;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
    await stack.stop();
  }
}

/** Whether tests below a folder are among those that jest runs with these arguments. */
function areAmong(folder: string, args: readonly string[]): boolean {
  const { stdout } = spawnSync(process.execPath, [JEST, '--listTests', ...args], {
    cwd: ROOT,
    encoding: 'utf8',
  });
  return stdout.includes(folder);
}

function jest(
  resultsFile: string,
  args: readonly string[],
  servers: Record<string, string>,
): Promise<number> {
  const child = spawn(
    process.execPath,
    [
      '--experimental-vm-modules',
      '--disable-warning=ExperimentalWarning',
      JEST,
      '--json',
      `--outputFile=${resultsFile}`,
      ...args,
    ],
    {
      cwd: ROOT,
      env: { ...process.env, ...servers, NX_DAEMON: 'false' },
      // jest reports to stderr; its JSON on stdout is read from the file instead.
      stdio: ['ignore', 'ignore', 'inherit'],
    },
  );
  return new Promise((done, failed) => {
    child.once('error', failed);
    child.once('exit', (code) => done(code ?? 1));
  });
}

process.exitCode = await main().catch((error: unknown) => {
  process.stderr.write(`tests: ${error instanceof Error ? error.message : String(error)}\n`);
  return 1;
});
