/** The middle of several measurements and how far they lie apart. */
export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

/** Latencies of many requests, ms. */
export interface Latency {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
  readonly p999: number;
  readonly max: number;
}

/** @throws where there is nothing to take the middle of */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new RangeError('nothing has no median');
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}

export function spreadOf(values: readonly number[]): Spread {
  return { median: median(values), min: Math.min(...values), max: Math.max(...values) };
}

/** Whether two sets of measurements do not even overlap: then their difference is more than noise. */
export function areApart(a: Spread, b: Spread): boolean {
  return a.max < b.min || b.max < a.min;
}

/**
 * The smallest value that at least the share `q` of all values does not exceed. Nothing is interpolated: it is a value that
 * somebody met.
 *
 * @param sorted in ascending order
 * @param q from 0 to 1
 */
export function quantile(sorted: ArrayLike<number>, q: number): number {
  if (sorted.length === 0) throw new RangeError('nothing has no quantile');
  const rank = Math.max(1, Math.ceil(q * sorted.length - 1e-9));
  return sorted[rank - 1] ?? Number.NaN;
}

/** @returns null where nothing was measured */
export function latencyOf(latenciesMs: readonly number[]): Latency | null {
  if (latenciesMs.length === 0) return null;
  // Numbers compare by value only in a typed array.
  const sorted = Float64Array.from(latenciesMs).sort();
  return {
    count: sorted.length,
    p50: quantile(sorted, 0.5),
    p99: quantile(sorted, 0.99),
    p999: quantile(sorted, 0.999),
    max: sorted.at(-1) ?? Number.NaN,
  };
}

/**
 * When the n-th request of an open load is due, ms from the start. Its latency counts from then, whether or not it could be sent
 * then: a server that stands still makes everybody wait who would have come meanwhile, and a client that waited politely
 * until it could send would leave just them out (coordinated omission).
 */
export function dueAfterMs(index: number, perSecond: number): number {
  return (1_000 * index) / perSecond;
}

/** By how many per cent `now` is more than `before`; negative where it is less. */
export function changePercent(before: number, now: number): number {
  return (100 * (now - before)) / before;
}
