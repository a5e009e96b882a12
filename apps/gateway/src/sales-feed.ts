import { setTimeout as delay } from 'node:timers/promises';
import { BLOCKLIST_FEED, SALE_FEED, decodeSnapshot, isNewer, type SaleSnapshot } from '@flash-sale/contracts';
import { mayHold, phaseAt, type Phase, type SaleId, type ShopperId } from '@flash-sale/domain';
import {
  redisTimeMs,
  subscribe,
  type RedisAddress,
  type RedisClient,
  type Subscription,
} from '@flash-sale/redis';
import type { Log } from '@flash-sale/service';
import { Blocklist } from './blocklist.js';

export interface SalesFeedOptions {
  readonly redis: RedisClient;
  /** For the subscription, which has a connection of its own. */
  readonly address: RedisAddress;
  readonly log: Log;
}

/** A sale as this process knows it. */
export interface KnownSale {
  readonly snapshot: SaleSnapshot;
  /** When this snapshot arrived, on the `performance.now()` scale. */
  readonly knownSinceMs: number;
}

/** The holder filter of a sale (domain/holder-filter.ts). */
export interface Holders {
  /** Another one where the filter is another; of the form of an id. */
  readonly version: string;
  /** The buckets' bitmaps, one after another; bytes that are missing at the end are 0. */
  readonly bytes: Buffer;
  readonly bucketCount: number;
  /** Bits of one bucket's bitmap. */
  readonly filterBits: number;
}

const READ_EVERY_MS = 1_000;
/** Older knowledge is not good enough to refuse anybody with. */
const FRESH_FOR_MS = 5_000;
/** After a sale was paused or closed, those who were granted units just before may not be in the published filter yet. */
const FILTER_LAG_MS = 3_000;

/**
 * All sales, and who is blocked, in memory, so that pages and refusals cost nothing. Changes come by subscription within milliseconds; once a
 * second, and after each (re)connection, everything is read, because Redis keeps no messages for who was away. The clock is
 * that of Redis, whose time decides when a sale opens.
 */
export class SalesFeed {
  /** Who may not take part; read and told with the sales. */
  readonly blocklist: Blocklist;
  private readonly sales = new Map<SaleId, KnownSale>();
  private readonly filters = new Map<SaleId, { readonly version: number; readonly bytes: Buffer }>();
  private readonly fetching = new Set<SaleId>();
  private readonly stop = new AbortController();
  private subscription: Subscription | undefined;
  private clockOffsetMs = 0;
  private lastReadMs = Number.NEGATIVE_INFINITY;
  private failing = false;
  /** Redis has lost the sales and not got all of them back yet. */
  private incomplete = false;
  private loop: Promise<void> | undefined;

  constructor(private readonly options: SalesFeedOptions) {
    this.blocklist = new Blocklist(options.redis, options.log);
  }

  /** Reads everything once, then keeps up by itself until {@link close}. */
  async start(): Promise<void> {
    await this.read();
    this.loop = this.readForEver();
    this.subscription = subscribe({
      ...this.options.address,
      name: 'gateway-feed',
      channels: [SALE_FEED.channel, BLOCKLIST_FEED.channel],
      onMessage: (channel, payload) => {
        if (channel === SALE_FEED.channel) this.apply(payload);
        else this.blocklist.apply(payload);
      },
      onSubscribed: () => void this.read(),
      log: this.options.log,
    });
  }

  async close(): Promise<void> {
    this.stop.abort();
    this.subscription?.close();
    await this.loop;
  }

  /** Milliseconds since 1970 by Redis' clock. */
  now(): number {
    return Math.round(Date.now() + this.clockOffsetMs);
  }

  /** Whether the sales have been read at all. */
  isLoaded(): boolean {
    return this.lastReadMs > 0;
  }

  /** Whether what is known is recent enough to refuse somebody with. */
  isFresh(): boolean {
    return !this.incomplete && performance.now() - this.lastReadMs < FRESH_FOR_MS;
  }

  /** All sales, the next to open first. */
  list(): SaleSnapshot[] {
    return [...this.sales.values()]
      .map(({ snapshot }) => snapshot)
      .sort((one, other) => one.opensAtMs - other.opensAtMs || (one.saleId < other.saleId ? -1 : 1));
  }

  find(saleId: SaleId): KnownSale | undefined {
    return this.sales.get(saleId);
  }

  phaseOf(snapshot: SaleSnapshot): Phase {
    return phaseAt(snapshot, snapshot.soldOut && !this.incomplete, this.now());
  }

  /** Whether a shopper may hold units or an order of a sale. No means no; yes means that somebody has to be asked. */
  mayHold(sale: KnownSale, shopperId: ShopperId): boolean {
    const holders = this.holdersOf(sale);
    return !holders || mayHold(holders.bytes, shopperId, holders.bucketCount, holders.filterBits);
  }

  /** Who may hold units or an order of a sale; `null` while that is not known, and anybody may. */
  holdersOf({ snapshot, knownSinceMs }: KnownSale): Holders | null {
    const { saleId, epoch, filterVersion, bucketCount, filterBits } = snapshot;
    const filter = this.filters.get(saleId);
    if (filterBits === 0 || !filter || filter.version !== filterVersion) return null;
    // "Sold out" is published after the filter that goes with it; a pause or the closing time is not.
    if (!snapshot.soldOut && this.isRecent(snapshot, knownSinceMs)) return null;
    return { version: `${epoch}-${filterVersion}`, bytes: filter.bytes, bucketCount, filterBits };
  }

  private isRecent(snapshot: SaleSnapshot, knownSinceMs: number): boolean {
    const closedForMs = this.now() - snapshot.closesAtMs;
    return (
      performance.now() - knownSinceMs < FILTER_LAG_MS || (closedForMs >= 0 && closedForMs < FILTER_LAG_MS)
    );
  }

  private async readForEver(): Promise<void> {
    while (!this.stop.signal.aborted) {
      await delay(READ_EVERY_MS, undefined, { signal: this.stop.signal }).catch(() => {});
      if (!this.stop.signal.aborted) await this.read();
    }
  }

  /** Never rejects: what cannot be read now is read a second later, and nobody is refused with what is too old. */
  private async read(): Promise<void> {
    const startedMs = performance.now();
    try {
      const sentMs = Date.now();
      const serverMs = await redisTimeMs(this.options.redis);
      this.clockOffsetMs = serverMs - (sentMs + Date.now()) / 2;
      const { [SALE_FEED.complete]: complete, ...snapshots } = await this.options.redis.hgetall(
        SALE_FEED.snapshots,
      );
      this.noteWhether(complete === undefined);
      for (const text of Object.values(snapshots)) this.apply(text);
      for (const [saleId, known] of this.sales) {
        if (!this.incomplete && !(saleId in snapshots) && known.knownSinceMs < startedMs) this.forget(saleId);
      }
      this.lastReadMs = startedMs;
      await this.blocklist.read();
      if (this.failing) this.options.log.info({}, 'the sales are being read again');
      this.failing = false;
    } catch (error) {
      if (!this.failing)
        this.options.log.warn({ err: error }, 'the sales cannot be read; the last known are shown');
      this.failing = true;
    }
  }

  /** Nobody is refused from memory while the sales are incomplete: Redis has lost them, and with them what they say. */
  private noteWhether(incomplete: boolean): void {
    if (incomplete && !this.incomplete) {
      this.options.log.warn(
        {},
        'Redis has lost the sales; until inventory has told all of them, it is asked itself',
      );
    }
    this.incomplete = incomplete;
  }

  private apply(text: string): void {
    let snapshot: SaleSnapshot;
    try {
      snapshot = decodeSnapshot(text);
    } catch (error) {
      this.options.log.error({ err: error }, 'a sale was published that this gateway cannot read');
      return;
    }
    const known = this.sales.get(snapshot.saleId);
    if (isNewer(snapshot, known?.snapshot)) {
      if (known && known.snapshot.epoch !== snapshot.epoch) this.filters.delete(snapshot.saleId);
      this.sales.set(snapshot.saleId, { snapshot, knownSinceMs: performance.now() });
    }
    const current = this.sales.get(snapshot.saleId)?.snapshot;
    if (current && this.needsFilter(current)) void this.fetchFilter(current);
  }

  /** Only refusals need the filter, and it may have megabytes: while the sale sells it is not fetched. */
  private needsFilter(snapshot: SaleSnapshot): boolean {
    const phase = this.phaseOf(snapshot);
    if (phase !== 'sold_out' && phase !== 'paused' && phase !== 'closed' && phase !== 'settled') return false;
    return snapshot.filterBits > 0 && this.filters.get(snapshot.saleId)?.version !== snapshot.filterVersion;
  }

  private async fetchFilter({ saleId, filterVersion }: SaleSnapshot): Promise<void> {
    if (this.fetching.has(saleId)) return;
    this.fetching.add(saleId);
    try {
      const bytes = await this.options.redis.getBuffer(SALE_FEED.holders(saleId));
      // What was read is at least as new as the version that asked for it; missing bytes count as bits not set.
      if (bytes) this.filters.set(saleId, { version: filterVersion, bytes });
    } catch (error) {
      this.options.log.warn({ err: error, saleId }, 'a holder filter cannot be read; it is tried again');
    } finally {
      this.fetching.delete(saleId);
    }
  }

  private forget(saleId: SaleId): void {
    this.sales.delete(saleId);
    this.filters.delete(saleId);
  }
}
