import {
  CLOCK_BOUND_MS,
  type LoggedAttempt,
  type OrderRow,
  type RecordedAttempt,
  type Sale,
  type Slice,
} from './evidence.js';
import { byLog, bySlice, type Check, type Findings, type Invariant } from './findings.js';
import { EXPIRY_REASONS, LIVE, mayFollow, REJECTION_REASONS, RETURNED, type SeenToken } from './grammar.js';

/** The attempts whose order was answered with a 202, with the row that each must have. */
export function* acceptedAttempts({ logged, ordersById }: Slice): Generator<{
  readonly attemptId: string;
  readonly acceptedAtMs: number;
  readonly attempt: LoggedAttempt;
  readonly order: OrderRow | undefined;
}> {
  for (const [attemptId, attempt] of logged ?? []) {
    const { acceptedAtMs } = attempt;
    if (acceptedAtMs === null) continue;
    yield { attemptId, acceptedAtMs, attempt, order: ordersById.get(attemptId) };
  }
}

/** Whether a row names a record that is not in the topic: Kafka lost what it had acknowledged. */
function lostByKafka(order: OrderRow, { recorded }: Slice): boolean {
  if (order.reason !== 'lost' || order.kafkaPartition === null || order.kafkaOffset === null) return false;
  const positions = recorded.get(order.orderId)?.positions ?? [];
  return !positions.some(({ partition, offset }) => isAt(order, partition, offset));
}

const isAt = (order: OrderRow, partition: number, offset: number) =>
  order.kafkaPartition === partition && order.kafkaOffset === offset;

/** Why an accepted order has no honest end; `null` where it has one, or lives. */
export function whyLost(order: OrderRow | undefined, slice: Slice): string | null {
  if (!order) return 'was accepted with a 202, but has no row';
  if (LIVE.has(order.state) || RETURNED.has(order.state)) return null;
  if (order.state === 'rejected') {
    return REJECTION_REASONS.has(order.reason ?? '')
      ? null
      : `was rejected without a reason (${order.reason ?? 'none'})`;
  }
  if (order.state === 'expired') {
    return lostByKafka(order, slice)
      ? null
      : `was accepted with a 202, but ended expired (${order.reason ?? 'no reason'}), and Kafka did not lose it`;
  }
  return `has the state ${order.state}, which no order may have`;
}

function everyPromiseDecided(slice: Slice, found: Findings): void {
  for (const { attemptId, attempt, order } of acceptedAttempts(slice)) {
    found.look();
    const witness = {
      order_id: attemptId,
      state: order?.state ?? null,
      reason: order?.reason ?? null,
      lastAnswer: attempt.lastOrderState,
    };
    const lost = whyLost(order, slice);
    if (lost !== null) found.breach(witness, lost);
    if (order?.state === 'rejected' && !slice.sale.faults) {
      found.breach(witness, 'was rejected after its 202 in a run without faults');
    }
    const { lastOrderState } = attempt;
    if (order && lastOrderState !== '' && !mayFollow(lastOrderState, order.state)) {
      found.breach(witness, `was shown as ${lastOrderState}, from which ${order.state} cannot follow`);
    }
  }
}

/** How often a row's creation shows in the books: once. */
export function effectsOfCreation(order: OrderRow, { ledger }: Slice): number {
  const sales = [...order.entryIds].filter((id) =>
    ledger.get(id)?.some(({ account, amount }) => account === 'sold' && amount > 0),
  );
  const creations = order.events.filter(({ to }) => to === 'awaiting_payment');
  return Math.max(1, sales.length, creations.length);
}

function oneOrderPerAttempt(sale: Sale, found: Findings): Check {
  const offsets = new Map<number, number[]>();
  let distinct = 0;
  return {
    slice: (slice) => {
      found.look(slice.orders.length);
      const seen = new Set<string>();
      for (const order of slice.orders) {
        const { orderId, kafkaPartition, kafkaOffset } = order;
        if (seen.has(orderId)) {
          found.breach({ order_id: orderId }, 'has more than one row');
          continue;
        }
        seen.add(orderId);
        const times = effectsOfCreation(order, slice);
        if (times > 1) found.breach({ order_id: orderId, times }, `took effect ${times} times`);
        if (kafkaPartition === null || kafkaOffset === null) continue;
        const known = offsets.get(kafkaPartition);
        if (known) known.push(kafkaOffset);
        else offsets.set(kafkaPartition, [kafkaOffset]);
      }
      distinct += seen.size;
    },
    finish: () => {
      for (const [partition, used] of offsets) {
        const sorted = Float64Array.from(used).sort();
        for (let i = 1; i < sorted.length; i += 1) {
          if (sorted[i] !== sorted[i - 1]) continue;
          found.breach(
            { record: `${partition}/${sorted[i]}`, kafka_partition: partition, kafka_offset: sorted[i] ?? 0 },
            'is a record from which more than one order comes',
          );
        }
      }
      const { orderCount } = sale.mysql;
      if (orderCount !== distinct) {
        found.breach(
          { counted: orderCount, distinct },
          `MySQL counts ${orderCount} rows, by primary key there are ${distinct}`,
        );
      }
    },
  };
}

function durableBeforeAnswer(slice: Slice, found: Findings): void {
  for (const { attemptId, acceptedAtMs, order } of acceptedAttempts(slice)) {
    found.look();
    const positions = slice.recorded.get(attemptId)?.positions ?? [];
    const recordedAtMs = Math.min(...positions.map(({ timestampMs }) => timestampMs));
    if (recordedAtMs <= acceptedAtMs + CLOCK_BOUND_MS) continue;
    if (order && order.state !== 'expired' && order.createdAtMs <= acceptedAtMs + CLOCK_BOUND_MS) continue;
    if (order && slice.sale.faults && lostByKafka(order, slice)) continue;
    found.breach(
      {
        order_id: attemptId,
        acceptedAtMs,
        recordedAtMs: positions.length > 0 ? recordedAtMs : null,
        rowCreatedAtMs: order?.createdAtMs ?? null,
      },
      positions.length > 0
        ? `its 202 was received ${recordedAtMs - acceptedAtMs} ms before its record was durable`
        : 'its 202 was received, but no record of it was durable by then',
    );
  }
}

function nothingInvented(slice: Slice, dead: DeadLetters, found: Findings): void {
  const { recorded, logged, orders, sale } = slice;
  const oldest = new Map(sale.kafka.partitions.map(({ partition, low }) => [partition, low]));
  found.look(orders.length);
  for (const order of orders) {
    const { orderId, state, reason, kafkaPartition, kafkaOffset } = order;
    const witness = { order_id: orderId, state, reason, kafkaPartition, kafkaOffset };
    const record = recorded.get(orderId);
    const forgotten =
      kafkaPartition !== null && kafkaOffset !== null && kafkaOffset < (oldest.get(kafkaPartition) ?? 0);
    if (state === 'expired') {
      if (!EXPIRY_REASONS.has(reason ?? ''))
        found.breach(witness, 'is a tombstone without a reason that the sweeper gives');
    } else if (!record && !forgotten && !(dead.names(orderId) && state === 'rejected')) {
      found.breach(witness, 'is a row for which Kafka has no record');
    } else if (record && kafkaPartition !== null && kafkaOffset !== null && !forgotten) {
      const real = record.positions.some(({ partition, offset }) => isAt(order, partition, offset));
      if (!real) found.breach(witness, 'names a record that is not its own');
    }
    const asked = logged?.get(orderId);
    if (logged && !asked?.asked) found.breach(witness, 'is a row for an attempt that nobody in the log made');
    if (asked?.asked) compareWithBody(order, asked, found);
  }
}

/** The dead letters of a sale, wherever they are noted. */
export class DeadLetters {
  private readonly attempts = new Set<string>();
  private readonly origins = new Set<string>();

  constructor({ kafka, mysql }: Sale) {
    for (const { key, origin } of kafka.deadLetters) {
      this.attempts.add(key);
      this.origins.add(origin.slice(origin.indexOf('/') + 1));
    }
    for (const { orderId, origin } of mysql.deadLetters) {
      if (orderId !== null) this.attempts.add(orderId);
      this.origins.add(origin.slice(origin.indexOf('/') + 1));
    }
  }

  names(attemptId: string): boolean {
    return this.attempts.has(attemptId);
  }

  cameFrom(partition: number, offset: number): boolean {
    return this.origins.has(`${partition}/${offset}`);
  }
}

function compareWithBody(order: OrderRow, asked: LoggedAttempt, found: Findings): void {
  for (const field of ['shopperId', 'skuId', 'quantity'] as const) {
    if (order[field] === asked[field]) continue;
    found.breach(
      { order_id: order.orderId, field, row: order[field], sent: asked[field] },
      `its ${field} is ${order[field]}, the shopper sent ${asked[field]}`,
    );
  }
}

function refusedMeansRefused({ logged, ordersById, holds }: Slice, found: Findings): void {
  for (const [attemptId, attempt] of logged ?? []) {
    const { granted, waiting, entryUnclear, orderUnclear, ordersSent, acceptedAtMs } = attempt;
    if (acceptedAtMs !== null || orderUnclear) continue;
    const entryRefused =
      attempt.asked &&
      attempt.entryRefusal !== '' &&
      !granted &&
      !waiting &&
      !entryUnclear &&
      ordersSent === 0;
    const orderRefused = attempt.orderRefusal !== '';
    if (!entryRefused && !orderRefused) continue;
    found.look();
    const refusal = orderRefused ? attempt.orderRefusal : attempt.entryRefusal;
    const order = ordersById.get(attemptId);
    const hold = holds.get(attemptId);
    const witness = {
      attemptId,
      refused: refusal,
      mysql: order?.state ?? null,
      redis: hold?.state ?? null,
    };
    if (order && order.state !== 'expired') {
      found.breach(witness, `was only ever refused (${refusal}), but has a row: ${order.state}`);
    } else if (hold && hold.state !== 'V') {
      found.breach(witness, `was only ever refused (${refusal}), but has units in Redis`);
    }
  }
}

function tokensMatchOrders(slice: Slice, dead: DeadLetters, found: Findings): void {
  const { recorded, logged, orders } = slice;
  for (const [attemptId, { tokens, shopperId }] of logged ?? []) {
    for (const { claims } of tokens) {
      found.look();
      if (claims?.attemptId === attemptId && claims.shopperId === shopperId) continue;
      found.breach(
        { attemptId, tokenFor: claims?.attemptId ?? null, shopperId, tokenOf: claims?.shopperId ?? null },
        'was handed a token that stands for something else',
      );
    }
  }
  for (const order of orders) {
    const record = recorded.get(order.orderId);
    if (order.state === 'expired' || !record) continue;
    // A dead letter that was dropped is rejected without anybody having been able to read it.
    if (order.state === 'rejected' && dead.names(order.orderId)) continue;
    found.look();
    const issued = logged?.get(order.orderId)?.tokens;
    const fault = whyNotProven(order, record, logged ? (issued ?? []) : null);
    if (fault === null) continue;
    found.breach({ order_id: order.orderId, record: positionOf(record.positions) }, fault);
  }
}

/** `null` where one of a row's records carries a token that proves it; else what is wrong with the closest one. */
function whyNotProven(
  order: OrderRow,
  record: RecordedAttempt,
  issued: readonly SeenToken[] | null,
): string | null {
  let fault = 'has no record with a token';
  for (const token of record.tokens) {
    const { claims } = token;
    if (!claims) fault = 'was made from a record without a readable token';
    else if (token.signature === 'invalid') fault = 'was made from a token whose signature is wrong';
    else if (
      claims.attemptId !== order.orderId ||
      claims.shopperId !== order.shopperId ||
      claims.skuId !== order.skuId ||
      claims.quantity !== order.quantity ||
      claims.epoch !== order.epoch
    ) {
      fault = `differs from its token (shopper ${claims.shopperId}, SKU ${claims.skuId}, quantity ${claims.quantity}, epoch ${claims.epoch})`;
    } else if (issued && !issued.some(({ hash }) => hash === token.hash)) {
      fault = 'was made from a token that nobody was handed';
    } else return null;
  }
  return fault;
}

function positionOf(positions: RecordedAttempt['positions']): string {
  return positions.map(({ partition, offset }) => `${partition}/${offset}`).join(' ');
}

/** How long after its token had expired an order's first record may be written: it was queued in time, and then repeated. */
const QUEUED_IN_TIME_MS = 45_000;
/** By how much a shopper's clock may differ from Redis', whose times tokens carry. */
const SHOPPER_CLOCK_MS = 2_000;

function nothingExpiredOrders(slice: Slice, found: Findings): void {
  const { sale, holds, recorded, ordersById } = slice;
  const { opensAtMs, closesAtMs } = sale.mysql.sale;
  const outside = (atMs: number) => atMs < opensAtMs || atMs >= closesAtMs;
  for (const { attemptId, grantedAtMs } of holds.values()) {
    // A record that was restored from its row has the row's time.
    if (sale.faults) break;
    found.look();
    if (!Number.isInteger(grantedAtMs) || outside(grantedAtMs)) {
      found.breach(
        { attemptId, grantedAtMs, opensAtMs, closesAtMs },
        'its units were granted while the sale was not open',
      );
    }
  }
  for (const [attemptId, { positions, tokens }] of recorded) {
    const order = ordersById.get(attemptId);
    if (!order || !(LIVE.has(order.state) || RETURNED.has(order.state))) continue;
    const claims = tokens.flatMap((token) => (token.claims ? [token.claims] : []));
    if (claims.length === 0) continue;
    found.look();
    const issuedAtMs = Math.min(...claims.map((claim) => claim.issuedAtMs));
    const expiresAtMs = Math.max(...claims.map((claim) => claim.expiresAtMs));
    const recordedAtMs = Math.min(...positions.map(({ timestampMs }) => timestampMs));
    const witness = { order_id: attemptId, issuedAtMs, expiresAtMs, recordedAtMs };
    if (outside(issuedAtMs)) found.breach(witness, 'its token was issued while the sale was not open');
    if (!sale.faults && recordedAtMs > expiresAtMs + QUEUED_IN_TIME_MS) {
      found.breach(witness, `was recorded ${recordedAtMs - expiresAtMs} ms after its token had expired`);
    }
  }
  for (const { attemptId, attempt } of acceptedAttempts(slice)) {
    const expiries = attempt.tokens.flatMap(({ claims }) => (claims ? [claims.expiresAtMs] : []));
    if (expiries.length === 0 || attempt.firstOrderSentMs === null) continue;
    found.look();
    const late = attempt.firstOrderSentMs - Math.max(...expiries);
    if (late <= SHOPPER_CLOCK_MS) continue;
    found.breach(
      { order_id: attemptId, orderSentMs: attempt.firstOrderSentMs, expiresAtMs: Math.max(...expiries) },
      `was accepted although it was first asked for ${late} ms after its token had expired`,
    );
  }
}

function noRecordSkipped({ recorded, ordersById, sale }: Slice, dead: DeadLetters, found: Findings): void {
  const committed = new Map(sale.kafka.partitions.map((p) => [p.partition, p.committed ?? 0]));
  for (const [key, { positions }] of recorded) {
    for (const { partition, offset } of positions) {
      if (offset >= (committed.get(partition) ?? 0)) continue;
      found.look();
      if (ordersById.has(key) || dead.names(key) || dead.cameFrom(partition, offset)) continue;
      found.breach(
        { key, partition, offset, committed: committed.get(partition) ?? 0 },
        'is a record that the writer has committed past, without a row or a dead letter',
      );
    }
  }
}

const byLetters =
  (look: (slice: Slice, dead: DeadLetters, found: Findings) => void): Invariant['begin'] =>
  (sale, found) => {
    const dead = new DeadLetters(sale);
    return { slice: (slice) => look(slice, dead, found) };
  };

/** I6, I7, I9 to I11, I15, I16, I22: what becomes of an attempt. */
export const ATTEMPT_INVARIANTS: readonly Invariant[] = [
  {
    id: 'I6',
    says: 'every 202 became an order, or ended with an honest reason',
    begin: byLog(everyPromiseDecided),
  },
  { id: 'I7', says: 'no attempt became two orders', begin: oneOrderPerAttempt },
  { id: 'I9', says: 'every 202 was durable before it was answered', begin: byLog(durableBeforeAnswer) },
  { id: 'I10', says: 'no order that nobody sent', begin: byLetters(nothingInvented) },
  { id: 'I11', says: 'who was refused has neither order nor units', begin: byLog(refusedMeansRefused) },
  {
    id: 'I15',
    says: 'one token, one order, and exactly what the token says',
    begin: byLetters(tokensMatchOrders),
  },
  {
    id: 'I16',
    says: 'units are granted while the sale is open, and ordered in time',
    begin: bySlice(nothingExpiredOrders),
  },
  { id: 'I22', says: 'the writer skipped no record', begin: byLetters(noRecordSkipped) },
];
