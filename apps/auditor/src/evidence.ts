import type { SeenToken } from './grammar.js';

/**
 * What the auditor knows about one sale: what the crowd saw, and what Redis, Kafka, MySQL and the services' counters say. The
 * readers make it, the invariants judge it; nothing in it is a conclusion. Times are milliseconds since 1970.
 *
 * It comes in two parts, so that memory does not grow with the sale: {@link Sale} is small however big the sale was, and
 * everything that is told of single attempts or shoppers comes slice by slice ({@link Slice}, {@link ShopperSlice}).
 */
export interface Sale {
  readonly saleId: string;
  /** Whether faults were injected, so that a visible refusal after a 202 is allowed. */
  readonly faults: boolean;
  /** When the last fault was healed; `null` where nobody said. */
  readonly healedAtMs: number | null;
  /** Whether the sale came to rest before it was read, and if not, what was still moving. */
  readonly quiet: { readonly reached: boolean; readonly waitedMs: number; readonly pending: string };
  /** `null` where no log was given: what only the crowd can know is not checked then. */
  readonly log: LogFigures | null;
  readonly mysql: MysqlFigures;
  readonly redis: RedisFigures;
  readonly kafka: KafkaFigures;
  /** What the services counted; `null` where no address of theirs was given. */
  readonly counters: Counters | null;
  /** Whether a copy of the ledger was given that was made while the sale ran. */
  readonly hasSnapshot: boolean;
}

/** Everything that any store says of the attempts whose ids lie in one range. Each attempt is in exactly one slice. */
export interface Slice {
  readonly sale: Sale;
  /** What the crowd saw, by attempt id; `null` without a log. */
  readonly logged: ReadonlyMap<string, LoggedAttempt> | null;
  readonly orders: readonly OrderRow[];
  readonly ordersById: ReadonlyMap<string, OrderRow>;
  /** The legs of the ledger by entry; the first slice also has the entries that belong to no order. */
  readonly ledger: ReadonlyMap<string, readonly LedgerLeg[]>;
  /** Legs as they were in the middle of the sale, by entry. */
  readonly snapshot: ReadonlyMap<string, readonly LedgerLeg[]>;
  /** Rows that name an attempt of this slice which has no order row. */
  readonly orphans: readonly Orphan[];
  /** What Redis has of attempts; aliases are left out, they hold nothing. */
  readonly holds: ReadonlyMap<string, RedisAttempt>;
  /** Attempts that Redis will look at again, with the time at which it will. */
  readonly due: ReadonlyMap<string, number>;
  /** What was recorded in the order topic, by the record's key. */
  readonly recorded: ReadonlyMap<string, RecordedAttempt>;
}

/** What the stores say of some of the shoppers. Each shopper is in exactly one slice. */
export interface ShopperSlice {
  readonly sale: Sale;
  /** Units of live orders, by shopper. */
  readonly live: ReadonlyMap<string, number>;
  /** MySQL's quota rows, by shopper. */
  readonly quota: ReadonlyMap<string, number>;
  /** What Redis counts, by shopper. */
  readonly redis: ReadonlyMap<string, RedisShopper>;
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

/** What the crowd's log says of all its attempts together. */
export interface LogFigures {
  /** Exchanges of this sale. */
  readonly exchanges: number;
  /** Entries that were answered `sold_out` on the spot; of those sent in one millisecond the soonest answered. */
  readonly soldOut: readonly SoldOutAnswer[];
  /** How many answers said `sold_out`, polls included. */
  readonly toldSoldOut: number;
  /** Orders answered with a 202, each answer counted. */
  readonly acceptances: number;
  /** Refused entries and orders by problem code. */
  readonly refused: ReadonlyMap<string, number>;
  readonly latency: { readonly entry: Latencies; readonly order: Latencies };
  /** How calls were answered: each manner once, with how often it was met and where first. */
  readonly manners: readonly Manner[];
  /** Orders sent and accepted in each second (since 1970). */
  readonly seconds: ReadonlyMap<number, { asked: number; accepted: number }>;
}

/** A way of answering. */
export interface Manner {
  readonly op: string;
  readonly http: number;
  readonly code: string;
  /** `null` where the log does not say. */
  readonly hasRetryAfter: boolean | null;
  readonly contentType: string | null;
  /** It came more than a second after the client had stopped waiting; `null` where the log does not say how long it waits. */
  readonly late: boolean | null;
  /** The answer named another attempt than the one that was asked about. */
  readonly foreign: boolean;
  count: number;
  /** The first that was met. */
  readonly first: { readonly attemptId: string; readonly shopperId: string; readonly sentMs: number };
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
  /** When its order was sent first; `null` for never. */
  firstOrderSentMs: number | null;
  /** Shoppers who were told something of it. */
  readonly readers: Set<string>;
  /** Different ids that were answered to its key. */
  readonly answeredIds: Set<string>;
  /** Different bodies that were sent as its entry and as its order, and how each was answered. */
  readonly bodies: { readonly entry: Bodies; readonly order: Bodies };
  /** How its states followed each other in the eyes of its shopper. */
  readonly seen: { readonly entry: Course; readonly order: Course };
  /** The price that was answered last. */
  unitPrice: number | null;
  /** Different purchase tokens that were handed out for it. */
  readonly tokens: SeenToken[];
}

/** What became of different bodies under one key. */
export interface Bodies {
  readonly sent: Set<string>;
  readonly actedOn: Set<string>;
  /** Answers that said the key had been used with another body. */
  refused: number;
}

/** The states that one thing was answered with, those that overlapped in time left aside. */
export interface Course {
  /** What was known of it last, and when that answer had come; empty for nothing. */
  state: string;
  sinceMs: number;
  answers: number;
  /** The first answer that cannot follow the one before: where the order of answers was broken. */
  broken: { readonly from: string; readonly to: string; readonly sentMs: number } | null;
}

export interface SoldOutAnswer {
  readonly attemptId: string;
  readonly quantity: number;
  readonly sentMs: number;
  readonly receivedMs: number;
}

/** The sale's row and what MySQL counts, all of one snapshot. */
export interface MysqlFigures {
  readonly sale: {
    readonly skuId: string;
    readonly unitPrice: number;
    readonly currency: string;
    readonly limitPerShopper: number;
    readonly bucketCount: number;
    readonly allotment: number;
    readonly phase: string;
    readonly epoch: number;
    readonly opensAtMs: number;
    readonly closesAtMs: number;
    readonly createdAtMs: number;
  };
  readonly stock: { readonly total: number; readonly sold: number };
  /** What the database counts, to be compared with what was read. */
  readonly orderCount: number;
  readonly unappliedEffects: number;
  readonly openPayments: number;
  /** How many sales the database has; the services count for all of them together. */
  readonly sales: number;
  /** Dead letters of attempts of this sale, and those whose attempt nobody could read. */
  readonly deadLetters: readonly DeadLetterRow[];
}

export interface DeadLetterRow {
  /** `null` where the key could not be read. */
  readonly orderId: string | null;
  /** `topic/partition/offset` of the record. */
  readonly origin: string;
  readonly cause: string;
  readonly schema: string;
  /** pending, replayed or dropped. */
  readonly state: string;
  readonly atMs: number;
}

export interface Orphan {
  readonly table: 'order_event' | 'ledger' | 'effect' | 'payment';
  readonly orderId: string;
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
export interface RedisFigures {
  readonly buckets: readonly BucketEvidence[];
}

/** One bucket, account and transfers taken by one script. */
export interface BucketEvidence {
  readonly bucket: number;
  /** Whether its account is there at all. */
  readonly present: boolean;
  /** The account's numbers; `NaN` for what is missing or no integer. */
  readonly account: Readonly<Record<AccountField, number>>;
  readonly transfers: ReadonlyMap<string, { readonly kind: string; readonly units: number }>;
  /** Transfers that Redis will look at again. */
  readonly dueTransfers: ReadonlySet<string>;
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
  /** By Redis' clock. */
  readonly grantedAtMs: number;
  readonly deadlineMs: number;
}

export interface RedisShopper {
  readonly shopperId: string;
  readonly bucket: number;
  readonly used: number;
}

/** The order topic up to its end when reading began, and the dead letters. */
export interface KafkaFigures {
  readonly partitions: readonly PartitionEvidence[];
  /** Records of this sale. */
  readonly recordCount: number;
  /** What lies in the topic of dead letters, of this sale or unreadable. */
  readonly deadLetters: readonly DeadLetterRecord[];
}

export interface DeadLetterRecord {
  /** The record's key as it is; the attempt's id where it can be read. */
  readonly key: string;
  /** `topic/partition/offset` of the record that it came from; empty parts where a header is missing. */
  readonly origin: string;
  readonly cause: string | null;
  readonly schema: string | null;
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

/** What the services' counters say, summed over all processes that were asked; `null` for one that nobody has. */
export interface Counters {
  readonly accepted: number | null;
  readonly writtenByState: ReadonlyMap<string, number>;
  readonly tombstones: number | null;
  /** Units of this sale by state, as inventory shows them. */
  readonly stock: ReadonlyMap<string, number>;
}
