import type { SqlRow } from '@flash-sale/database';
import { ShopperId, bucketOf, countsAsSold, effectOf, type OrderState, type Sale } from '@flash-sale/domain';
import type { DecidedRecord } from './keys.js';

/** A row of `orders`, as far as Redis has to know it. */
export interface DecidedRow {
  readonly orderId: string;
  readonly shopperId: ShopperId;
  readonly quantity: number;
  readonly state: Exclude<OrderState, 'queued'>;
  readonly reason: string | null;
  readonly deliveryHash: string | null;
  readonly placedAt: { readonly partition: number; readonly offset: string } | null;
  readonly epoch: number;
  readonly createdAtMs: number;
  /** Its units count as sold. */
  readonly isSold: boolean;
}

/** The columns that {@link decidedRowFrom} reads. */
export function decidedColumns(table: string): string {
  return [
    'order_id',
    'shopper_id',
    'quantity',
    'state',
    'reason',
    'delivery_hash',
    'kafka_partition',
    'kafka_offset',
  ]
    .concat('epoch', 'created_at')
    .map((column) => `${table}.${column}`)
    .join(', ');
}

export function decidedRowFrom(row: SqlRow): DecidedRow {
  const state = String(row['state']) as DecidedRow['state'];
  const offset = row['kafka_offset'];
  return {
    orderId: String(row['order_id']),
    shopperId: ShopperId.parse(row['shopper_id']),
    quantity: Number(row['quantity']),
    state,
    reason: row['reason'] === null ? null : String(row['reason']),
    deliveryHash: row['delivery_hash'] === null ? null : String(row['delivery_hash']),
    placedAt:
      offset === null || offset === undefined
        ? null
        : { partition: Number(row['kafka_partition']), offset: String(offset) },
    epoch: Number(row['epoch']),
    createdAtMs: (row['created_at'] as Date).getTime(),
    isSold: countsAsSold(state),
  };
}

/** The record that Redis must have of it. */
export function decidedRecordOf(row: DecidedRow): DecidedRecord {
  return {
    ...row,
    state: row.isSold ? 'confirmed' : 'void',
    reason: reasonOf(row.state, row.reason),
    decidedAtMs: row.createdAtMs,
  };
}

/** The bucket that its shopper's units lie in. */
export function homeOf(row: DecidedRow, sale: Sale): number {
  return bucketOf(row.shopperId, sale.bucketCount);
}

/** What Redis keeps as the reason of a void: the row's, or where the order went. */
export function reasonOf(state: DecidedRow['state'], reason: string | null): string {
  if (effectOf(state) === 'confirm') return '';
  if (state === 'expired' || state === 'rejected') return reason ?? state;
  return state === 'refunded' ? 'refunding' : state;
}

/** The record that lies in Redis; '' for none, and for an alias, which is none of its own. */
export function recordIn(text: string | null | undefined): string {
  return !text || text.startsWith('@') ? '' : text;
}

/** Whether a record says what the row does. */
export function isAsDecided(record: string, row: DecidedRow): boolean {
  return record.startsWith(row.isSold ? 'C|' : 'V|');
}
