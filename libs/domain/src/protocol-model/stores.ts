import type { QueuedOrder } from '../decide-orders.js';
import type { AttemptId } from '../ids.js';
import { mayBecome, type OrderState } from '../order.js';
import type { StockModel } from '../stock-model.js';

/**
 * The three stores with what each may do to us. Redis admits and may forget: its last writes, or everything. Kafka remembers
 * what it acknowledged, but may acknowledge late, or not at all, what it has taken. MySQL decides and forgets nothing; the
 * answer to a COMMIT may be lost. Every call on a store is one step: scripts, and transactions whose locks are taken in one
 * order, happen as if at one moment.
 */

/** One bucket's keys, which share a hash slot. The stock is the model that the real scripts are tested against. */
export interface Bucket {
  epoch: number;
  /** A recovery is counting: nothing moves until it opens the bucket again. */
  frozen: boolean;
  readonly stock: StockModel;
}

export interface SaleState {
  readonly epoch: number;
  /** Grows with every unit that comes back. */
  credit: number;
  soldOut: boolean;
}

interface NodeData {
  readonly buckets: Map<number, Bucket>;
  state: SaleState | undefined;
}

/** A primary with a replica that is behind by whatever was written since {@link replicate}. */
export class RedisNode {
  runId = 1;
  /** How far this host's clock is off, ms. Holds are judged by it and by no other. */
  skewMs = 0;
  data: NodeData = { buckets: new Map(), state: undefined };
  private replica: NodeData = { buckets: new Map(), state: undefined };

  replicate(): void {
    this.replica = copyOf(this.data);
  }

  /** The replica is promoted; what it had not heard of is forgotten, and its clock is another one. */
  failOver(skewMs: number): void {
    this.data = copyOf(this.replica);
    this.skewMs = skewMs;
    this.runId += 1;
  }

  restart(): void {
    this.runId += 1;
  }

  loseEverything(): void {
    this.data = { buckets: new Map(), state: undefined };
    this.replicate();
    this.runId += 1;
  }
}

function copyOf({ buckets, state }: NodeData): NodeData {
  return {
    buckets: new Map(
      [...buckets].map(([index, bucket]) => [index, { ...bucket, stock: bucket.stock.clone() }]),
    ),
    state: state && { ...state },
  };
}

export interface LogRecord {
  readonly order: QueuedOrder;
  /** Whether the writer can make sense of it. */
  readonly readable: boolean;
}

/** A produce on its way. It may land long after its sender has given up. */
export interface Sending {
  readonly record: LogRecord;
  readonly sentAtMs: number;
  /** Known to the sender once the acknowledgement has come. */
  acknowledged: { readonly partition: number; readonly offset: number } | undefined;
}

export class Log {
  readonly partitions: LogRecord[][] = [[], []];
  readonly committed = [0, 0];
  /** Which writer reads which partition. */
  readonly readers = [0, 1];
  readonly underWay: Sending[] = [];
  /** Records that were acknowledged and are gone. */
  readonly lost = new Set<AttemptId>();

  send(record: LogRecord, sentAtMs: number): Sending {
    const sending: Sending = { record, sentAtMs, acknowledged: undefined };
    this.underWay.push(sending);
    return sending;
  }

  /** Ends a produce: the record is appended or not, and its sender hears of it or does not. */
  settle(sending: Sending, fate: 'acknowledged' | 'appended' | 'dropped'): void {
    this.underWay.splice(this.underWay.indexOf(sending), 1);
    if (fate === 'dropped') return;
    const partition = partitionOf(sending.record.order.attemptId);
    const records = this.partitions[partition] ?? [];
    const offset = records.push(sending.record) - 1;
    if (fate === 'acknowledged') sending.acknowledged = { partition, offset };
  }

  ends(): number[] {
    return this.partitions.map((records) => records.length);
  }

  hasPassed(ends: readonly number[]): boolean {
    return ends.every((end, partition) => (this.committed[partition] ?? 0) >= end);
  }

  /** An election that was not clean: the tail that nobody has read yet is gone. */
  loseTail(partition: number): void {
    const gone = (this.partitions[partition] ?? []).splice(this.committed[partition] ?? 0);
    for (const { order } of gone) this.lost.add(order.attemptId);
  }
}

function partitionOf(attemptId: AttemptId): number {
  return attemptId.charCodeAt(attemptId.length - 1) % 2;
}

export type DecidedState = Exclude<OrderState, 'queued'>;

export interface OrderRow {
  readonly order: QueuedOrder;
  state: DecidedState;
  readonly reason: string;
  readonly batchId: string;
}

/** What Redis must learn of a row; kept after it was applied. */
export interface Effect {
  readonly order: QueuedOrder;
  readonly kind: 'confirm' | 'void';
  readonly reason: string;
  applied: boolean;
}

export interface DeadLetter {
  readonly record: LogRecord;
  state: 'pending' | 'replayed' | 'dropped';
}

export interface Correction {
  readonly id: string;
  readonly epoch: number;
  readonly bucket: number;
  readonly units: number;
  applied: boolean;
}

export class Database {
  /** The row of the sale. Its epoch is raised before anything else when Redis is found lost or changed. */
  readonly sale = {
    epoch: 1,
    /** The epoch in which the sale was last open; buckets of an older one are no survivors of it. */
    openEpoch: 1,
    recovering: false,
    recoverer: '',
    leaseEndsAtMs: 0,
    /** The Redis processes that the open epoch was made on. Any other one may have forgotten something. */
    runIds: [] as readonly number[],
  };
  sold = 0;
  readonly quota = new Map<string, number>();
  readonly orders = new Map<AttemptId, OrderRow>();
  readonly effects: Effect[] = [];
  readonly deadLetters: DeadLetter[] = [];
  readonly corrections: Correction[] = [];
  /** Entry → units that it moved into (or out of) the sold account; an entry's other leg is the negative of it. */
  readonly ledger = new Map<string, number>();

  constructor(
    readonly total: number,
    readonly limit: number,
  ) {}

  usedBy(shopperId: string): number {
    return this.quota.get(shopperId) ?? 0;
  }

  /** Units move into the sold account and the shopper's quota, or out of both. */
  book(entry: string, order: QueuedOrder, units: number): void {
    this.sold += units;
    this.quota.set(order.shopperId, this.usedBy(order.shopperId) + units);
    this.ledger.set(entry, units);
  }

  /** Takes an order along one of its edges. */
  move(row: OrderRow, to: DecidedState): void {
    if (!mayBecome(row.state, to))
      throw new Error(`${row.order.attemptId}: ${row.state} may not become ${to}`);
    row.state = to;
  }

  /** Inserts a row unless the attempt has one: the first row on the primary key wins. */
  insert(row: OrderRow): OrderRow {
    const present = this.orders.get(row.order.attemptId);
    if (present) return present;
    if (!mayBecome('queued', row.state)) throw new Error(`no order begins as ${row.state}`);
    this.orders.set(row.order.attemptId, row);
    return row;
  }

  tell(order: QueuedOrder, kind: Effect['kind'], reason: string): Effect {
    const effect = { order, kind, reason, applied: false };
    this.effects.push(effect);
    return effect;
  }
}
