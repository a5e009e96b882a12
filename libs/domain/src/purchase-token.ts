import { createHmac, createSecretKey, timingSafeEqual, type KeyObject } from 'node:crypto';
import { z } from 'zod';
import { AttemptId, ShopperId, SkuId, saleIdOf, type SaleId } from './ids.js';

/**
 * The purchase token: the signed, expiring right that stands for one hold. It is `v1.kid.payload.mac`, where the payload
 * is base64url JSON and the MAC is HMAC-SHA256 over everything before it. Token, order and order-writer share the keys,
 * so verification never needs a call. Whether it has expired is judged for a hold that is still held only, by Redis; the
 * writer checks the signature and never the expiry, because what Kafka remembers must be decided however late it is.
 */
export interface PurchaseTokenClaims {
  readonly attemptId: AttemptId;
  readonly saleId: SaleId;
  readonly skuId: SkuId;
  readonly shopperId: ShopperId;
  readonly quantity: number;
  /** The sale's epoch when the hold was granted; a rebuilt sale has a later one. */
  readonly epoch: number;
  /** Issued at and expires at, milliseconds since 1970 by Redis' clock. */
  readonly issuedAtMs: number;
  readonly expiresAtMs: number;
}

/** One signing key; `secret` has at least 32 bytes. */
export interface SigningKey {
  readonly id: string;
  readonly secret: Buffer;
}

/** The first key signs; all verify, so that keys can be rotated without refusing a token in flight. */
export type SigningKeys = readonly [SigningKey, ...SigningKey[]];

const MAX_TOKEN_LENGTH = 1024;

const Payload = z.strictObject({
  a: AttemptId,
  k: SkuId,
  u: ShopperId,
  q: z.int().min(1).max(1_000_000),
  e: z.int().min(1),
  i: z.int().positive(),
  x: z.int().positive(),
});

/** Parses `kid:base64,kid2:base64`; throws with a message that names the faulty part but never the secret. */
export function parseSigningKeys(text: string): SigningKeys {
  const keys = text.split(',').map((part, index): SigningKey => {
    const match = /^([A-Za-z0-9_-]{1,32}):([A-Za-z0-9+/_-]+={0,2})$/.exec(part.trim());
    if (!match?.[1] || !match[2]) throw new Error(`key ${index + 1} is not of the form kid:base64`);
    const secret = Buffer.from(match[2], 'base64');
    if (secret.length < 32) throw new Error(`key "${match[1]}" has ${secret.length} bytes, 32 are needed`);
    return { id: match[1], secret };
  });
  const [first, ...rest] = keys;
  if (!first) throw new Error('at least one key is needed');
  if (new Set(keys.map((key) => key.id)).size !== keys.length) throw new Error('two keys have the same kid');
  return [first, ...rest];
}

/** Signs the claims with the first key. The same claims always give the same token, so a replay hands out no second one. */
export function signPurchaseToken(claims: PurchaseTokenClaims, keys: SigningKeys): string {
  const payload: z.input<typeof Payload> = {
    a: claims.attemptId,
    k: claims.skuId,
    u: claims.shopperId,
    q: claims.quantity,
    e: claims.epoch,
    i: claims.issuedAtMs,
    x: claims.expiresAtMs,
  };
  const [key] = keys;
  const body = `v1.${key.id}.${Buffer.from(JSON.stringify(payload)).toString('base64url')}`;
  return `${body}.${mac(body, key)}`;
}

/**
 * The claims of a token with a valid signature, or `null` for anything else: a wrong shape, an unknown key, a flipped
 * bit. Does not look at the expiry.
 */
export function verifyPurchaseToken(token: string, keys: SigningKeys): PurchaseTokenClaims | null {
  if (token.length > MAX_TOKEN_LENGTH) return null;
  const [version, keyId, encoded, signature, ...more] = token.split('.');
  if (version !== 'v1' || !encoded || !signature || more.length > 0) return null;
  const key = keys.find((candidate) => candidate.id === keyId);
  if (!key) return null;
  const expected = Buffer.from(mac(`v1.${key.id}.${encoded}`, key));
  const given = Buffer.from(signature);
  if (given.length !== expected.length || !timingSafeEqual(given, expected)) return null;
  const parsed = Payload.safeParse(parseJson(Buffer.from(encoded, 'base64url').toString('utf8')));
  if (!parsed.success) return null;
  const { a, k, u, q, e, i, x } = parsed.data;
  return {
    attemptId: a,
    saleId: saleIdOf(a),
    skuId: k,
    shopperId: u,
    quantity: q,
    epoch: e,
    issuedAtMs: i,
    expiresAtMs: x,
  };
}

/**
 * Which attempt a token says that it is for; `null` where it says nothing of the kind. Proves nothing: whoever uses the id
 * must ask whose it is.
 */
export function attemptIdIn(token: string): AttemptId | null {
  if (token.length > MAX_TOKEN_LENGTH) return null;
  const payload = parseJson(Buffer.from(token.split('.')[2] ?? '', 'base64url').toString('utf8'));
  return Payload.safeParse(payload).data?.a ?? null;
}

function mac(body: string, key: SigningKey): string {
  return createHmac('sha256', keyObjectOf(key)).update(body).digest('base64url');
}

const keyObjects = new WeakMap<SigningKey, KeyObject>();

/** Node 24 takes five times as long for a MAC when it is given a Buffer: it finds out each time that it is no key yet. */
function keyObjectOf(key: SigningKey): KeyObject {
  const known = keyObjects.get(key);
  if (known) return known;
  const made = createSecretKey(key.secret);
  keyObjects.set(key, made);
  return made;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
