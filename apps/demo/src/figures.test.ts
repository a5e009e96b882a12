import { describe, expect, it } from '@jest/globals';
import { LatencyHistogram } from './figures.js';

describe('a histogram', () => {
  it('tells percentiles within 1 %, and null without samples', () => {
    const histogram = new LatencyHistogram();
    expect(histogram.percentiles()).toEqual({ p50: null, p95: null, p99: null });
    for (let ms = 1; ms <= 1_000; ms += 1) histogram.add(ms);
    const { p50, p95, p99 } = histogram.percentiles();
    expect(Math.abs((p50 ?? 0) - 500)).toBeLessThan(6);
    expect(Math.abs((p95 ?? 0) - 950)).toBeLessThan(11);
    expect(Math.abs((p99 ?? 0) - 990)).toBeLessThan(11);
    histogram.add(0);
    histogram.add(1e12);
    expect(histogram.samples).toBe(1_002);
  });
});
