import type { AttemptId, SaleId, ShopperId } from './ids.js';

/** One queued order as the writer sees it, in offset order. */
export interface QueuedOrder {
  readonly attemptId: AttemptId;
  readonly saleId: SaleId;
  readonly shopperId: ShopperId;
  readonly quantity: number;
}

/** Locked balances of one sale: what may be sold, what is sold, and how much one shopper may have. */
export interface SaleBalance {
  readonly total: number;
  readonly sold: number;
  readonly limitPerShopper: number;
}

export type Decision =
  | { readonly state: 'awaiting_payment' }
  | { readonly state: 'rejected'; readonly reason: 'limit' | 'sold_out' };

/** The key under which a shopper's locked quota is looked up. `|` is in neither alphabet. */
export function quotaKey(saleId: SaleId, shopperId: ShopperId): string {
  return `${saleId}|${shopperId}`;
}

/**
 * The last guard: decides queued orders one after another on running balances, in offset order. Redis admitted them, but
 * Redis may forget; only what fits into the locked balances becomes an order. The limit is looked at first, so that a
 * shopper over it never consumes a unit.
 *
 * @param balances locked stock rows by sale; every order's sale must be present
 * @param used locked quota rows by {@link quotaKey}; an absent one counts as 0
 * @returns a decision per order and the balances' changes, ready to be written
 * @throws if an order's sale has no balance: the caller must have locked it
 */
export function decideOrders(
  orders: readonly QueuedOrder[],
  balances: ReadonlyMap<SaleId, SaleBalance>,
  used: ReadonlyMap<string, number>,
): {
  decisions: Map<AttemptId, Decision>;
  soldBySale: Map<SaleId, number>;
  usedByShopper: Map<string, number>;
} {
  const decisions = new Map<AttemptId, Decision>();
  const soldBySale = new Map<SaleId, number>();
  const usedByShopper = new Map<string, number>();
  for (const order of orders) {
    const balance = balances.get(order.saleId);
    if (!balance) throw new Error(`no locked stock row for sale ${order.saleId}`);
    const key = quotaKey(order.saleId, order.shopperId);
    const taken = usedByShopper.get(key) ?? 0;
    const sold = soldBySale.get(order.saleId) ?? 0;
    if ((used.get(key) ?? 0) + taken + order.quantity > balance.limitPerShopper) {
      decisions.set(order.attemptId, { state: 'rejected', reason: 'limit' });
    } else if (balance.sold + sold + order.quantity > balance.total) {
      decisions.set(order.attemptId, { state: 'rejected', reason: 'sold_out' });
    } else {
      decisions.set(order.attemptId, { state: 'awaiting_payment' });
      usedByShopper.set(key, taken + order.quantity);
      soldBySale.set(order.saleId, sold + order.quantity);
    }
  }
  return { decisions, soldBySale, usedByShopper };
}
