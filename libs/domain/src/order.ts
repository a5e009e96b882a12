/** The states of an order (one row per attempt). `queued` is known to Kafka and Redis only: there is no row yet. */
export const ORDER_STATES = [
  'queued',
  'awaiting_payment',
  'paid',
  'cancelled',
  'unpaid',
  'expired',
  'rejected',
  'refunding',
  'refunded',
] as const;
export type OrderState = (typeof ORDER_STATES)[number];

/** Every edge an order may take. `queued` ends in the writer's or the sweeper's row; nothing leaves a terminal state. */
const EDGES: Readonly<Record<OrderState, readonly OrderState[]>> = {
  queued: ['awaiting_payment', 'rejected', 'expired'],
  awaiting_payment: ['paid', 'cancelled', 'unpaid'],
  paid: ['refunding'],
  refunding: ['refunded'],
  cancelled: [],
  unpaid: [],
  expired: [],
  rejected: [],
  refunded: [],
};

export function mayBecome(from: OrderState, to: OrderState): boolean {
  return EDGES[from].includes(to);
}

/** Rows in these states count in `sale_stock.sold` and in the shopper's quota. */
export function countsAsSold(state: OrderState): boolean {
  return state === 'awaiting_payment' || state === 'paid';
}

/** What Redis must learn about an attempt once its row is in this state: units sold, or units back on sale. */
export function effectOf(state: Exclude<OrderState, 'queued'>): 'confirm' | 'void' {
  return countsAsSold(state) ? 'confirm' : 'void';
}
