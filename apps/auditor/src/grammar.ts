import { createHash, createHmac, timingSafeEqual } from 'node:crypto';

/**
 * How the suite spells its ids, keys, tokens and states, written down a second time and on purpose: a checker that took
 * them from the services would share the services' mistakes. The source of this file is the protocol, not the code.
 */

const TAIL_LENGTH = 22;

/** The id of the attempt that a shopper makes with one idempotency key: entry, hold, order, Kafka key and row at once. */
export function attemptIdOf(saleId: string, shopperId: string, key: string): string {
  const digest = createHash('sha256').update(`${saleId}|${shopperId}|${key}`).digest('base64url');
  return `${saleId}-${digest.slice(0, TAIL_LENGTH)}`;
}

/** Whether an id belongs to a sale. The length tells sale `a` from a sale `a-b` whose ids begin with `a-` too. */
export function isAttemptOf(saleId: string, id: string): boolean {
  return id.length === saleId.length + 1 + TAIL_LENGTH && id.startsWith(`${saleId}-`);
}

/** The bucket in which a shopper's limit, holds and units lie. */
export function homeBucketOf(shopperId: string, bucketCount: number): number {
  return createHash('sha256').update(shopperId).digest().readUInt32BE(0) % bucketCount;
}

/** The Redis keys of one bucket; all of them carry the hash tag `{sale:bucket}`. */
export function bucketKeys(saleId: string, bucket: number) {
  const tag = `fs:{${saleId}:${bucket}}`;
  return {
    account: `${tag}:account`,
    attempts: `${tag}:attempts`,
    shoppers: `${tag}:shoppers`,
    deadlines: `${tag}:deadlines`,
    transfers: `${tag}:transfers`,
  };
}

/** What a dead letter's headers are called. */
export const DEAD_LETTER_HEADERS = {
  topic: 'dlq-topic',
  partition: 'dlq-partition',
  offset: 'dlq-offset',
  cause: 'dlq-cause',
  schema: 'dlq-schema',
} as const;

/** A row in one of these states counts as sold. */
export const LIVE: ReadonlySet<string> = new Set(['awaiting_payment', 'paid']);
/** A row in one of these was sold once, and its units went back. */
export const RETURNED: ReadonlySet<string> = new Set(['cancelled', 'unpaid', 'refunding', 'refunded']);

/** Every edge an order may take. */
export const EDGES: Readonly<Record<string, readonly string[]>> = {
  queued: ['awaiting_payment', 'rejected', 'expired'],
  awaiting_payment: ['paid', 'cancelled', 'unpaid'],
  paid: ['refunding'],
  refunding: ['refunded'],
  cancelled: [],
  unpaid: [],
  expired: [],
  rejected: [],
  refunded: [],
};

/** Why an attempt may have ended without an order. */
export const REJECTION_REASONS: ReadonlySet<string> = new Set(['limit', 'sold_out', 'poison']);
export const EXPIRY_REASONS: ReadonlySet<string> = new Set(['hold_expired', 'released', 'lost']);

/** In which an entry ends for good, and an order. */
export const ENTRY_ENDS: ReadonlySet<string> = new Set(['expired', 'released', 'sold_out']);
export const ORDER_ENDS: ReadonlySet<string> = new Set([
  'expired',
  'rejected',
  'cancelled',
  'unpaid',
  'refunded',
]);

/**
 * Whether an entry seen in one state may be seen in another later. An order whose record nobody knows of is checked, and shows
 * as granted again meanwhile.
 */
export function entryMayFollow(earlier: string, later: string): boolean {
  if (earlier === later || earlier === 'waiting') return true;
  if (ENTRY_ENDS.has(earlier)) return false;
  return later !== 'waiting' && later !== 'sold_out';
}

/** Every code that a problem document may have. */
export const PROBLEM_CODES: ReadonlySet<string> = new Set(
  (
    'malformed unauthenticated invalid_token payment_declined forbidden challenge_required blocked not_found ' +
    'method_not_allowed sale_not_open sale_closed sale_paused limit_reached entry_exists not_enough_left ' +
    'already_ordered order_expired not_payable not_cancellable in_progress challenge_used sold_out token_expired ' +
    'too_large unsupported_media_type invalid idempotency_key_reused rate_limited headers_too_large unavailable ' +
    'enqueue_unknown'
  ).split(' '),
);

/** Whether an order seen in one state may be seen in another later, by any number of edges (or none). */
export function mayFollow(earlier: string, later: string): boolean {
  if (earlier === later) return true;
  return (EDGES[earlier] ?? []).some((next) => mayFollow(next, later));
}

/** What a purchase token says. */
export interface TokenClaims {
  readonly attemptId: string;
  readonly skuId: string;
  readonly shopperId: string;
  readonly quantity: number;
  readonly epoch: number;
  /** Milliseconds since 1970, by Redis' clock. */
  readonly issuedAtMs: number;
  readonly expiresAtMs: number;
}

/** A purchase token as found in a log or a record. */
export interface SeenToken {
  /** Tells two tokens apart without keeping them. */
  readonly hash: string;
  /** `null` where it is no token at all. */
  readonly claims: TokenClaims | null;
  /** `unchecked` where the auditor was given no keys. */
  readonly signature: 'valid' | 'invalid' | 'unchecked';
}

/** Secrets by key id. */
export type TokenKeys = ReadonlyMap<string, Buffer>;

/** Reads a token `v1.kid.payload.mac`; checks the MAC where keys are given. Never throws. */
export function readToken(token: string, keys: TokenKeys | null): SeenToken {
  const hash = createHash('sha256').update(token).digest('base64url').slice(0, 16);
  const [version = '', keyId = '', payload = '', mac = '', ...more] = token.split('.');
  const claims = version === 'v1' && more.length === 0 ? readClaims(payload) : null;
  if (!keys) return { hash, claims, signature: 'unchecked' };
  const secret = keys.get(keyId);
  if (!claims || !secret) return { hash, claims, signature: 'invalid' };
  const wanted = createHmac('sha256', secret).update(`v1.${keyId}.${payload}`).digest();
  const given = Buffer.from(mac, 'base64url');
  const valid = given.length === wanted.length && timingSafeEqual(given, wanted);
  return { hash, claims, signature: valid ? 'valid' : 'invalid' };
}

function readClaims(payload: string): TokenClaims | null {
  const json = readJson(Buffer.from(payload, 'base64url').toString('utf8'));
  if (json === null) return null;
  const { a, k, u, q, e, i, x } = json;
  if (typeof a !== 'string' || typeof k !== 'string' || typeof u !== 'string') return null;
  if (typeof q !== 'number' || typeof e !== 'number' || typeof i !== 'number' || typeof x !== 'number') {
    return null;
  }
  return { attemptId: a, skuId: k, shopperId: u, quantity: q, epoch: e, issuedAtMs: i, expiresAtMs: x };
}

/** A JSON object, or `null` for anything else. */
export function readJson(text: string): Record<string, unknown> | null {
  try {
    const json: unknown = JSON.parse(text);
    return typeof json === 'object' && json !== null && !Array.isArray(json)
      ? (json as Record<string, unknown>)
      : null;
  } catch {
    return null;
  }
}
