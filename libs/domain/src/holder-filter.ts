import { hash } from 'node:crypto';
import { bucketOf, type ShopperId } from './ids.js';

/**
 * A Bloom filter of the shoppers who were ever granted units in a sale, kept as one bitmap per bucket (the grant script
 * sets the bits) and published as their concatenation. While a sale is sold out a gateway refuses from memory everybody
 * who is certainly not in it, so a refused stranger costs no call and a holder's retry still meets its first answer.
 * Bits are never cleared: a shopper who gave units back is merely looked up once more than needed.
 * (Double hashing after Kirsch and Mitzenmacher, "Less Hashing, Same Performance".)
 */
const HASHES = 4;
const BITS_PER_HOLDER = 16;

/** Bits of one bucket's bitmap: a power of two, 16 for each unit of the bucket's share, at least 1,024, at most 2^24. */
export function filterBitsFor(allotment: number, bucketCount: number): number {
  const wanted = Math.ceil(allotment / bucketCount) * BITS_PER_HOLDER;
  return Math.min(2 ** 24, Math.max(1024, 2 ** Math.ceil(Math.log2(wanted))));
}

/** The bits that stand for a shopper within the home bucket's bitmap. */
export function filterPositions(shopperId: ShopperId, bits: number): number[] {
  const digest = hash('sha256', shopperId, 'hex');
  const start = Number.parseInt(digest.slice(8, 16), 16);
  // `| 1` makes it odd, so that it is prime to the power of two; `>>> 0` keeps it unsigned.
  const step = (Number.parseInt(digest.slice(16, 24), 16) | 1) >>> 0;
  return Array.from({ length: HASHES }, (_, i) => (start + i * step) % bits);
}

/** Whether a shopper may hold units, by the published bitmaps (bits in Redis' order: the first is the highest). */
export function mayHold(filter: Buffer, shopperId: ShopperId, bucketCount: number, bits: number): boolean {
  const base = bucketOf(shopperId, bucketCount) * (bits / 8);
  return filterPositions(shopperId, bits).every((position) => {
    const byte = filter[base + (position >> 3)] ?? 0;
    return (byte & (0x80 >> (position & 7))) !== 0;
  });
}
