import { phaseAt } from '@flash-sale/domain';
import type { Blocklist } from './blocklist.js';
import type { Feed } from './feed.js';
import type { InventoryMetrics } from './metrics.js';
import type { KnownSale, SaleBook } from './sale-book.js';
import type { SaleState, SaleView } from './sale-state.js';
import { hasMoved, type IncarnationOf, type WarmUp } from './warm-up.js';

/** Only so many sales appear in the metrics. */
const MAX_NAMED_SALES = 20;
/** Passes between two looks at a sale that is over and resolved. */
const LOOK_AT_RESTING_EVERY = 10;
/** Passes between two clearings of the feed. */
const FORGET_EVERY = 3_600;

/**
 * Once a second, for every sale: MySQL is read again, buckets that a change did not reach are told of it, "sold out" is
 * doubted, and gateways are told what they do not know, also of who is blocked. Nothing here is needed while all goes well; everything that a
 * crash, a lost message or another instance left undone is done here a second later.
 */
export class Watch {
  private readonly gated = new Map<string, number>();
  private units: ReadonlyMap<string, SaleView> = new Map();
  private passes = 0;
  private unavailable = 0;
  /** Redis and MySQL have been read since the start. */
  isReady = false;

  constructor(
    private readonly book: SaleBook,
    private readonly state: SaleState,
    private readonly feed: Feed,
    private readonly warmUp: WarmUp,
    private readonly blocklist: Pick<Blocklist, 'keepTold'>,
    private readonly options: {
      readonly metrics: InventoryMetrics;
      readonly onLifted: (sale: KnownSale, view: SaleView) => void;
      readonly incarnationOf: IncarnationOf;
      /** Redis cannot say how a sale stands, or may have forgotten something of it. */
      readonly onDoubt: (sale: KnownSale) => void;
      readonly onError: (what: string, error: unknown) => void;
    },
  ) {
    options.metrics.unavailable.addCallback((result) => result.observe(this.unavailable));
    options.metrics.stock.addCallback((result) => {
      for (const [sale, view] of this.units) {
        const sum = (name: 'held' | 'queued' | 'sold') =>
          view.accounts.reduce((total, account) => total + account[name], 0);
        result.observe(view.free, { sale, state: 'free' });
        for (const state of ['held', 'queued', 'sold'] as const) result.observe(sum(state), { sale, state });
      }
    });
  }

  async pass(signal?: AbortSignal): Promise<void> {
    await this.book.refresh();
    await this.blocklist.keepTold().catch((error: unknown) => {
      this.options.onError('gateways could not be told who is blocked', error);
    });
    if (this.passes % FORGET_EVERY === 0) await this.feed.forget(await this.book.longSettled());
    let unavailable = 0;
    const isTold = await this.feed.isComplete();
    const seen = new Map<string, SaleView>();
    for (const sale of this.book.active()) {
      if (signal?.aborted) return;
      try {
        await this.applyGates(sale);
        const known = this.units.get(sale.saleId);
        const rests =
          isTold && this.book.isResting(sale) && known && this.passes % LOOK_AT_RESTING_EVERY !== 0;
        const view = rests ? known : await this.lookAt(sale);
        if (!view) unavailable += 1;
        if (view && seen.size < MAX_NAMED_SALES) seen.set(sale.saleId, view);
      } catch (error) {
        this.options.onError(`sale ${sale.saleId} could not be watched`, error);
      }
    }
    if (!isTold) await this.feed.complete(this.book.all());
    this.units = seen;
    this.unavailable = unavailable;
    this.passes += 1;
    this.isReady = true;
  }

  private async applyGates(sale: KnownSale): Promise<void> {
    const mark = sale.epoch * 1e9 + sale.version;
    if (this.gated.get(sale.saleId) === mark) return;
    if (await this.warmUp.setGates(sale)) this.gated.set(sale.saleId, mark);
  }

  private async lookAt(sale: KnownSale): Promise<SaleView | undefined> {
    const view = await this.state.look(sale);
    // Nothing is said of a sale that Redis has lost, least of all that it is sold out.
    if (view === 'unavailable') {
      this.options.onDoubt(sale);
      return undefined;
    }
    if (hasMoved(sale, view.boots, this.options.incarnationOf)) this.options.onDoubt(sale);
    if (view.soldOut && view.free > 0 && (await this.state.credit(sale))) {
      this.options.onLifted(sale, view);
      return view;
    }
    await this.feed.publishIfChanged(sale, view);
    const over = phaseAt(sale, view.soldOut, Date.now()) === 'closed';
    if (over && view.unresolved === 0) this.book.setResting(sale);
    return view;
  }
}
