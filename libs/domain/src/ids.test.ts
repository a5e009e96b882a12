import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import {
  AttemptId,
  IdempotencyKey,
  SaleId,
  ShopperId,
  attemptIdFrom,
  attemptIdOf,
  bucketOf,
  saleIdOf,
  tailOf,
} from './ids.js';

const characters = 'ABCXYZabcxyz0189_-'.split('');
const text = (maxLength: number) =>
  fc.array(fc.constantFrom(...characters), { minLength: 1, maxLength }).map((parts) => parts.join(''));
const saleId = text(40).map((value) => SaleId.parse(value));
const shopperId = text(64).map((value) => ShopperId.parse(value));
const key = text(128).map((value) => IdempotencyKey.parse(value));

describe('attempt ids', () => {
  it('are valid ids of at most 64 characters from which the sale can be read back', () => {
    fc.assert(
      fc.property(saleId, shopperId, key, (sale, shopper, idempotencyKey) => {
        const id = attemptIdOf(sale, shopper, idempotencyKey);
        expect(AttemptId.parse(id)).toBe(id);
        expect(id.length).toBeLessThanOrEqual(64);
        expect(saleIdOf(id)).toBe(sale);
        expect(attemptIdFrom(sale, tailOf(id))).toBe(id);
      }),
    );
  });

  it('are the same for the same three inputs and differ when any of them does', () => {
    const [sale, shopper, first] = [
      SaleId.parse('noon'),
      ShopperId.parse('alice'),
      IdempotencyKey.parse('k1'),
    ];
    // Written down once and for all: an id that changed would turn every retry under way into a second attempt.
    expect(attemptIdOf(sale, shopper, first)).toBe('noon-2jKdcUgcxv-a0Mwv4pwU2U');
    const all = new Set([
      attemptIdOf(sale, shopper, first),
      attemptIdOf(sale, shopper, IdempotencyKey.parse('k2')),
      attemptIdOf(sale, ShopperId.parse('bob'), first),
      attemptIdOf(SaleId.parse('noon2'), shopper, first),
    ]);
    expect(all.size).toBe(4);
  });

  it.each(['', 'a'.repeat(41), 'a b', '../x', 'x}{y', '{}', 'ＡＢＣ', "'; DROP", 'a\u0000'])(
    'refuse the sale id %j',
    (bad) => {
      expect(SaleId.safeParse(bad).success).toBe(false);
    },
  );
});

describe('bucketOf', () => {
  it('always names a bucket, and the same one for the same shopper', () => {
    fc.assert(
      fc.property(shopperId, fc.integer({ min: 1, max: 1024 }), (shopper, buckets) => {
        const bucket = bucketOf(shopper, buckets);
        expect(bucket).toBeGreaterThanOrEqual(0);
        expect(bucket).toBeLessThan(buckets);
        expect(bucketOf(shopper, buckets)).toBe(bucket);
      }),
    );
  });

  it('spreads even consecutive ids evenly: no bucket of 64 is 25 % off its share of 64,000', () => {
    const counts = Array.from({ length: 64 }, () => 0);
    for (let i = 0; i < 64_000; i += 1) {
      const bucket = bucketOf(ShopperId.parse(`shopper-${i}`), 64);
      counts[bucket] = (counts[bucket] ?? 0) + 1;
    }
    expect(Math.min(...counts)).toBeGreaterThan(750);
    expect(Math.max(...counts)).toBeLessThan(1250);
  });
});
