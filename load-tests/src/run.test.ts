import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { stackHome } from '@flash-sale/stack';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { readLoadEnv } from './env.js';
import { presentK6 } from './k6.js';
import { separateLedger } from './ledger.js';
import { parseOptions, targetFault } from './options.js';
import { planSpike } from './plan.js';
import { tell } from './report.js';
import { judge, type Audit, type Evidence, type Summary } from './verdict.js';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'load-test-'));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

describe('parseOptions', () => {
  it('has a default for everything but the profile', () => {
    expect(parseOptions(['spike'])).toEqual({
      kind: 'run',
      options: {
        profile: 'spike',
        scale: 0.1,
        units: undefined,
        buckets: 8,
        iterationSeconds: 2,
        target: undefined,
      },
    });
  });

  it('reads what is given', () => {
    const args = ['spike', '--scale', '0.25', '--units=7', '--iteration-seconds', '1.5'];
    expect(parseOptions(args)).toMatchObject({ options: { scale: 0.25, units: 7, iterationSeconds: 1.5 } });
  });

  it('tells every fault at once', () => {
    const parsed = parseOptions([
      'soak',
      '--scale',
      '11',
      '--units',
      '1.5',
      '--base-url',
      'http://shop.example',
    ]);
    expect(parsed.kind === 'faults' && parsed.faults).toEqual([
      'say which profile: npm run load -- spike (there is no other yet)',
      '--scale is "11", but must be a number from 0.01 to 10',
      '--units is "1.5", but must be a whole number from 1 to 100000000',
      '--base-url and --operator-url belong together',
    ]);
    expect(parseOptions(['spike', '--sclae', '1']).kind).toBe('faults');
  });

  it('takes a target on this machine, and no other unless it is named', () => {
    const at = (host: string, ...more: string[]) =>
      parseOptions([
        'spike',
        '--base-url',
        `http://${host}:8080`,
        '--operator-url',
        `http://${host}:8081`,
        ...more,
      ]);
    expect(at('127.0.0.1')).toMatchObject({ options: { target: { baseUrl: 'http://127.0.0.1:8080' } } });
    expect(at('[::1]').kind).toBe('run');
    expect(at('shop.example').kind).toBe('faults');
    expect(at('shop.example', '--allow-host', 'shop.example').kind).toBe('run');
    expect(at('shop.example', '--allow-host', 'example').kind).toBe('faults');
  });
});

describe('targetFault', () => {
  it.each(['http://localhost:1', 'http://127.9.9.9', 'https://[::1]:8443/'])('lets %s be loaded', (url) => {
    expect(targetFault(url, [])).toBeUndefined();
  });

  it.each([
    ['', 'no http address'],
    ['ftp://127.0.0.1', 'no http address'],
    ['http://127.0.0.1/shop', 'without a path'],
    ['http://10.0.0.1', 'not this machine'],
    ['http://localhost.example', 'not this machine'],
    ['http://127.0.0.1@shop.example', 'not this machine'],
  ])('refuses %j', (url, says) => {
    expect(targetFault(url, [])).toContain(says);
  });
});

describe('readLoadEnv', () => {
  it('names what is wrong', () => {
    expect(readLoadEnv({})).toMatchObject({ baselinePerSecond: 4, operatorToken: undefined });
    expect(readLoadEnv({ BASELINE_RPS: '2.5' }).baselinePerSecond).toBe(2.5);
    expect(() => readLoadEnv({ BASELINE_RPS: '-1', OPERATOR_TOKEN: '' })).toThrow(
      /BASELINE_RPS: must be a number.*\n.*OPERATOR_TOKEN/,
    );
  });
});

describe('separateLedger', () => {
  it('keeps exchanges, tells what k6 said, and counts each person once, in the second of the first ask', async () => {
    const line = (op: string, shopperId: string, sentMs: number) => JSON.stringify({ op, shopperId, sentMs });
    const lines = [
      line('entry', 'a', 1_100),
      'Insufficient VUs, reached 360 active VUs and cannot initialize more',
      line('order', 'a', 1_200),
      line('entry', 'b', 3_999),
      line('entry', 'a', 4_100),
      '{"op":"entry"',
      '',
    ];
    writeFileSync(join(folder, 'k6.log'), lines.join('\n'));
    const ledger = await separateLedger(join(folder, 'k6.log'), join(folder, 'ledger.jsonl'), 1_000);
    expect(ledger).toEqual({
      exchanges: 4,
      entriesBySecond: [1, 0, 1],
      remarks: ['Insufficient VUs, reached 360 active VUs and cannot initialize more', '{"op":"entry"'],
    });
    expect(readFileSync(join(folder, 'ledger.jsonl'), 'utf8').trim().split('\n')).toHaveLength(4);
  });
});

describe('judge', () => {
  const sound: Audit = {
    allotment: 100,
    sold: 100,
    oversold: 0,
    undersold: 0,
    accepted: 100,
    rejectedAfterAccept: 0,
    lost: 0,
    duplicates: 0,
    invariants: { checked: 18, broken: [] },
  };
  const counter = (count: number, ...thresholds: [string, boolean][]) => ({
    values: { count },
    thresholds: Object.fromEntries(thresholds.map(([expression, ok]) => [expression, { ok }])),
  });
  const summary = (metrics: Summary['metrics'] = {}): Summary => ({
    metrics: { iterations: counter(1_000), attempts: counter(1_000, ['count>=990', true]), ...metrics },
  });
  const evidence = (change: Partial<Evidence> = {}): Evidence => ({
    asked: 1_000,
    thresholds: { attempts: ['count>=990'], protocol_error: ['count==0'] },
    summary: summary(),
    audit: sound,
    ...change,
  });

  it('passes a run whose load was real and in which nothing was broken', () => {
    expect(judge(evidence())).toEqual({ result: 'PASS', reasons: [] });
  });

  it('fails it for a threshold', () => {
    const metrics = { protocol_error: counter(3, ['count==0', false]) };
    expect(judge(evidence({ summary: summary(metrics) }))).toEqual({
      result: 'FAIL',
      reasons: ['protocol_error should be count==0, but is 3'],
    });
  });

  it('fails it for a lower bound on something that was never counted', () => {
    const thresholds = { 'attempts{outcome:accepted}': ['count>=99'] };
    expect(judge(evidence({ thresholds }))).toEqual({
      result: 'FAIL',
      reasons: ['attempts{outcome:accepted} should be count>=99, but nothing was counted'],
    });
  });

  it.each([
    [{ oversold: 1 }, 'oversold: 1'],
    [{ lost: 2 }, 'lost: 2'],
    [{ invariants: { checked: 18, broken: ['I7'] } }, 'the auditor: I7'],
  ])('fails it for what the auditor found: %j', (change, says) => {
    expect(judge(evidence({ audit: { ...sound, ...change } }))).toEqual({ result: 'FAIL', reasons: [says] });
  });

  it('fails an oversell even where the load was not what was asked for', () => {
    const metrics = { dropped_iterations: counter(500) };
    expect(judge(evidence({ summary: summary(metrics), audit: { ...sound, oversold: 1 } })).result).toBe(
      'FAIL',
    );
  });

  it.each<[string, Partial<Evidence>, string]>([
    ['k6 gave no summary', { summary: undefined }, 'no summary'],
    [
      'arrivals were left out',
      { summary: summary({ dropped_iterations: counter(11) }) },
      'left out 11 of 1000',
    ],
    ['fewer came than planned', { summary: summary({ iterations: counter(900) }) }, '900 came'],
    ['nobody audited', { audit: 'it was not there' }, 'no audit: it was not there'],
    [
      'the auditor looked at nothing',
      { audit: { ...sound, invariants: { checked: 0, broken: [] } } },
      'checked nothing',
    ],
  ])('finds a run invalid where %s', (_, change, says) => {
    const verdict = judge(evidence(change));
    expect(verdict.result).toBe('INVALID');
    expect(verdict.reasons.join()).toContain(says);
  });

  it('is told in a few lines that end with the verdict', () => {
    const found = evidence();
    const lines = tell({
      verdict: judge(found),
      summary: summary({ 'attempts{outcome:accepted}': counter(100), paid: counter(100) }),
      audit: sound,
      ledger: { exchanges: 5_000, entriesBySecond: [1, 999], remarks: [] },
      askedBySecond: [1, 999],
    });
    expect(lines).toContain('arrivals    asked 1000, at most 999 a second; sent 1000, at most 999 a second');
    expect(lines).toContain('outcomes    accepted 100; paid 100');
    expect(lines.at(-1)).toBe('PASS');
  });
});

describe('k6', () => {
  const SCENARIO = join(import.meta.dirname, 'scenarios/spike.ts');
  const plan = planSpike(
    { scale: 0.01, baselinePerSecond: 1, iterationSeconds: 1 },
    {
      // Nothing listens there.
      baseUrl: 'http://127.0.0.1:1',
      saleId: 'loadtest-none',
      skuId: 'sku',
      run: 'none',
      units: 1,
      summaryFile: '/dev/null',
    },
  );

  it('understands the scenario and its thresholds', async () => {
    const k6 = await presentK6(stackHome());
    if (k6 === undefined) {
      // It takes minutes to build, so a test does not; `npm run load` does, and then this is tested too.
      process.stderr.write('\nTHE k6 SCENARIO WAS NOT TESTED: there is no k6 on the PATH or in the cache\n');
      return;
    }
    const args = ['inspect', '--execution-requirements', '-e', `LOAD_PLAN=${JSON.stringify(plan)}`, SCENARIO];
    const inspected = JSON.parse(
      execFileSync(k6, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }),
    ) as {
      scenarios: { spike: { executor: string; preAllocatedVUs: number; maxVUs: number } };
      thresholds: Record<string, unknown>;
    };
    expect(inspected.scenarios.spike).toMatchObject({
      executor: 'ramping-arrival-rate',
      preAllocatedVUs: plan.vus,
      maxVUs: plan.vus,
    });
    expect(Object.keys(inspected.thresholds).sort()).toEqual(Object.keys(plan.thresholds).sort());
  }, 60_000);
});
