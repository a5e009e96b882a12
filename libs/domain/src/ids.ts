import { hash } from 'node:crypto';
import { z } from 'zod';

/**
 * Identifiers. Every id of one attempt is the same string from the shopper's first click to the row in MySQL, so that a
 * duplicate made by any retry at any layer is recognised at the next hop. (The habit of letting the caller make the id
 * is described in TigerBeetle's "reliable transaction submission".)
 */

const ID_PATTERN = /^[A-Za-z0-9_-]{1,64}$/;
const SALE_ID_PATTERN = /^[A-Za-z0-9_-]{1,40}$/;
const TAIL_LENGTH = 22;
const ATTEMPT_ID_PATTERN = /^[A-Za-z0-9_-]{1,40}-[A-Za-z0-9_-]{22}$/;
const IDEMPOTENCY_KEY_PATTERN = /^[A-Za-z0-9_.-]{1,128}$/;

export const SaleId = z
  .string()
  .regex(SALE_ID_PATTERN, '1 to 40 characters of A-Z a-z 0-9 _ -')
  .brand('SaleId');
export const SkuId = z.string().regex(ID_PATTERN, '1 to 64 characters of A-Z a-z 0-9 _ -').brand('SkuId');
export const ShopperId = z
  .string()
  .regex(ID_PATTERN, '1 to 64 characters of A-Z a-z 0-9 _ -')
  .brand('ShopperId');
export const AttemptId = z
  .string()
  .regex(ATTEMPT_ID_PATTERN, 'a sale id, a dash and 22 base64url characters')
  .brand('AttemptId');
export const IdempotencyKey = z
  .string()
  .regex(IDEMPOTENCY_KEY_PATTERN, '1 to 128 characters of A-Z a-z 0-9 _ . -')
  .brand('IdempotencyKey');

/** A time-boxed offer of one SKU; at most 40 characters, so that an attempt id stays within 64. */
export type SaleId = z.infer<typeof SaleId>;
/** What is sold. */
export type SkuId = z.infer<typeof SkuId>;
/** Who buys: the `sub` of the verified access token. */
export type ShopperId = z.infer<typeof ShopperId>;
/** Entry id, hold id, order id, Kafka key and primary key at once: `saleId-tail`. */
export type AttemptId = z.infer<typeof AttemptId>;
/** The client's retry key, as received in `Idempotency-Key`. */
export type IdempotencyKey = z.infer<typeof IdempotencyKey>;

/**
 * The id of the attempt that a shopper makes with one retry key: the same three inputs always give the same id, and
 * 132 bits of SHA-256 keep two attempts apart. `|` is in none of the inputs' alphabets, so no two triples collide.
 */
export function attemptIdOf(saleId: SaleId, shopperId: ShopperId, key: IdempotencyKey): AttemptId {
  const digest = hash('sha256', `${saleId}|${shopperId}|${key}`, 'base64url');
  return `${saleId}-${digest.slice(0, TAIL_LENGTH)}` as AttemptId;
}

/** The sale that an attempt belongs to; the id itself says so. */
export function saleIdOf(attemptId: AttemptId): SaleId {
  return attemptId.slice(0, -(TAIL_LENGTH + 1)) as SaleId;
}

/** The 22 characters behind the sale id: what tells the attempts of one sale apart. */
export function tailOf(attemptId: AttemptId): string {
  return attemptId.slice(-TAIL_LENGTH);
}

/** The inverse of {@link tailOf} within a known sale. */
export function attemptIdFrom(saleId: SaleId, tail: string): AttemptId {
  return `${saleId}-${tail}` as AttemptId;
}

/**
 * A shopper's home bucket. Shoppers never move, stock moves: their limit, their hold and the units lie in one hash slot,
 * so one script can decide. The first four bytes of SHA-256 spread even consecutive ids evenly.
 *
 * @param bucketCount 1 to 1024, fixed when the sale is warmed up
 */
export function bucketOf(shopperId: ShopperId, bucketCount: number): number {
  return Number.parseInt(hash('sha256', shopperId, 'hex').slice(0, 8), 16) % bucketCount;
}
