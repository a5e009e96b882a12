import { effectsOfCreation } from './check-attempts.js';
import { unitsInRedis } from './check-stock.js';
import { Latencies, type DeadLetterRow, type OrderRow, type Sale, type Slice } from './evidence.js';
import { bySlice, NEEDS_LOG, type Check, type Findings, type Invariant } from './findings.js';
import { LIVE, RETURNED } from './grammar.js';

const LETTER_STATES: ReadonlySet<string> = new Set(['pending', 'replayed', 'dropped']);

/** What could not be read is kept with all that is needed to read it later, and a dropped one has its honest end. */
function deadLettersAreKept(sale: Sale, found: Findings): Check {
  const rows = new Map<string, DeadLetterRow[]>();
  for (const row of sale.mysql.deadLetters) {
    if (row.orderId === null) continue;
    rows.set(row.orderId, [...(rows.get(row.orderId) ?? []), row]);
  }
  checkLetters(sale, found);
  return {
    slice: ({ orders }) => {
      for (const order of orders) {
        const letters = rows.get(order.orderId);
        if (letters) {
          checkDecided(order, letters, found);
          rows.delete(order.orderId);
        } else if (order.reason === 'poison') {
          found.breach(
            { order_id: order.orderId },
            'was rejected as poison, but there is no dead letter of it',
          );
        }
      }
    },
    finish: () => {
      for (const [orderId, letters] of rows) {
        if (letters.some(({ state }) => state === 'pending')) continue;
        const states = letters.map(({ state }) => state).join(' ');
        found.breach({ order_id: orderId, states }, `its dead letter was ${states}, but it has no row`);
      }
    },
  };
}

function checkDecided(order: OrderRow, letters: readonly DeadLetterRow[], found: Findings): void {
  const states = letters.map(({ state }) => state).join(' ');
  const witness = { order_id: order.orderId, state: order.state, reason: order.reason, letters: states };
  // A letter that came to an attempt which had ended before changes nothing of that.
  const cameFirst = letters.some(({ state, atMs }) => state === 'dropped' && atMs < order.createdAtMs);
  if (cameFirst && order.state === 'expired') {
    found.breach(witness, 'its dead letter was dropped, and it should be rejected as poison');
  }
  if (order.reason === 'poison' && !letters.some(({ state }) => state === 'dropped')) {
    found.breach(witness, 'was rejected as poison, but its dead letter was not dropped');
  }
}

function checkLetters({ kafka, mysql }: Sale, found: Findings): void {
  const noted = new Map(mysql.deadLetters.map((row) => [row.origin, row]));
  const kept = new Set(kafka.deadLetters.map(({ origin }) => origin));
  for (const { key, origin, cause, schema } of kafka.deadLetters) {
    found.look();
    const witness = { key, origin, cause, schema };
    if (!/^.+\/\d+\/\d+$/.test(origin) || !cause || schema === null) {
      found.breach(witness, 'a dead letter does not say where it came from, why, or in which version');
      continue;
    }
    const row = noted.get(origin);
    if (!row) found.breach(witness, 'a dead letter is in its topic, but not in the table');
    else if (row.cause !== cause || row.schema !== schema) {
      found.breach(
        { ...witness, tableCause: row.cause, tableSchema: row.schema },
        'the table says another cause or version of a dead letter than its topic',
      );
    }
  }
  const oldest = new Map(kafka.partitions.map(({ partition, low }) => [partition, low]));
  for (const { origin, state, orderId } of mysql.deadLetters) {
    found.look();
    const witness = { order_id: orderId, origin, state };
    if (!LETTER_STATES.has(state)) found.breach(witness, `a dead letter is ${state}, which none may be`);
    const [, partition, offset] = /\/(\d+)\/(\d+)$/.exec(origin) ?? [];
    // Where Kafka still keeps the record itself, it keeps the letter too, which is younger.
    const isKept = Number(offset) >= (oldest.get(Number(partition)) ?? Infinity);
    if (isKept && !kept.has(origin))
      found.breach(witness, 'a dead letter is in the table, but not in its topic');
  }
}

/** Longer than any hold may be past its time before it is looked at. */
const OVERDUE_MS = 60_000;

/** At rest nothing is left to be done, and what is left will be looked at. */
function nothingForgotten(sale: Sale, found: Findings): Check {
  for (const { bucket, transfers, dueTransfers } of sale.redis.buckets) {
    for (const [id, { kind, units }] of transfers) {
      found.look();
      if (kind === 'out' && !dueTransfers.has(id)) {
        found.breach({ transfer: id, bucket, units }, 'an open transfer that nothing will look at again');
      }
    }
    for (const id of dueTransfers) {
      if (transfers.get(id)?.kind === 'out') continue;
      found.breach({ transfer: id, bucket }, 'a transfer is to be looked at again, but it is not open');
    }
  }
  return { slice: (slice) => checkDue(slice, found) };
}

function checkDue({ orders, holds, due }: Slice, found: Findings): void {
  const nowMs = Date.now();
  for (const { orderId, effects } of orders) {
    for (const { kind, appliedAtMs, createdAtMs } of effects) {
      found.look();
      if (appliedAtMs === null)
        found.breach({ order_id: orderId, kind, createdAtMs }, 'Redis was never told of a decision');
    }
  }
  for (const { attemptId, state, deadlineMs, bucket } of holds.values()) {
    if (!/^[HhQq]$/.test(state)) continue;
    found.look();
    const witness = { attemptId, bucket, redis: state, deadlineMs };
    if (!due.has(attemptId)) found.breach(witness, 'a hold that nothing will ever look at again');
    if (deadlineMs + OVERDUE_MS < nowMs)
      found.breach(witness, `a hold is ${nowMs - deadlineMs} ms past its deadline and not resolved`);
  }
  for (const [attemptId, atMs] of due) {
    const state = holds.get(attemptId)?.state ?? null;
    if (state !== null && /^[HhQq]$/.test(state)) continue;
    found.breach({ attemptId, redis: state, atMs }, 'is to be looked at again, but it is resolved');
  }
}

/** A record that was written twice, by whatever retry, has one outcome. */
function duplicatesAreHarmless(slice: Slice, found: Findings): void {
  for (const [key, { positions, tokens }] of slice.recorded) {
    if (positions.length < 2) continue;
    found.look();
    const order = slice.ordersById.get(key);
    if (!order) continue;
    const times = effectsOfCreation(order, slice);
    const witness = { order_id: key, records: positions.length, times };
    if (times > 1) found.breach(witness, `its ${positions.length} records took effect ${times} times`);
    const claims = tokens.flatMap((token) => (token.claims ? [token.claims] : []));
    if (claims.some(({ attemptId, quantity }) => attemptId !== key || quantity !== order.quantity)) {
      found.breach(witness, 'its records do not all ask for the same');
    }
  }
}

const NEEDS_METRICS = 'needs the services’ metrics: --metrics URL for each process';

/** What the services count is what the stores say. Their counters begin with their processes and are of all sales together. */
function countersTellTheTruth(sale: Sale, found: Findings): Check {
  const { counters, faults, log, mysql, kafka } = sale;
  if (!counters) {
    found.cannot(NEEDS_METRICS);
    return {};
  }
  const isAlone = mysql.sales === 1;
  if (!isAlone) found.cannot('exactly: the database has other sales, and counters are of all together');
  if (faults) found.cannot('exactly: counters begin anew where a process was killed');
  const decided = new Map<string, number>();
  let tombstones = 0;
  const compare = (name: string, counted: number | null, truth: number) => {
    if (counted === null) {
      found.cannot(`${name}: no process has that counter`);
      return;
    }
    found.look();
    const tooFew = counted < truth && !faults;
    const tooMany = counted > truth && isAlone;
    if (tooFew || tooMany)
      found.breach({ counter: name, counted, truth }, `${name} is ${counted}, the stores say ${truth}`);
  };
  return {
    slice: ({ orders }) => {
      for (const { events, state } of orders) {
        const first = events[0]?.to ?? state;
        if (first === 'expired') tombstones += 1;
        else decided.set(first, (decided.get(first) ?? 0) + 1);
      }
    },
    finish: () => {
      for (const state of ['awaiting_payment', 'rejected']) {
        const counted = counters.writtenByState.size > 0 ? (counters.writtenByState.get(state) ?? 0) : null;
        // What an operator dropped is rejected without the writer.
        if (state === 'rejected' && mysql.deadLetters.length > 0) continue;
        compare(`orders_written_total{state="${state}"}`, counted, decided.get(state) ?? 0);
      }
      compare('inventory_tombstones_total', counters.tombstones ?? (tombstones === 0 ? 0 : null), tombstones);
      checkAcceptances(
        counters.accepted,
        { faults, answered: log?.acceptances ?? null, records: kafka.recordCount },
        found,
      );
      checkStockGauge(sale, counters.stock, found);
    },
  };
}

/** A 202 that somebody received was counted; one that was counted may have been lost on the way. */
function checkAcceptances(
  accepted: number | null,
  { faults, answered, records }: { faults: boolean; answered: number | null; records: number },
  found: Findings,
): void {
  if (accepted === null || answered === null) {
    found.cannot(accepted === null ? 'orders_placed_total: no process has that counter' : NEEDS_LOG);
    return;
  }
  found.look();
  if (accepted < answered && !faults) {
    found.breach(
      { counter: 'orders_placed_total{answer="accepted"}', counted: accepted, truth: answered, records },
      `the services count ${accepted} accepted orders, the crowd was answered ${answered} times with 202`,
    );
  }
}

function checkStockGauge({ redis }: Sale, stock: ReadonlyMap<string, number>, found: Findings): void {
  if (stock.size === 0) {
    found.cannot('sale_stock_units: no process shows this sale');
    return;
  }
  const units = unitsInRedis(redis);
  for (const state of ['free', 'held', 'queued', 'sold'] as const) {
    found.look();
    const shown = stock.get(state) ?? 0;
    if (shown === units[state]) continue;
    found.breach(
      { counter: `sale_stock_units{state="${state}"}`, counted: shown, truth: units[state] },
      `${shown} units are shown as ${state}, Redis has ${units[state]}`,
    );
  }
}

/** The bounds of the contract, and how far beyond them a run fails: the machine may be slow, three times is no slowness. */
const WRITTEN_MS = 2_000;
const WRITTEN_AFTER_HEALING_MS = 10_000;
const ACCEPTED_AFTER_HEALING_MS = 15_000;
const LENIENCE = 3;

/** What was accepted is decided soon; and after a fault has healed, everything goes on without a hand. */
function decidedInTime(sale: Sale, found: Findings): Check {
  const { faults, healedAtMs, log } = sale;
  if (faults && healedAtMs === null) found.cannot('times: needs --healed-at where faults were injected');
  const waited = new Latencies();
  const nowMs = Date.now();
  let fromTheFuture = 0;
  let slowest = { order_id: '', waitedMs: 0 };
  return {
    slice: (slice) => {
      for (const { order, acceptedAtMs } of writtenOrders(slice)) {
        const sinceMs = Math.max(acceptedAtMs, (faults && healedAtMs) || 0);
        if (faults && healedAtMs === null) continue;
        found.look();
        if (order.createdAtMs > nowMs) {
          fromTheFuture += 1;
          continue;
        }
        const waitedMs = order.createdAtMs - sinceMs;
        waited.add(waitedMs);
        if (waitedMs > slowest.waitedMs) slowest = { order_id: order.orderId, waitedMs };
      }
    },
    finish: () => {
      if (fromTheFuture > 0)
        found.cannot(
          `times of ${fromTheFuture} orders: the database's clock was set back since they were written`,
        );
      const boundMs = faults ? WRITTEN_AFTER_HEALING_MS : WRITTEN_MS;
      // After healing it is all of them; a run without faults has its hundredth.
      const worstMs = faults ? slowest.waitedMs : (waited.percentile(0.99) ?? 0);
      if (worstMs > LENIENCE * boundMs) {
        found.breach(
          { ...slowest, worstMs, boundMs },
          `accepted orders waited up to ${worstMs} ms to be decided, the bound is ${boundMs} ms`,
        );
      }
      if (log && faults && healedAtMs !== null) acceptedAgain(log.seconds, healedAtMs, found);
    },
  };
}

/** Orders with the time at which they were accepted at the latest: that of their first record, or of their 202. */
export function* writtenOrders({
  orders,
  recorded,
  logged,
}: Slice): Generator<{ readonly order: OrderRow; readonly acceptedAtMs: number }> {
  for (const order of orders) {
    const { orderId, kafkaOffset, state } = order;
    // Tombstones and dropped dead letters were not written because of a record.
    if (kafkaOffset === null || !(LIVE.has(state) || RETURNED.has(state) || state === 'rejected')) continue;
    const times = recorded.get(orderId)?.positions.map(({ timestampMs }) => timestampMs) ?? [];
    const acceptedAtMs = times.length > 0 ? Math.min(...times) : (logged?.get(orderId)?.acceptedAtMs ?? null);
    if (acceptedAtMs !== null) yield { order, acceptedAtMs };
  }
}

function acceptedAgain(
  seconds: ReadonlyMap<number, { asked: number; accepted: number }>,
  healedAtMs: number,
  found: Findings,
): void {
  const healed = Math.ceil(healedAtMs / 1_000);
  const last = healed + (LENIENCE * ACCEPTED_AFTER_HEALING_MS) / 1_000;
  let asked = 0;
  let accepted = 0;
  let askedAtTheEnd = false;
  for (const [second, counts] of seconds) {
    if (second < healed) continue;
    if (second > last) askedAtTheEnd ||= counts.asked > 0;
    else {
      asked += counts.asked;
      accepted += counts.accepted;
    }
  }
  if (asked === 0) return;
  found.look();
  // Whoever asked only for a moment after the healing may rightly have met its last refusals.
  if (accepted > 0 || !askedAtTheEnd) return;
  found.breach(
    { healedAtMs, asked, withinMs: LENIENCE * ACCEPTED_AFTER_HEALING_MS },
    `no order was accepted in the ${LENIENCE * ACCEPTED_AFTER_HEALING_MS} ms after healing, ${asked} were asked for`,
  );
}

/** I23 to I25, I28, I29: what comes after the promise. */
export const PIPELINE_INVARIANTS: readonly Invariant[] = [
  { id: 'I23', says: 'dead letters are kept whole, and dropped ones are decided', begin: deadLettersAreKept },
  { id: 'I24', says: 'at rest nothing is left undone or forgotten', begin: nothingForgotten },
  { id: 'I25', says: 'a record written twice takes effect once', begin: bySlice(duplicatesAreHarmless) },
  { id: 'I28', says: 'the services’ counters tell the truth', begin: countersTellTheTruth },
  { id: 'I29', says: 'what was accepted is decided in time', begin: decidedInTime },
];
