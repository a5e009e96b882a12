import { describe, expect, it } from '@jest/globals';
import { areApart, changePercent, dueAfterMs, latencyOf, median, quantile, spreadOf } from './statistics.js';

describe('the median', () => {
  it.each([
    [[3], 3],
    [[9, 1, 5], 5],
    [[4, 1, 3, 2], 2.5],
    [[10, 9, 100], 10],
  ])('of %j is %d', (values, expected) => {
    expect(median(values)).toBe(expected);
  });

  it('of nothing is an error', () => {
    expect(() => median([])).toThrow(RangeError);
  });

  it('leaves the measurements in their order', () => {
    const values = [3, 1, 2];
    median(values);
    expect(values).toEqual([3, 1, 2]);
  });
});

describe('spreads', () => {
  it('have the middle and both ends', () => {
    expect(spreadOf([5, 1, 2])).toEqual({ median: 2, min: 1, max: 5 });
  });

  it('are apart only where they do not touch', () => {
    const a = spreadOf([1, 2, 3]);
    expect(areApart(a, spreadOf([4, 5]))).toBe(true);
    expect(areApart(spreadOf([4, 5]), a)).toBe(true);
    expect(areApart(a, spreadOf([3, 5]))).toBe(false);
    expect(areApart(a, spreadOf([0, 9]))).toBe(false);
  });
});

describe('a quantile', () => {
  const thousand = Array.from({ length: 1_000 }, (_, index) => index + 1);

  it.each([
    [0, 1],
    [0.5, 500],
    [0.99, 990],
    [0.999, 999],
    [1, 1_000],
  ])('%d of 1 to 1000 is %d', (q, expected) => {
    expect(quantile(thousand, q)).toBe(expected);
  });

  it('is a value that was met, also of few', () => {
    expect(quantile([7, 8], 0.5)).toBe(7);
    expect(quantile([7, 8], 0.99)).toBe(8);
    expect(() => quantile([], 0.5)).toThrow(RangeError);
  });
});

describe('latencies', () => {
  it('are sorted as numbers', () => {
    const latency = latencyOf([100, 9, 20, 3]);
    expect(latency).toEqual({ count: 4, p50: 9, p99: 100, p999: 100, max: 100 });
  });

  it('of nothing are none', () => {
    expect(latencyOf([])).toBeNull();
  });

  it('count a pause of the server for everybody who was due meanwhile', () => {
    // 1,000 a second for a second; the server answers at once, but stands still for the first 100 ms.
    const answeredMs = (dueMs: number) => Math.max(dueMs, 100);
    const latencies = Array.from({ length: 1_000 }, (_, index) => {
      const dueMs = dueAfterMs(index, 1_000);
      return answeredMs(dueMs) - dueMs;
    });
    const latency = latencyOf(latencies);
    expect(latency?.p50).toBe(0);
    expect(latency?.p99).toBeGreaterThan(85);
  });
});

it('a change is told in per cent of what was before', () => {
  expect(changePercent(4, 5)).toBe(25);
  expect(changePercent(4, 3)).toBe(-25);
});
