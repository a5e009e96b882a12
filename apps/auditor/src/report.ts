import { acceptedAttempts, effectsOfCreation, whyLost } from './check-attempts.js';
import { liveUnits } from './check-stock.js';
import { Latencies, type Evidence } from './evidence.js';
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
  /** `checked` counts the invariants that had something to look at. */
  readonly invariants: { readonly checked: number; readonly broken: readonly string[] };
  /** At most five per invariant. */
  readonly breaches: readonly ({ readonly invariant: string } & Breach)[];
  /** All breaches, by invariant. */
  readonly breachCounts: Readonly<Record<string, number>>;
}

export function verdictOf(evidence: Evidence, judgements: readonly Judgement[]): Verdict {
  const { saleId, quiet, log, mysql, kafka } = evidence;
  const { total, sold } = mysql.stock;
  const accepted = [...acceptedAttempts(evidence)];
  const broken = judgements.filter(({ found }) => found.count > 0);
  return {
    saleId,
    quiet: quiet.reached,
    allotment: total,
    sold,
    oversold: Math.max(0, liveUnits(mysql.orders) - total),
    undersold: (log?.toldSoldOut ?? 0) > 0 ? Math.max(0, total - sold) : 0,
    accepted: accepted.length,
    rejectedAfterAccept: accepted.filter(({ order }) => order?.state === 'rejected').length,
    lost: accepted.filter(({ order }) => whyLost(order, evidence) !== null).length,
    duplicates: duplicatesIn(evidence),
    duplicateRecords: kafka.recordCount - kafka.recorded.size,
    refused: Object.fromEntries([...(log?.refused ?? [])].sort(([, a], [, b]) => b - a)),
    latencyMs: {
      entry: percentilesOf(log?.latency.entry),
      order: percentilesOf(log?.latency.order),
      acceptedToWritten: percentilesOf(acceptedToWritten(evidence)),
    },
    invariants: {
      checked: judgements.filter(({ found }) => found.lookedAt > 0).length,
      broken: broken.map(({ invariant }) => invariant.id),
    },
    breaches: broken.flatMap(({ invariant, found }) =>
      found.shown.map((breach) => ({ invariant: invariant.id, ...breach })),
    ),
    breachCounts: Object.fromEntries(broken.map(({ invariant, found }) => [invariant.id, found.count])),
  };
}

function duplicatesIn(evidence: Evidence): number {
  const { orders, ordersById, orderCount } = evidence.mysql;
  const tooOften = [...ordersById.values()].filter((order) => effectsOfCreation(order, evidence) > 1);
  return tooOften.length + Math.max(orders.length, orderCount) - ordersById.size;
}

function acceptedToWritten({ log, kafka, mysql }: Evidence): Latencies {
  const latencies = new Latencies();
  for (const { orderId, state, kafkaOffset, createdAtMs } of mysql.orders) {
    // Tombstones and dropped dead letters were not written because of a record.
    if (state === 'expired' || kafkaOffset === null) continue;
    const recorded = kafka.recorded.get(orderId)?.positions.map(({ timestampMs }) => timestampMs) ?? [];
    const acceptedAtMs =
      recorded.length > 0 ? Math.min(...recorded) : (log?.attempts.get(orderId)?.acceptedAtMs ?? null);
    if (acceptedAtMs !== null) latencies.add(createdAtMs - acceptedAtMs);
  }
  return latencies;
}

function percentilesOf(latencies: Latencies | undefined): Percentiles {
  const at = (share: number) => latencies?.percentile(share) ?? null;
  return { p50: at(0.5), p95: at(0.95), p99: at(0.99) };
}

/** The verdict for people: the figures, one line per invariant, and what is broken with its witnesses. */
export function renderReport(
  verdict: Verdict,
  { quiet }: Evidence,
  judgements: readonly Judgement[],
): string {
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
  const { checked, broken } = verdict.invariants;
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
