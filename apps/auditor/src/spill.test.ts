import { describe, expect, it } from '@jest/globals';
import { attemptIdOf } from './grammar.js';
import { Slices, Spill } from './spill.js';

describe('a sale’s slices', () => {
  it.each([1, 2, 3, 7, 64, 100, 512])(
    'are %i ranges of ids that meet without a gap or an overlap',
    (count) => {
      const slices = new Slices('s', count, 1);
      expect(slices.count).toBe(count);
      for (let i = 0; i < 2_000; i += 1) {
        const id = attemptIdOf('s', `shopper-${i}`, 'k');
        const containing = Array.from({ length: count }, (_, slice) => slices.range(slice)).flatMap(
          ({ from, before }, slice) => (id >= from && id < before ? [slice] : []),
        );
        expect(containing).toEqual([slices.of(id)]);
      }
    },
  );

  it('are as many as keep one small, and not without end', () => {
    expect(new Slices('s', 0).count).toBe(1);
    expect(new Slices('s', 4_096).count).toBe(1);
    expect(new Slices('s', 1_000_000).count).toBe(245);
    expect(new Slices('s', 1e9).count).toBe(1_024);
  });

  it('give shoppers a slice that is always the same', () => {
    const slices = new Slices('s', 8, 1);
    const counts = Array.from({ length: 8 }, () => 0);
    for (let i = 0; i < 8_000; i += 1) {
      const slice = slices.ofShopper(`shopper-${i}`);
      expect(slices.ofShopper(`shopper-${i}`)).toBe(slice);
      counts[slice] = (counts[slice] ?? 0) + 1;
    }
    expect(Math.min(...counts)).toBeGreaterThan(500);
  });
});

describe('what is put aside', () => {
  it('comes back once, whole and in its order', () => {
    const spill = new Spill(new Slices('s', 2, 1));
    try {
      const values = Array.from({ length: 5_000 }, (_, i) => ({ i, text: 'ü\n'.repeat(3) }));
      for (const value of values) spill.put('log', value.i % 2, value);
      expect([...spill.take('log', 1)]).toEqual(values.filter(({ i }) => i % 2 === 1));
      expect([...spill.take('log', 1)]).toEqual([]);
      expect([...spill.take('hold', 0)]).toEqual([]);
      expect([...spill.take('log', 0)]).toHaveLength(2_500);
    } finally {
      spill.remove();
    }
  });
});
