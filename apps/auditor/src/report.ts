import { acceptedAttempts, effectsOfCreation, whyLost } from './check-attempts.js';
import { writtenOrders } from './check-pipeline.js';
import { liveUnits, unitsInRedis } from './check-stock.js';
import { Latencies, type Sale, type Slice } from './evidence.js';
import type { Breach } from './findings.js';
import type { Judgement } from './invariants.js';

/** Milliseconds; `null` where nothing was measured. */
export interface Percentiles {
  readonly p50: number | null;
  readonly p95: number | null;
  readonly p99: number | null;
}

/** The verdict on a sale, as `--json` prints it. */
export interface Verdict {
  readonly saleId: string;
  /** Whether the sale was at rest when it was read. */
  readonly quiet: boolean;
  readonly allotment: number;
  /** MySQL's `sale_stock.sold`. */
  readonly sold: number;
  /** Units of live orders beyond the allotment. */
  readonly oversold: number;
  /** Units not sold at the end although somebody had been told `sold_out`. */
  readonly undersold: number;
  /** Attempts whose order was answered with a 202. */
  readonly accepted: number;
  /** Accepted, then visibly refused by the last guard. */
  readonly rejectedAfterAccept: number;
  /** Accepted, but without a live row or an honest reason. */
  readonly lost: number;
  /** Attempts that took effect more than once. */
  readonly duplicates: number;
  /** Records beyond the first of their attempt: retries, harmless. */
  readonly duplicateRecords: number;
  /** Refused entries and orders by problem code, each answer counted. */
  readonly refused: Readonly<Record<string, number>>;
  readonly latencyMs: {
    readonly entry: Percentiles;
    readonly order: Percentiles;
    /** From the record in Kafka (or the 202, where it is gone) to the row. */
    readonly acceptedToWritten: Percentiles;
  };
  /** The figures that the operator's report shows as well, read on their own. */
  readonly books: Books;
  readonly invariants: {
    /** How many had something to look at. */
    readonly checked: number;
    readonly broken: readonly string[];
    /** What could not be checked, wholly or in part, and why. */
    readonly unchecked: readonly { readonly id: string; readonly why: string }[];
  };
  /** At most five per invariant. */
  readonly breaches: readonly ({ readonly invariant: string } & Breach)[];
  /** All breaches, by invariant. */
  readonly breachCounts: Readonly<Record<string, number>>;
}

/** Units unless a name says otherwise. */
export interface Books {
  readonly redis: {
    readonly free: number;
    readonly held: number;
    readonly queued: number;
    readonly sold: number;
    /** Transfers. */
    readonly openTransfers: number;
  };
  readonly mysql: {
    readonly total: number;
    readonly sold: number;
    readonly paid: number;
    readonly returned: number;
    /** Orders. */
    readonly ordersByState: Readonly<Record<string, number>>;
    /** Orders that never came about. */
    readonly rejectedByReason: Readonly<Record<string, number>>;
    /** Decisions. */
    readonly unappliedEffects: number;
  };
  /** Sums over the partitions of the order topic. */
  readonly kafka: { readonly endOffset: number; readonly committed: number; readonly lag: number };
}

/** Adds up the verdict's figures, slice by slice. */
export class Tally {
  private live = 0;
  private paid = 0;
  private returned = 0;
  private accepted = 0;
  private rejectedAfterAccept = 0;
  private lost = 0;
  private duplicates = 0;
  private keys = 0;
  private readonly acceptedToWritten = new Latencies();
  private readonly ordersByState = new Map<string, number>();
  private readonly rejectedByReason = new Map<string, number>();

  add(slice: Slice): void {
    this.live += liveUnits(slice.orders);
    this.keys += slice.recorded.size;
    for (const { order } of acceptedAttempts(slice)) {
      this.accepted += 1;
      if (order?.state === 'rejected') this.rejectedAfterAccept += 1;
      if (whyLost(order, slice) !== null) this.lost += 1;
    }
    for (const { order, acceptedAtMs } of writtenOrders(slice)) {
      this.acceptedToWritten.add(order.createdAtMs - acceptedAtMs);
    }
    for (const order of slice.ordersById.values()) {
      if (effectsOfCreation(order, slice) > 1) this.duplicates += 1;
      if (order.state === 'paid') this.paid += order.quantity;
      count(this.ordersByState, order.state);
      if (order.state === 'rejected' || order.state === 'expired')
        count(this.rejectedByReason, order.reason ?? 'none');
    }
    this.duplicates += slice.orders.length - slice.ordersById.size;
    for (const legs of slice.ledger.values()) {
      for (const { account, amount, orderId } of legs)
        if (account === 'free' && orderId !== null && amount > 0) this.returned += amount;
    }
  }

  verdict(sale: Sale, judgements: readonly Judgement[]): Verdict {
    const { saleId, quiet, log, mysql, kafka } = sale;
    const { total, sold } = mysql.stock;
    const broken = judgements.filter(({ found }) => found.count > 0);
    return {
      saleId,
      quiet: quiet.reached,
      allotment: mysql.sale.allotment,
      sold,
      oversold: Math.max(0, this.live - total),
      undersold: (log?.toldSoldOut ?? 0) > 0 ? Math.max(0, total - sold) : 0,
      accepted: this.accepted,
      rejectedAfterAccept: this.rejectedAfterAccept,
      lost: this.lost,
      duplicates: this.duplicates,
      duplicateRecords: kafka.recordCount - this.keys,
      refused: Object.fromEntries([...(log?.refused ?? [])].sort(([, a], [, b]) => b - a)),
      latencyMs: {
        entry: percentilesOf(log?.latency.entry),
        order: percentilesOf(log?.latency.order),
        acceptedToWritten: percentilesOf(this.acceptedToWritten),
      },
      books: this.books(sale),
      invariants: {
        checked: judgements.filter(({ found }) => found.lookedAt > 0).length,
        broken: broken.map(({ invariant }) => invariant.id),
        unchecked: judgements.flatMap(({ invariant: { id }, found: { unchecked } }) =>
          unchecked === '' ? [] : [{ id, why: unchecked }],
        ),
      },
      breaches: broken.flatMap(({ invariant, found }) =>
        found.shown.map((breach) => ({ invariant: invariant.id, ...breach })),
      ),
      breachCounts: Object.fromEntries(broken.map(({ invariant, found }) => [invariant.id, found.count])),
    };
  }

  private books({ mysql, redis, kafka }: Sale): Books {
    const { free, held, queued, sold } = unitsInRedis(redis);
    const transfers = redis.buckets.flatMap((bucket) => [...bucket.transfers.values()]);
    const sum = (value: (partition: (typeof kafka.partitions)[number]) => number) =>
      kafka.partitions.reduce((total, partition) => total + value(partition), 0);
    const endOffset = sum(({ high }) => high);
    const committed = sum(({ committed: offset, low }) => offset ?? low);
    return {
      redis: {
        free,
        held,
        queued,
        sold,
        openTransfers: transfers.filter(({ kind }) => kind === 'out').length,
      },
      mysql: {
        ...mysql.stock,
        paid: this.paid,
        returned: this.returned,
        ordersByState: Object.fromEntries(this.ordersByState),
        rejectedByReason: Object.fromEntries(this.rejectedByReason),
        unappliedEffects: mysql.unappliedEffects,
      },
      kafka: { endOffset, committed, lag: Math.max(0, endOffset - committed) },
    };
  }
}

function count(counts: Map<string, number>, name: string): void {
  counts.set(name, (counts.get(name) ?? 0) + 1);
}

function percentilesOf(latencies: Latencies | undefined): Percentiles {
  const at = (share: number) => latencies?.percentile(share) ?? null;
  return { p50: at(0.5), p95: at(0.95), p99: at(0.99) };
}

/** The verdict for people: the figures, one line per invariant, and what is broken with its witnesses. */
export function renderReport(verdict: Verdict, { quiet }: Sale, judgements: readonly Judgement[]): string {
  const lines = [
    `Sale ${verdict.saleId}: ${verdict.sold} of ${verdict.allotment} units sold` +
      ` (oversold ${verdict.oversold}, undersold ${verdict.undersold})`,
    `Accepted ${verdict.accepted} orders: ${verdict.lost} lost, ${verdict.rejectedAfterAccept} rejected afterwards,` +
      ` ${verdict.duplicates} doubled, ${verdict.duplicateRecords} duplicate records (harmless)`,
    `Refused: ${describeCounts(verdict.refused)}`,
    `Latency in ms (p50, p95, p99): entry ${describe(verdict.latencyMs.entry)}; order ${describe(verdict.latencyMs.order)};` +
      ` accepted to written ${describe(verdict.latencyMs.acceptedToWritten)}`,
    quiet.reached
      ? `The sale was at rest after ${quiet.waitedMs} ms.`
      : `The sale was NOT at rest after ${quiet.waitedMs} ms: ${quiet.pending}. Some breaches may come from that.`,
    '',
    ...table(judgements),
  ];
  for (const { invariant, found } of judgements) {
    if (found.count === 0) continue;
    lines.push('', `${invariant.id} is broken ${times(found.count)}: ${invariant.says}`);
    for (const { message, witness } of found.shown)
      lines.push(`  ${message}`, `    ${JSON.stringify(witness)}`);
    if (found.count > found.shown.length) lines.push(`  … and ${found.count - found.shown.length} more`);
  }
  const { checked, broken, unchecked } = verdict.invariants;
  if (unchecked.length > 0) {
    lines.push('', 'Not checked, or not wholly:');
    for (const { id, why } of unchecked) lines.push(`  ${id.padEnd(4)} ${why}`);
  }
  lines.push(
    '',
    broken.length === 0
      ? `Clean: ${checked} of ${judgements.length} invariants had something to look at, none is broken.`
      : `BROKEN: ${broken.join(', ')} (${checked} of ${judgements.length} invariants had something to look at).`,
  );
  return lines.join('\n');
}

function table(judgements: readonly Judgement[]): string[] {
  const width = Math.max(...judgements.map(({ invariant }) => invariant.says.length));
  return judgements.map(({ invariant, found }) => {
    const outcome = found.count > 0 ? 'BROKEN' : found.lookedAt > 0 ? 'ok' : '–';
    const looked = found.lookedAt > 0 ? `${found.lookedAt} looked at` : 'looked at nothing';
    return `${invariant.id.padEnd(4)} ${invariant.says.padEnd(width)}  ${outcome.padEnd(6)}  ${looked}`;
  });
}

function times(count: number): string {
  return count === 1 ? 'once' : `${count} times`;
}

function describe({ p50, p95, p99 }: Percentiles): string {
  return p50 === null ? 'not measured' : `${p50}, ${p95 ?? '–'}, ${p99 ?? '–'}`;
}

function describeCounts(counts: Readonly<Record<string, number>>): string {
  const parts = Object.entries(counts).map(([reason, count]) => `${reason} ${count}`);
  return parts.length > 0 ? parts.join(', ') : 'nobody';
}
