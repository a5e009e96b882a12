import { CLOCK_BOUND_MS, type LogFigures, type OrderRow, type Sale, type Slice } from './evidence.js';
import { NEEDS_LOG, type Check, type Findings, type Invariant } from './findings.js';
import { LIVE } from './grammar.js';

/** How long after units came back a refusal may still say `sold_out`: flags travel, and a lost one is found by a rescan. */
const RECONCILE_MS = 5_000;
/** The same where faults were injected: whoever lifts a flag may have been down, and has this long to come back. */
const RECONCILE_AFTER_FAULTS_MS = 15_000;

/** A hold that Redis forgot counted there until it would have ended at the latest, and was swept. */
const FORGOTTEN_HOLD_MS = 30_000;

/**
 * Nobody is told `sold_out` while a unit is free. For each refusal the units are counted that anybody had at any moment
 * from some seconds before it was sent until it was answered; if even all of them together leave enough, it was wrong.
 */
function noUnitStranded(sale: Sale, found: Findings): Check {
  const { log } = sale;
  if (!log) {
    found.cannot(NEEDS_LOG);
    return {};
  }
  const starts = new RunningSum();
  const ends = new RunningSum();
  const allotted = new RunningSum();
  return {
    slice: (slice) => {
      for (const { fromMs, untilMs, units } of whenUnitsWereTaken(slice)) {
        starts.add(Math.floor(fromMs), units);
        ends.add(Math.ceil(untilMs), units);
      }
      for (const legs of slice.ledger.values()) {
        for (const { account, atMs, amount } of legs)
          if (account === 'allotment') allotted.add(atMs, -amount);
      }
    },
    finish: () => {
      judgeRefusals(sale, log, { starts, ends, allotted }, found);
      judgeRest(sale, log, found);
    },
  };
}

function judgeRefusals(
  { faults }: Sale,
  log: LogFigures,
  { starts, ends, allotted }: Readonly<Record<'starts' | 'ends' | 'allotted', RunningSum>>,
  found: Findings,
): void {
  const reconcileMs = faults ? RECONCILE_AFTER_FAULTS_MS : RECONCILE_MS;
  found.look(log.soldOut.length);
  for (const { attemptId, quantity, sentMs, receivedMs } of log.soldOut) {
    const sinceMs = sentMs - reconcileMs - CLOCK_BOUND_MS;
    const busy = starts.until(receivedMs + CLOCK_BOUND_MS) - ends.until(sinceMs);
    const free = allotted.until(sinceMs) - busy;
    if (free < quantity) continue;
    found.breach(
      { attemptId, quantity, sentMs, receivedMs, free },
      `was told sold_out although at least ${free} units had been free for ${reconcileMs} ms`,
    );
  }
}

function judgeRest({ mysql, redis }: Sale, log: LogFigures, found: Findings): void {
  const { total, sold } = mysql.stock;
  const free = redis.buckets.reduce((sum, { account }) => sum + (account.free || 0), 0);
  const stranded = total - sold - free;
  if (log.toldSoldOut === 0 || stranded <= 0 || !redis.buckets.every(({ present }) => present)) return;
  found.breach(
    { total, sold, free, stranded },
    `${stranded} units are neither sold nor free although people were told sold_out`,
  );
}

interface Taken {
  readonly fromMs: number;
  readonly untilMs: number;
  readonly units: number;
}

/** For every attempt that ever had units: since when at the earliest, until when at the latest. */
function* whenUnitsWereTaken({ logged, recorded, orders, ordersById, holds }: Slice): Generator<Taken> {
  const since = (attemptId: string) => {
    const attempt = logged?.get(attemptId);
    const tokens = [...(attempt?.tokens ?? []), ...(recorded.get(attemptId)?.tokens ?? [])];
    const issued = tokens.flatMap(({ claims }) => (claims ? [claims.issuedAtMs] : []));
    if (issued.length > 0) return Math.min(...issued) - CLOCK_BOUND_MS;
    return attempt ? attempt.firstSentMs - CLOCK_BOUND_MS : -Infinity;
  };
  for (const order of orders) {
    yield { fromMs: since(order.orderId), untilMs: returnedBy(order), units: order.quantity };
  }
  for (const { attemptId, quantity } of holds.values()) {
    if (ordersById.has(attemptId)) continue;
    yield { fromMs: since(attemptId), untilMs: Infinity, units: quantity || 0 };
  }
  for (const [attemptId, { tokens }] of logged ?? []) {
    const claims = tokens.flatMap((token) => (token.claims ? [token.claims] : []));
    const [first] = claims;
    if (!first || ordersById.has(attemptId) || holds.has(attemptId)) continue;
    const expiresAtMs = Math.max(...claims.map((claim) => claim.expiresAtMs));
    yield {
      fromMs: since(attemptId),
      untilMs: expiresAtMs + FORGOTTEN_HOLD_MS,
      units: first.quantity,
    };
  }
}

/** When a row's units were back in Redis at the latest. A tombstone's return is applied without an effect. */
function returnedBy({ state, effects, updatedAtMs }: OrderRow): number {
  if (LIVE.has(state)) return Infinity;
  const effect = effects.find(({ kind }) => kind === 'void');
  if (!effect) return updatedAtMs;
  return effect.appliedAtMs ?? Infinity;
}

/** How many units have come together up to a moment. It is filled first and asked then; memory grows with milliseconds. */
class RunningSum {
  private readonly changes = new Map<number, number>();
  private times: number[] | null = null;
  private sums: number[] = [];

  add(atMs: number, units: number): void {
    this.changes.set(atMs, (this.changes.get(atMs) ?? 0) + units);
    this.times = null;
  }

  until(atMs: number): number {
    const times = this.times ?? this.sort();
    let low = 0;
    let high = times.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((times[middle] ?? Infinity) <= atMs) low = middle + 1;
      else high = middle;
    }
    return low === 0 ? 0 : (this.sums[low - 1] ?? 0);
  }

  private sort(): number[] {
    const times = [...this.changes.keys()].sort((a, b) => a - b);
    let sum = 0;
    this.sums = times.map((atMs) => (sum += this.changes.get(atMs) ?? 0));
    this.times = times;
    return times;
  }
}

/** I5: demand is never turned away while there is supply. */
export const SUPPLY_INVARIANTS: readonly Invariant[] = [
  { id: 'I5', says: 'nobody is told sold_out while a unit is free', begin: noUnitStranded },
];
