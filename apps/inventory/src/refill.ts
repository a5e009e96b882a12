import { setTimeout as delay } from 'node:timers/promises';
import type { Database, SqlRow } from '@flash-sale/database';
import {
  bucketOf,
  filterBitsFor,
  filterPositions,
  splitAllotment,
  tailOf,
  type AttemptId,
  type ShopperId,
} from '@flash-sale/domain';
import type { RedisClient } from '@flash-sale/redis';
import {
  decidedColumns,
  decidedRecordOf,
  decidedRowFrom,
  isAsDecided,
  recordIn,
  type DecidedRow,
} from './decided-rows.js';
import { bucketKeys, packDecided, type Account } from './keys.js';
import type { InventoryLog } from './metrics.js';
import type { KnownSale } from './sale-book.js';
import { scripts } from './scripts.js';
import { chunksOf, restoreArguments, type Restoration } from './stock.js';
import { isStoreAway } from './store-away.js';
import { bucketsOf } from './warm-up.js';

/** Rows of MySQL read at once. */
const ROWS_PER_PAGE = 4_000;
/** Records that one script call writes into an empty bucket; Redis does nothing else meanwhile, some milliseconds. */
const RECORDS_PER_FILL = 500;
/** Records of a bucket that kept its data, compared and corrected at once. */
const RECORDS_PER_CALL = 200;
/** A server that takes over may lack what was written so long before. */
const REAPPLY_MINUTES = 10;
/** A step that got no answer is done again, every step being idempotent; a store that stays away ends the rebuild. */
const TRIES = 30;
const TRY_AGAIN_AFTER_MS = 100;

/** A rebuild that this instance owns, and may go on with as long as its signal is not aborted. */
export interface Owned {
  /** With the new epoch. */
  readonly sale: KnownSale;
  readonly servedEpoch: number;
  /** By bucket: the server that answered for it when the rebuild began. */
  readonly boots: readonly string[];
  readonly signal: AbortSignal;
}

/** What a bucket got that had lost everything. */
class Filling {
  orders = 0;
  /** Units that count as sold. */
  sold = 0;
  /** Orders that have units. */
  grants = 0;
  /** The filter of those who were ever granted units, as its bitmap in Redis. */
  readonly holders: Buffer;

  constructor(private readonly filterBits: number) {
    this.holders = Buffer.alloc(filterBits / 8);
  }

  add({ shopperId, isSold, quantity }: DecidedRow): void {
    this.orders += 1;
    if (!isSold) return;
    this.sold += quantity;
    this.grants += 1;
    for (const position of filterPositions(shopperId, this.filterBits)) {
      // The first bit of a byte is its highest.
      this.holders[position >> 3] = (this.holders[position >> 3] ?? 0) | (0x80 >> (position & 7));
    }
  }
}

/** The steps of one rebuild in Redis, see `Rebuilds`. Each may be repeated; none does anything for an owner of an old epoch. */
export class Refill {
  constructor(
    private readonly redis: RedisClient,
    private readonly database: Database,
    private readonly owned: Owned,
    private readonly log: InventoryLog,
  ) {}

  /** Every bucket passes into the new epoch. Returns those that have to be filled. */
  async freeze(): Promise<ReadonlySet<number>> {
    const { sale, servedEpoch } = this.owned;
    const filterBits = filterBitsFor(sale.allotment, sale.bucketCount);
    const replies = await Promise.all(
      bucketsOf(sale).map((keys) =>
        this.insist(() =>
          scripts.freeze.run(
            this.redis,
            [keys.account, keys.attempts, keys.shoppers, keys.deadlines, keys.transfers, keys.holders],
            [sale.epoch, servedEpoch, sale.skuId, filterBits],
          ),
        ),
      ),
    );
    const lost = new Set<number>();
    replies.forEach((reply, bucket) => {
      if (reply.outcome === 'lost') lost.add(bucket);
      else if (reply.outcome !== 'kept') throw new Error(`another rebuild of sale ${sale.saleId} has begun`);
    });
    return lost;
  }

  /**
   * Half transfers: where the destination has kept its data and has the units, they have arrived; everywhere else they come
   * back. What a lost bucket sent or got needs no end: it is among what nobody else has.
   */
  async endTransfers(lost: ReadonlySet<number>): Promise<void> {
    const { sale, signal } = this.owned;
    const kept = bucketsOf(sale)
      .map((keys, bucket) => ({ keys, bucket }))
      .filter(({ bucket }) => !lost.has(bucket));
    for (const { keys } of kept) {
      if (Number(await this.redis.hget(keys.account, 'openTransfers')) === 0) continue;
      let cursor = '0';
      do {
        signal.throwIfAborted();
        const [next, members] = await this.redis.zscan(
          keys.deadlines,
          cursor,
          'MATCH',
          't:*',
          'COUNT',
          1_000,
        );
        cursor = next;
        for (const member of members.filter((_, index) => index % 2 === 0)) {
          const tid = member.slice('t:'.length);
          const destination = Number((await this.redis.hget(keys.transfers, tid))?.split('|')[2]);
          const arrived =
            !lost.has(destination) &&
            (await this.redis.hexists(bucketKeys(sale.saleId, destination).transfers, tid)) === 1;
          await this.insist(() =>
            scripts.transferEnd.run(
              this.redis,
              [keys.account, keys.transfers, keys.deadlines],
              [sale.epoch, tid, arrived ? 'done' : 'back'],
            ),
          );
        }
      } while (cursor !== '0');
    }
  }

  /**
   * A record in its bucket for every row.
   *
   * @param lost the buckets to be filled; the others know their records
   * @returns what each of them got
   */
  async fill(lost: ReadonlySet<number>): Promise<ReadonlyMap<number, Filling>> {
    const { sale, signal } = this.owned;
    const filterBits = filterBitsFor(sale.allotment, sale.bucketCount);
    const fillings = new Map([...lost].map((bucket) => [bucket, new Filling(filterBits)] as const));
    if (lost.size === 0) return fillings;
    const pages = this.pages((last) =>
      this.database.query(
        `SELECT ${decidedColumns('orders')} FROM orders WHERE sale_id = ? AND order_id > ? AND order_id < ?
        ORDER BY order_id LIMIT ?`,
        // The dot follows the dash in ASCII: the range is a piece of the primary key.
        [sale.saleId, last ? String(last['order_id']) : `${sale.saleId}-`, `${sale.saleId}.`, ROWS_PER_PAGE],
      ),
    );
    for await (const byBucket of pages) {
      await Promise.all(
        [...fillings].map(async ([bucket, filling]) => {
          for (const rows of chunksOf(byBucket.get(bucket) ?? [], RECORDS_PER_FILL)) {
            signal.throwIfAborted();
            await this.fillBucket(bucket, filling, rows.map(decidedRowFrom));
          }
        }),
      );
    }
    return fillings;
  }

  /**
   * Pages of rows by their home buckets. The next is read while one is dealt with, so that MySQL and Redis work at the same
   * time, and no more than two are in memory.
   */
  private async *pages(
    read: (last: SqlRow | undefined) => Promise<SqlRow[]>,
  ): AsyncGenerator<ReadonlyMap<number, SqlRow[]>> {
    const { sale } = this.owned;
    let reading: Promise<SqlRow[]> | undefined = this.insist(() => read(undefined));
    while (reading) {
      const rows: SqlRow[] = await reading;
      const last = rows.length < ROWS_PER_PAGE ? undefined : rows.at(-1);
      reading = last && this.insist(() => read(last));
      // A failure is met where the page is waited for.
      reading?.catch(() => {});
      yield Map.groupBy(rows, (row) => bucketOf(row['shopper_id'] as ShopperId, sale.bucketCount));
    }
  }

  private async fillBucket(bucket: number, filling: Filling, rows: readonly DecidedRow[]): Promise<void> {
    const { sale } = this.owned;
    const keys = bucketKeys(sale.saleId, bucket);
    const items = rows.flatMap((row) => [
      tailOf(row.orderId as AttemptId),
      packDecided(decidedRecordOf(row)),
      row.shopperId,
      row.isSold ? row.quantity : 0,
    ]);
    const { outcome } = await this.insist(() =>
      scripts.fill.run(this.redis, [keys.account, keys.attempts, keys.shoppers], [sale.epoch, ...items]),
    );
    if (outcome !== 'filled') throw this.lostAgain(bucket, outcome);
    for (const row of rows) filling.add(row);
  }

  /**
   * What was decided lately is told again to the buckets that kept their data: the server may have forgotten its last writes.
   * The comparison is by attempt, and nothing else moves in a frozen bucket.
   *
   * @returns how many records were not what their rows say
   */
  async reapply(lost: ReadonlySet<number>): Promise<number> {
    const { sale, signal } = this.owned;
    if (lost.size === sale.bucketCount) return 0;
    const [start] = await this.database.query(`SELECT NOW(3) - INTERVAL ${REAPPLY_MINUTES} MINUTE AS since`);
    const since = start?.['since'] ?? new Date(0);
    const pages = this.pages((last) => {
      const [at, orderId] = last ? [last['applied_at'] as Date, String(last['order_id'])] : [since, ''];
      return this.database.query(
        `SELECT ${decidedColumns('orders')}, effect.applied_at FROM effect JOIN orders ON orders.order_id = effect.order_id
        WHERE effect.sale_id = ? AND effect.applied_at >= ?
          AND (effect.applied_at > ? OR effect.order_id > ?)
        ORDER BY effect.applied_at, effect.order_id LIMIT ?`,
        [sale.saleId, at, at, orderId, ROWS_PER_PAGE],
      );
    });
    let corrected = 0;
    for await (const byBucket of pages) {
      await Promise.all(
        [...byBucket].map(async ([bucket, mine]) => {
          if (lost.has(bucket)) return;
          for (const rows of chunksOf(mine, RECORDS_PER_CALL)) {
            signal.throwIfAborted();
            const found = await this.correct(bucket, rows.map(decidedRowFrom));
            corrected += found;
          }
        }),
      );
    }
    return corrected;
  }

  private async correct(bucket: number, rows: readonly DecidedRow[]): Promise<number> {
    const { sale } = this.owned;
    const keys = bucketKeys(sale.saleId, bucket);
    const unique = [...new Map(rows.map((row) => [row.orderId, row])).values()];
    const records = await this.insist(() =>
      this.redis.hmget(keys.attempts, ...unique.map((row) => tailOf(row.orderId as AttemptId))),
    );
    const differing = unique.flatMap((row, index) => {
      const seen = recordIn(records[index]);
      return isAsDecided(seen, row) ? [] : [{ row, seen, correctionId: '' }];
    });
    if (differing.length > 0) await this.restore(bucket, differing);
    return differing.length;
  }

  private async restore(bucket: number, items: readonly Restoration[]): Promise<void> {
    const { sale } = this.owned;
    const keys = bucketKeys(sale.saleId, bucket);
    const reply = await this.insist(() =>
      scripts.restore.run(
        this.redis,
        [keys.account, keys.attempts, keys.shoppers, keys.deadlines, keys.holders, keys.transfers],
        [sale.epoch, 1, ...items.flatMap((item) => restoreArguments(sale, item))],
      ),
    );
    if (reply.outcome !== 'ok') throw this.lostAgain(bucket, reply.outcome);
  }

  private lostAgain(bucket: number, outcome: string): Error {
    return new Error(
      `bucket ${bucket} of sale ${this.owned.sale.saleId} was lost again, or taken over (${outcome})`,
    );
  }

  /**
   * Shares out the units that nobody has, first of all to the buckets that were filled. Where the others have too many, because
   * a server forgot that units had left it, free ones are taken back. Nothing in a frozen bucket moves, so one look will do.
   *
   * @returns the units shared out, and how many of them correct what the buckets believed
   */
  async seal(
    lost: ReadonlySet<number>,
    fillings: ReadonlyMap<number, Filling>,
  ): Promise<{ readonly free: number; readonly adjusted: number }> {
    const { sale, boots } = this.owned;
    const [stock] = await this.database.query('SELECT total FROM sale_stock WHERE sale_id = ?', [
      sale.saleId,
    ]);
    const total = Number(stock?.['total'] ?? sale.allotment);
    const accounts = await Promise.all(
      bucketsOf(sale).map(async (keys): Promise<Account> => {
        const reply = await this.insist(() =>
          scripts.snapshot.run(this.redis, [keys.account, keys.deadlines], [sale.epoch, 'frozen']),
        );
        if (reply.outcome !== 'ok') throw new Error(`a bucket of sale ${sale.saleId} was lost again`);
        return reply.account;
      }),
    );
    const spoken = accounts.reduce(
      (sum, { free, held, queued, sold }) => sum + free + held + queued + sold,
      0,
    );
    const shares = sharesOf(total - spoken, accounts, lost);
    const shared = shares.reduce((sum, share) => sum + share, 0);
    if (shared > total - spoken) {
      // The guard in MySQL refuses the surplus, and the reconciler takes it back as it becomes free.
      this.log.error(
        { sale: sale.saleId, surplus: shared - (total - spoken) },
        'holds and orders in Redis are for more units than the sale has',
      );
    }
    for (const [bucket, keys] of bucketsOf(sale).entries()) {
      const filling = fillings.get(bucket);
      const reply = await this.insist(() =>
        scripts.seal.run(
          this.redis,
          [keys.account, keys.transfers, keys.holders, keys.attempts],
          [
            sale.epoch,
            shares[bucket] ?? 0,
            boots[bucket] ?? '',
            ...(filling ? [filling.sold, filling.holders, filling.grants, filling.orders] : []),
          ],
        ),
      );
      if (reply.outcome !== 'sealed') throw this.lostAgain(bucket, reply.outcome);
    }
    return { free: Math.max(0, shared), adjusted: lost.size > 0 && shared >= 0 ? 0 : shared };
  }

  private async insist<Result>(step: () => Promise<Result>): Promise<Result> {
    for (let tried = 1; ; tried += 1) {
      this.owned.signal.throwIfAborted();
      try {
        return await step();
      } catch (error) {
        if (!isStoreAway(error) || tried === TRIES) throw error;
        await delay(TRY_AGAIN_AFTER_MS);
      }
    }
  }
}

/** By bucket: what each gets of the units that nobody has; where there are too few, what is taken of each one's free units. */
function sharesOf(units: number, accounts: readonly Account[], lost: ReadonlySet<number>): number[] {
  if (units >= 0) {
    const places = lost.size > 0 ? [...lost] : [...accounts.keys()];
    const shares = splitAllotment(units, places.length);
    return accounts.map((_, bucket) => shares[places.indexOf(bucket)] ?? 0);
  }
  let missing = -units;
  return accounts.map(({ free }) => {
    const taken = Math.min(free, missing);
    missing -= taken;
    return 0 - taken;
  });
}
