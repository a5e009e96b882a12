import { describe, expect, it } from '@jest/globals';
import { filterBitsFor, filterPositions, mayHold } from './holder-filter.js';
import { ShopperId, bucketOf } from './ids.js';

const BUCKETS = 4;

function filterOf(holders: readonly ShopperId[], bits: number): Buffer {
  const filter = Buffer.alloc((BUCKETS * bits) / 8);
  for (const holder of holders) {
    const base = (bucketOf(holder, BUCKETS) * bits) / 8;
    for (const position of filterPositions(holder, bits)) {
      const at = base + (position >> 3);
      filter[at] = (filter[at] ?? 0) | (0x80 >> (position & 7));
    }
  }
  return filter;
}

describe('the holder filter', () => {
  const bits = filterBitsFor(1000, BUCKETS);
  const holders = Array.from({ length: 1000 }, (_, i) => ShopperId.parse(`holder-${i}`));
  const filter = filterOf(holders, bits);

  it('knows every holder', () => {
    expect(holders.every((holder) => mayHold(filter, holder, BUCKETS, bits))).toBe(true);
  });

  it('takes fewer than 1 % of strangers for holders', () => {
    const strangers = Array.from({ length: 10_000 }, (_, i) => ShopperId.parse(`stranger-${i}`));
    expect(strangers.filter((stranger) => mayHold(filter, stranger, BUCKETS, bits)).length).toBeLessThan(100);
  });

  it('takes nobody for a holder while it is empty, and has whole bytes', () => {
    expect(mayHold(Buffer.alloc(0), ShopperId.parse('anyone'), BUCKETS, bits)).toBe(false);
    expect(filterBitsFor(1, 1024) % 8).toBe(0);
  });
});
