import { randomUUID } from 'node:crypto';
import type { Database, SqlRow, Statements } from '@flash-sale/database';
import { DatabaseError } from '@flash-sale/database';
import { bucketOf, tailOf, type OrderState } from '@flash-sale/domain';
import { hasPassed, type KafkaAdmin, type LogBounds, type Offsets } from '@flash-sale/kafka';
import type { RedisClient } from '@flash-sale/redis';
import { MAX_EFFECTS, type Effects } from './effects.js';
import { bucketKeys, parseAttempt, type HoldRecord } from './keys.js';
import type { InventoryMetrics } from './metrics.js';
import type { KnownSale, SaleBook } from './sale-book.js';
import { scripts } from './scripts.js';
import type { Transfers } from './transfers.js';
import type { FenceOf } from './warm-up.js';

/** Attempts that one bucket gives in one pass; what is left comes with the next. */
const MAX_DUE = 200;
/** Rows of one transaction. */
const MAX_ROWS = 200;
/** How long a pass waits for the writer before it leaves the rest to the next. */
const WAIT_FOR_WRITER_MS = 1_000;
const ASK_EVERY_MS = 50;
const TRIES = 4;
/** Attempts for which it is remembered how far the writer must come. */
const MAX_REMEMBERED = 100_000;

/** An expiring attempt with its sale. */
interface Expiring {
  readonly sale: KnownSale;
  readonly record: HoldRecord;
}

interface OrderRow extends SqlRow {
  order_id: string;
  shopper_id: string;
  state: string;
  reason: string | null;
  batch_id: string;
}

export interface SweeperOptions {
  readonly ordersTopic: string;
  readonly ordersGroup: string;
  readonly graceMs: number;
  readonly leaseMs: number;
  readonly effectAgeMs: number;
  readonly fenceOf: FenceOf;
  readonly metrics: InventoryMetrics;
  readonly log: {
    info(fields: object, message: string): void;
    error(fields: object, message: string): void;
  };
}

/**
 * Ends what nobody ended. Any instance may sweep at any time: a script hands each attempt to one sweeper for the length of
 * a lease, and the primary key of the orders decides between a sweeper and the writer.
 *
 * A unit returns only after a row says that its attempt can never become an order. The row is inserted only when the
 * writer has passed everything that was in Kafka after the attempt began to expire; from then on `queue` refuses it, and
 * what was queued before had its grace to arrive. So no order that a shopper was promised meets a tombstone, unless Kafka
 * lost it.
 */
export class Sweeper {
  /**
   * How far the writer must come for an attempt, by attempt and deadline. Kept over passes, so that a steady lag does not
   * postpone it for ever; an attempt that was queued again after all has another deadline and is waited for anew.
   */
  private readonly awaited = new Map<string, LogBounds>();

  constructor(
    private readonly redis: RedisClient,
    private readonly database: Database,
    private readonly kafka: Pick<KafkaAdmin, 'logBounds' | 'committedOffsets'>,
    private readonly book: SaleBook,
    private readonly effects: Effects,
    private readonly transfers: Transfers,
    private readonly options: SweeperOptions,
  ) {}

  /**
   * One pass over all sales: half transfers, overdue attempts, then the outbox.
   *
   * @returns whether there was more than one pass takes, so that the next should not wait
   */
  async pass(signal?: AbortSignal): Promise<boolean> {
    const expiring: Expiring[] = [];
    const acknowledged: Expiring[] = [];
    const moving = this.book.moving();
    // Where nothing expires any more, refunds may still bring units back.
    const available: string[] = this.book
      .all()
      .flatMap(({ saleId, storedPhase }) =>
        storedPhase === 'draft' || moving.some((sale) => sale.saleId === saleId) ? [] : [saleId],
      );
    for (const sale of moving) {
      if (signal?.aborted) return false;
      const due = await this.takeDue(sale).catch((error: unknown) => {
        this.options.log.error({ err: error, sale: sale.saleId }, 'overdue holds could not be read');
        return null;
      });
      if (!due) continue;
      available.push(sale.saleId);
      for (const record of due) {
        (record.state === 'queued' ? acknowledged : expiring).push({ sale, record });
      }
    }
    const { found, applied } = await this.effects.sweep(this.options.effectAgeMs, available);
    if (found > 0) this.options.log.info({ found, applied }, 'applied effects that nobody had applied');
    if (acknowledged.length > 0) await this.settleAcknowledged(acknowledged);
    if (expiring.length > 0) await this.expire(expiring, signal);
    return found >= MAX_EFFECTS || expiring.length >= MAX_DUE;
  }

  /** Attempts that are due, now leased to this sweeper; null where Redis does not know the sale. */
  private async takeDue(sale: KnownSale): Promise<HoldRecord[] | null> {
    const { graceMs, leaseMs } = this.options;
    const replies = await Promise.all(
      Array.from({ length: sale.bucketCount }, async (_, bucket) => {
        const keys = bucketKeys(sale.saleId, bucket);
        const reply = await scripts.overdue.run(
          this.redis,
          [keys.account, keys.attempts, keys.deadlines, keys.transfers],
          [this.options.fenceOf(sale, keys), graceMs, leaseMs, MAX_DUE],
        );
        return { bucket, reply };
      }),
    );
    const records: HoldRecord[] = [];
    for (const { bucket, reply } of replies) {
      if (reply.outcome !== 'ok') return null;
      for (const item of reply.items) {
        if (item.kind === 'attempt') records.push(parseAttempt(sale.saleId, item.tail, item.text));
        else {
          await this.transfers.finish(sale, bucket, item).catch((error: unknown) => {
            this.options.log.error(
              { err: error, sale: sale.saleId },
              'a half transfer could not be finished',
            );
          });
        }
      }
    }
    return records;
  }

  /**
   * Acknowledged orders of which Redis has heard nothing for long. The commit is read before the rows: the writer commits
   * its rows first, so a committed record without a row was never written.
   */
  private async settleAcknowledged(orders: readonly Expiring[]): Promise<void> {
    const { ordersTopic, ordersGroup, log, metrics } = this.options;
    const { ends } = await this.kafka.logBounds(ordersTopic);
    const committed = await this.kafka.committedOffsets(ordersGroup, ordersTopic);
    const { rows, letters } = await this.readDecided(orders.map(({ record }) => record.attemptId));
    await this.effects.applyRows([...rows.values()].map(effectRow));
    for (const { sale, record } of orders) {
      const { attemptId, placedAt } = record;
      if (rows.has(attemptId) || letters.get(attemptId) === 'pending' || !placedAt) continue;
      const truncated = placedAt.offset >= (ends.get(placedAt.partition) ?? 0n);
      const passed = (committed.get(placedAt.partition) ?? 0n) > placedAt.offset;
      if (!truncated && !passed) continue;
      log.error(
        { attemptId, partition: placedAt.partition, offset: String(placedAt.offset), truncated },
        'Kafka acknowledged this order and does not have it any more; it will end as expired, units go back on sale',
      );
      const began = await this.beginLost(sale, record);
      if (began) metrics.lostOrders.add(1);
    }
  }

  /** From now on nothing is produced for it; the next pass makes its end durable. */
  private async beginLost(sale: KnownSale, record: HoldRecord): Promise<boolean> {
    const keys = bucketKeys(sale.saleId, bucketOf(record.shopperId, sale.bucketCount));
    const { attemptId, placedAt } = record;
    const reply = await scripts.expireLost.run(
      this.redis,
      [keys.account, keys.attempts, keys.deadlines],
      [
        this.options.fenceOf(sale, keys),
        this.options.graceMs,
        tailOf(attemptId),
        placedAt?.partition ?? '',
        String(placedAt?.offset ?? ''),
      ],
    );
    return reply.outcome === 'ok' && reply.begun === 1;
  }

  /** Waits for the writer, makes the end of what it has no row of durable, and tells Redis what the rows say. */
  private async expire(expiring: readonly Expiring[], signal?: AbortSignal): Promise<void> {
    await this.rememberEnds(expiring);
    let open = expiring;
    const giveUpAtMs = performance.now() + WAIT_FOR_WRITER_MS;
    while (open.length > 0) {
      const committed = await this.kafka.committedOffsets(this.options.ordersGroup, this.options.ordersTopic);
      const passed = open.filter((entry) => this.isPassed(entry, committed));
      for (let at = 0; at < passed.length; at += MAX_ROWS) {
        await this.decide(passed.slice(at, at + MAX_ROWS));
      }
      open = open.filter((entry) => !passed.includes(entry));
      if (open.length === 0 || signal?.aborted || performance.now() >= giveUpAtMs) return;
      await new Promise((resolve) => setTimeout(resolve, ASK_EVERY_MS));
    }
  }

  private async rememberEnds(expiring: readonly Expiring[]): Promise<void> {
    const unknown = expiring.filter(({ record }) => !this.awaited.has(expiryOf(record)));
    if (unknown.length === 0) return;
    if (this.awaited.size + unknown.length > MAX_REMEMBERED) this.awaited.clear();
    const bounds = await this.kafka.logBounds(this.options.ordersTopic);
    for (const { record } of unknown) this.awaited.set(expiryOf(record), bounds);
  }

  /** Whether the group has read all that was in Kafka when the attempt had begun to expire. */
  private isPassed({ record }: Expiring, committed: Offsets): boolean {
    const bounds = this.awaited.get(expiryOf(record));
    return bounds !== undefined && hasPassed(committed, bounds.ends, bounds.lows);
  }

  private async decide(passed: readonly Expiring[]): Promise<void> {
    const { metrics, log } = this.options;
    const rows = await this.insertTombstones(passed);
    await this.effects.applyRows(rows.map(({ row }) => effectRow(row)));
    for (const { record } of passed) this.awaited.delete(expiryOf(record));
    for (const { row, mine } of rows) {
      metrics.swept.add(1, { outcome: mine ? 'expired' : row.state });
      if (mine) metrics.tombstones.add(1, { reason: row.reason ?? '' });
    }
    const counts = Object.groupBy(rows, ({ row, mine }) => (mine ? (row.reason ?? 'expired') : 'had_a_row'));
    log.info(
      Object.fromEntries(Object.entries(counts).map(([reason, of]) => [reason, of?.length])),
      'ended holds that were past their deadline',
    );
  }

  /**
   * Inserts a tombstone for each attempt that has no row, and reads back what decided it. First row on the primary key
   * wins, so a message that comes later is dropped by the writer, and an order that came first stays one. An attempt that
   * lies in the dead letters is pending: it gets no row.
   */
  private async insertTombstones(
    attempts: readonly Expiring[],
  ): Promise<{ readonly row: OrderRow; readonly mine: boolean }[]> {
    const sorted = attempts.toSorted((a, b) => (a.record.attemptId < b.record.attemptId ? -1 : 1));
    for (let attempt = 1; ; attempt += 1) {
      // A new id for every try: after an unknown commit, rows of the first try are found as somebody else's, and that is
      // right, because their events and effects are already there.
      const batchId = randomUUID();
      try {
        return await this.database.transaction((statements) => insertAndRead(statements, sorted, batchId));
      } catch (error) {
        if (!(error instanceof DatabaseError) || !error.retriable || attempt >= TRIES) throw error;
        await new Promise((resolve) => setTimeout(resolve, 10 + Math.random() * 40));
      }
    }
  }

  private async readDecided(attemptIds: readonly string[]) {
    const rows = await this.database.query<OrderRow>(
      'SELECT order_id, shopper_id, state, reason, batch_id FROM orders WHERE order_id IN (?)',
      [attemptIds],
    );
    return {
      rows: new Map(rows.map((row) => [row.order_id, row])),
      letters: await readLetters(this.database, attemptIds),
    };
  }
}

async function insertAndRead(
  statements: Statements,
  attempts: readonly Expiring[],
  batchId: string,
): Promise<{ readonly row: OrderRow; readonly mine: boolean }[]> {
  const present = await epochsOf(statements, attempts);
  const letters = await readLetters(
    statements,
    attempts.map(({ record }) => record.attemptId),
  );
  const ending = attempts.filter(
    ({ sale, record }) =>
      letters.get(record.attemptId) !== 'pending' && present.get(sale.saleId) === sale.epoch,
  );
  if (ending.length === 0) return [];
  const isDropped = (attemptId: string) => letters.get(attemptId) === 'dropped';
  const values = ending.map(
    ({ sale, record }) =>
      [
        record.attemptId,
        sale.saleId,
        record.shopperId,
        sale.skuId,
        record.quantity,
        sale.unitPrice,
        sale.currency,
        // Whoever drops a dead letter that nobody can read leaves its attempt to be ended here, by the hold.
        isDropped(record.attemptId) ? 'rejected' : 'expired',
        isDropped(record.attemptId) ? 'poison' : record.reason,
        batchId,
        record.epoch,
        // Says that there was an order: its shopper may have seen it queued, and must see how it ended.
        record.deliveryHash,
        record.placedAt?.partition ?? null,
        record.placedAt === null ? null : String(record.placedAt.offset),
        1,
      ] as const,
  );
  const row = `(${values[0]?.map(() => '?').join(', ')}, NOW(3), NOW(3))`;
  await statements.change(
    `INSERT INTO orders (order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, state, reason, batch_id,
       epoch, delivery_hash, kafka_partition, kafka_offset, version, created_at, updated_at)
     VALUES ${values.map(() => row).join(', ')} ON DUPLICATE KEY UPDATE order_id = order_id`,
    values.flat(),
  );
  const rows = await statements.query<OrderRow>(
    'SELECT order_id, shopper_id, state, reason, batch_id FROM orders WHERE order_id IN (?)',
    [ending.map(({ record }) => record.attemptId)],
  );
  const mine = rows.filter((found) => found.batch_id === batchId);
  if (mine.length > 0) {
    await statements.change(
      `INSERT INTO order_event (order_id, seq, from_state, to_state, cause, at)
       VALUES ${mine.map(() => `(?, 1, 'queued', ?, ?, NOW(3))`).join(', ')}`,
      mine.flatMap((found) => [found.order_id, found.state, found.reason]),
    );
    const saleOf = new Map(ending.map(({ sale, record }) => [String(record.attemptId), sale.saleId]));
    await statements.change(
      `INSERT INTO effect (order_id, kind, sale_id, shopper_id, reason, created_at)
       VALUES ${mine.map(() => `(?, 'void', ?, ?, ?, NOW(3))`).join(', ')}`,
      mine.flatMap((found) => [
        found.order_id,
        saleOf.get(found.order_id) ?? '',
        found.shopper_id,
        found.reason,
      ]),
    );
  }
  return rows.map((found) => ({ row: found, mine: found.batch_id === batchId }));
}

/** Attempts of which a record lies in the dead letters: undecided, or dropped by an operator. */
async function readLetters(
  statements: Statements,
  ids: readonly string[],
): Promise<Map<string, 'pending' | 'dropped'>> {
  const rows = await statements.query(
    "SELECT order_id, state FROM dead_letter WHERE state IN ('pending', 'dropped') AND order_id IN (?)",
    [ids],
  );
  const letters = new Map<string, 'pending' | 'dropped'>();
  for (const row of rows) {
    const id = String(row['order_id']);
    if (letters.get(id) !== 'pending') letters.set(id, row['state'] === 'pending' ? 'pending' : 'dropped');
  }
  return letters;
}

/**
 * The epochs that the attempts' sales are in, locked until the tombstones are there. An attempt that began to expire in an
 * epoch that Redis has lost since may have been ordered with again in the next one, where nobody knows that it was expiring.
 */
async function epochsOf(statements: Statements, attempts: readonly Expiring[]): Promise<Map<string, number>> {
  const saleIds = [...new Set(attempts.map(({ sale }) => sale.saleId))].toSorted();
  const rows = await statements.query(
    'SELECT sale_id, epoch FROM sale WHERE sale_id IN (?) ORDER BY sale_id LOCK IN SHARE MODE',
    [saleIds],
  );
  return new Map(rows.map((row) => [String(row['sale_id']), Number(row['epoch'])]));
}

function expiryOf({ attemptId, deadlineMs }: HoldRecord): string {
  return `${attemptId}@${deadlineMs}`;
}

function effectRow(row: OrderRow) {
  return {
    attemptId: row.order_id,
    shopperId: row.shopper_id,
    state: row.state as Exclude<OrderState, 'queued'>,
    reason: row.reason,
  };
}
