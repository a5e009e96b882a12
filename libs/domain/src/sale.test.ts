import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import {
  NewSale,
  StoredPhase,
  afterOperation,
  phaseAt,
  splitAllotment,
  stockLevelOf,
  type SaleOperation,
} from './sale.js';

const times = { opensAtMs: 1_000, closesAtMs: 2_000 };

describe('phaseAt', () => {
  it.each([
    ['draft', false, 1_500, 'draft'],
    ['warming', false, 1_500, 'warming'],
    ['warmed', false, 999, 'warmed'],
    ['warmed', false, 1_000, 'open'],
    ['warmed', true, 1_500, 'sold_out'],
    ['warmed', true, 999, 'warmed'],
    ['paused', false, 999, 'paused'],
    ['paused', true, 1_500, 'paused'],
    ['warmed', false, 2_000, 'closed'],
    ['paused', false, 2_000, 'closed'],
    ['closed', true, 1_500, 'closed'],
    ['settled', false, 1_500, 'settled'],
  ] as const)('%s, sold out %s, at %d is %s', (storedPhase, soldOut, nowMs, expected) => {
    expect(phaseAt({ storedPhase, ...times }, soldOut, nowMs)).toBe(expected);
  });
});

describe('afterOperation', () => {
  const allowed: [StoredPhase, SaleOperation, StoredPhase][] = [
    ['draft', 'warm-up', 'warming'],
    ['warming', 'warm-up', 'warming'],
    ['warming', 'finish-warm-up', 'warmed'],
    ['warmed', 'pause', 'paused'],
    ['paused', 'resume', 'warmed'],
    ['warmed', 'close', 'closed'],
    ['paused', 'close', 'closed'],
    ['closed', 'settle', 'settled'],
  ];
  const operations: SaleOperation[] = ['warm-up', 'finish-warm-up', 'pause', 'resume', 'close', 'settle'];

  it('changes exactly where the table of a sale’s life says so, and is harmless when repeated', () => {
    for (const storedPhase of StoredPhase.options) {
      for (const operation of operations) {
        const result = afterOperation({ storedPhase, ...times }, operation, 1_500);
        const row = allowed.find(([from, name]) => from === storedPhase && name === operation);
        if (row) {
          expect(result).toEqual({ outcome: 'changed', phase: row[2] });
          expect(afterOperation({ storedPhase: row[2], ...times }, operation, 1_500).outcome).not.toBe(
            'refused',
          );
        } else {
          expect(['already', 'refused']).toContain(result.outcome);
        }
      }
    }
  });

  it('lets a sale whose time is over be settled, and neither paused nor resumed', () => {
    for (const storedPhase of ['warmed', 'paused'] as const) {
      expect(afterOperation({ storedPhase, ...times }, 'settle', 2_000)).toEqual({
        outcome: 'changed',
        phase: 'settled',
      });
      expect(afterOperation({ storedPhase, ...times }, 'pause', 2_000).outcome).toBe('refused');
      expect(afterOperation({ storedPhase, ...times }, 'resume', 2_000).outcome).toBe('refused');
    }
  });
});

describe('splitAllotment', () => {
  it('loses no unit and makes no bucket more than one unit larger than another', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 1_000_000 }),
        fc.integer({ min: 1, max: 1024 }),
        (allotment, buckets) => {
          const shares = splitAllotment(allotment, buckets);
          expect(shares).toHaveLength(buckets);
          expect(shares.reduce((sum, share) => sum + share, 0)).toBe(allotment);
          expect(Math.max(...shares) - Math.min(...shares)).toBeLessThanOrEqual(1);
        },
      ),
    );
  });
});

describe('stockLevelOf', () => {
  it.each([
    [0, 'none'],
    [1, 'low'],
    [99, 'low'],
    [100, 'plenty'],
    [1000, 'plenty'],
  ] as const)('%d of 1,000 is %s', (free, level) => {
    expect(stockLevelOf(free, 1000)).toBe(level);
  });
});

describe('NewSale', () => {
  const sale = {
    title: 'Noon',
    skuId: 'sku-1',
    allotment: 10,
    unitPrice: 999,
    currency: 'CNY',
    opensAt: '2026-11-11T12:00:00.000Z',
    closesAt: '2026-11-11T13:00:00.000Z',
    limitPerShopper: 1,
  };

  it('fills in what a first sale wants', () => {
    expect(NewSale.parse(sale)).toMatchObject({
      buckets: 8,
      holdSeconds: 120,
      paySeconds: 900,
      line: { mode: 'off' },
    });
  });

  it.each([
    ['unknown fields', { ...sale, price: 1 }],
    ['a number as text', { ...sale, allotment: '10' }],
    ['a fraction', { ...sale, allotment: 1.5 }],
    ['nothing to sell', { ...sale, allotment: 0 }],
    ['closing before opening', { ...sale, closesAt: '2026-11-11T11:00:00.000Z' }],
    ['a local time', { ...sale, opensAt: '2026-11-11T12:00:00' }],
    ['a sale id that could leave its hash slot', { ...sale, saleId: 'x}{y' }],
  ])('refuses %s', (_, bad) => {
    expect(NewSale.safeParse(bad).success).toBe(false);
  });
});
