import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { requireBrowser, startStack } from '@flash-sale/stack';
import { z } from 'zod';

/**
 * `npm test [-- PATH … | -t NAME …]`: starts real servers (or takes those that the environment names), runs jest on
 * everything below the paths given, stops what it started, and closes with one line that counts passed and failed tests.
 */

const ROOT = resolve(import.meta.dirname, '../../..');

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
    const status = await jest(resultsFile, {
      REDIS_URL: stack.redisUrl,
      KAFKA_BROKERS: stack.kafkaBrokers,
      MYSQL_URL: stack.mysqlUrl,
      CHROMIUM_PATH: process.env['CHROMIUM_PATH'] ?? (await requireBrowser()),
    });
    const results = JestResults.parse(JSON.parse(readFileSync(resultsFile, 'utf8')));
    const broken = results.numFailedTests + results.numRuntimeErrorTestSuites;
    const skipped = results.numPendingTests + results.numTodoTests;
    if (results.numPassedTests === 0) process.stderr.write('tests: no test was executed\n');
    process.stdout.write(
      `\n${results.numPassedTests} passed, ${broken} failed${skipped > 0 ? `, ${skipped} skipped` : ''}\n`,
    );
    return status !== 0 || !results.success || results.numPassedTests === 0 ? 1 : 0;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
    await stack.stop();
  }
}

function jest(resultsFile: string, servers: Record<string, string>): Promise<number> {
  const binary = join(ROOT, 'node_modules/jest/bin/jest.js');
  const args = ['--json', `--outputFile=${resultsFile}`, '--maxWorkers=2', ...process.argv.slice(2)];
  const child = spawn(
    process.execPath,
    ['--experimental-vm-modules', '--disable-warning=ExperimentalWarning', binary, ...args],
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
