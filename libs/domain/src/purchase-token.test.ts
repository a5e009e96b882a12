import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import { AttemptId, ShopperId, SkuId, saleIdOf } from './ids.js';
import {
  parseSigningKeys,
  signPurchaseToken,
  verifyPurchaseToken,
  type PurchaseTokenClaims,
} from './purchase-token.js';

const secret = (fill: string) => Buffer.alloc(32, fill).toString('base64');
const keys = parseSigningKeys(`k2:${secret('b')},k1:${secret('a')}`);
const attemptId = AttemptId.parse('noon-0123456789abcdefghij_-');
const claims: PurchaseTokenClaims = {
  attemptId,
  saleId: saleIdOf(attemptId),
  skuId: SkuId.parse('sku-1'),
  shopperId: ShopperId.parse('alice'),
  quantity: 2,
  epoch: 1,
  issuedAtMs: 1_763_700_000_000,
  expiresAtMs: 1_763_700_120_000,
};

describe('the purchase token', () => {
  it('carries its claims through signing and verifying', () => {
    expect(verifyPurchaseToken(signPurchaseToken(claims, keys), keys)).toEqual(claims);
  });

  it('is the same for the same hold, so that a replay hands out no second one', () => {
    expect(signPurchaseToken({ ...claims }, keys)).toBe(signPurchaseToken(claims, keys));
  });

  it('is verified with every key of the ring and with no other', () => {
    const [, old] = keys;
    if (!old) throw new Error('the ring has two keys');
    const signedByOldKey = signPurchaseToken(claims, [old]);
    expect(verifyPurchaseToken(signedByOldKey, keys)).toEqual(claims);
    expect(verifyPurchaseToken(signedByOldKey, [keys[0]])).toBeNull();
  });

  it('is refused when any character of it is changed, dropped or added', () => {
    const token = signPurchaseToken(claims, keys);
    fc.assert(
      fc.property(fc.nat(token.length - 1), fc.constantFrom('', 'A', '.', '=', 'ü'), (at, put) => {
        const changed = token.slice(0, at) + put + token.slice(at + 1);
        fc.pre(changed !== token);
        expect(verifyPurchaseToken(changed, keys)).toBeNull();
      }),
    );
  });

  it('is refused for every text that is not one, however long', () => {
    fc.assert(
      fc.property(fc.string({ maxLength: 2000 }), (text) => verifyPurchaseToken(text, keys) === null),
    );
    expect(verifyPurchaseToken('v1.'.repeat(400_000), keys)).toBeNull();
  });

  it('is refused when its payload is signed but malformed', () => {
    const token = signPurchaseToken({ ...claims, quantity: 1.5 }, keys);
    expect(verifyPurchaseToken(token, keys)).toBeNull();
  });
});

describe('parseSigningKeys', () => {
  it.each([
    ['', /not of the form/],
    ['k1', /not of the form/],
    [`k1:${Buffer.alloc(31).toString('base64')}`, /31 bytes/],
    [`k1:${secret('a')},k1:${secret('b')}`, /same kid/],
  ])('says what is wrong with %j without repeating a secret', (text, message) => {
    expect(() => parseSigningKeys(text)).toThrow(message);
    expect(() => parseSigningKeys(text)).not.toThrow(/AAAA/);
  });
});
