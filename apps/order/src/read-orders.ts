import { Coalescer, type ProblemCode, type StockClient, type inventory } from '@flash-sale/contracts';
import { AttemptId, saleIdOf, type OrderState } from '@flash-sale/domain';
import type { OrderDatabase } from './load.js';
import { readNewestFirst, type Page } from './newest-first.js';
import type { WriterLag } from './writer-lag.js';

/** A row of `orders`, as far as shoppers see it. */
export interface OrderRow {
  readonly orderId: string;
  readonly saleId: string;
  readonly shopperId: string;
  readonly skuId: string;
  readonly quantity: number;
  /** Minor units of the currency. */
  readonly unitPrice: number;
  readonly currency: string;
  readonly state: OrderState;
  readonly reason: string | null;
  readonly payBefore: Date | null;
  /** Null in a tombstone. */
  readonly deliveryHash: string | null;
  /** False in the tombstone of a hold that nobody ordered with: it keeps the hold from becoming an order, no more. */
  readonly wasOrdered: boolean;
  readonly createdAt: Date;
  readonly updatedAt: Date;
}

export type FoundOrder =
  | { readonly outcome: 'found'; readonly order: OrderRow }
  | { readonly outcome: 'problem'; readonly problem: ProblemCode };

/** A hold that ended without an order leaves a row too, or it could still become one. Its shopper never ordered. */
const WAS_ORDERED = `NOT (state = 'expired' AND reason <> 'lost' AND delivery_hash IS NULL AND kafka_offset IS NULL)`;

/** The columns of an {@link OrderRow}. */
export const COLUMNS = `order_id AS orderId, sale_id AS saleId, shopper_id AS shopperId, sku_id AS skuId, quantity,
  unit_price AS unitPrice, currency, state, reason, pay_before AS payBefore, delivery_hash AS deliveryHash,
  created_at AS createdAt, updated_at AS updatedAt, ${WAS_ORDERED} AS wasOrdered`;

/** A row as the database gives it, see {@link rowFrom}. */
export type RawRow = Record<keyof OrderRow, string | number | Date | null>;

/** The inverse of {@link COLUMNS}. */
export function rowFrom(raw: RawRow): OrderRow {
  return { ...raw, unitPrice: Number(raw.unitPrice), wasOrdered: Number(raw.wasOrdered) === 1 } as OrderRow;
}

export interface OrderReaderOptions {
  readonly database: OrderDatabase;
  /** Where lists wait for connections, so that they never keep waiting who looks for one order; by default with them. */
  readonly lists?: OrderDatabase;
  readonly stock: Pick<StockClient, 'findHold'>;
  readonly lag: Pick<WriterLag, 'hasWritten'>;
  /** How long the sale of a queued order is remembered, ms. */
  readonly saleTtlMs?: number;
}

interface SaleTerms {
  readonly unitPrice: number;
  readonly currency: string;
}

// One order that is looked for must not use up the time of the others that were asked for in the same call.
const HOLD_WITHIN_MS = 500;
const WRITER_WITHIN_MS = 300;
const MAX_REMEMBERED_SALES = 1_000;

/** Finds orders: a row where the writer has been, else what Redis knows of a queued one. */
export class OrderReader {
  private readonly rows: Coalescer<string, OrderRow | undefined>;
  private readonly sales = new Map<
    string,
    { readonly terms: Promise<SaleTerms | undefined>; readonly atMs: number }
  >();
  private readonly saleTtlMs: number;

  constructor(private readonly options: OrderReaderOptions) {
    this.saleTtlMs = options.saleTtlMs ?? 60_000;
    this.rows = new Coalescer((orderIds) => this.readRows(orderIds), { name: 'orders rows', maxInFlight: 2 });
  }

  /** The row of an order; reads of one event-loop turn share a SELECT. */
  row(orderId: string, deadlineMs: number): Promise<OrderRow | undefined> {
    return this.rows.call(orderId, deadlineMs);
  }

  /**
   * The order as its shopper sees it. Somebody else's is `not_found`, and so is a hold that was never ordered. An order that
   * was once answered is never `not_found` later: before that is said, the writer must have passed everything that was
   * acknowledged, and while this cannot be known the answer is `unavailable`.
   *
   * @param deadlineMs on the `performance.now()` scale
   */
  async find(orderId: string, shopperId: string, deadlineMs: number): Promise<FoundOrder> {
    if (!AttemptId.safeParse(orderId).success) return problem('not_found');
    const row = await this.row(orderId, deadlineMs);
    if (row) return visible(row, shopperId);
    const hold = await this.findHold(orderId, shopperId, deadlineMs);
    if (hold.outcome === 'UNAVAILABLE') return problem('unavailable');
    if (isQueued(hold)) return this.queuedOrder(orderId, hold.hold);
    // Redis may have been told of the row, or the writer may have written it, after we looked.
    const late = await this.row(orderId, deadlineMs);
    if (late) return visible(late, shopperId);
    if (hold.outcome === 'CONFIRMED' || hold.outcome === 'VOID') return problem('unavailable');
    const untilMs = performance.now() + shareOf(deadlineMs, WRITER_WITHIN_MS);
    if (!(await this.options.lag.hasWritten(orderId, untilMs))) return problem('unavailable');
    const last = await this.row(orderId, deadlineMs);
    return last ? visible(last, shopperId) : problem('not_found');
  }

  /**
   * A shopper's orders, newest first.
   *
   * @param cursor from the page before; empty for the first
   * @returns undefined where the cursor is none of ours
   */
  async list(shopperId: string, cursor: string, limit: number): Promise<Page<OrderRow> | undefined> {
    const page = await readNewestFirst(
      { cursor, limit, timeColumn: 'created_at', idColumn: 'order_id' },
      (where, tail, values) =>
        (this.options.lists ?? this.options.database).query<RawRow>(
          `SELECT ${COLUMNS} FROM orders WHERE shopper_id = ? AND ${WAS_ORDERED} AND ${where} ${tail}`,
          [shopperId, ...values],
        ),
      (row) => ({ at: row.createdAt as Date, id: String(row.orderId) }),
    );
    return page && { ...page, rows: page.rows.map(rowFrom) };
  }

  private async findHold(
    attemptId: string,
    shopperId: string,
    deadlineMs: number,
  ): Promise<inventory.FindHoldResult> {
    try {
      const item = { attemptId, shopperId, context: undefined };
      return await this.options.stock.findHold(item, shareOf(deadlineMs, HOLD_WITHIN_MS));
    } catch {
      // No answer is no knowledge; the caller says so to the shopper.
      return { outcome: 'UNAVAILABLE', hold: undefined };
    }
  }

  private async queuedOrder(orderId: string, hold: inventory.Hold): Promise<FoundOrder> {
    const saleId = saleIdOf(orderId as AttemptId);
    const sale = await this.sale(saleId);
    if (!sale) return problem('unavailable');
    const at = new Date(hold.grantedAtMs);
    return {
      outcome: 'found',
      order: {
        orderId,
        saleId,
        shopperId: hold.shopperId,
        skuId: hold.skuId,
        quantity: hold.quantity,
        unitPrice: sale.unitPrice,
        currency: sale.currency,
        state: 'queued',
        reason: null,
        payBefore: null,
        deliveryHash: null,
        wasOrdered: true,
        createdAt: at,
        updatedAt: at,
      },
    };
  }

  private async sale(saleId: string): Promise<SaleTerms | undefined> {
    const known = this.sales.get(saleId);
    if (known && performance.now() - known.atMs < this.saleTtlMs) return known.terms;
    if (this.sales.size >= MAX_REMEMBERED_SALES) this.sales.clear();
    // The promise is what is remembered, so that a crowd that asks at once asks once.
    const terms = this.readSale(saleId);
    this.sales.set(saleId, { terms, atMs: performance.now() });
    const forget = () => this.sales.delete(saleId);
    terms.then((found) => found ?? forget(), forget);
    return terms;
  }

  private async readSale(saleId: string): Promise<SaleTerms | undefined> {
    const [row] = await this.options.database.query<{ unit_price: string; currency: string }>(
      'SELECT unit_price, currency FROM sale WHERE sale_id = ?',
      [saleId],
    );
    return row && { unitPrice: Number(row.unit_price), currency: row.currency };
  }

  private async readRows(orderIds: readonly string[]): Promise<(OrderRow | undefined)[]> {
    const rows = await this.options.database.query<RawRow>(
      `SELECT ${COLUMNS} FROM orders WHERE order_id IN (?)`,
      [[...new Set(orderIds)]],
    );
    const byId = new Map(rows.map((raw) => [String(raw.orderId), rowFrom(raw)]));
    return orderIds.map((orderId) => byId.get(orderId));
  }
}

/** So many ms at most, and some less than until the deadline, so that the answer still arrives. */
function shareOf(deadlineMs: number, atMostMs: number): number {
  return Math.max(1, Math.min(atMostMs, deadlineMs - performance.now() - 50));
}

function isQueued(
  found: inventory.FindHoldResult,
): found is inventory.FindHoldResult & { readonly hold: inventory.Hold } {
  return found.outcome === 'QUEUED' && found.hold !== undefined;
}

function visible(row: OrderRow, shopperId: string): FoundOrder {
  return row.shopperId === shopperId && row.wasOrdered
    ? { outcome: 'found', order: row }
    : problem('not_found');
}

function problem(code: ProblemCode): FoundOrder {
  return { outcome: 'problem', problem: code };
}
