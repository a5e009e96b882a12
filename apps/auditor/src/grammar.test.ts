import * as domain from '@flash-sale/domain';
import { describe, expect, it } from '@jest/globals';
import { attemptIdOf, EDGES, homeBucketOf, isAttemptOf, mayFollow, readToken } from './grammar.js';

/** The two spellings are written apart and must come to the same; only here do they meet. */

const SALE = domain.SaleId.parse('sale-1');
const ALICE = domain.ShopperId.parse('alice');
const KEYS = domain.parseSigningKeys(`k1:${Buffer.alloc(32, 7).toString('base64')}`);
const SECRETS = new Map([['k1', Buffer.alloc(32, 7)]]);

describe('the auditor’s spelling agrees with the services’ on', () => {
  it('the id of an attempt and the sale it belongs to', () => {
    const id = domain.attemptIdOf(SALE, ALICE, domain.IdempotencyKey.parse('key.1'));
    expect(attemptIdOf('sale-1', 'alice', 'key.1')).toBe(id);
    expect(isAttemptOf('sale-1', id)).toBe(true);
    expect(isAttemptOf('sale', id)).toBe(false);
  });

  it('the home bucket of a shopper', () => {
    for (const count of [1, 7, 64]) {
      expect(homeBucketOf('alice', count)).toBe(domain.bucketOf(ALICE, count));
    }
  });

  it('what a purchase token says, and who signed it', () => {
    const attemptId = domain.attemptIdOf(SALE, ALICE, domain.IdempotencyKey.parse('key.1'));
    const claims = {
      attemptId,
      saleId: SALE,
      skuId: domain.SkuId.parse('sku-1'),
      shopperId: ALICE,
      quantity: 2,
      epoch: 3,
      issuedAtMs: 1_000,
      expiresAtMs: 2_000,
    };
    const token = domain.signPurchaseToken(claims, KEYS);
    const { saleId: _, ...said } = claims;
    expect(readToken(token, SECRETS)).toMatchObject({ claims: said, signature: 'valid' });
    expect(readToken(token, null).signature).toBe('unchecked');
    expect(readToken(`${token.slice(0, -3)}AAA`, SECRETS).signature).toBe('invalid');
    expect(readToken(token, new Map([['k2', Buffer.alloc(32, 7)]])).signature).toBe('invalid');
    expect(readToken('no token', SECRETS)).toMatchObject({ claims: null, signature: 'invalid' });
  });

  it('the edges that an order may take', () => {
    for (const from of domain.ORDER_STATES) {
      for (const to of domain.ORDER_STATES) {
        expect([from, to, (EDGES[from] ?? []).includes(to)]).toEqual([from, to, domain.mayBecome(from, to)]);
      }
    }
    expect(mayFollow('queued', 'refunded')).toBe(true);
    expect(mayFollow('cancelled', 'paid')).toBe(false);
  });
});
