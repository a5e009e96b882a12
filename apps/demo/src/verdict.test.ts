import { describe, expect, it } from '@jest/globals';
import { Figures } from './figures.js';
import { Audit, isClean, verdictOf } from './verdict.js';

const audit = Audit.parse({
  allotment: 1_000,
  sold: 1_000,
  oversold: 0,
  undersold: 0,
  accepted: 1_180,
  rejectedAfterAccept: 0,
  lost: 0,
  duplicates: 0,
  refused: { sold_out: 90_000 },
  latencyMs: {
    entry: { p50: 1, p95: 1, p99: 1 },
    order: { p50: 1, p95: 1, p99: 1 },
    acceptedToWritten: { p50: 40, p95: 90, p99: 120 },
  },
  invariants: { checked: 17, broken: [] },
});

describe('the verdict', () => {
  it('has exactly the promised fields', () => {
    const figures = new Figures();
    figures.moveRefusal(undefined, 'sold_out');
    figures.entryMs.add(5);
    const verdict = verdictOf(audit, figures);
    expect(Object.keys(verdict)).toEqual([
      'allotment',
      'sold',
      'oversold',
      'undersold',
      'accepted',
      'rejectedAfterAccept',
      'lost',
      'duplicates',
      'refused',
      'latencyMs',
      'invariants',
    ]);
    expect(verdict.refused).toEqual({ sold_out: 1 });
    expect(Object.keys(verdict.latencyMs)).toEqual(['entry', 'order', 'acceptedToWritten']);
    for (const percentiles of Object.values(verdict.latencyMs)) {
      expect(Object.keys(percentiles)).toEqual(['p50', 'p95', 'p99']);
    }
    expect(verdict.latencyMs.acceptedToWritten).toEqual({ p50: 40, p95: 90, p99: 120 });
    expect(verdict.latencyMs.order).toEqual({ p50: null, p95: null, p99: null });
    expect(Object.keys(verdict.invariants)).toEqual(['checked', 'broken']);
  });

  it('is clean only if nothing is wrong and something was checked', () => {
    const verdict = verdictOf(audit, new Figures());
    expect(isClean(verdict)).toBe(true);
    for (const field of ['oversold', 'undersold', 'rejectedAfterAccept', 'lost', 'duplicates'] as const) {
      expect(isClean({ ...verdict, [field]: 1 })).toBe(false);
    }
    expect(isClean({ ...verdict, invariants: { checked: 17, broken: ['I1'] } })).toBe(false);
    expect(isClean({ ...verdict, invariants: { checked: 0, broken: [] } })).toBe(false);
    expect(isClean({ ...verdict, sold: 999 })).toBe(true);
    expect(isClean({ ...verdict, refused: { sold_out: 19_000 } })).toBe(true);
    expect(isClean({ ...verdict, sold: 999, refused: { unauthenticated: 1 } })).toBe(false);
  });
});
