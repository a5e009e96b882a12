import { describe, expect, it } from '@jest/globals';
import type { Sample } from './bench.js';
import { Results, figureOf, markdownOf, missedByPercent, operationOf, rounded } from './report.js';
import { spreadOf } from './statistics.js';

const sample = (micros: number, units: number): Sample => ({
  micros,
  units,
  unitMicros: micros / units,
  busyUnits: micros / 20,
  byProcess: { gateway: micros * 0.75, redis: micros * 0.25 },
  perSecond: 1e6 / micros,
  peakMiB: { gateway: 120, redis: 10 },
});

function results(changes: Partial<Results> = {}): Results {
  return {
    at: '2026-11-11T12:00:00.000Z',
    machine: {
      cores: 2,
      cpu: 'Some CPU',
      memoryGiB: 24,
      system: 'Linux 6.1',
      node: '24.0.0',
      redis: '7.0.15',
      mysql: '10.11.6-MariaDB',
    },
    commit: '0123456789abcdef',
    isShort: false,
    repetitions: 3,
    unitMicros: 60,
    unitSpread: spreadOf([55, 60, 70]),
    operations: [
      operationOf('refused sold_out', 2, [sample(120, 2.1), sample(100, 1.7), sample(110, 1.8)], [1, 2, 3]),
      operationOf('whole purchase', 10.5, [sample(700, 12.6)], []),
    ],
    figures: [figureOf('whole purchases', 'a second', [1_500], { least: 2_000 })],
    growth: [],
    restMicrosPerSecond: { gateway: 2_500 },
    latenessMs: 1.2,
    ...changes,
  };
}

describe('an operation', () => {
  it('is told by medians, of all and by process, with their spread', () => {
    const [refused] = results().operations;
    expect(refused).toMatchObject({
      micros: 110,
      units: 1.8,
      busyUnits: 5.5,
      byProcess: { gateway: 82.5, redis: 27.5 },
      spread: { units: { median: 1.8, min: 1.7, max: 2.1 } },
      latencyMs: { count: 3, p50: 2, p99: 3 },
    });
  });

  it('has no latency where nobody waits for it', () => {
    expect(results().operations[1]?.latencyMs).toBeNull();
  });

  it('cannot be told from nothing', () => {
    expect(() => operationOf('x', 1, [], [])).toThrow(RangeError);
  });
});

it('a bound is missed on its own side only', () => {
  expect(missedByPercent(12.6, 10.5, false)).toBeCloseTo(20);
  expect(missedByPercent(10.5, 10.5, false)).toBeNull();
  expect(missedByPercent(1_500, 2_000, true)).toBeCloseTo(25);
  expect(missedByPercent(2_500, 2_000, true)).toBeNull();
});

it.each([
  [12_345.6, '12,346'],
  [99.96, '100.0'],
  [12.34, '12.3'],
  [1.005, '1.00'],
  [0, '0.00'],
])('%d is told as %s', (value, text) => {
  expect(rounded(value)).toBe(text);
});

describe('the report', () => {
  it('says what holds and by how much the rest is missed', () => {
    const text = markdownOf(results());
    expect(text).toContain(
      '| refused sold_out | 110 (100–120) | 58.8 | 1.80 (1.70–2.10) | 5.50 | 2 | holds |',
    );
    expect(text).toContain('**missed by 20.0 %**');
    expect(text).toContain(
      '| whole purchases | 1,500 (1,500–1,500) a second | ≥ 2,000 | **missed by 25.0 %** |',
    );
    expect(text).not.toContain('## Growth');
    expect(text).not.toContain('## Change');
  });

  it('has the table of growth where that was measured', () => {
    const growth = [
      {
        dimension: 'buckets',
        from: 1,
        to: 64,
        unitsFrom: spreadOf([10]),
        unitsTo: spreadOf([12]),
        changePercent: 20,
      },
    ];
    const text = markdownOf(results({ growth }));
    expect(text).toContain('| buckets | 1 → 64 | 10.0 (10.0–10.0) | 12.0 (12.0–12.0) | +20.0 % |');
    expect(text).toContain('**missed by 5.00 %**');
  });

  it('tells what has changed, and whether that is more than noise', () => {
    const earlier = results({
      operations: [operationOf('refused sold_out', 2, [sample(180, 3), sample(190, 3.2)], [])],
    });
    const text = markdownOf(results(), earlier);
    expect(text).toMatch(/\| refused sold_out \| 3\.10 .* \| −41\.9 % \| beyond the spread \|/);
    expect(text).toMatch(/\| whole purchase \| – \| .* \| new \|/);
    expect(text).not.toContain('another machine');
    const elsewhere = { ...earlier, machine: { ...earlier.machine, cores: 64 } };
    expect(markdownOf(results(), elsewhere)).toContain('another machine');
  });

  it('is read back as it was written', () => {
    const written = results();
    expect(Results.parse(JSON.parse(JSON.stringify(written)))).toEqual(written);
  });
});
