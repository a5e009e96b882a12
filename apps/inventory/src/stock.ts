import {
  AttemptId,
  ShopperId,
  bucketOf,
  filterBitsFor,
  filterPositions,
  saleIdOf,
  tailOf,
  type SaleId,
} from '@flash-sale/domain';
import type { RedisClient } from '@flash-sale/redis';
import { decidedRecordOf, type DecidedRow } from './decided-rows.js';
import { bucketKeys, packDecided, parseAttempt, type BucketKeys, type HoldRecord } from './keys.js';
import type { InventoryMetrics } from './metrics.js';
import type { KnownSale, SaleBook } from './sale-book.js';
import { scripts, type EffectReply, type QueueReply, type Refusal } from './scripts.js';
import type { FenceOf } from './warm-up.js';
import { MAX_BATCH, grantArguments, type FetchOutcome, type Transfers, type Wish } from './transfers.js';

/** Every item names an attempt and its shopper; the two say which bucket it belongs to. */
interface Named {
  readonly attemptId: string;
  readonly shopperId: string;
}

/** A hold as Redis has it, with what only the sale knows. */
export type Hold = HoldRecord & { readonly skuId: string };

export type GrantOutcome =
  /** `created`: this very call granted it; it was not held before. */
  | { readonly outcome: 'hold'; readonly hold: Hold; readonly created: boolean }
  | {
      readonly outcome:
        | 'sold_out'
        | 'not_enough_left'
        | 'limit'
        | 'entry_exists'
        | 'mismatch'
        | 'not_open'
        | 'paused'
        | 'closed'
        | 'unknown_sale'
        | 'unavailable';
    };
export type FindOutcome =
  | { readonly outcome: 'hold'; readonly hold: Hold }
  | { readonly outcome: 'unknown' | 'unavailable' };
export type ReleaseOutcome = 'released' | 'already_ordered' | 'unknown' | 'unavailable';
export type QueueOutcome = Exclude<QueueReply, 'contradicts'> | 'unavailable';

export interface QueueWish extends Named {
  readonly quantity: number;
  readonly epoch: number;
  readonly deliveryHash: string;
}
export interface OffsetNote extends Named {
  readonly partition: number;
  readonly offset: string;
}
export interface Effect extends Named {
  readonly kind: 'confirm' | 'void';
  /** Of a void. */
  readonly reason: string;
}
/** `unavailable`: Redis has not been told; the effect must be kept. */
export type EffectOutcome = EffectReply | { readonly outcome: 'unavailable' };

/** A row of MySQL, and the record that Redis has of its attempt: '' for none. */
export interface Restoration {
  readonly row: DecidedRow;
  readonly seen: string;
  /** Under which Redis remembers that it was done; '' where a repetition does no harm. */
  readonly correctionId: string;
}
export type RestoreOutcome =
  | { readonly outcome: 'restored' | 'already' | 'changed'; readonly units: number }
  | { readonly outcome: 'unavailable' };

/** The arguments of one item of restore.lua. */
export function restoreArguments(
  sale: KnownSale,
  { row, seen, correctionId }: Restoration,
): (string | number)[] {
  const bits = filterBitsFor(sale.allotment, sale.bucketCount);
  return [
    correctionId,
    tailOf(row.orderId as AttemptId),
    seen,
    packDecided(decidedRecordOf(row)),
    ...filterPositions(row.shopperId, bits),
  ];
}

export interface StockOptions {
  readonly queuedMs: number;
  readonly acknowledgedMs: number;
  readonly graceMs: number;
  readonly metrics: InventoryMetrics;
  /** Units became free in a bucket of the sale. */
  readonly onFreed: (sale: KnownSale) => Promise<void>;
  readonly onReleased: () => void;
  /** A bucket of the sale is not there, or only an old copy of it. */
  readonly onLost: (sale: KnownSale) => void;
  readonly onError: (what: string, error: unknown) => void;
}

const UNAVAILABLE = { outcome: 'unavailable' } as const;

/**
 * Stock, batch by batch: items are sorted by sale and home bucket, each bucket decides its own in one script call, and each
 * item gets its own outcome, in the order asked. Nothing here rejects: what could not be decided is `unavailable`, and may
 * be asked again with the same attempt at any time.
 */
export class Stock {
  constructor(
    private readonly redis: RedisClient,
    private readonly book: SaleBook,
    private readonly transfers: Transfers,
    private readonly fenceOf: FenceOf,
    private readonly options: StockOptions,
  ) {}

  /** Sets units aside, fetching them from other buckets where the shopper's own has none. */
  async grant(wishes: readonly Wish[]): Promise<GrantOutcome[]> {
    const outcomes = await this.route<Wish, GrantOutcome>(wishes, {
      unknownSale: { outcome: 'unknown_sale' },
      unavailable: UNAVAILABLE,
      run: async (sale, bucket, items) => {
        if (sale.storedPhase === 'draft' || sale.storedPhase === 'warming') {
          return items.map(() => ({ outcome: 'not_open' }));
        }
        const keys = bucketKeys(sale.saleId, bucket);
        const reply = await scripts.grant.run(
          this.redis,
          [keys.account, keys.attempts, keys.shoppers, keys.deadlines, keys.holders],
          [this.fenceOf(sale, keys), ...grantArguments(sale, items)],
        );
        if (reply.outcome !== 'ok') return this.ofGoneSale(sale, reply, items, { outcome: 'closed' });
        return Promise.all(
          items.map(async (wish, index) => {
            const decided = reply.items[index] ?? UNAVAILABLE;
            const final =
              decided.outcome === 'empty' ? await this.transfers.fetch(sale, bucket, wish) : decided;
            return this.grantOutcome(sale, final);
          }),
        );
      },
    });
    for (const found of outcomes) {
      const known = found.outcome === 'hold' && (found.created ? 'granted' : found.hold.state);
      const outcome = known || found.outcome;
      this.options.metrics.grants.add(1, { outcome });
    }
    return outcomes;
  }

  /** Where attempts stand. Reads only. */
  findHolds(items: readonly Named[]): Promise<FindOutcome[]> {
    return this.route<Named, FindOutcome>(items, {
      unknownSale: { outcome: 'unknown' },
      unavailable: UNAVAILABLE,
      run: async (sale, bucket, items) => {
        if (sale.storedPhase === 'draft' || sale.storedPhase === 'warming') {
          return items.map(() => ({ outcome: 'unknown' }));
        }
        const keys = bucketKeys(sale.saleId, bucket);
        const reply = await scripts.find.run(
          this.redis,
          [keys.account, keys.attempts],
          [this.fenceOf(sale, keys), ...tailsAndShoppers(items)],
        );
        if (reply.outcome !== 'ok') return this.ofGoneSale(sale, reply, items, { outcome: 'unknown' });
        return reply.items.map((found) =>
          found ? { outcome: 'hold', hold: this.hold(sale, found.tail, found.text) } : { outcome: 'unknown' },
        );
      },
    });
  }

  /** Gives holds up. Their units return when the sweeper has made it durable that they can never become orders. */
  async release(items: readonly Named[]): Promise<ReleaseOutcome[]> {
    const outcomes = await this.route<Named, ReleaseOutcome>(items, {
      unknownSale: 'unknown',
      unavailable: 'unavailable',
      run: async (sale, bucket, items) => {
        const keys = bucketKeys(sale.saleId, bucket);
        const reply = await scripts.release.run(
          this.redis,
          [keys.account, keys.attempts, keys.deadlines],
          [this.fenceOf(sale, keys), this.options.graceMs, ...tailsAndShoppers(items)],
        );
        return reply.outcome === 'ok'
          ? reply.items
          : this.ofGoneSale<ReleaseOutcome>(sale, reply, items, 'unknown');
      },
    });
    if (outcomes.includes('released')) this.options.onReleased();
    return outcomes;
  }

  /** Turns holds into queued orders, so that they may be produced; judged by Redis' clock. */
  async queue(items: readonly QueueWish[]): Promise<QueueOutcome[]> {
    const outcomes = await this.route<QueueWish, QueueOutcome>(items, {
      // MySQL decides what Redis does not know; a token with a valid signature comes from somewhere.
      unknownSale: 'missing',
      unavailable: 'unavailable',
      run: async (sale, bucket, items) => {
        const keys = bucketKeys(sale.saleId, bucket);
        const reply = await scripts.queue.run(
          this.redis,
          [keys.account, keys.attempts, keys.deadlines],
          [
            this.fenceOf(sale, keys),
            this.options.queuedMs,
            ...items.flatMap((item) => [
              tailOf(item.attemptId as AttemptId),
              item.shopperId,
              item.quantity,
              item.epoch,
              item.deliveryHash,
            ]),
          ],
        );
        if (reply.outcome !== 'ok') return this.ofGoneSale<QueueOutcome>(sale, reply, items, 'missing');
        return reply.items.map((outcome, index): QueueOutcome => {
          if (outcome !== 'contradicts') return outcome;
          const attemptId = items[index]?.attemptId;
          this.options.onError(`a purchase token contradicts the hold ${attemptId}`, undefined);
          return 'unavailable';
        });
      },
    });
    for (const outcome of outcomes) this.options.metrics.queued.add(1, { outcome });
    return outcomes;
  }

  /** Notes where acknowledged orders lie in Kafka. What cannot be noted is found by the sweeper the long way. */
  async recordOffsets(notes: readonly OffsetNote[]): Promise<void> {
    await this.route<OffsetNote, null>(notes, {
      unknownSale: null,
      unavailable: null,
      run: async (sale, bucket, items) => {
        const keys = bucketKeys(sale.saleId, bucket);
        await scripts.recordOffsets.run(
          this.redis,
          [keys.attempts, keys.deadlines],
          [
            this.options.acknowledgedMs,
            ...items.flatMap((note) => [tailOf(note.attemptId as AttemptId), note.partition, note.offset]),
          ],
        );
        return items.map(() => null);
      },
    });
  }

  /** Applies what MySQL decided, in the order given; units that came back are credited to their sale. */
  async applyEffects(effects: readonly Effect[]): Promise<EffectOutcome[]> {
    const freed = new Map<SaleId, KnownSale>();
    const outcomes = await this.route<Effect, EffectOutcome>(effects, {
      unknownSale: UNAVAILABLE,
      unavailable: UNAVAILABLE,
      run: async (sale, bucket, items) => {
        const keys = bucketKeys(sale.saleId, bucket);
        const reply = await this.applyAt(sale, keys, items);
        if (reply.outcome !== 'ok') return this.ofGoneSale(sale, reply, items, { outcome: 'missing' });
        if (reply.freed > 0) freed.set(sale.saleId, sale);
        return reply.items;
      },
    });
    // Only now, after the buckets were written.
    await Promise.all([...freed.values()].map((sale) => this.options.onFreed(sale)));
    effects.forEach((effect, index) => {
      const outcome = outcomes[index] ?? UNAVAILABLE;
      this.options.metrics.effects.add(1, { kind: effect.kind, outcome: outcome.outcome });
      if (outcome.outcome === 'void_before' && !LEFT_LATER.has(outcome.reason)) {
        this.options.onError(
          `MySQL has an order ${effect.attemptId} that Redis knows to be void (${outcome.reason})`,
          undefined,
        );
      }
    });
    return outcomes;
  }

  /**
   * Makes the records of attempts what rows of MySQL say, each only if it is still as the caller has seen it.
   *
   * @returns `restored` with the units, `already` by that correction before, `changed`, or `unavailable`
   */
  async restore(items: readonly Restoration[]): Promise<RestoreOutcome[]> {
    const freed = new Map<SaleId, KnownSale>();
    const outcomes = await this.route<Restoration & Named, RestoreOutcome>(
      items.map((item) => ({ ...item, attemptId: item.row.orderId, shopperId: item.row.shopperId })),
      {
        unknownSale: UNAVAILABLE,
        unavailable: UNAVAILABLE,
        run: async (sale, bucket, items) => {
          const keys = bucketKeys(sale.saleId, bucket);
          const reply = await scripts.restore.run(
            this.redis,
            [keys.account, keys.attempts, keys.shoppers, keys.deadlines, keys.holders, keys.transfers],
            [this.fenceOf(sale, keys), 0, ...items.flatMap((item) => restoreArguments(sale, item))],
          );
          if (reply.outcome !== 'ok') {
            return this.ofGoneSale<RestoreOutcome>(sale, reply, items, { outcome: 'restored', units: 0 });
          }
          if (reply.freed > 0) freed.set(sale.saleId, sale);
          return reply.items;
        },
      },
    );
    await Promise.all([...freed.values()].map((sale) => this.options.onFreed(sale)));
    return outcomes;
  }

  private applyAt(sale: KnownSale, keys: BucketKeys, items: readonly Effect[]) {
    return scripts.applyEffects.run(
      this.redis,
      [keys.account, keys.attempts, keys.shoppers, keys.deadlines],
      [
        this.fenceOf(sale, keys),
        ...items.flatMap(({ attemptId, kind, reason }) => [tailOf(attemptId as AttemptId), kind, reason]),
      ],
    );
  }

  private hold(sale: KnownSale, tail: string, text: string): Hold {
    return { ...parseAttempt(sale.saleId, tail, text), skuId: sale.skuId };
  }

  private grantOutcome(sale: KnownSale, outcome: FetchOutcome): GrantOutcome {
    if (outcome.outcome !== 'granted' && outcome.outcome !== 'known') return { outcome: outcome.outcome };
    const created = outcome.outcome === 'granted';
    return { outcome: 'hold', hold: this.hold(sale, outcome.tail, outcome.text), created };
  }

  /** The keys of a settled sale have an end; what was in them is over, not unavailable. */
  private ofGoneSale<Result>(
    sale: KnownSale,
    refusal: Refusal,
    items: readonly unknown[],
    over: Result,
  ): Refusal | Result[] {
    return sale.storedPhase === 'settled' && refusal.outcome === 'gone' ? items.map(() => over) : refusal;
  }

  /** Sorts items by sale and bucket, lets each bucket decide its own, and puts the results back in order. */
  private async route<Item extends Named, Result>(
    items: readonly Item[],
    plan: Plan<Item, Result>,
  ): Promise<Result[]> {
    const results = items.map(() => plan.unavailable);
    const valid = items.flatMap((item, index) => {
      const attemptId = AttemptId.safeParse(item.attemptId);
      const shopperId = ShopperId.safeParse(item.shopperId);
      if (attemptId.success && shopperId.success) {
        return [{ item, index, saleId: saleIdOf(attemptId.data), shopperId: shopperId.data }];
      }
      results[index] = plan.unknownSale;
      return [];
    });
    const ofSale = async (saleId: SaleId, members: typeof valid) => {
      const sale = await this.book.find(saleId);
      if (!sale) {
        for (const { index } of members) results[index] = plan.unknownSale;
        return;
      }
      const byBucket = groupBy(members, ({ shopperId }) => bucketOf(shopperId, sale.bucketCount));
      await Promise.all([...byBucket].map(([bucket, mine]) => ofBucket(sale, bucket, mine)));
    };
    const ofBucket = async (sale: KnownSale, bucket: number, members: typeof valid) => {
      // One chunk after another: two decisions about one attempt keep their order.
      for (const chunk of chunksOf(members, MAX_BATCH)) {
        const decided = await this.decide(
          sale,
          bucket,
          chunk.map(({ item }) => item),
          plan,
        ).catch((error: unknown) => {
          this.options.onError(`bucket ${bucket} of sale ${sale.saleId} could not be asked`, error);
          return [];
        });
        chunk.forEach(({ index }, at) => {
          results[index] = decided[at] ?? plan.unavailable;
        });
      }
    };
    await Promise.all(
      [...groupBy(valid, ({ saleId }) => saleId)].map(([saleId, members]) =>
        ofSale(saleId, members).catch((error: unknown) =>
          this.options.onError(`sale ${saleId} could not be read`, error),
        ),
      ),
    );
    return results;
  }

  /** One bucket's decisions; none where it is not available. A later epoch reads the sale again and asks once more. */
  private async decide<Item, Result>(
    sale: KnownSale,
    bucket: number,
    items: readonly Item[],
    plan: Plan<Item, Result>,
  ): Promise<readonly Result[]> {
    const decided = await plan.run(sale, bucket, items);
    if (!('outcome' in decided)) return decided;
    if (decided.outcome !== 'other_epoch' || decided.epoch < sale.epoch) {
      if (decided.outcome !== 'frozen') this.options.onLost(sale);
      return [];
    }
    const fresh = await this.book.reload(sale.saleId);
    if (!fresh || fresh.epoch <= sale.epoch) return [];
    const again = await plan.run(fresh, bucket, items);
    return 'outcome' in again ? [] : again;
  }
}

interface Plan<Item, Result> {
  readonly unknownSale: Result;
  readonly unavailable: Result;
  /** One result per item, or a refusal of them all. */
  readonly run: (
    sale: KnownSale,
    bucket: number,
    items: readonly Item[],
  ) => Promise<readonly Result[] | Refusal>;
}

/** An order that was cancelled may have been told to Redis before its beginning was. */
const LEFT_LATER: ReadonlySet<string> = new Set(['cancelled', 'unpaid', 'refunding']);

function tailsAndShoppers(items: readonly Named[]): string[] {
  return items.flatMap(({ attemptId, shopperId }) => [tailOf(attemptId as AttemptId), shopperId]);
}

function groupBy<Item, Key>(items: readonly Item[], keyOf: (item: Item) => Key): Map<Key, Item[]> {
  const groups = new Map<Key, Item[]>();
  for (const item of items) {
    const key = keyOf(item);
    const group = groups.get(key);
    if (group) group.push(item);
    else groups.set(key, [item]);
  }
  return groups;
}

export function chunksOf<Item>(items: readonly Item[], size: number): Item[][] {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, index) =>
    items.slice(index * size, (index + 1) * size),
  );
}
