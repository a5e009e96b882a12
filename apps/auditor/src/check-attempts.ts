import {
  CLOCK_BOUND_MS,
  type Evidence,
  type LoggedAttempt,
  type OrderRow,
  type RecordedAttempt,
} from './evidence.js';
import type { Findings, Invariant } from './findings.js';
import { EXPIRY_REASONS, LIVE, mayFollow, REJECTION_REASONS, RETURNED, type SeenToken } from './grammar.js';

/** The attempts whose order was answered with a 202, with the row that each must have. */
export function* acceptedAttempts({ log, mysql }: Evidence): Generator<{
  readonly attemptId: string;
  readonly acceptedAtMs: number;
  readonly attempt: LoggedAttempt;
  readonly order: OrderRow | undefined;
}> {
  for (const [attemptId, attempt] of log?.attempts ?? []) {
    const { acceptedAtMs } = attempt;
    if (acceptedAtMs === null) continue;
    yield { attemptId, acceptedAtMs, attempt, order: mysql.ordersById.get(attemptId) };
  }
}

/** Whether a row names a record that is not in the topic: Kafka lost what it had acknowledged. */
function lostByKafka(order: OrderRow, { kafka }: Evidence): boolean {
  if (order.reason !== 'lost' || order.kafkaPartition === null || order.kafkaOffset === null) return false;
  const positions = kafka.recorded.get(order.orderId)?.positions ?? [];
  return !positions.some(({ partition, offset }) => isAt(order, partition, offset));
}

const isAt = (order: OrderRow, partition: number, offset: number) =>
  order.kafkaPartition === partition && order.kafkaOffset === offset;

/** Why an accepted order has no honest end; `null` where it has one, or lives. */
export function whyLost(order: OrderRow | undefined, evidence: Evidence): string | null {
  if (!order) return 'was accepted with a 202, but has no row';
  if (LIVE.has(order.state) || RETURNED.has(order.state)) return null;
  if (order.state === 'rejected') {
    return REJECTION_REASONS.has(order.reason ?? '')
      ? null
      : `was rejected without a reason (${order.reason ?? 'none'})`;
  }
  if (order.state === 'expired') {
    return lostByKafka(order, evidence)
      ? null
      : `was accepted with a 202, but ended expired (${order.reason ?? 'no reason'}), and Kafka did not lose it`;
  }
  return `has the state ${order.state}, which no order may have`;
}

function everyPromiseDecided(evidence: Evidence, found: Findings): void {
  for (const { attemptId, attempt, order } of acceptedAttempts(evidence)) {
    found.look();
    const witness = {
      order_id: attemptId,
      state: order?.state ?? null,
      reason: order?.reason ?? null,
      lastAnswer: attempt.lastOrderState,
    };
    const lost = whyLost(order, evidence);
    if (lost !== null) found.breach(witness, lost);
    if (order?.state === 'rejected' && !evidence.faults) {
      found.breach(witness, 'was rejected after its 202 in a run without faults');
    }
    const { lastOrderState } = attempt;
    if (order && lastOrderState !== '' && !mayFollow(lastOrderState, order.state)) {
      found.breach(witness, `was shown as ${lastOrderState}, from which ${order.state} cannot follow`);
    }
  }
}

/** How often a row's creation shows in the books: once. */
export function effectsOfCreation(order: OrderRow, { mysql }: Evidence): number {
  const sales = [...order.entryIds].filter((id) =>
    mysql.ledger.get(id)?.some(({ account, amount }) => account === 'sold' && amount > 0),
  );
  const creations = order.events.filter(({ to }) => to === 'awaiting_payment');
  return Math.max(1, sales.length, creations.length);
}

function oneOrderPerAttempt(evidence: Evidence, found: Findings): void {
  const { orders, orderCount } = evidence.mysql;
  found.look(orders.length);
  const seen = new Set<string>();
  const positions = new Map<string, string>();
  for (const order of orders) {
    const { orderId, kafkaPartition, kafkaOffset } = order;
    if (seen.has(orderId)) found.breach({ order_id: orderId }, 'has more than one row');
    seen.add(orderId);
    const times = effectsOfCreation(order, evidence);
    if (times > 1) found.breach({ order_id: orderId, times }, `took effect ${times} times`);
    if (kafkaPartition === null || kafkaOffset === null) continue;
    const position = `${kafkaPartition}/${kafkaOffset}`;
    const other = positions.get(position);
    if (other !== undefined && other !== orderId) {
      found.breach(
        { order_id: orderId, other, record: position },
        'comes from the same record as another order',
      );
    }
    positions.set(position, orderId);
  }
  if (orderCount !== orders.length) {
    found.breach(
      { counted: orderCount, distinct: orders.length },
      `MySQL counts ${orderCount} rows, by primary key there are ${orders.length}`,
    );
  }
}

function durableBeforeAnswer(evidence: Evidence, found: Findings): void {
  for (const { attemptId, acceptedAtMs, order } of acceptedAttempts(evidence)) {
    found.look();
    const positions = evidence.kafka.recorded.get(attemptId)?.positions ?? [];
    const recordedAtMs = Math.min(...positions.map(({ timestampMs }) => timestampMs));
    if (recordedAtMs <= acceptedAtMs + CLOCK_BOUND_MS) continue;
    if (order && order.state !== 'expired' && order.createdAtMs <= acceptedAtMs + CLOCK_BOUND_MS) continue;
    if (order && evidence.faults && lostByKafka(order, evidence)) continue;
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

function nothingInvented(evidence: Evidence, found: Findings): void {
  const { kafka, log, mysql } = evidence;
  const oldest = new Map(kafka.partitions.map(({ partition, low }) => [partition, low]));
  found.look(mysql.orders.length);
  for (const order of mysql.orders) {
    const { orderId, state, reason, kafkaPartition, kafkaOffset } = order;
    const witness = { order_id: orderId, state, reason, kafkaPartition, kafkaOffset };
    const record = kafka.recorded.get(orderId);
    const forgotten =
      kafkaPartition !== null && kafkaOffset !== null && kafkaOffset < (oldest.get(kafkaPartition) ?? 0);
    const dead = hasDeadLetter(orderId, evidence);
    if (state === 'expired') {
      if (!EXPIRY_REASONS.has(reason ?? ''))
        found.breach(witness, 'is a tombstone without a reason that the sweeper gives');
    } else if (!record && !forgotten && !(dead && state === 'rejected')) {
      found.breach(witness, 'is a row for which Kafka has no record');
    } else if (record && kafkaPartition !== null && kafkaOffset !== null && !forgotten) {
      const real = record.positions.some(({ partition, offset }) => isAt(order, partition, offset));
      if (!real) found.breach(witness, 'names a record that is not its own');
    }
    const asked = log?.attempts.get(orderId);
    if (log && !asked?.asked) found.breach(witness, 'is a row for an attempt that nobody in the log made');
    if (asked?.asked) compareWithBody(order, asked, found);
  }
}

function hasDeadLetter(attemptId: string, { kafka, mysql }: Evidence): boolean {
  return kafka.deadLetterAttempts.has(attemptId) || mysql.deadLetters.has(attemptId);
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

function refusedMeansRefused({ log, mysql, redis }: Evidence, found: Findings): void {
  for (const [attemptId, attempt] of log?.attempts ?? []) {
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
    const order = mysql.ordersById.get(attemptId);
    const hold = redis.attempts.get(attemptId);
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

function tokensMatchOrders(evidence: Evidence, found: Findings): void {
  const { kafka, log, mysql } = evidence;
  for (const [attemptId, { tokens, shopperId }] of log?.attempts ?? []) {
    for (const { claims } of tokens) {
      found.look();
      if (claims?.attemptId === attemptId && claims.shopperId === shopperId) continue;
      found.breach(
        { attemptId, tokenFor: claims?.attemptId ?? null, shopperId, tokenOf: claims?.shopperId ?? null },
        'was handed a token that stands for something else',
      );
    }
  }
  for (const order of mysql.orders) {
    const record = kafka.recorded.get(order.orderId);
    if (order.state === 'expired' || !record) continue;
    // A dead letter that was dropped is rejected without anybody having been able to read it.
    if (order.state === 'rejected' && hasDeadLetter(order.orderId, evidence)) continue;
    found.look();
    const issued = log?.attempts.get(order.orderId)?.tokens;
    const fault = whyNotProven(order, record, log ? (issued ?? []) : null);
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

function noRecordSkipped(evidence: Evidence, found: Findings): void {
  const { kafka, mysql } = evidence;
  const committed = new Map(kafka.partitions.map((p) => [p.partition, p.committed ?? 0]));
  for (const [key, { positions }] of kafka.recorded) {
    for (const { partition, offset } of positions) {
      if (offset >= (committed.get(partition) ?? 0)) continue;
      found.look();
      if (mysql.ordersById.has(key) || hasDeadLetter(key, evidence)) continue;
      if (kafka.deadLetterOrigins.has(`${partition}/${offset}`)) continue;
      found.breach(
        { key, partition, offset, committed: committed.get(partition) ?? 0 },
        'is a record that the writer has committed past, without a row or a dead letter',
      );
    }
  }
}

/** I6, I7, I9 to I11, I15, I22: what becomes of an attempt. */
export const ATTEMPT_INVARIANTS: readonly Invariant[] = [
  { id: 'I6', says: 'every 202 became an order, or ended with an honest reason', check: everyPromiseDecided },
  { id: 'I7', says: 'no attempt became two orders', check: oneOrderPerAttempt },
  { id: 'I9', says: 'every 202 was durable before it was answered', check: durableBeforeAnswer },
  { id: 'I10', says: 'no order that nobody sent', check: nothingInvented },
  { id: 'I11', says: 'who was refused has neither order nor units', check: refusedMeansRefused },
  { id: 'I15', says: 'one token, one order, and exactly what the token says', check: tokensMatchOrders },
  { id: 'I22', says: 'the writer skipped no record', check: noRecordSkipped },
];
