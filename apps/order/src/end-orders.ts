import type { ProblemCode, StockClient } from '@flash-sale/contracts';
import type { Statements } from '@flash-sale/database';
import { meter, type Log } from '@flash-sale/service';
import type { OrderDatabase } from './load.js';
import { COLUMNS, rowFrom, type OrderReader, type OrderRow, type RawRow } from './read-orders.js';
import { transact } from './repeat.js';

export type Cancelled =
  | { readonly outcome: 'cancelled'; readonly order: OrderRow }
  | { readonly outcome: 'problem'; readonly problem: ProblemCode };

export interface OrderEnderOptions {
  readonly database: OrderDatabase;
  readonly stock: Pick<StockClient, 'applyEffects'>;
  readonly reader: Pick<OrderReader, 'find'>;
  readonly log: Log;
  /** Orders that one transaction of the time-out ends. */
  readonly batch?: number;
}

const NUDGE_WITHIN_MS = 1_500;
const MAX_NUDGES = 16;

/**
 * Ends orders that were not paid, and gives their units back: MySQL first, in one transaction, and Redis after it. Between
 * the two a unit is sold to nobody; never is it sold to two.
 */
export class OrderEnder {
  private readonly batch: number;
  private underWay = 0;
  private readonly ended = meter().createCounter('orders.ended', {
    description: 'Orders whose units were returned, by state',
  });

  constructor(private readonly options: OrderEnderOptions) {
    this.batch = options.batch ?? 100;
  }

  /** Cancels an order that waits for its payment. Repeating it answers the cancelled order. */
  async cancel(orderId: string, shopperId: string, deadlineMs: number): Promise<Cancelled> {
    const order = await transact(this.options.database, async (statements) => {
      const locked = await lockOrders(
        statements,
        `order_id = ? AND shopper_id = ? AND state = 'awaiting_payment'`,
        [orderId, shopperId],
      );
      await returnUnits(statements, locked, 'cancelled');
      return locked[0];
    });
    if (order) this.announce([order], 'cancelled');
    const found = await this.options.reader.find(orderId, shopperId, deadlineMs);
    if (found.outcome === 'problem') return found;
    return found.order.state === 'cancelled'
      ? { outcome: 'cancelled', order: found.order }
      : { outcome: 'problem', problem: 'not_cancellable' };
  }

  /**
   * Ends orders whose time to pay is over by the database's clock. Any number of instances may do it at once: each order is
   * ended by whoever locks its row first.
   *
   * @returns whether there may be more
   */
  async endUnpaid(): Promise<boolean> {
    const { database } = this.options;
    const due = await database.query<{ order_id: string }>(
      `SELECT order_id FROM orders WHERE state = 'awaiting_payment' AND pay_before <= NOW(3)
        ORDER BY pay_before LIMIT ?`,
      [this.batch],
    );
    if (due.length === 0) return false;
    const ended = await transact(database, async (statements) => {
      const locked = await lockOrders(
        statements,
        `order_id IN (?) AND state = 'awaiting_payment' AND pay_before <= NOW(3)`,
        [due.map((row) => row.order_id)],
      );
      await returnUnits(statements, locked, 'unpaid');
      return locked;
    });
    this.announce(ended, 'unpaid');
    return due.length === this.batch;
  }

  /** Tells inventory, waiting for nothing: what it does not hear of now it finds in the outbox. */
  private announce(orders: readonly OrderRow[], state: 'cancelled' | 'unpaid'): void {
    if (orders.length === 0) return;
    this.ended.add(orders.length, { state });
    const effects = orders.map(({ orderId, shopperId }) => ({
      attemptId: orderId,
      shopperId,
      kind: 'VOID' as const,
      reason: state,
    }));
    if (this.underWay >= MAX_NUDGES) return;
    this.underWay += 1;
    this.options.stock
      .applyEffects({ effects }, NUDGE_WITHIN_MS)
      .catch((error: unknown) => {
        this.options.log.debug({ err: error }, 'inventory was not told; it will find out');
      })
      .finally(() => {
        this.underWay -= 1;
      });
  }
}

/** Locks the order rows that a condition holds for, sorted: the first of the locks that every transaction takes. */
async function lockOrders(
  statements: Statements,
  condition: string,
  values: Parameters<Statements['query']>[1],
): Promise<OrderRow[]> {
  const rows = await statements.query<RawRow>(
    `SELECT ${COLUMNS} FROM orders WHERE ${condition} ORDER BY order_id FOR UPDATE`,
    values,
  );
  return rows.map(rowFrom);
}

/**
 * Takes locked orders out of `awaiting_payment`, and their units out of the shoppers' quotas and the sale's sold ones, with
 * an event, a ledger entry and an effect for each.
 *
 * @throws where a row is not as its lock promised; nothing is written then
 */
async function returnUnits(
  statements: Statements,
  orders: readonly OrderRow[],
  state: 'cancelled' | 'unpaid',
): Promise<void> {
  if (orders.length === 0) return;
  const orderIds = orders.map((order) => order.orderId);
  const changed = await statements.change(
    `UPDATE orders SET state = ?, version = version + 1, updated_at = NOW(3)
      WHERE order_id IN (?) AND state = 'awaiting_payment'`,
    [state, orderIds],
  );
  expectRows(changed, orders.length, 'ending orders');
  for (const [saleId, ofSale] of bySale(orders)) {
    const shopperIds = [...new Set(ofSale.map((order) => order.shopperId))].sort(byKey);
    const locked = await statements.query(
      'SELECT shopper_id FROM quota WHERE sale_id = ? AND shopper_id IN (?) ORDER BY shopper_id FOR UPDATE',
      [saleId, shopperIds],
    );
    expectRows(locked.length, shopperIds.length, 'locking quotas');
    const eased = await statements.change(
      `UPDATE quota JOIN (SELECT shopper_id, SUM(quantity) AS units FROM orders WHERE order_id IN (?)
          GROUP BY shopper_id) AS ended ON ended.shopper_id = quota.shopper_id
        SET quota.used = quota.used - ended.units WHERE quota.sale_id = ?`,
      [ofSale.map((order) => order.orderId), saleId],
    );
    expectRows(eased, shopperIds.length, 'giving quotas back');
  }
  for (const [saleId, ofSale] of bySale(orders)) {
    const units = ofSale.reduce((sum, order) => sum + order.quantity, 0);
    const returned = await statements.change(
      'UPDATE sale_stock SET sold = sold - ? WHERE sale_id = ? AND sold >= ?',
      [units, saleId, units],
    );
    expectRows(returned, 1, `returning ${units} units of sale ${saleId}`);
  }
  await recordEdge(statements, orderIds, 'awaiting_payment', state);
  await statements.change(
    `INSERT INTO ledger (entry_id, account, sale_id, order_id, amount, at)
      SELECT CONCAT(order_id, ':return'), 'sold', sale_id, order_id, -quantity, updated_at
        FROM orders WHERE order_id IN (?)
      UNION ALL SELECT CONCAT(order_id, ':return'), 'free', sale_id, order_id, quantity, updated_at
        FROM orders WHERE order_id IN (?)`,
    [orderIds, orderIds],
  );
  await statements.change(
    `INSERT INTO effect (order_id, kind, sale_id, shopper_id, reason, created_at)
      SELECT order_id, 'void', sale_id, shopper_id, state, updated_at FROM orders WHERE order_id IN (?)`,
    [orderIds],
  );
}

/** Notes the edge that orders have just taken; its number is their version, its time that of the change. */
export async function recordEdge(
  statements: Statements,
  orderIds: readonly string[],
  from: string,
  cause: string,
): Promise<void> {
  await statements.change(
    `INSERT INTO order_event (order_id, seq, from_state, to_state, cause, at)
      SELECT order_id, version, ?, state, ?, updated_at FROM orders WHERE order_id IN (?)`,
    [from, cause, orderIds],
  );
}

function bySale(orders: readonly OrderRow[]): [string, OrderRow[]][] {
  const groups = new Map<string, OrderRow[]>();
  for (const order of orders) {
    const group = groups.get(order.saleId);
    if (group) group.push(order);
    else groups.set(order.saleId, [order]);
  }
  return [...groups].sort(([one], [other]) => byKey(one, other));
}

/** The order in which the database sorts its ids, which are ASCII and compared byte by byte. */
function byKey(one: string, other: string): number {
  return one < other ? -1 : one > other ? 1 : 0;
}

function expectRows(changed: number, expected: number, what: string): void {
  if (changed !== expected) throw new Error(`${what}: ${changed} rows matched instead of ${expected}`);
}
