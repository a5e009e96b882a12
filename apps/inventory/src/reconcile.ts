import { randomUUID } from 'node:crypto';
import {
  DatabaseError,
  isOlderThan,
  type Database,
  type SqlValue,
  type Statements,
} from '@flash-sale/database';
import { tailOf, type AttemptId } from '@flash-sale/domain';
import type { RedisClient } from '@flash-sale/redis';
import {
  decidedColumns,
  decidedRowFrom,
  homeOf,
  isAsDecided,
  recordIn,
  type DecidedRow,
} from './decided-rows.js';
import { bucketKeys } from './keys.js';
import type { InventoryLog, InventoryMetrics } from './metrics.js';
import type { KnownSale, SaleBook } from './sale-book.js';
import type { SaleState, SaleView } from './sale-state.js';
import { scripts } from './scripts.js';
import type { Restoration, Stock } from './stock.js';
import type { FenceOf } from './warm-up.js';

/** Rows that one pass compares of a sale: always so many, and more pages while the sums differ. */
const ROWS_PER_PAGE = 500;
const PAGES_WHILE_DIFFERING = 20;
/** Differences that wait for their second look. */
const MAX_SUSPECTS = 500;
/** Passes between two looks at a sale that is over and resolved. */
const LOOK_AT_RESTING_EVERY = 15;
/** A correction that nobody has finished for so long was left by a process that died. */
const LEFT_AFTER_MS = 10_000;

/** The ledger's accounts of what Redis believes; none of them counts towards what MySQL has sold. */
type RedisAccount = 'redis_free' | 'redis_held' | 'redis_queued' | 'redis_sold' | 'redis_lost';

interface Suspect {
  readonly seen: string;
  readonly state: string;
}

/** What is remembered of a sale from one pass to the next. */
interface Memory {
  /** The last order that was compared. */
  cursor: string;
  suspects: ReadonlyMap<string, Suspect>;
  /** Units that Redis has sold more than MySQL says, and units that it lacks in all. */
  soldSurplus: number;
  isDiffering: boolean;
  missingUnits: number;
}

export interface ReconcilerOptions {
  readonly metrics: InventoryMetrics;
  readonly log: InventoryLog;
  readonly fenceOf: FenceOf;
  /** Units became free in a bucket of the sale. */
  readonly onFreed: (sale: KnownSale) => Promise<void>;
  readonly onError: (what: string, error: unknown) => void;
}

/**
 * Compares Redis with MySQL every few seconds, and corrects Redis. MySQL is read first, so that what happens in between is in
 * Redis only and gone at the next look; a difference is corrected only when a second pass sees the same one, and only if the
 * record is still the same at that moment. Every correction of units has an id, under which Redis does it once, and an entry
 * in the ledger on accounts of its own.
 *
 * A pass is bounded: it compares sums, and a page of the rows, which goes round; while the sums differ it compares more pages.
 */
export class Reconciler {
  private readonly memories = new Map<string, Memory>();
  private passes = 0;

  constructor(
    private readonly redis: RedisClient,
    private readonly database: Database,
    private readonly book: SaleBook,
    private readonly state: SaleState,
    private readonly stock: Stock,
    private readonly options: ReconcilerOptions,
  ) {}

  /** One pass over all sales. Any number of instances may do it at once. */
  async pass(signal?: AbortSignal): Promise<void> {
    const active = this.book.active();
    this.passes += 1;
    for (const saleId of this.memories.keys()) {
      if (!active.some((sale) => sale.saleId === saleId)) this.memories.delete(saleId);
    }
    for (const sale of active) {
      if (signal?.aborted) return;
      if (this.book.isResting(sale) && this.passes % LOOK_AT_RESTING_EVERY !== 0) continue;
      const memory = this.memories.get(sale.saleId) ?? {
        cursor: '',
        suspects: new Map(),
        soldSurplus: 0,
        isDiffering: false,
        missingUnits: 0,
      };
      this.memories.set(sale.saleId, memory);
      // One sale that cannot be compared must not stand in the way of the others.
      await this.compare(sale, memory, signal).catch((error: unknown) =>
        this.options.onError(`sale ${sale.saleId} could not be compared with MySQL`, error),
      );
    }
  }

  private async compare(sale: KnownSale, memory: Memory, signal?: AbortSignal): Promise<void> {
    await this.finishLeft(sale);
    if (!(await this.compareSums(sale, memory))) return;
    await this.recheck(sale, memory);
    await this.compareRows(sale, memory, signal);
  }

  /** Units in all, and units sold. Returns false where Redis cannot say. */
  private async compareSums(sale: KnownSale, memory: Memory): Promise<boolean> {
    const [figures] = await this.database.query(
      `SELECT total, sold,
         (SELECT COUNT(*) FROM correction WHERE sale_id = ? AND kind = 'total') AS corrections,
         (SELECT COUNT(*) FROM correction WHERE sale_id = ? AND kind = 'total' AND state = 'pending') AS pending,
         (SELECT COALESCE(SUM(CASE WHEN effect.kind = 'confirm' THEN quantity
             WHEN orders.state IN ('expired', 'rejected') THEN 0 ELSE -quantity END), 0)
           FROM effect JOIN orders ON orders.order_id = effect.order_id
           WHERE effect.sale_id = ? AND applied_at IS NULL) AS unapplied
         FROM sale_stock WHERE sale_id = ?`,
      [sale.saleId, sale.saleId, sale.saleId, sale.saleId],
    );
    // Not shared with anybody: it must begin after MySQL was read.
    const view = await this.state.lookAfresh(sale);
    if (!figures || view === 'unavailable') return false;
    const figure = (name: string) => Number(figures[name] ?? 0);

    const again = await this.state.lookAfresh(sale);
    if (again === 'unavailable') return false;
    const missing = isSettled(view, again) ? figure('total') - unitsIn(view) : 0;
    const known = memory.missingUnits;
    memory.missingUnits = missing;
    if (missing !== 0 && missing === known && figure('pending') === 0) {
      await this.adjust(sale, view, missing, figure('corrections') + 1);
    }

    const sold = view.accounts.reduce((sum, account) => sum + account.sold, 0);
    const surplus = sold - (figure('sold') - figure('unapplied'));
    // The same twice: that is no effect on its way. More rows are compared then than usual.
    memory.isDiffering = surplus !== 0 && surplus === memory.soldSurplus;
    memory.soldSurplus = surplus;
    return true;
  }

  /**
   * The sale has fewer units than its total, or more than that of which some are free. Of all instances that see it, one
   * writes the correction with the next number; who has read the books before that was done finds the number taken.
   */
  private async adjust(sale: KnownSale, view: SaleView, units: number, number: number): Promise<void> {
    const most = (of: (bucket: number) => number) =>
      view.accounts.reduce((best, _, bucket) => (of(bucket) > of(best) ? bucket : best), 0);
    const takable = (bucket: number) =>
      Math.min(view.accounts[bucket]?.free ?? 0, view.accounts[bucket]?.initial ?? 0);
    const bucket = units > 0 ? most((each) => -(view.accounts[each]?.free ?? 0)) : most(takable);
    const possible = units > 0 ? units : Math.max(units, -takable(bucket));
    if (possible === 0) return;
    const correctionId = `${sale.saleId}:fix:total-${number}`;
    try {
      await this.database.change(
        `INSERT INTO correction (correction_id, sale_id, epoch, bucket, kind, order_id, units, state, detail, at)
         VALUES (?, ?, ?, ?, 'total', NULL, ?, 'pending', 'the units of the sale do not add up to its total', NOW(3))`,
        [correctionId, sale.saleId, sale.epoch, bucket, possible],
      );
    } catch (error) {
      if (error instanceof DatabaseError && error.failure === 'duplicate') return;
      throw error;
    }
    await this.finishAdjustment(sale, { correctionId, bucket, units: possible });
  }

  private async finishAdjustment(
    sale: KnownSale,
    { correctionId, bucket, units }: { correctionId: string; bucket: number; units: number },
  ): Promise<void> {
    const keys = bucketKeys(sale.saleId, bucket);
    const reply = await scripts.adjust.run(
      this.redis,
      [keys.account, keys.transfers],
      [this.options.fenceOf(sale, keys), correctionId, units],
    );
    if (reply.outcome !== 'done' && reply.outcome !== 'already') return;
    // Somebody was granted the last free units meanwhile; what is too many is taken when it is free.
    if (reply.units === 0) return this.drop(correctionId);
    if (reply.units > 0) await this.options.onFreed(sale);
    await this.close(sale, correctionId, 'redis_lost', 'redis_free', reply.units);
    this.say(sale, 'total', { correctionId, bucket, units: reply.units });
  }

  /** Orders that the last pass has found to be otherwise in Redis: what is still so is corrected. */
  private async recheck(sale: KnownSale, memory: Memory): Promise<void> {
    const { suspects } = memory;
    memory.suspects = new Map();
    if (suspects.size === 0) return;
    const rows = await this.database.query(
      `SELECT ${decidedColumns('orders')} FROM orders WHERE order_id IN (?) AND NOT EXISTS
         (SELECT 1 FROM effect WHERE effect.order_id = orders.order_id AND applied_at IS NULL)`,
      [[...suspects.keys()]],
    );
    const confirmed = (await this.differing(sale, rows.map(decidedRowFrom))).filter(({ row, seen }) => {
      const before = suspects.get(row.orderId);
      return before?.seen === seen && before.state === row.state;
    });
    if (confirmed.length > 0) await this.correct(sale, confirmed);
  }

  /** The next page of the sale's orders, or more of them while the sums differ. */
  private async compareRows(sale: KnownSale, memory: Memory, signal?: AbortSignal): Promise<void> {
    const pages = !memory.isDiffering ? 1 : PAGES_WHILE_DIFFERING;
    const suspects = new Map<string, Suspect>();
    for (let page = 0; page < pages && suspects.size < MAX_SUSPECTS; page += 1) {
      if (signal?.aborted) return;
      const found = await this.database.query(
        `SELECT ${decidedColumns('orders')} FROM orders WHERE sale_id = ? AND order_id > ? AND order_id < ?
          ORDER BY order_id LIMIT ?`,
        [sale.saleId, memory.cursor || `${sale.saleId}-`, `${sale.saleId}.`, ROWS_PER_PAGE],
      );
      const rows = found.map(decidedRowFrom);
      for (const { row, seen } of await this.differing(sale, rows)) {
        if (suspects.size < MAX_SUSPECTS) suspects.set(row.orderId, { seen, state: row.state });
      }
      const isLast = rows.length < ROWS_PER_PAGE;
      memory.cursor = isLast ? '' : (rows.at(-1)?.orderId ?? '');
      if (isLast) break;
    }
    memory.suspects = suspects;
  }

  /** Those of the rows whose records in Redis say something else, with what they say. Reads only. */
  private async differing(
    sale: KnownSale,
    rows: readonly DecidedRow[],
  ): Promise<{ readonly row: DecidedRow; readonly seen: string }[]> {
    const byBucket = Map.groupBy(rows, (row) => homeOf(row, sale));
    const found = await Promise.all(
      [...byBucket].map(async ([bucket, mine]) => {
        const records = await this.redis.hmget(
          bucketKeys(sale.saleId, bucket).attempts,
          ...mine.map((row) => tailOf(row.orderId as AttemptId)),
        );
        return mine.map((row, index) => ({ row, seen: recordIn(records[index]) }));
      }),
    );
    return found.flat().filter(({ row, seen }) => !isAsDecided(seen, row));
  }

  private async correct(
    sale: KnownSale,
    differing: readonly { readonly row: DecidedRow; readonly seen: string }[],
  ): Promise<void> {
    // Where no unit moves, the record alone is missing.
    const items = differing.map(({ row, seen }): Restoration => ({
      row,
      seen,
      correctionId: accountOf(seen) === accountOfRow(row) ? '' : `${sale.saleId}:fix:${randomUUID()}`,
    }));
    const moving = items.filter(({ correctionId }) => correctionId !== '');
    if (moving.length > 0) {
      await this.database.change(
        `INSERT INTO correction (correction_id, sale_id, epoch, bucket, kind, order_id, units, state, detail, at)
         VALUES ${moving.map(() => `(?, ?, ?, ?, 'attempt', ?, ?, 'pending', ?, NOW(3))`).join(', ')}`,
        moving.flatMap(({ row, seen, correctionId }): SqlValue[] => [
          correctionId,
          sale.saleId,
          sale.epoch,
          homeOf(row, sale),
          row.orderId,
          row.quantity,
          seen,
        ]),
      );
    }
    await this.finishRestorations(sale, items);
  }

  private async finishRestorations(sale: KnownSale, items: readonly Restoration[]): Promise<void> {
    const outcomes = await this.stock.restore(items);
    for (const [index, { row, seen, correctionId }] of items.entries()) {
      const outcome = outcomes[index]?.outcome ?? 'unavailable';
      if (correctionId === '' || outcome === 'unavailable') continue;
      if (outcome === 'changed') {
        await this.drop(correctionId);
        continue;
      }
      await this.close(sale, correctionId, accountOf(seen), accountOfRow(row), row.quantity);
      this.say(sale, 'attempt', { correctionId, orderId: row.orderId, row: row.state, record: seen });
    }
  }

  /** Corrections whose process died: Redis says by their ids whether it has done them. */
  private async finishLeft(sale: KnownSale): Promise<void> {
    const left = await this.database.query(
      `SELECT correction_id, kind, bucket, units, epoch, order_id, detail FROM correction
        WHERE sale_id = ? AND state = 'pending'
          AND ${isOlderThan('at')} LIMIT 100`,
      [sale.saleId, LEFT_AFTER_MS * 1_000],
    );
    for (const row of left) {
      const correctionId = String(row['correction_id']);
      if (row['epoch'] !== sale.epoch) {
        // Its rebuild has put everything right, whether this was done or not.
        await this.drop(correctionId);
      } else if (row['kind'] === 'total') {
        const adjustment = { correctionId, bucket: Number(row['bucket']), units: Number(row['units']) };
        await this.finishAdjustment(sale, adjustment);
      } else {
        const [order] = await this.database.query(
          `SELECT ${decidedColumns('orders')} FROM orders WHERE order_id = ?`,
          [row['order_id'] ?? ''],
        );
        if (order) {
          const item = { row: decidedRowFrom(order), seen: String(row['detail']), correctionId };
          await this.finishRestorations(sale, [item]);
        }
      }
    }
  }

  /** It is done in Redis: the correction and its entry in the ledger, in one transaction, once. */
  private async close(
    sale: KnownSale,
    correctionId: string,
    from: RedisAccount,
    to: RedisAccount,
    units: number,
  ): Promise<void> {
    await this.database.transaction(async (statements) => {
      const closed = await statements.change(
        "UPDATE correction SET state = 'done', units = ? WHERE correction_id = ? AND state = 'pending'",
        [units, correctionId],
      );
      if (closed === 1) await enterCorrection(statements, correctionId, sale.saleId, from, to, units);
    });
  }

  private async drop(correctionId: string): Promise<void> {
    await this.database.change(
      "UPDATE correction SET state = 'dropped' WHERE correction_id = ? AND state = 'pending'",
      [correctionId],
    );
  }

  private say(sale: KnownSale, kind: 'total' | 'attempt', fields: object): void {
    this.options.metrics.corrections.add(1, { kind });
    this.options.log.warn(
      { sale: sale.saleId, ...fields },
      'Redis was not as MySQL is, and was corrected; the entry is in the ledger',
    );
  }
}

/** The legs of a correction; they say what Redis believes, and sum to 0. */
export async function enterCorrection(
  statements: Statements,
  correctionId: string,
  saleId: string,
  from: RedisAccount,
  to: RedisAccount,
  units: number,
): Promise<void> {
  await statements.change(
    `INSERT INTO ledger (entry_id, account, sale_id, order_id, amount, at)
     VALUES (?, ?, ?, NULL, ?, NOW(3)), (?, ?, ?, NULL, ?, NOW(3))`,
    [correctionId, from, saleId, -units, correctionId, to, saleId, units],
  );
}

/** The account that a record's units are in. */
function accountOf(record: string): RedisAccount {
  const letter = record.slice(0, 1).toUpperCase();
  if (letter === 'H') return 'redis_held';
  if (letter === 'Q') return 'redis_queued';
  return letter === 'C' ? 'redis_sold' : 'redis_free';
}

function accountOfRow(row: DecidedRow): RedisAccount {
  return row.isSold ? 'redis_sold' : 'redis_free';
}

/** What every bucket began with and what came and went; nothing but a correction changes the sum. */
function unitsIn(view: SaleView): number {
  return view.accounts.reduce((sum, { initial, in: came, out }) => sum + initial + came - out, 0);
}

/** Whether no transfer took a step between two looks and none was open: only then do the buckets make one picture. */
function isSettled(one: SaleView, other: SaleView): boolean {
  return (
    one.openTransfers === 0 &&
    other.openTransfers === 0 &&
    one.accounts.every(({ initial, in: came, out }, bucket) => {
      const then = other.accounts[bucket];
      return then?.initial === initial && then.in === came && then.out === out;
    })
  );
}
