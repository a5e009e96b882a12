import { CLOCK_BOUND_MS, type Evidence, type OrderRow } from './evidence.js';
import type { Findings, Invariant } from './findings.js';
import { LIVE } from './grammar.js';

/** How long after units came back a refusal may still say `sold_out`: flags travel, and a lost one is found by a rescan. */
const RECONCILE_MS = 5_000;
/** The same where faults were injected: whoever lifts a flag may have been down, and has this long to come back. */
const RECONCILE_AFTER_FAULTS_MS = 15_000;

/**
 * Nobody is told `sold_out` while a unit is free. For each refusal the units are counted that anybody had at any moment
 * from some seconds before it was sent until it was answered; if even all of them together leave enough, it was wrong.
 */
function noUnitStranded(evidence: Evidence, found: Findings): void {
  const { log, mysql, redis, faults } = evidence;
  if (!log) return;
  const reconcileMs = faults ? RECONCILE_AFTER_FAULTS_MS : RECONCILE_MS;
  found.look(log.soldOut.length);
  const taken = whenUnitsWereTaken(evidence);
  const starts = new RunningSum(taken.map(({ fromMs, units }) => ({ atMs: fromMs, units })));
  const ends = new RunningSum(taken.map(({ untilMs, units }) => ({ atMs: untilMs, units })));
  const allotted = new RunningSum(allotments(evidence));
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
  const stranded = mysql.stock.total - mysql.stock.sold - freeUnits(redis);
  if (log.toldSoldOut > 0 && stranded > 0 && redis.buckets.every(({ present }) => present)) {
    found.breach(
      { total: mysql.stock.total, sold: mysql.stock.sold, free: freeUnits(redis), stranded },
      `${stranded} units are neither sold nor free although people were told sold_out`,
    );
  }
}

/** Units that nobody has: neither sold nor held, queued or under way. */
function freeUnits({ buckets }: Evidence['redis']): number {
  return buckets.reduce((sum, { account }) => sum + (account.free || 0), 0);
}

interface Taken {
  readonly fromMs: number;
  readonly untilMs: number;
  readonly units: number;
}

/** For every attempt that ever had units: since when at the earliest, until when at the latest. */
function whenUnitsWereTaken({ log, kafka, mysql, redis }: Evidence): Taken[] {
  const taken: Taken[] = [];
  const since = (attemptId: string) => {
    const logged = log?.attempts.get(attemptId);
    const tokens = [...(logged?.tokens ?? []), ...(kafka.recorded.get(attemptId)?.tokens ?? [])];
    const issued = tokens.flatMap(({ claims }) => (claims ? [claims.issuedAtMs] : []));
    if (issued.length > 0) return Math.min(...issued) - CLOCK_BOUND_MS;
    return logged ? logged.firstSentMs - CLOCK_BOUND_MS : -Infinity;
  };
  for (const order of mysql.orders) {
    taken.push({ fromMs: since(order.orderId), untilMs: returnedBy(order), units: order.quantity });
  }
  for (const { attemptId, quantity } of redis.attempts.values()) {
    if (mysql.ordersById.has(attemptId)) continue;
    taken.push({ fromMs: since(attemptId), untilMs: Infinity, units: quantity || 0 });
  }
  return taken;
}

/** When a row's units were back in Redis at the latest. A tombstone's return is applied without an effect. */
function returnedBy({ state, effects, updatedAtMs }: OrderRow): number {
  if (LIVE.has(state)) return Infinity;
  const effect = effects.find(({ kind }) => kind === 'void');
  if (!effect) return updatedAtMs;
  return effect.appliedAtMs ?? Infinity;
}

function allotments({ mysql }: Evidence): { atMs: number; units: number }[] {
  const legs = [...mysql.ledger.values()].flat().filter(({ account }) => account === 'allotment');
  if (legs.length === 0) return [{ atMs: -Infinity, units: mysql.stock.total }];
  return legs.map(({ atMs, amount }) => ({ atMs, units: -amount }));
}

/** How many units have come together up to a moment. */
class RunningSum {
  private readonly times: number[] = [];
  private readonly sums: number[] = [];

  constructor(changes: { atMs: number; units: number }[]) {
    let sum = 0;
    for (const { atMs, units } of changes.sort((a, b) => a.atMs - b.atMs)) {
      sum += units;
      this.times.push(atMs);
      this.sums.push(sum);
    }
  }

  until(atMs: number): number {
    let low = 0;
    let high = this.times.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.times[middle] ?? Infinity) <= atMs) low = middle + 1;
      else high = middle;
    }
    return low === 0 ? 0 : (this.sums[low - 1] ?? 0);
  }
}

/** I5: demand is never turned away while there is supply. */
export const SUPPLY_INVARIANTS: readonly Invariant[] = [
  { id: 'I5', says: 'nobody is told sold_out while a unit is free', check: noUnitStranded },
];
