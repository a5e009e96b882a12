import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { filterBitsFor, filterPositions, tailOf, type AttemptId, type ShopperId } from '@flash-sale/domain';
import type { RedisClient } from '@flash-sale/redis';
import { bucketKeys } from './keys.js';
import type { InventoryMetrics } from './metrics.js';
import type { KnownSale } from './sale-book.js';
import type { SaleState, SaleView } from './sale-state.js';
import { scripts, type GrantReply } from './scripts.js';
import type { FenceOf } from './warm-up.js';

/** One attempt that wants units. */
export interface Wish {
  readonly attemptId: AttemptId;
  readonly shopperId: ShopperId;
  readonly quantity: number;
}

/** What became of a wish that its home bucket could not fulfil. */
export type FetchOutcome =
  | Exclude<GrantReply, { outcome: 'empty' }>
  | { readonly outcome: 'sold_out' | 'not_enough_left' | 'unavailable' };

interface Waiting {
  readonly sale: KnownSale;
  readonly wish: Wish;
  rounds: number;
  readonly resolve: (outcome: FetchOutcome) => void;
}

/** Items that one script call grants. */
export const MAX_BATCH = 256;
/** Wishes that wait for units in all; one more is refused at once. */
const MAX_WAITING = 20_000;
const MAX_ROUNDS = 12;
/** Between two rounds, so that two buckets that want each other's last units do not swap them for ever. */
const MAX_PAUSE_MS = 25;

/** The arguments of items for grant.lua and transfer-in.lua. */
export function grantArguments(sale: KnownSale, wishes: readonly Wish[]): (string | number)[] {
  const bits = filterBitsFor(sale.allotment, sale.bucketCount);
  return wishes.flatMap(({ attemptId, shopperId, quantity }) => [
    tailOf(attemptId),
    shopperId,
    quantity,
    ...filterPositions(shopperId, bits),
  ]);
}

/**
 * Shoppers never move, stock moves: fetches units for wishes that an empty home bucket could not fulfil. One pull at a time
 * per sale and destination serves everybody who waits there. A wish ends as granted, or refused because every bucket was
 * seen empty; while units are on their way it waits, and after some rounds it is "unavailable", never "sold out".
 */
export class Transfers {
  private readonly pulls = new Map<string, Waiting[]>();
  private waiting = 0;

  constructor(
    private readonly redis: RedisClient,
    private readonly state: SaleState,
    private readonly fenceOf: FenceOf,
    private readonly options: {
      /** After this long another instance may finish a transfer. */
      readonly leaseMs: number;
      readonly graceMs: number;
      readonly metrics: InventoryMetrics;
      /** "Sold out" was set or lifted. */
      readonly onSoldOutChange: (sale: KnownSale, soldOut: boolean, view?: SaleView) => void;
      readonly onError: (what: string, error: unknown) => void;
    },
  ) {}

  /** Fetches units to a bucket for a wish of one of its shoppers. Never rejects. */
  fetch(sale: KnownSale, bucket: number, wish: Wish): Promise<FetchOutcome> {
    if (this.waiting >= MAX_WAITING) return Promise.resolve({ outcome: 'unavailable' });
    this.waiting += 1;
    const fetched = new Promise<FetchOutcome>((resolve) => {
      const entry: Waiting = { sale, wish, rounds: 0, resolve };
      const key = `${sale.saleId}:${sale.epoch}:${bucket}`;
      const pull = this.pulls.get(key);
      if (pull) pull.push(entry);
      else {
        const queue = [entry];
        this.pulls.set(key, queue);
        void this.serve(queue, bucket, key);
      }
    });
    return fetched.finally(() => {
      this.waiting -= 1;
    });
  }

  /**
   * Finishes a transfer whose first step was done by somebody who has not come back: the units arrive where they were
   * going. Idempotent, and harmless while that somebody is still at it.
   */
  async finish(
    sale: KnownSale,
    source: number,
    transfer: { readonly tid: string; readonly units: number; readonly destination: number },
  ): Promise<void> {
    const arrived = await this.arrive(sale, source, transfer.destination, transfer, []);
    if (arrived) this.options.metrics.transfers.add(1, { outcome: 'finished_later' });
  }

  /** Rounds until nobody waits at this destination. Never rejects. */
  private async serve(queue: Waiting[], bucket: number, key: string): Promise<void> {
    // Everybody who finds the bucket empty in this turn shares the first round.
    await Promise.resolve();
    while (queue.length > 0) {
      const batch = queue.splice(0, MAX_BATCH);
      try {
        await this.round(batch, bucket);
      } catch (error) {
        this.options.onError('units could not be fetched', error);
        settleAll(
          batch.filter((entry) => !isSettled(entry)),
          'unavailable',
        );
      }
      const open = batch.filter((entry) => !isSettled(entry));
      for (const entry of open) {
        entry.rounds += 1;
        if (entry.rounds >= MAX_ROUNDS) settle(entry, { outcome: 'unavailable' });
        else queue.push(entry);
      }
      if (open.length > 0) await sleep(Math.random() * MAX_PAUSE_MS);
    }
    // In the same turn as the check above: nobody can join a pull that has ended.
    this.pulls.delete(key);
  }

  /** Looks at all buckets once and does what is then possible; wishes that are not settled go into another round. */
  private async round(batch: readonly Waiting[], bucket: number): Promise<void> {
    const sale = batch[0]?.sale;
    if (!sale) return;
    const state = await this.state.read(sale);
    if (state === 'unavailable') return settleAll(batch, 'unavailable');
    if (state.soldOut) return settleAll(batch, 'sold_out');
    const view = await this.state.look(sale);
    if (view === 'unavailable') return settleAll(batch, 'unavailable');
    if (view.free === 0) {
      if (view.openTransfers === 0) await this.refuse(sale, batch, view);
      return;
    }
    const possible = batch.filter(({ wish }) => wish.quantity <= view.free);
    if (possible.length < batch.length && view.openTransfers === 0) {
      const now = await this.state.read(sale);
      // Only if nothing was credited meanwhile is "fewer than you asked for" true.
      if (now !== 'unavailable' && now.credit === view.credit) {
        settleAll(
          batch.filter((entry) => !possible.includes(entry)),
          'not_enough_left',
        );
      }
    }
    if (possible.length > 0) await this.pull(sale, possible, bucket, view);
  }

  private async refuse(sale: KnownSale, batch: readonly Waiting[], view: SaleView): Promise<void> {
    const claim = await this.state.claimSoldOut(sale, view);
    if (claim === 'credited') return;
    if (claim === 'unavailable') return settleAll(batch, 'unavailable');
    if (claim === 'set') this.options.onSoldOutChange(sale, true, view);
    settleAll(batch, 'sold_out');
  }

  private async pull(
    sale: KnownSale,
    batch: readonly Waiting[],
    bucket: number,
    view: SaleView,
  ): Promise<void> {
    const wanted = batch.reduce((sum, { wish }) => sum + wish.quantity, 0);
    let missing = wanted - (view.accounts[bucket]?.free ?? 0);
    const outs: Promise<{ source: number; tid: string; units: number } | null>[] = [];
    const sources = view.accounts
      .map(({ free }, source) => ({ free, source }))
      .filter(({ free, source }) => free > 0 && source !== bucket)
      .sort((a, b) => b.free - a.free);
    for (const { free, source } of sources) {
      if (missing <= 0) break;
      outs.push(this.depart(sale, source, bucket, Math.min(missing, free)));
      missing -= free;
    }
    const departed = (await Promise.allSettled(outs)).flatMap((out) => {
      if (out.status === 'rejected') this.options.onError('units may have left a bucket', out.reason);
      return out.status === 'fulfilled' && out.value ? [out.value] : [];
    });
    for (const out of departed) {
      const open = batch.filter((entry) => !isSettled(entry));
      // A failure leaves this transfer to the sweeper; the others must arrive all the same.
      await this.arrive(sale, out.source, bucket, out, open).catch((error: unknown) => {
        this.options.onError('a transfer was left half done', error);
        settleAll(open, 'unavailable');
      });
    }
    // Units may have come back to the home bucket itself.
    const open = batch.filter((entry) => !isSettled(entry));
    if (departed.length === 0 && open.length > 0) await this.grantAtHome(sale, open, bucket);
  }

  private async depart(sale: KnownSale, source: number, destination: number, needed: number) {
    const keys = bucketKeys(sale.saleId, source);
    const tid = randomUUID();
    const reply = await scripts.transferOut.run(
      this.redis,
      [keys.account, keys.transfers, keys.deadlines],
      [this.fenceOf(sale, keys), tid, needed, destination, this.options.leaseMs, this.options.graceMs],
    );
    return reply.outcome === 'out' ? { source, tid, units: reply.units } : null;
  }

  /** Second and third step. Returns false where the destination refused: then the transfer stays open. */
  private async arrive(
    sale: KnownSale,
    source: number,
    destination: number,
    transfer: { readonly tid: string; readonly units: number },
    batch: readonly Waiting[],
  ): Promise<boolean> {
    const to = bucketKeys(sale.saleId, destination);
    const reply = await scripts.transferIn.run(
      this.redis,
      [to.account, to.attempts, to.shoppers, to.deadlines, to.holders, to.transfers],
      [
        this.fenceOf(sale, to),
        transfer.tid,
        transfer.units,
        source,
        ...grantArguments(
          sale,
          batch.map(({ wish }) => wish),
        ),
      ],
    );
    if (reply.outcome !== 'ok') return false;
    settleByReplies(batch, reply.items);
    // What was left over is free where somebody may have seen nothing: it counts as credited.
    if (reply.free > 0 && (await this.state.credit(sale))) this.options.onSoldOutChange(sale, false);
    const from = bucketKeys(sale.saleId, source);
    const done = await scripts.transferDone.run(
      this.redis,
      [from.account, from.transfers, from.deadlines],
      [this.fenceOf(sale, from), transfer.tid],
    );
    if (done.outcome === 'done') this.options.metrics.transfers.add(1, { outcome: 'done' });
    return true;
  }

  private async grantAtHome(sale: KnownSale, batch: readonly Waiting[], bucket: number): Promise<void> {
    const keys = bucketKeys(sale.saleId, bucket);
    const reply = await scripts.grant.run(
      this.redis,
      [keys.account, keys.attempts, keys.shoppers, keys.deadlines, keys.holders],
      [
        this.fenceOf(sale, keys),
        ...grantArguments(
          sale,
          batch.map(({ wish }) => wish),
        ),
      ],
    );
    if (reply.outcome === 'ok') settleByReplies(batch, reply.items);
    else settleAll(batch, 'unavailable');
  }
}

const settled = new WeakSet<Waiting>();

function isSettled(entry: Waiting): boolean {
  return settled.has(entry);
}

function settle(entry: Waiting, outcome: FetchOutcome): void {
  settled.add(entry);
  entry.resolve(outcome);
}

function settleAll(
  entries: readonly Waiting[],
  outcome: 'sold_out' | 'not_enough_left' | 'unavailable',
): void {
  for (const entry of entries) settle(entry, { outcome });
}

/** What is still empty waits on; everything else is an answer. */
function settleByReplies(batch: readonly Waiting[], replies: readonly GrantReply[]): void {
  batch.forEach((entry, index) => {
    const reply = replies[index];
    if (reply && reply.outcome !== 'empty') settle(entry, reply);
  });
}
