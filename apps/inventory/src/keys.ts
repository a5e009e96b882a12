import { attemptIdFrom, type AttemptId, type SaleId, type ShopperId } from '@flash-sale/domain';

/**
 * The grammar of stock in Redis; no other file spells a stock key. S is a sale id, B a bucket's number. Both are made of
 * validated characters only, so no two tuples give one key and nobody can inject a hash tag.
 *
 * All keys of a bucket share the hash tag `{S:B}`, so that one script can decide:
 * | Key | Type | Holds |
 * | --- | --- | --- |
 * | `fs:{S:B}:account` | hash | `sku epoch initial free held queued sold in out openTransfers`; the gate `opensAtMs closesAtMs paused closed limit holdMs gateVersion`; `grants` (ever granted) and `filterBits`; `frozen`: 0 in use, 1 frozen by a rebuild, 2 being filled by it; `sealed`: the epoch in which it last ended; `boot`: incarnation of the server that it was last found whole on |
 * | `fs:{S:B}:attempts` | hash | tail → `state\|shopper\|quantity\|deadlineMs\|deliveryHash\|partition\|offset\|reason\|grantedAtMs\|epoch`, or `@\|tail` for an alias |
 * | `fs:{S:B}:shoppers` | hash | shopper → `used\|liveTail` |
 * | `fs:{S:B}:deadlines` | sorted set | tail → deadline (ms) of each unresolved attempt; `t:tid` → of each open outgoing transfer. While a sweeper has one, the end of its lease |
 * | `fs:{S:B}:transfers` | hash | tid → `out\|units\|destination\|atMs`, `in\|units\|source`, `done\|units\|destination`, or `back\|…` where a rebuild returned them; `c:id` → `fix\|units` of a correction |
 * | `fs:{S:B}:holders` | bitmap | Bloom filter of the shoppers ever granted here |
 *
 * The sale's own slot:
 * | `fs:{S}:state` | hash | `epoch boot credit soldOut version`; `boot` is the marker that this Redis has not forgotten the sale |
 *
 * At all times, in every bucket: initial + in − out = free + held + queued + sold. States: H held, Q queued, h and q
 * expiring from these, C confirmed, V void. None of the keys has a TTL until the sale is settled.
 */
export interface BucketKeys {
  readonly account: string;
  readonly attempts: string;
  readonly shoppers: string;
  readonly deadlines: string;
  readonly transfers: string;
  readonly holders: string;
}

export function bucketKeys(saleId: SaleId, bucket: number): BucketKeys {
  const prefix = `fs:{${saleId}:${bucket}}`;
  return {
    account: `${prefix}:account`,
    attempts: `${prefix}:attempts`,
    shoppers: `${prefix}:shoppers`,
    deadlines: `${prefix}:deadlines`,
    transfers: `${prefix}:transfers`,
    holders: `${prefix}:holders`,
  };
}

export function stateKey(saleId: SaleId): string {
  return `fs:{${saleId}}:state`;
}

/** How an attempt stands in Redis. */
export type HoldState = 'held' | 'queued' | 'expiring' | 'confirmed' | 'void';

/** An attempt as its record says. Times are milliseconds since 1970 by Redis' clock. */
export interface HoldRecord {
  readonly attemptId: AttemptId;
  readonly shopperId: ShopperId;
  readonly state: HoldState;
  readonly quantity: number;
  readonly deadlineMs: number;
  /** Of the order that was queued with it; null where none ever was. */
  readonly deliveryHash: string | null;
  /** Where the acknowledged order lies in Kafka; null while that is not known. */
  readonly placedAt: { readonly partition: number; readonly offset: bigint } | null;
  /** Why it is void, or will be unless it turns out to be an order; empty otherwise. */
  readonly reason: string;
  readonly grantedAtMs: number;
  readonly epoch: number;
}

const STATES: Readonly<Record<string, HoldState>> = {
  H: 'held',
  Q: 'queued',
  h: 'expiring',
  q: 'expiring',
  C: 'confirmed',
  V: 'void',
};

/** Reads a record as scripts/include/attempt.lua writes it; throws on anything else. */
export function parseAttempt(saleId: SaleId, tail: string, text: string): HoldRecord {
  const fields = text.split('|');
  const [
    letter = '',
    shopper = '',
    quantity,
    deadline,
    delivery = '',
    partition = '',
    offset = '',
    reason = '',
  ] = fields;
  const state = STATES[letter];
  if (!state || fields.length !== 10) throw new Error(`"${text}" is not the record of an attempt`);
  return {
    attemptId: attemptIdFrom(saleId, tail),
    shopperId: shopper as ShopperId,
    state,
    quantity: Number(quantity),
    deadlineMs: Number(deadline),
    deliveryHash: delivery === '' ? null : delivery,
    placedAt: offset === '' ? null : { partition: Number(partition), offset: BigInt(offset) },
    reason,
    grantedAtMs: Number(fields[8]),
    epoch: Number(fields[9]),
  };
}

/** What MySQL's row of a decided attempt says, as a record of Redis has it. */
export interface DecidedRecord {
  readonly state: 'confirmed' | 'void';
  readonly shopperId: string;
  readonly quantity: number;
  readonly deliveryHash: string | null;
  readonly placedAt: { readonly partition: number; readonly offset: string } | null;
  readonly reason: string;
  readonly decidedAtMs: number;
  readonly epoch: number;
}

/** The inverse of {@link parseAttempt} for what has been decided. */
export function packDecided(record: DecidedRecord): string {
  const { state, shopperId, quantity, deliveryHash, placedAt, reason, decidedAtMs, epoch } = record;
  return [
    state === 'confirmed' ? 'C' : 'V',
    shopperId,
    quantity,
    decidedAtMs,
    deliveryHash ?? '',
    placedAt?.partition ?? '',
    placedAt?.offset ?? '',
    reason,
    decidedAtMs,
    epoch,
  ].join('|');
}

/** A bucket's account, read at one moment. Always: initial + in − out = free + held + queued + sold. */
export interface Account {
  readonly epoch: number;
  readonly initial: number;
  readonly free: number;
  readonly held: number;
  readonly queued: number;
  readonly sold: number;
  readonly in: number;
  readonly out: number;
  readonly openTransfers: number;
  /** Grants ever made here; it changes exactly when the holder filter may have. */
  readonly grants: number;
}

/** In the order that snapshot.lua replies in. */
export const ACCOUNT_FIELDS = [
  'epoch',
  'initial',
  'free',
  'held',
  'queued',
  'sold',
  'in',
  'out',
  'openTransfers',
  'grants',
] as const satisfies readonly (keyof Account)[];
