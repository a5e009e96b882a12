import { SALE_FEED, decodeSnapshot } from '@flash-sale/contracts';
import type { Database } from '@flash-sale/database';
import type { KafkaAdmin } from '@flash-sale/kafka';
import type { RedisClient } from '@flash-sale/redis';
import { Blocklist } from './blocklist.js';
import { Effects } from './effects.js';
import { Feed } from './feed.js';
import { Loop } from './loop.js';
import { inventoryMetrics, type InventoryLog } from './metrics.js';
import { Rebuilds } from './rebuild.js';
import { Reconciler } from './reconcile.js';
import { Reports } from './report.js';
import { SaleBook, type KnownSale } from './sale-book.js';
import { SaleState, type SaleView } from './sale-state.js';
import { Sales } from './sales.js';
import { isStoreAway } from './store-away.js';
import { Stock } from './stock.js';
import { Sweeper } from './sweeper.js';
import { Transfers } from './transfers.js';
import { WarmUp, type FenceOf, type IncarnationOf } from './warm-up.js';
import { Watch } from './watch.js';

/** What the outside world is, and how patient inventory is with it. All times in milliseconds. */
export interface InventoryOptions {
  readonly redis: RedisClient;
  readonly database: Database;
  readonly kafka: Pick<KafkaAdmin, 'logBounds' | 'committedOffsets'>;
  readonly ordersTopic: string;
  readonly ordersGroup: string;
  readonly queuedMs: number;
  readonly acknowledgedMs: number;
  readonly graceMs: number;
  readonly leaseMs: number;
  readonly sweepIntervalMs: number;
  readonly effectAgeMs: number;
  readonly watchIntervalMs: number;
  readonly rebuildLeaseMs: number;
  readonly reconcileIntervalMs: number;
  /** Without it, a Redis that is there but behind is not noticed. */
  readonly incarnationOf?: IncarnationOf;
  readonly log: InventoryLog;
}

/** An open inventory. `start` begins to sweep and to watch; several instances may do so on the same stores. */
export interface Inventory {
  readonly stock: Stock;
  readonly effects: Effects;
  readonly sales: Sales;
  readonly reports: Reports;
  readonly book: SaleBook;
  readonly state: SaleState;
  readonly blocklist: Blocklist;
  readonly sweeper: Sweeper;
  readonly watch: Watch;
  readonly rebuilds: Rebuilds;
  readonly reconciler: Reconciler;
  start(): void;
  /** Resolves when nothing runs any more. */
  stop(): Promise<void>;
  /** A Redis server has come, gone or become another one: look at the sales at once. */
  onServerChange(): void;
  /** A message of the feed: another instance may have changed a sale. */
  onFeedMessage(message: string): void;
}

/** One line a second and kind: while a store is away, every request would have one of its own. */
const REPEAT_AFTER_MS = 1_000;

/** Puts the parts together. Opens no connection and starts nothing. */
export function openInventory(options: InventoryOptions): Inventory {
  const { redis, database, log, graceMs, leaseMs } = options;
  const metrics = inventoryMetrics();
  const onError = reportTo(log);
  const book = new SaleBook(database);
  const state = new SaleState(redis);
  const feed = new Feed(redis, book);
  const incarnationOf = options.incarnationOf ?? (() => undefined);
  // A server that is not known yet is none that anything was found whole on.
  const fenceOf: FenceOf = ({ epoch }, { account }) =>
    options.incarnationOf ? `${epoch}@${options.incarnationOf(account) ?? 'unknown'}` : String(epoch);
  const warmUp = new WarmUp(redis, incarnationOf);

  const announce = (sale: KnownSale, soldOut: boolean, view?: SaleView) => {
    metrics.soldOut.add(1, { change: soldOut ? 'set' : 'lifted' });
    log.info({ sale: sale.saleId, soldOut }, soldOut ? 'sold out' : 'units are back, no longer sold out');
    feed.publish(sale, view).catch((error: unknown) => onError('gateways could not be told', error));
  };
  const transfers = new Transfers(redis, state, fenceOf, {
    leaseMs,
    graceMs,
    metrics,
    onSoldOutChange: announce,
    onError,
  });
  const onFreed = async (sale: KnownSale) => {
    // If this fails, the watch finds the units within its interval.
    const lifted = await state.credit(sale).catch((error: unknown) => {
      onError(`units of sale ${sale.saleId} are free, but could not be credited`, error);
      return false;
    });
    if (lifted) announce(sale, false);
  };
  const stock = new Stock(redis, book, transfers, fenceOf, {
    queuedMs: options.queuedMs,
    acknowledgedMs: options.acknowledgedMs,
    graceMs,
    metrics,
    onFreed,
    onReleased: () => sweeping.nudge(),
    onLost: (sale) => rebuilds.consider(sale),
    onError,
  });
  const effects = new Effects(stock, database);
  const rebuilds = new Rebuilds(redis, database, options.kafka, book, warmUp, feed, {
    ordersTopic: options.ordersTopic,
    ordersGroup: options.ordersGroup,
    leaseMs: options.rebuildLeaseMs,
    incarnationOf,
    metrics,
    log,
  });
  const sweeper = new Sweeper(redis, database, options.kafka, book, effects, transfers, {
    ordersTopic: options.ordersTopic,
    ordersGroup: options.ordersGroup,
    graceMs,
    leaseMs,
    effectAgeMs: options.effectAgeMs,
    fenceOf,
    metrics,
    log,
  });
  const reconciler = new Reconciler(redis, database, book, state, stock, {
    metrics,
    log,
    fenceOf,
    onFreed,
    onError,
  });
  const reports = new Reports(database, state, options.kafka, options);
  const sales = new Sales(database, book, warmUp, feed, (sale) => reports.findUnresolved(sale));
  const blocklist = new Blocklist(redis, database);
  const watch = new Watch(book, state, feed, warmUp, blocklist, {
    metrics,
    onLifted: (sale, view) => announce(sale, false, view),
    incarnationOf,
    onDoubt: (sale) => rebuilds.consider(sale),
    onError,
  });
  const sweeping = new Loop({
    intervalMs: options.sweepIntervalMs,
    run: async (signal) => {
      if (await sweeper.pass(signal)) sweeping.nudge();
    },
    onError: (error) => onError('a sweep was not finished', error),
  });
  const reconciling = new Loop({
    intervalMs: options.reconcileIntervalMs,
    run: (signal) => reconciler.pass(signal),
    onError: (error) => onError('Redis could not be compared with MySQL', error),
  });
  const watching = new Loop({
    intervalMs: options.watchIntervalMs,
    run: (signal) => watch.pass(signal),
    onError: (error) => onError('sales could not be watched', error),
  });

  return {
    stock,
    effects,
    sales,
    reports,
    book,
    state,
    blocklist,
    sweeper,
    watch,
    rebuilds,
    reconciler,
    start() {
      sweeping.start();
      watching.start();
      reconciling.start();
    },
    async stop() {
      await Promise.all([sweeping.stop(), watching.stop(), reconciling.stop(), rebuilds.stop()]);
    },
    onServerChange: () => watching.nudge(),
    onFeedMessage(message) {
      let told: ReturnType<typeof decodeSnapshot>;
      try {
        told = decodeSnapshot(message);
      } catch (error) {
        // Whoever else publishes on this Redis must not be able to end this process.
        return onError('a sale was published that cannot be read', error);
      }
      const known = book.get(told.saleId);
      if (known?.storedPhase === told.storedPhase && known.epoch === told.epoch) return;
      book.reload(told.saleId).catch((error: unknown) => onError('a changed sale could not be read', error));
    },
  };
}

/** Errors of a store that is away are news once; a script's or a rule's own error is a defect and said as one. */
function reportTo(log: InventoryLog): (what: string, error: unknown) => void {
  const saidAtMs = new Map<string, number>();
  return (what, error) => {
    const defect = !isStoreAway(error);
    const reason = error instanceof Error ? error.message : '';
    const kind = defect ? what : reason.slice(0, 60);
    const nowMs = performance.now();
    if (nowMs - (saidAtMs.get(kind) ?? Number.NEGATIVE_INFINITY) < REPEAT_AFTER_MS) return;
    if (saidAtMs.size > 100) saidAtMs.clear();
    saidAtMs.set(kind, nowMs);
    if (defect) log.error({ err: error }, what);
    else log.warn({ reason }, what);
  };
}

/** Where gateways and other instances hear of changes. */
export const FEED_CHANNEL = SALE_FEED.channel;
