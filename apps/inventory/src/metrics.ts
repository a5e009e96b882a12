import { meter } from '@flash-sale/service';

/** What inventory counts. Labels have few values each: outcomes and states, never a shopper or an attempt. */
export function inventoryMetrics() {
  const counter = (name: string, description: string) => meter().createCounter(name, { description });
  return {
    grants: counter('inventory_grants', 'Grants asked for, by outcome'),
    queued: counter('inventory_queue_requests', 'Orders to be queued, by outcome'),
    transfers: counter('inventory_transfers', 'Transfers of units between buckets, by who finished them'),
    soldOut: counter('inventory_sold_out_changes', 'How often a sale became sold out or stopped being it'),
    effects: counter('inventory_effects', 'Decisions of MySQL applied to Redis, by kind and outcome'),
    swept: counter('inventory_swept', 'Attempts past their deadline, by what became of them'),
    tombstones: counter('inventory_tombstones', 'Rows that say "never an order", by reason'),
    lostOrders: counter('inventory_lost_orders', 'Acknowledged orders that Kafka does not have'),
    rebuilds: counter('inventory_rebuilds', 'Sales built anew in Redis, by outcome'),
    rebuildDuration: meter().createHistogram('inventory_rebuild_duration', {
      unit: 's',
      description: 'From the finding that Redis has lost a sale to its being available again',
    }),
    corrections: counter('inventory_corrections', 'What the reconciler changed in Redis, by kind'),
    unavailable: meter().createObservableGauge('inventory_unavailable_sales', {
      description: 'Sales that Redis cannot say anything of: lost, or being rebuilt',
    }),
    stock: meter().createObservableGauge('sale_stock_units', { description: 'Units, by sale and state' }),
  };
}

export type InventoryMetrics = ReturnType<typeof inventoryMetrics>;

/** Where inventory says what happens to it. */
export interface InventoryLog {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}
