import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from '@jest/globals';
import { scheduleOf } from './chaos.js';
import type { Outcome } from './runner.js';
import { diceOf } from './seeded.js';
import { ROWS, merge, mergeIntoFolder } from './table.js';

const outcome = (changes: Partial<Outcome> = {}): Outcome => ({
  name: 'gateway-kill',
  row: 'gateway kill −9',
  seed: 1,
  result: 'passed',
  reasons: [],
  shopperSaw: 'cut 0.1 %',
  notes: ['started again in 900 ms'],
  tookMs: 30_000,
  ...changes,
});

describe('the table of faults', () => {
  it('has a name of its own for every row', () => {
    const names = ROWS.map(({ name }) => name);
    expect(new Set(names).size).toBe(names.length);
    expect(names.filter((name) => !/^[a-z][a-z0-9-]*$/.test(name))).toEqual([]);
  });

  it('adds the seeds of a pass to those of the pass before it', () => {
    const first = merge([], [outcome({ seed: 2 }), outcome({ seed: 1 })]);
    expect(merge(first, [outcome({ seed: 7 }), outcome({ seed: 2 })])).toMatchObject([
      { name: 'gateway-kill', seeds: [1, 2, 7], passed: true },
    ]);
  });

  it('forgets the passes before a failure, and the failure after the next pass', () => {
    const passed = merge([], [outcome({ seed: 1 }), outcome({ seed: 2 })]);
    const failed = merge(passed, [outcome({ seed: 3, result: 'failed', reasons: ['2 orders are lost'] })]);
    expect(failed).toMatchObject([{ seeds: [3], passed: false }]);
    expect(failed[0]?.note).toContain('2 orders are lost');
    expect(merge(failed, [outcome({ seed: 3 })])).toMatchObject([{ seeds: [3], passed: true }]);
  });

  it('says of a row that cannot be produced here why', () => {
    const entries = merge([], [outcome({ result: 'not here', reasons: ['mounting needs root'] })]);
    expect(entries).toMatchObject([{ seeds: [], passed: false }]);
    expect(entries[0]?.note).toContain('cannot be produced here; mounting needs root');
  });

  it('leaves rows alone that were not played, in the JSON and in the Markdown', () => {
    const folder = mkdtempSync(join(tmpdir(), 'flash-sale-table-'));
    try {
      const now = new Date('2026-11-21T12:00:00Z');
      mergeIntoFolder(folder, [outcome()], now);
      mergeIntoFolder(folder, [outcome({ name: 'gateway-pause', row: 'gateway SIGSTOP 10 s' })], now);
      const json = JSON.parse(readFileSync(join(folder, 'faults.json'), 'utf8')) as object[];
      expect(json).toEqual([
        {
          name: 'gateway-kill',
          seeds: [1],
          passed: true,
          shopperSaw: 'cut 0.1 %',
          note: 'started again in 900 ms',
        },
        expect.objectContaining({ name: 'gateway-pause', passed: true }),
      ]);
      const markdown = readFileSync(join(folder, 'faults.md'), 'utf8');
      expect(markdown).toContain('2026-11-21 12:00 UTC');
      for (const { name } of ROWS) expect(markdown).toContain(`\`${name}\``);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

describe('a schedule of chaos', () => {
  const strikes = (seed: number) =>
    scheduleOf(seed, 600_000).map(({ atMs, trouble, strength }) => [atMs, trouble.name, strength]);

  it('is a function of its seed', () => {
    expect(strikes(7)).toEqual(strikes(7));
    expect(strikes(7)).not.toEqual(strikes(8));
  });

  it('strikes often, at everything, and leaves time to come back', () => {
    const all = [1, 2, 3].flatMap((seed) => scheduleOf(seed, 600_000));
    expect(all.length).toBeGreaterThan(200);
    const targets = new Set(all.map(({ trouble }) => trouble.target));
    expect(targets.size).toBe(8);
    expect(Math.max(...all.map(({ atMs }) => atMs))).toBeLessThanOrEqual(590_000);
  });
});

describe('dice', () => {
  it('give every purpose numbers of its own, the same for the same seed', () => {
    const numbers = (seed: number, purpose: string) => {
      const dice = diceOf(seed, purpose);
      return Array.from({ length: 1_000 }, () => dice());
    };
    expect(numbers(1, 'a')).toEqual(numbers(1, 'a'));
    expect(numbers(1, 'a')).not.toEqual(numbers(1, 'b'));
    expect(numbers(1, 'a')).not.toEqual(numbers(2, 'a'));
    const mean = numbers(3, 'c').reduce((sum, number) => sum + number, 0) / 1_000;
    expect(Math.abs(mean - 0.5)).toBeLessThan(0.05);
  });
});
