import { isDeepStrictEqual } from 'node:util';
import { SALE_FEED, decodeSnapshot, encodeSnapshot, type SaleSnapshot } from '@flash-sale/contracts';
import { filterBitsFor, stockLevelOf } from '@flash-sale/domain';
import type { RedisClient } from '@flash-sale/redis';
import { bucketKeys, stateKey } from './keys.js';
import type { KnownSale, SaleBook } from './sale-book.js';
import type { SaleView } from './sale-state.js';
import { scripts } from './scripts.js';

/**
 * What gateways are told about each sale. Whoever publishes takes a number first and reads what to say afterwards, so
 * that of two snapshots the one with the higher number is at least as fresh; older ones are dropped on arrival.
 */
export class Feed {
  /** The stock level that was last seen, for snapshots that are published without a look at the buckets. */
  private readonly levels = new Map<string, SaleSnapshot['stockLevel']>();

  constructor(
    private readonly redis: RedisClient,
    private readonly book: SaleBook,
  ) {}

  /**
   * Publishes the sale as it is now. With "sold out" goes the filter of those who hold units, stored before the snapshot
   * that names it.
   *
   * @param view what was seen of the buckets, if somebody has just looked
   * @returns false where Redis has lost the sale: nothing is said then
   */
  async publish(sale: KnownSale, view?: SaleView): Promise<boolean> {
    const numbered = await scripts.nextVersion.run(this.redis, [stateKey(sale.saleId)], [sale.epoch]);
    if (numbered.outcome !== 'ok') return false;
    // The phase is read after the number was taken. Without the database, what is in memory has to do: the next look
    // compares again.
    const fresh = (await this.book.readNow(sale.saleId).catch(() => undefined)) ?? sale;
    if (view) this.levels.set(sale.saleId, stockLevelOf(view.free, sale.allotment));
    const filterVersion = numbered.soldOut ? await this.storeHolders(fresh) : 0;
    const snapshot = this.compose(fresh, numbered.version, numbered.soldOut, filterVersion);
    await this.tell(snapshot);
    return true;
  }

  /**
   * Tells gateways of a new epoch in which nothing is known yet: what they knew of the one before, "sold out" first of all,
   * holds no more. Needs nothing of the sale to be in Redis.
   */
  async announceEpoch(sale: KnownSale): Promise<void> {
    await this.tell(this.compose(sale, 0, false, 0));
  }

  /** Whether gateways find all sales in Redis. */
  async isComplete(): Promise<boolean> {
    return (await this.redis.hexists(SALE_FEED.snapshots, SALE_FEED.complete)) === 1;
  }

  /** Marks the sales as complete if all of these are told of; those that are over for good are told of here. */
  async complete(sales: readonly KnownSale[]): Promise<void> {
    const shown = sales.filter(({ storedPhase }) => storedPhase !== 'draft' && storedPhase !== 'warming');
    if (shown.length > 0) {
      const told = await this.redis.hmget(SALE_FEED.snapshots, ...shown.map(({ saleId }) => saleId));
      const missing = shown.filter((_, index) => told[index] === null);
      await Promise.all(
        missing
          .filter(({ storedPhase }) => storedPhase === 'settled')
          .map((sale) => this.announceEpoch(sale)),
      );
      // A sale that Redis has lost is told of as soon as somebody rebuilds it.
      if (missing.some(({ storedPhase }) => storedPhase !== 'settled')) return;
    }
    await this.redis.hset(SALE_FEED.snapshots, SALE_FEED.complete, 1);
  }

  /** Publishes if what gateways know differs from what was just seen. */
  async publishIfChanged(sale: KnownSale, view: SaleView): Promise<void> {
    this.levels.set(sale.saleId, stockLevelOf(view.free, sale.allotment));
    const stored = await this.redis.hget(SALE_FEED.snapshots, sale.saleId);
    const told = stored === null ? undefined : decodeSnapshot(stored);
    const filterVersion = view.soldOut ? grantsOf(view) : 0;
    const now = this.compose(sale, told?.version ?? 0, view.soldOut, filterVersion);
    if (!isDeepStrictEqual(told, now)) await this.publish(sale, view);
  }

  /** Nobody needs to be told any more of sales that were settled long ago. */
  async forget(saleIds: readonly string[]): Promise<void> {
    if (saleIds.length === 0) return;
    await this.redis.hdel(SALE_FEED.snapshots, ...saleIds);
    await Promise.all(saleIds.map((saleId) => this.redis.del(SALE_FEED.holders(saleId))));
  }

  private async tell(snapshot: SaleSnapshot): Promise<void> {
    await scripts.publish.run(
      this.redis,
      [SALE_FEED.snapshots],
      [snapshot.saleId, snapshot.epoch, snapshot.version, encodeSnapshot(snapshot), SALE_FEED.channel],
    );
  }

  private compose(sale: KnownSale, version: number, soldOut: boolean, filterVersion: number): SaleSnapshot {
    const { saleId, title, skuId, allotment, unitPrice, currency, opensAtMs, closesAtMs } = sale;
    const { limitPerShopper, bucketCount, challenge, line, storedPhase, epoch } = sale;
    return {
      saleId,
      title,
      skuId,
      allotment,
      unitPrice,
      currency,
      opensAtMs,
      closesAtMs,
      limitPerShopper,
      bucketCount,
      challenge,
      line,
      storedPhase,
      epoch,
      version,
      soldOut,
      stockLevel: soldOut ? 'none' : (this.levels.get(saleId) ?? 'plenty'),
      filterBits: soldOut ? filterBitsFor(allotment, bucketCount) : 0,
      filterVersion,
    };
  }

  /** Stores the buckets' bitmaps, one after another, and returns a number that changes when one of them does. */
  private async storeHolders(sale: KnownSale): Promise<number> {
    const bytes = filterBitsFor(sale.allotment, sale.bucketCount) / 8;
    const parts = await Promise.all(
      Array.from({ length: sale.bucketCount }, async (_, bucket) => {
        const keys = bucketKeys(sale.saleId, bucket);
        // The count first: a grant in between is then missing in the number, not in the bitmap, and comes with the next.
        const grants = Number(await this.redis.hget(keys.account, 'grants'));
        const bitmap = (await this.redis.getBuffer(keys.holders)) ?? Buffer.alloc(0);
        return { grants, bitmap: Buffer.concat([bitmap, Buffer.alloc(bytes)], bytes) };
      }),
    );
    await this.redis.set(SALE_FEED.holders(sale.saleId), Buffer.concat(parts.map(({ bitmap }) => bitmap)));
    return parts.reduce((sum, { grants }) => sum + grants, 0);
  }
}

function grantsOf(view: SaleView): number {
  return view.accounts.reduce((sum, { grants }) => sum + grants, 0);
}
