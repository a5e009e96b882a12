/** The median, the slow twentieth and the slow hundredth, ms; `null` without a sample. */
export interface Percentiles {
  readonly p50: number | null;
  readonly p95: number | null;
  readonly p99: number | null;
}

const SMALLEST_MS = 0.1;
const GROWTH = 1.02;
const BUCKETS = 700;

/** Durations in buckets that are each 2 % wider than the one before, from 0.1 ms to a day: small, bounded, exact to 1 %. */
export class LatencyHistogram {
  readonly #counts = new Uint32Array(BUCKETS + 1);
  #samples = 0;

  get samples(): number {
    return this.#samples;
  }

  add(durationMs: number): void {
    const bucket = Math.ceil(Math.log(Math.max(durationMs, SMALLEST_MS) / SMALLEST_MS) / Math.log(GROWTH));
    const at = Math.min(BUCKETS, Math.max(0, bucket));
    this.#counts[at] = (this.#counts[at] ?? 0) + 1;
    this.#samples += 1;
  }

  percentiles(): Percentiles {
    return { p50: this.#quantile(0.5), p95: this.#quantile(0.95), p99: this.#quantile(0.99) };
  }

  #quantile(share: number): number | null {
    if (this.#samples === 0) return null;
    let left = Math.ceil(this.#samples * share);
    for (let bucket = 0; bucket <= BUCKETS; bucket += 1) {
      left -= this.#counts[bucket] ?? 0;
      if (left <= 0) return Math.round(SMALLEST_MS * GROWTH ** (bucket - 0.5) * 10) / 10;
    }
    throw new Error('a histogram lost a sample');
  }
}

/** How a shopper's visit ended. */
export type Departure =
  | 'paid'
  /** Left a granted hold or an order alone, as it meant to. */
  | 'walked_away'
  /** The card was declined, as it was meant to be. */
  | 'declined'
  /** Never got a unit and wanted one: see the reason of the last refusal. */
  | 'refused'
  /** Wanted to pay, but the time for it was over. */
  | 'too_late'
  /** Was told 202 and then got no order; the auditor says whether that was honest. */
  | 'rejected'
  /** Gave up asking what became of an order. */
  | 'undecided';

/** What the crowd itself has seen, counted in people unless a name says otherwise. */
export class Figures {
  arrived = 0;
  /** People whose units were granted at least once. */
  granted = 0;
  /** Orders answered with 202. */
  ordered = 0;
  /** Orders of which the shopper has seen that a row in MySQL decided them. */
  written = 0;
  paid = 0;
  /** Requests sent, and how many of them got no answer at all. */
  requests = 0;
  unanswered = 0;
  readonly departures: Record<Departure, number> = {
    paid: 0,
    walked_away: 0,
    declined: 0,
    refused: 0,
    too_late: 0,
    rejected: 0,
    undecided: 0,
  };
  /** From when a request for a unit was due until it was granted or refused. */
  readonly entryMs = new LatencyHistogram();
  /** From when an order was due until its 202. */
  readonly orderMs = new LatencyHistogram();
  readonly #refused = new Map<string, number>();
  #ungrantedGone = 0;

  /** People who want a unit, were never granted one and have not left: asking, in the line, or about to ask again. */
  get waiting(): number {
    return this.arrived - this.granted - this.#ungrantedGone;
  }

  get left(): number {
    return Object.values(this.departures).reduce((sum, people) => sum + people, 0);
  }

  /** People without a unit by the last reason they were given; those who got one later are no longer among them. */
  get refused(): Record<string, number> {
    const reasons = [...this.#refused].filter(([, people]) => people > 0);
    return Object.fromEntries(reasons.toSorted(([, one], [, other]) => other - one));
  }

  /** A shopper's latest refusal changed. */
  moveRefusal(from: string | undefined, to: string | undefined): void {
    if (from === to) return;
    if (from !== undefined) this.#refused.set(from, (this.#refused.get(from) ?? 0) - 1);
    if (to !== undefined) this.#refused.set(to, (this.#refused.get(to) ?? 0) + 1);
  }

  depart(how: Departure, wasGranted: boolean): void {
    this.departures[how] += 1;
    if (!wasGranted) this.#ungrantedGone += 1;
  }
}
