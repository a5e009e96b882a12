import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { Runner, type Outcome } from './runner.js';
import { ROWS, printedTable } from './table.js';

/**
 * Ten rows of the table of faults with a small crowd, so that every change meets them; `npm run faults` plays all rows with a
 * large one. One world for all: each row must leave it as it has found it.
 */
const SELECTION = [
  'order-kill',
  'inventory-kill',
  'token-down',
  'poison',
  'duplicate-delivery',
  'redis-kill',
  'redis-empty',
  'redis-script-flush',
  'kafka-reply-lost',
  'mysql-commit-lost',
];
const SEED = 1;

describe('a suite that is selling', () => {
  const outcomes: Outcome[] = [];
  let folder: string;
  let runner: Runner;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'flash-sale-faults-'));
    runner = new Runner({
      buyersPerSecond: 10,
      seekersPerSecond: 20,
      scarceUnits: 40,
      holdSeconds: 3,
      // This machine may be anybody's, and slow: what is asked here is that nothing is lost.
      slack: 6,
      failuresFolder: folder,
      progress: (line) => process.stderr.write(`faults: ${line}\n`),
    });
  });
  afterAll(async () => {
    await runner.stop();
    process.stderr.write(`\n${printedTable(outcomes)}\n\n`);
    if (outcomes.every(({ result }) => result === 'passed')) rmSync(folder, { recursive: true });
  }, 60_000);

  it.each(SELECTION)(
    'survives %s',
    async (name) => {
      const row = ROWS.find((one) => one.name === name);
      if (!row) throw new Error(`there is no row ${name}`);
      const outcome = await runner.play({ ...row, withoutProxies: false }, SEED);
      outcomes.push(outcome);
      expect({ result: outcome.result, reasons: outcome.reasons }).toEqual({ result: 'passed', reasons: [] });
    },
    240_000,
  );
});
