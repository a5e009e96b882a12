import { describe, expect, it } from '@jest/globals';
import { SaleId, ShopperId } from '@flash-sale/domain';
import { bucketKeys, packDecided, parseAttempt, stateKey } from './keys.js';

const sale = SaleId.parse('noon');

describe('keys', () => {
  it('of one bucket share a hash tag, and no other bucket or sale has it', () => {
    const tagOf = (key: string) => /\{(.+?)\}/.exec(key)?.[1];
    expect(new Set(Object.values(bucketKeys(sale, 3)).map(tagOf))).toEqual(new Set(['noon:3']));
    expect(tagOf(stateKey(sale))).toBe('noon');
    expect(bucketKeys(sale, 3).account).toBe('fs:{noon:3}:account');
  });
});

describe('parseAttempt', () => {
  const tail = 'A'.repeat(22);

  it('reads a record with and without a place in Kafka', () => {
    expect(parseAttempt(sale, tail, 'H|alice|2|1000|||||900|1')).toEqual({
      attemptId: `noon-${tail}`,
      shopperId: 'alice',
      state: 'held',
      quantity: 2,
      deadlineMs: 1000,
      deliveryHash: null,
      placedAt: null,
      reason: '',
      grantedAtMs: 900,
      epoch: 1,
    });
    expect(parseAttempt(sale, tail, 'q|alice|2|1000|d|3|9007199254740993|lost|900|1')).toMatchObject({
      state: 'expiring',
      deliveryHash: 'd',
      placedAt: { partition: 3, offset: 9007199254740993n },
      reason: 'lost',
    });
  });

  it.each(['', '@|other', 'X|alice|2|1000|||||900|1', 'H|alice|2'])('throws on %j', (text) => {
    expect(() => parseAttempt(sale, tail, text)).toThrow(/not the record of an attempt/);
  });

  it('reads what was packed of a decided row', () => {
    const decided = {
      state: 'confirmed',
      shopperId: ShopperId.parse('alice'),
      quantity: 2,
      deliveryHash: 'd',
      placedAt: { partition: 3, offset: '7' },
      reason: '',
      decidedAtMs: 900,
      epoch: 4,
    } as const;
    expect(parseAttempt(sale, tail, packDecided(decided))).toEqual({
      attemptId: `noon-${tail}`,
      shopperId: 'alice',
      state: 'confirmed',
      quantity: 2,
      deadlineMs: 900,
      deliveryHash: 'd',
      placedAt: { partition: 3, offset: 7n },
      reason: '',
      grantedAtMs: 900,
      epoch: 4,
    });
    const ended = {
      ...decided,
      state: 'void',
      reason: 'cancelled',
      deliveryHash: null,
      placedAt: null,
    } as const;
    expect(parseAttempt(sale, tail, packDecided(ended))).toMatchObject({
      state: 'void',
      deliveryHash: null,
      placedAt: null,
      reason: 'cancelled',
    });
  });
});
