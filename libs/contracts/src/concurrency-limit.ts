/** When latency means that there is too much work, and how far the limit may go. */
export interface ConcurrencyLimitOptions {
  /** A latency up to this is never taken for overload: it is noise. ms */
  readonly goodMs: number;
  /** A latency above this always is, whatever was usual before; well below what callers wait. ms */
  readonly badMs: number;
  /** Pieces of work at once before anything is known, and again after a while of calm. */
  readonly initial?: number;
  /** So many are always let in: without work there is nothing to learn from. */
  readonly min?: number;
  readonly max?: number;
}

const WINDOW_MS = 100;
const MIN_SAMPLES = 10;
/** A window with few samples is closed after this long all the same. */
const LONGEST_WINDOW_MS = 1_000;
/** The best of so many windows tells what can be done: a pause of the process says nothing about it. */
const RATE_WINDOWS = 10;
/** So many slow windows in a row are overload; a single one may be a pause of this process. */
const SLOW_WINDOWS = 2;
/** So many times the usual latency is too long (the tolerance of Netflix' Gradient2). */
const TOLERANCE = 1.5;
const LEARNING_SHARE = 0.05;
const PROBE_LEARNING_SHARE = 0.5;
/** After so many windows at the limit it is halved for a moment, to see whether latency comes from what we let in. */
const PROBE_AFTER_WINDOWS = 30;
const GROWTH = 1.1;

/**
 * How much work may be under way at once, found from how long work takes. There is no queue: what is beyond the limit is
 * refused at once, because work that waits until its caller has gone is what turns a busy minute into an outage.
 *
 * By Little's law a limit of `rate × latency` is all that a server can use, so when work takes too long the limit becomes the
 * best rate of late times the latency that is still good, in one step (BBR's product of bandwidth and delay). When it is used
 * and latency is good, it grows by a tenth and its root. What "too long" means is learned from the latency while nothing is held
 * up here (the long-term latency of Gradient2 in Netflix' concurrency-limits) and, when something always is, from a
 * moment at half the limit (BBR's probe): a dependency that became slower for everybody is not mistaken for an overloaded one
 * for ever, and overload never becomes what is usual. Pure: the clock is its caller's.
 */
export class ConcurrencyLimit {
  private readonly min: number;
  private readonly max: number;
  private readonly initial: number;
  private limit: number;
  private inFlight = 0;
  private usualMs = 0;
  /** The window's: the most that was under way, what left and what was answered, and how long that took together. */
  private peak = 0;
  private left = 0;
  private answered = 0;
  private tookMs = 0;
  private windowStartedMs = Number.NEGATIVE_INFINITY;
  private readonly rates: number[] = [];
  private slowWindows = 0;
  private windowsAtLimit = 0;
  /** While probing: windows that began later than this hold only what was let in at half the limit. */
  private probingFromMs: number | undefined;

  constructor(private readonly options: ConcurrencyLimitOptions) {
    this.min = options.min ?? 16;
    this.max = options.max ?? 10_000;
    this.initial = options.initial ?? 1_000;
    this.limit = this.initial;
  }

  /** How much may be under way at the moment. */
  get current(): number {
    return Math.max(this.min, Math.floor(this.probingFromMs === undefined ? this.limit : this.limit / 2));
  }

  /** How much is. */
  get underWay(): number {
    return this.inFlight;
  }

  /** Whether {@link enter} would let nothing in. */
  isFull(share = 1): boolean {
    return this.inFlight >= this.current * share;
  }

  /**
   * Lets in as many of the wanted as there is room for; each of them must {@link leave} or {@link forget} later.
   *
   * @param share of the limit that this kind of work may fill; the rest is kept for what matters more
   */
  enter(wanted: number, share = 1): number {
    const admitted = Math.max(0, Math.min(wanted, Math.ceil(this.current * share) - this.inFlight));
    this.inFlight += admitted;
    if (this.inFlight > this.peak) this.peak = this.inFlight;
    return admitted;
  }

  /**
   * @param tookMs how long each of them took, from {@link enter} on
   * @param wasAnswered false where the caller gave up before
   */
  leave(count: number, tookMs: number, nowMs: number, wasAnswered = true): void {
    this.inFlight -= count;
    this.left += count;
    this.tookMs += count * tookMs;
    if (wasAnswered) this.answered += count;
    if (this.windowStartedMs === Number.NEGATIVE_INFINITY) this.windowStartedMs = nowMs - tookMs;
    const lastedMs = nowMs - this.windowStartedMs;
    if (lastedMs < WINDOW_MS || (this.left < MIN_SAMPLES && lastedMs < LONGEST_WINDOW_MS)) return;
    this.adapt(nowMs, lastedMs);
    this.windowStartedMs = nowMs;
    this.peak = this.inFlight;
    this.left = 0;
    this.answered = 0;
    this.tookMs = 0;
  }

  /** For work that ended without saying anything about latency, e.g. because nothing was connected. */
  forget(count: number): void {
    this.inFlight -= count;
  }

  private adapt(nowMs: number, lastedMs: number): void {
    const latencyMs = this.tookMs / this.left;
    this.rates.push(this.answered / lastedMs);
    if (this.rates.length > RATE_WINDOWS) this.rates.shift();
    if (this.probingFromMs !== undefined) {
      if (this.windowStartedMs < this.probingFromMs) return;
      this.learn(latencyMs, PROBE_LEARNING_SHARE);
      this.probingFromMs = undefined;
      return;
    }
    const isUsed = this.peak > this.limit / 2;
    if (!isUsed || this.limit <= this.min) this.learn(latencyMs, LEARNING_SHARE);
    this.move(latencyMs, isUsed);
    this.windowsAtLimit = isUsed && this.limit > this.min ? this.windowsAtLimit + 1 : 0;
    if (this.windowsAtLimit < PROBE_AFTER_WINDOWS || latencyMs < this.options.goodMs / 2) return;
    this.windowsAtLimit = 0;
    this.probingFromMs = nowMs + latencyMs;
  }

  private learn(latencyMs: number, share: number): void {
    this.usualMs += (this.usualMs === 0 ? 1 : share) * (latencyMs - this.usualMs);
  }

  private move(latencyMs: number, isUsed: boolean): void {
    const { goodMs, badMs } = this.options;
    const targetMs = Math.min(badMs, Math.max(goodMs, TOLERANCE * this.usualMs));
    this.slowWindows = latencyMs > targetMs ? this.slowWindows + 1 : 0;
    if (this.slowWindows > 0) {
      if (this.slowWindows < SLOW_WINDOWS) return;
      const usable = Math.max(...this.rates) * targetMs;
      this.limit = Math.max(this.min, Math.min(this.limit, usable));
    } else {
      // Where the limit was not felt, growing it only forgets: what was too much some time ago need not be so now.
      const ceiling = isUsed ? this.max : Math.max(this.limit, this.initial);
      this.limit = Math.min(ceiling, this.limit * GROWTH + Math.sqrt(this.limit));
    }
  }
}
