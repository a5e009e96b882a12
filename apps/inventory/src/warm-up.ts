import { randomUUID } from 'node:crypto';
import { filterBitsFor, splitAllotment } from '@flash-sale/domain';
import type { RedisClient } from '@flash-sale/redis';
import { bucketKeys, stateKey, type BucketKeys } from './keys.js';
import type { KnownSale } from './sale-book.js';
import { scripts } from './scripts.js';

/** Attempts of a settled sale can be read this long. */
const KEEP_SETTLED_MS = 7 * 24 * 3600 * 1000;

/**
 * Which life of which server answers for a key: another one after a restart, a promotion or a move. A server that has another
 * incarnation than before may have forgotten writes. Undefined while that is not known.
 */
export type IncarnationOf = (key: string) => string | undefined;

/** What a caller of a script says of the bucket that it means: the sale's epoch, and the server that it believes to talk to. */
export type FenceOf = (sale: KnownSale, keys: BucketKeys) => string;

/** A sale's buckets as a whole: filled before it opens, told when to grant, retired when it is settled. */
export class WarmUp {
  constructor(
    private readonly redis: RedisClient,
    private readonly incarnationOf: IncarnationOf,
  ) {}

  /**
   * Fills every bucket with its share, gates shut, and then the sale's state with its marker. Repeating it, also after a
   * crash half-way, gives no unit twice: a bucket of this epoch is left as it is.
   *
   * @throws when Redis knows a later epoch of the sale
   */
  async load(sale: KnownSale): Promise<void> {
    const filterBits = filterBitsFor(sale.allotment, sale.bucketCount);
    const shares = splitAllotment(sale.allotment, sale.bucketCount);
    const replies = await Promise.all(
      shares.map((units, bucket) => {
        const keys = bucketKeys(sale.saleId, bucket);
        return scripts.load.run(
          this.redis,
          [keys.account, keys.attempts, keys.shoppers, keys.deadlines, keys.transfers, keys.holders],
          [sale.epoch, sale.skuId, units, filterBits, this.incarnationOf(keys.account) ?? ''],
        );
      }),
    );
    const state = await scripts.loadState.run(
      this.redis,
      [stateKey(sale.saleId)],
      [sale.epoch, randomUUID()],
    );
    if (state === 'later' || replies.includes('later')) {
      throw new Error(
        `Redis knows a later epoch of sale ${sale.saleId} than ${sale.epoch}, which MySQL has: is this the right Redis?`,
      );
    }
  }

  /**
   * Tells every bucket when to grant and to whom. Older versions never overwrite newer ones, so that any instance may call
   * it at any time.
   *
   * @returns whether every bucket knows this version or a later one now
   */
  async setGates(sale: KnownSale): Promise<boolean> {
    const closed = sale.storedPhase === 'closed' || sale.storedPhase === 'settled';
    const args = [
      sale.epoch,
      sale.version,
      sale.opensAtMs,
      sale.closesAtMs,
      sale.storedPhase === 'paused' ? 1 : 0,
      closed ? 1 : 0,
      sale.limitPerShopper,
      sale.holdMs,
    ];
    const replies = await Promise.all(
      bucketsOf(sale).map((keys) => scripts.gate.run(this.redis, [keys.account], args)),
    );
    return replies.every(({ outcome }) => outcome === 'set' || outcome === 'already');
  }

  /** Gives all keys of a settled sale an end. Idempotent. */
  async retire(sale: KnownSale): Promise<void> {
    const keys = [...bucketsOf(sale).flatMap((bucket) => Object.values(bucket)), stateKey(sale.saleId)];
    await Promise.all(keys.map((key: string) => this.redis.pexpire(key, KEEP_SETTLED_MS)));
  }
}

/** The keys of a sale's buckets, by number. */
export function bucketsOf(sale: KnownSale): BucketKeys[] {
  return Array.from({ length: sale.bucketCount }, (_, bucket) => bucketKeys(sale.saleId, bucket));
}

/** Whether another server, or another life of it, answers for some bucket than the one on which it was last found whole. */
export function hasMoved(sale: KnownSale, boots: readonly string[], incarnationOf: IncarnationOf): boolean {
  return bucketsOf(sale).some((keys, bucket) => {
    const incarnation = incarnationOf(keys.account);
    return incarnation !== undefined && incarnation !== boots[bucket];
  });
}
