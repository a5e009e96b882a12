import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type { Database } from '@flash-sale/database';
import { hasPassed, type KafkaAdmin } from '@flash-sale/kafka';
import type { RedisClient } from '@flash-sale/redis';
import type { Feed } from './feed.js';
import { bucketKeys, stateKey } from './keys.js';
import type { InventoryLog, InventoryMetrics } from './metrics.js';
import { RebuildClaims } from './rebuild-claims.js';
import { Refill, type Owned } from './refill.js';
import type { KnownSale, SaleBook } from './sale-book.js';
import { scripts } from './scripts.js';
import { bucketsOf, hasMoved, type IncarnationOf, type WarmUp } from './warm-up.js';

/** Rebuilds that one instance has under way at once. */
const MAX_RUNNING = 4;
const ASK_EVERY_MS = 50;
const COMPLAIN_EVERY_MS = 5_000;
/** A sale that was looked at is not looked at again before. */
const REST_MS = 200;

/** What Redis knows of a sale. */
interface Health {
  /**
   * `frozen`: everything is there, and waits for a rebuild to end. `lost`: something is missing, an old copy, or on another
   * server than before.
   */
  readonly kind: 'whole' | 'frozen' | 'lost';
  readonly cause: string;
  /** The latest epoch of which Redis has anything. */
  readonly maxEpoch: number;
}

export interface RebuildOptions {
  readonly ordersTopic: string;
  readonly ordersGroup: string;
  readonly incarnationOf: IncarnationOf;
  /** An owner that was not heard of for so long may be replaced. */
  readonly leaseMs: number;
  readonly metrics: InventoryMetrics;
  readonly log: InventoryLog;
}

/**
 * Builds a sale's stock in Redis anew when Redis has lost some of it. Until that is done everybody is told `unavailable`.
 *
 * The epoch is the fence. Whoever begins takes the next one in MySQL, in which also a lease says that somebody is at it; the
 * buckets pass into it frozen, and then no script of an earlier epoch changes them: not a late grant, not a transfer's second
 * half, not an owner who woke up. Buckets that kept their data keep it. The others are filled with a record for every row of
 * MySQL, read after the writer has passed all that was in Kafka; and they get the units that nobody else has:
 * total − what the kept buckets have − what their own records say is sold. So, in Redis, the units of a sale always add up to
 * its total, and what a row says that was written too late to be read is brought by its effect. An owner who dies leaves
 * nothing that his successor has to know: he begins again in an epoch of his own, and what was filled to its end counts as
 * kept.
 */
export class Rebuilds {
  private readonly claims: RebuildClaims;
  private readonly running = new Map<string, Promise<void>>();
  private readonly restingUntilMs = new Map<string, number>();
  private readonly stopping = new AbortController();

  constructor(
    private readonly redis: RedisClient,
    private readonly database: Database,
    private readonly kafka: Pick<KafkaAdmin, 'logBounds' | 'committedOffsets'>,
    private readonly book: SaleBook,
    private readonly warmUp: WarmUp,
    private readonly feed: Feed,
    private readonly options: RebuildOptions,
  ) {
    this.claims = new RebuildClaims(database, options.leaseMs);
  }

  /** Somebody could not find a sale in Redis: it is looked after in the background, by one of the instances. */
  consider({ saleId }: KnownSale): void {
    if (this.running.has(saleId) || this.running.size >= MAX_RUNNING || this.stopping.signal.aborted) return;
    if ((this.restingUntilMs.get(saleId) ?? 0) > performance.now()) return;
    const run = this.attend(saleId)
      .catch((error: unknown) => {
        this.options.metrics.rebuilds.add(1, { outcome: 'failed' });
        this.options.log.warn(
          { err: error, sale: saleId },
          'a sale could not be rebuilt in Redis; it stays unavailable and is tried again',
        );
      })
      .finally(() => {
        this.running.delete(saleId);
        if (this.restingUntilMs.size > 5_000) this.restingUntilMs.clear();
        this.restingUntilMs.set(saleId, performance.now() + REST_MS);
      });
    this.running.set(saleId, run);
  }

  /** Resolves when nothing is under way any more; what is not finished is left to another instance. */
  async stop(): Promise<void> {
    this.stopping.abort(new Error('this instance is stopping'));
    await Promise.all(this.running.values());
  }

  /**
   * Looks at a sale and does what it needs, unless another instance is at it.
   *
   * @throws when a store is away or ownership was lost; then nothing is finished, and the next call begins again
   */
  private async attend(saleId: KnownSale['saleId']): Promise<void> {
    const sale = await this.book.readNow(saleId);
    if (!sale || !['warmed', 'paused', 'closed'].includes(sale.storedPhase)) return;
    // A Redis that does not answer has not forgotten anything: this throws, and no epoch is spent.
    const health = await this.inspect(sale);
    if (health.kind === 'whole') return;
    const last = await this.claims.last(saleId);
    const underWay = last?.epoch === sale.epoch && last.finished === 0;
    if (underWay && last.leased === 1 && last.owner !== this.claims.owner) return;
    if (health.kind === 'frozen' && last?.epoch === sale.epoch && last.finished === 1) {
      return this.open(sale);
    }
    const claimed = await this.claims.take(sale, health);
    if (!claimed) return;
    this.book.remember(claimed.sale);
    await this.rebuild(claimed.sale, claimed.servedEpoch, health.cause);
  }

  private async inspect(sale: KnownSale): Promise<Health> {
    const [stateEpoch, boot] = await this.redis.hmget(stateKey(sale.saleId), 'epoch', 'boot');
    const replies = await Promise.all(
      Array.from({ length: sale.bucketCount }, (_, bucket) => {
        const keys = bucketKeys(sale.saleId, bucket);
        return scripts.snapshot.run(this.redis, [keys.account, keys.deadlines], [sale.epoch]);
      }),
    );
    const epochs = [
      Number(stateEpoch ?? 0),
      ...replies.map((reply) =>
        reply.outcome === 'other_epoch' ? reply.epoch : reply.outcome === 'gone' ? 0 : sale.epoch,
      ),
    ];
    const count = (outcome: string) => replies.filter((reply) => reply.outcome === outcome).length;
    const boots = replies.map((reply) => (reply.outcome === 'ok' ? reply.boot : ''));
    const isWhole = replies.every(({ outcome }) => outcome === 'ok');
    const filling = replies.filter((reply) => reply.outcome === 'frozen' && reply.filling).length;
    const faults = [
      ...(stateEpoch === String(sale.epoch) && boot ? [] : ['no marker of this epoch']),
      ...(count('gone') > 0 ? [`${count('gone')} of ${sale.bucketCount} buckets are gone`] : []),
      ...(count('other_epoch') > 0 ? [`${count('other_epoch')} buckets are of another epoch`] : []),
      ...(isWhole && hasMoved(sale, boots, this.options.incarnationOf)
        ? ['another server answers for it, or the same one since a restart']
        : []),
      ...(filling > 0 ? [`${filling} buckets are half filled`] : []),
    ];
    const kind = faults.length > 0 ? 'lost' : count('frozen') > 0 ? 'frozen' : 'whole';
    return { kind, cause: faults.join(', ') || 'a rebuild was not finished', maxEpoch: Math.max(...epochs) };
  }

  private async rebuild(sale: KnownSale, servedEpoch: number, cause: string): Promise<void> {
    const { log, metrics } = this.options;
    const startedMs = performance.now();
    const fields = { sale: sale.saleId, epoch: sale.epoch };
    log.warn(
      { ...fields, cause },
      'Redis has lost some of a sale, or may have; it is unavailable until it is rebuilt',
    );
    const lease = this.keepLease(sale);
    const owned = {
      sale,
      servedEpoch,
      boots: bucketsOf(sale).map(({ account }) => this.options.incarnationOf(account) ?? ''),
      signal: AbortSignal.any([this.stopping.signal, lease.signal]),
    };
    const refill = new Refill(this.redis, this.database, owned, log);
    try {
      // First of all nobody is turned away any more because of what was true in the epoch before.
      await this.feed.announceEpoch(sale);
      const lost = await refill.freeze();
      log.info({ ...fields, lost: lost.size }, 'the buckets are frozen');
      await refill.endTransfers(lost);
      if (lost.size > 0) {
        await this.drain(owned);
        log.info(fields, 'the writer has written all that was in Kafka');
      }
      const fillings = await refill.fill(lost);
      const reapplied = await refill.reapply(lost);
      const { free, adjusted } = await refill.seal(lost, fillings);
      log.info(fields, 'the buckets are filled');
      const marked = await scripts.loadState.run(
        this.redis,
        [stateKey(sale.saleId)],
        [sale.epoch, randomUUID()],
      );
      if (marked === 'later') throw new Error(`another rebuild of sale ${sale.saleId} has begun`);
      const orders = [...fillings.values()].reduce((sum, each) => sum + each.orders, 0);
      await this.claims.finish(sale, { lost: lost.size, orders: orders + reapplied, free, adjusted });
      await this.open(sale);
      const tookMs = Math.round(performance.now() - startedMs);
      metrics.rebuilds.add(1, { outcome: 'finished' });
      metrics.rebuildDuration.record(tookMs / 1_000);
      log.warn(
        { ...fields, cause, lostBuckets: lost.size, orders, reapplied, free, adjusted, tookMs },
        'a sale was rebuilt in Redis and is available again',
      );
    } finally {
      lease.stop();
      // Another instance need not wait for the end of the lease.
      if (this.stopping.signal.aborted) await this.claims.release(sale).catch(() => {});
    }
  }

  /** Says every third of the lease that the owner lives. The lease keeps others away; what keeps him out is the epoch. */
  private keepLease(sale: KnownSale): { readonly signal: AbortSignal; stop(): void } {
    const lost = new AbortController();
    const renew = async () => {
      if (await this.claims.renew(sale)) return;
      lost.abort(new Error(`another instance has taken over sale ${sale.saleId}`));
    };
    // What fails is tried again; if it keeps failing, another instance takes over.
    const timer = setInterval(() => void renew().catch(() => {}), Math.ceil(this.options.leaseMs / 3));
    return { signal: lost.signal, stop: () => clearInterval(timer) };
  }

  /** Waits until the writer has passed what is in Kafka now, however long that takes: its rows decide who has a unit. */
  private async drain({ sale, signal }: Owned): Promise<void> {
    const { ordersTopic, ordersGroup, log } = this.options;
    let bounds: Awaited<ReturnType<KafkaAdmin['logBounds']>> | undefined;
    let complainAtMs = performance.now() + COMPLAIN_EVERY_MS;
    for (;;) {
      signal.throwIfAborted();
      let reason = 'the writer has not come so far yet';
      try {
        bounds ??= await this.kafka.logBounds(ordersTopic);
        const committed = await this.kafka.committedOffsets(ordersGroup, ordersTopic);
        if (hasPassed(committed, bounds.ends, bounds.lows)) return;
      } catch (error) {
        reason = error instanceof Error ? error.message : String(error);
      }
      if (performance.now() >= complainAtMs) {
        complainAtMs = performance.now() + COMPLAIN_EVERY_MS;
        log.warn({ sale: sale.saleId, reason }, 'a rebuild waits for queued orders to be written');
      }
      await delay(ASK_EVERY_MS);
    }
  }

  private async open(sale: KnownSale): Promise<void> {
    await this.warmUp.setGates(sale);
    for (const [bucket, keys] of bucketsOf(sale).entries()) {
      const reply = await scripts.thaw.run(this.redis, [keys.account], [sale.epoch]);
      if (reply.outcome === 'gone' || reply.outcome === 'frozen') {
        throw new Error(`bucket ${bucket} of sale ${sale.saleId} was lost again`);
      }
    }
    // A failure costs a second: the watch compares what gateways know with the truth.
    await this.feed.publish(sale).catch(() => false);
  }
}
