import type { SeenToken } from './grammar.js';

/**
 * Everything the auditor knows about one sale: what the crowd saw, and what Redis, Kafka and MySQL hold. The readers make
 * it, the invariants judge it; nothing in it is a conclusion. Times are milliseconds since 1970.
 */
export interface Evidence {
  readonly saleId: string;
  /** Whether faults were injected, so that a visible refusal after a 202 is allowed. */
  readonly faults: boolean;
  /** Whether the sale came to rest before it was read, and if not, what was still moving. */
  readonly quiet: { readonly reached: boolean; readonly waitedMs: number; readonly pending: string };
  /** `null` where no log was given: what only the crowd can know is not checked then. */
  readonly log: LogEvidence | null;
  readonly mysql: MysqlEvidence;
  readonly redis: RedisEvidence;
  readonly kafka: KafkaEvidence;
}

/** By how much the clocks of the crowd, the broker and the database may differ; on one host they do not. */
export const CLOCK_BOUND_MS = 250;

/** Milliseconds counted one by one: exact percentiles in bounded memory, however many exchanges there were. */
export class Latencies {
  private static readonly MAX_MS = 120_000;
  private readonly counts = new Uint32Array(Latencies.MAX_MS + 1);
  private total = 0;

  add(ms: number): void {
    const index = Math.min(Latencies.MAX_MS, Math.max(0, Math.round(ms)));
    this.counts[index] = (this.counts[index] ?? 0) + 1;
    this.total += 1;
  }

  /** The smallest number of milliseconds within which `share` (0 to 1) of all lie; `null` of none. */
  percentile(share: number): number | null {
    if (this.total === 0) return null;
    const rank = Math.max(1, Math.ceil(share * this.total));
    let seen = 0;
    for (let ms = 0; ms <= Latencies.MAX_MS; ms += 1) {
      seen += this.counts[ms] ?? 0;
      if (seen >= rank) return ms;
    }
    return Latencies.MAX_MS;
  }
}

/** What the crowd's log says. */
export interface LogEvidence {
  /** Exchanges of this sale. */
  readonly exchanges: number;
  /** By attempt id. */
  readonly attempts: ReadonlyMap<string, LoggedAttempt>;
  /** Entries that were answered `sold_out` on the spot; of those sent in one millisecond the soonest answered. */
  readonly soldOut: readonly SoldOutAnswer[];
  /** How many answers said `sold_out`, polls included. */
  readonly toldSoldOut: number;
  /** Refused entries and orders by problem code. */
  readonly refused: ReadonlyMap<string, number>;
  readonly latency: { readonly entry: Latencies; readonly order: Latencies };
}

/** One attempt as its shopper saw it. */
export interface LoggedAttempt {
  shopperId: string;
  skuId: string;
  quantity: number;
  /** Somebody asked for it under its own idempotency key; else it is only known from an answer. */
  asked: boolean;
  /** It was answered `granted` or `ordered` at some time. */
  granted: boolean;
  /** It was waiting in the line when last heard of. */
  waiting: boolean;
  /** An answer to an entry or an order was lost or says nothing, so that it may have ended either way. */
  entryUnclear: boolean;
  orderUnclear: boolean;
  /** The last clean refusal; empty for none. */
  entryRefusal: string;
  orderRefusal: string;
  ordersSent: number;
  /** When the first 202 of its order was received. */
  acceptedAtMs: number | null;
  /** The order state that was answered last; empty for none. */
  lastOrderState: string;
  firstSentMs: number;
  /** The price that was answered last. */
  unitPrice: number | null;
  /** Different purchase tokens that were handed out for it. */
  readonly tokens: SeenToken[];
}

export interface SoldOutAnswer {
  readonly attemptId: string;
  readonly quantity: number;
  readonly sentMs: number;
  readonly receivedMs: number;
}

/** One consistent snapshot of the sale's rows. */
export interface MysqlEvidence {
  readonly sale: {
    readonly skuId: string;
    readonly unitPrice: number;
    readonly currency: string;
    readonly limitPerShopper: number;
    readonly bucketCount: number;
    readonly phase: string;
    readonly epoch: number;
    readonly opensAtMs: number;
  };
  readonly stock: { readonly total: number; readonly sold: number };
  readonly orders: readonly OrderRow[];
  readonly ordersById: ReadonlyMap<string, OrderRow>;
  /** What the database counts, to be compared with what was read. */
  readonly orderCount: number;
  /** Units used, by shopper. */
  readonly quota: ReadonlyMap<string, number>;
  /** The legs of the ledger by entry. */
  readonly ledger: ReadonlyMap<string, readonly LedgerLeg[]>;
  /** Rows that name an attempt of this sale which has no order row. */
  readonly orphans: readonly {
    readonly table: 'order_event' | 'ledger' | 'effect' | 'payment';
    readonly orderId: string;
  }[];
  /** Attempts that the table of dead letters names. */
  readonly deadLetters: ReadonlySet<string>;
}

export interface OrderRow {
  readonly orderId: string;
  readonly shopperId: string;
  readonly skuId: string;
  readonly quantity: number;
  readonly unitPrice: number;
  readonly currency: string;
  readonly state: string;
  readonly reason: string | null;
  readonly epoch: number;
  readonly tokenExpiresAtMs: number | null;
  readonly kafkaPartition: number | null;
  readonly kafkaOffset: number | null;
  readonly payBeforeMs: number | null;
  readonly version: number;
  readonly createdAtMs: number;
  readonly updatedAtMs: number;
  readonly events: OrderEvent[];
  /** Ledger entries with a leg that names this order. */
  readonly entryIds: Set<string>;
  readonly effects: Effect[];
  readonly payments: Payment[];
}

export interface OrderEvent {
  readonly seq: number;
  readonly from: string;
  readonly to: string;
  readonly atMs: number;
}

export interface LedgerLeg {
  readonly account: string;
  readonly amount: number;
  readonly orderId: string | null;
  readonly atMs: number;
}

export interface Effect {
  readonly kind: string;
  readonly createdAtMs: number;
  readonly appliedAtMs: number | null;
}

export interface Payment {
  readonly paymentId: string;
  readonly amount: number;
  readonly currency: string;
  readonly state: string;
  readonly refund: { readonly amount: number; readonly state: string } | null;
}

/** The sale's buckets. */
export interface RedisEvidence {
  readonly buckets: readonly BucketEvidence[];
  /** By attempt id; aliases are left out, they hold nothing. */
  readonly attempts: ReadonlyMap<string, RedisAttempt>;
  readonly shoppers: readonly RedisShopper[];
}

/** One bucket, account and transfers taken by one script. */
export interface BucketEvidence {
  readonly bucket: number;
  /** Whether its account is there at all. */
  readonly present: boolean;
  /** The account's numbers; `NaN` for what is missing or no integer. */
  readonly account: Readonly<Record<AccountField, number>>;
  readonly transfers: ReadonlyMap<string, { readonly kind: string; readonly units: number }>;
}

export const ACCOUNT_FIELDS = ['initial', 'free', 'held', 'queued', 'sold', 'in', 'out'] as const;
export type AccountField = (typeof ACCOUNT_FIELDS)[number];

export interface RedisAttempt {
  readonly attemptId: string;
  readonly bucket: number;
  /** H held, Q queued, h and q the same while expiring, C confirmed, V void. */
  readonly state: string;
  readonly shopperId: string;
  readonly quantity: number;
}

export interface RedisShopper {
  readonly shopperId: string;
  readonly bucket: number;
  readonly used: number;
}

/** The order topic up to its end when reading began, and the dead letters. */
export interface KafkaEvidence {
  readonly partitions: readonly PartitionEvidence[];
  /** What was recorded of this sale, by the record's key. */
  readonly recorded: ReadonlyMap<string, RecordedAttempt>;
  /** Records of this sale. */
  readonly recordCount: number;
  /** Dead letters as `partition/offset` of the record they came from. */
  readonly deadLetterOrigins: ReadonlySet<string>;
  /** Attempts with a dead letter. */
  readonly deadLetterAttempts: ReadonlySet<string>;
}

export interface PartitionEvidence {
  readonly partition: number;
  /** The oldest offset that is kept and the one that the next record will get. */
  readonly low: number;
  readonly high: number;
  /** What the writer has committed, read before MySQL was; `null` for never. */
  readonly committed: number | null;
}

export interface RecordedAttempt {
  readonly positions: RecordPosition[];
  /** Different tokens in its records. */
  readonly tokens: SeenToken[];
}

export interface RecordPosition {
  readonly partition: number;
  readonly offset: number;
  /** LogAppendTime. */
  readonly timestampMs: number;
}
