import type { Database, SqlValue, Statements } from '@flash-sale/database';
import {
  AttemptId,
  decideOrders,
  quotaKey,
  type Decision,
  type SaleBalance,
  type SaleId,
  type ShopperId,
} from '@flash-sale/domain';
import { closeReplayed, insertDeadLetters } from './dead-letter-rows.js';
import type { DeadRecord, QueuedRecord } from './dead-letters.js';
import { insertRows } from './insert-rows.js';

/** What an order takes from its sale. Fixed while the sale runs. */
export interface SaleTerms {
  /** Minor units of the currency. */
  readonly unitPrice: string;
  readonly currency: string;
  readonly limitPerShopper: number;
  /** How long an order waits for its payment, ms. */
  readonly payMs: number;
}

/** What Redis must be told about one attempt. */
export interface Effect {
  readonly attemptId: AttemptId;
  readonly shopperId: ShopperId;
  readonly kind: 'confirm' | 'void';
  /** Of a void. */
  readonly reason: 'limit' | 'sold_out' | null;
}

export interface ChunkToWrite {
  /** In offset order within each partition; the same attempt may be in it several times. Every sale is in `terms`. */
  readonly orders: readonly QueuedRecord[];
  readonly dead: readonly DeadRecord[];
  readonly terms: ReadonlyMap<SaleId, SaleTerms>;
  /** Of this try and of no other: a repetition after an unknown commit must not take the first try's rows for its own. */
  readonly batchId: string;
}

export interface WrittenChunk {
  /** Of the attempts that this very transaction decided. */
  readonly decisions: ReadonlyMap<AttemptId, Decision>;
  readonly effects: readonly Effect[];
  /** Records whose attempt had a row already: another copy, or a tombstone. */
  readonly duplicates: number;
}

/** Looks up the terms of sales; one that nobody made, or that has no stock row, is missing in the answer. */
export async function findTerms(
  statements: Statements,
  saleIds: readonly SaleId[],
): Promise<Map<SaleId, SaleTerms>> {
  if (saleIds.length === 0) return new Map();
  const rows = await statements.query<{
    sale_id: SaleId;
    unit_price: string;
    currency: string;
    limit_per_shopper: number;
    pay_ms: string;
  }>(
    `SELECT sale.sale_id, unit_price, currency, limit_per_shopper, pay_ms
       FROM sale JOIN sale_stock ON sale_stock.sale_id = sale.sale_id WHERE sale.sale_id IN (?)`,
    [saleIds],
  );
  return new Map(
    rows.map((row) => [
      row.sale_id,
      {
        unitPrice: row.unit_price,
        currency: row.currency,
        limitPerShopper: row.limit_per_shopper,
        payMs: Number(row.pay_ms),
      },
    ]),
  );
}

/**
 * The one transaction that decides queued orders: MySQL's word on who got a unit. Locks are taken in the order that every
 * transaction of the suite keeps: order rows, quota rows, stock rows, each sorted by key; then events, ledger, effects, and
 * dead letters last.
 * Everything is written or nothing; what was written by an earlier try is recognised by its primary key and left alone.
 *
 * @param decide the rule; it gets the locked balances
 * @throws DatabaseError, or an Error where a guard did not hold; either way nothing was written, unless `commitUnknown`
 */
export function writeChunk(
  database: Database,
  chunk: ChunkToWrite,
  decide: typeof decideOrders = decideOrders,
): Promise<WrittenChunk> {
  return database.transaction(async (statements) => {
    const written = await decideMine(statements, chunk, decide);
    await closeReplayed(
      statements,
      [...chunk.orders, ...chunk.dead].map(({ source }) => source),
    );
    await insertDeadLetters(statements, chunk.dead);
    return written;
  });
}

async function decideMine(
  statements: Statements,
  chunk: ChunkToWrite,
  decide: typeof decideOrders,
): Promise<WrittenChunk> {
  const mine = await claimRows(statements, chunk);
  const duplicates = chunk.orders.length - mine.length;
  if (mine.length === 0) return { decisions: new Map(), effects: [], duplicates };
  const used = await lockQuotas(statements, mine);
  const balances = await lockStock(statements, mine, chunk.terms);
  const { decisions, soldBySale, usedByShopper } = decide(
    mine.map((record) => record.claims),
    balances,
    used,
  );
  await correctRejected(statements, decisions);
  await takeUnits(statements, soldBySale);
  await takeQuotas(statements, mine, usedByShopper);
  const effects = await recordDecisions(statements, mine, decisions);
  return { decisions, effects, duplicates };
}

/**
 * Inserts a row per attempt, leaves rows that are there untouched, and unless all are new reads back which ones carry this
 * batch's id: those are ours to decide. INSERT IGNORE would truncate silently.
 */
async function claimRows(statements: Statements, chunk: ChunkToWrite): Promise<QueuedRecord[]> {
  const byAttempt = new Map<AttemptId, QueuedRecord>();
  for (const record of chunk.orders) {
    if (!byAttempt.has(record.claims.attemptId)) byAttempt.set(record.claims.attemptId, record);
  }
  if (byAttempt.size === 0) return [];
  const sorted = [...byAttempt.values()].sort((one, other) =>
    byKey(one.claims.attemptId, other.claims.attemptId),
  );
  const inserted = await insertRows(statements, {
    into: `orders (order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, state, batch_id, epoch,
      token_expires_at, delivery, delivery_hash, request_id, kafka_partition, kafka_offset, pay_before, created_at,
      updated_at)`,
    template: `(?, ?, ?, ?, ?, ?, ?, 'awaiting_payment', ?, ?, ?, ?, ?, ?, ?, ?,
      NOW(3) + INTERVAL ? MICROSECOND, NOW(3), NOW(3))`,
    rows: sorted.map((record) => rowOf(record, chunk)),
    onDuplicate: 'order_id = order_id',
  });
  if (inserted === sorted.length) return [...byAttempt.values()];
  const claimed = await statements.query<{ order_id: AttemptId }>(
    'SELECT order_id FROM orders WHERE order_id IN (?) AND batch_id = ?',
    [[...byAttempt.keys()], chunk.batchId],
  );
  const ours = new Set(claimed.map((row) => row.order_id));
  return [...byAttempt.values()].filter((record) => ours.has(record.claims.attemptId));
}

function rowOf(record: QueuedRecord, chunk: ChunkToWrite): SqlValue[] {
  const { claims, source } = record;
  const terms = chunk.terms.get(claims.saleId);
  if (!terms) throw new Error(`the terms of sale ${claims.saleId} were not looked up`);
  return [
    claims.attemptId,
    claims.saleId,
    claims.shopperId,
    claims.skuId,
    claims.quantity,
    terms.unitPrice,
    terms.currency,
    chunk.batchId,
    claims.epoch,
    new Date(claims.expiresAtMs),
    JSON.stringify(record.delivery),
    record.deliveryHash,
    record.requestId,
    source.partition,
    source.offset,
    terms.payMs * 1_000,
  ];
}

/** Locks a quota row per shopper and sale, making those that are missing. */
async function lockQuotas(
  statements: Statements,
  mine: readonly QueuedRecord[],
): Promise<Map<string, number>> {
  const shoppersBySale = new Map<SaleId, Set<ShopperId>>();
  for (const { claims } of mine) {
    const shoppers = shoppersBySale.get(claims.saleId) ?? new Set();
    shoppersBySale.set(claims.saleId, shoppers.add(claims.shopperId));
  }
  const used = new Map<string, number>();
  for (const [saleId, shoppers] of [...shoppersBySale].sort(([one], [other]) => byKey(one, other))) {
    const sorted = [...shoppers].sort(byKey);
    const inserted = await insertRows(statements, {
      into: 'quota (sale_id, shopper_id, used)',
      template: '(?, ?, 0)',
      rows: sorted.map((shopperId) => [saleId, shopperId]),
      onDuplicate: 'used = used',
    });
    // Nobody else has seen rows that are new; an absent entry counts as 0.
    if (inserted === sorted.length) continue;
    const rows = await statements.query<{ shopper_id: ShopperId; used: number }>(
      `SELECT shopper_id, used FROM quota WHERE sale_id = ? AND shopper_id IN (?)
        ORDER BY shopper_id FOR UPDATE`,
      [saleId, sorted],
    );
    for (const row of rows) used.set(quotaKey(saleId, row.shopper_id), row.used);
  }
  return used;
}

async function lockStock(
  statements: Statements,
  mine: readonly QueuedRecord[],
  terms: ReadonlyMap<SaleId, SaleTerms>,
): Promise<Map<SaleId, SaleBalance>> {
  const saleIds = [...new Set(mine.map((record) => record.claims.saleId))].sort(byKey);
  const rows = await statements.query<{ sale_id: SaleId; total: string; sold: string }>(
    'SELECT sale_id, total, sold FROM sale_stock WHERE sale_id IN (?) ORDER BY sale_id FOR UPDATE',
    [saleIds],
  );
  return new Map(
    rows.map((row) => [
      row.sale_id,
      {
        total: Number(row.total),
        sold: Number(row.sold),
        limitPerShopper: terms.get(row.sale_id)?.limitPerShopper ?? 0,
      },
    ]),
  );
}

async function correctRejected(
  statements: Statements,
  decisions: ReadonlyMap<AttemptId, Decision>,
): Promise<void> {
  for (const reason of ['limit', 'sold_out'] as const) {
    const rejected = [...decisions].flatMap(([attemptId, decision]) =>
      decision.state === 'rejected' && decision.reason === reason ? [attemptId] : [],
    );
    if (rejected.length === 0) continue;
    const changed = await statements.change(
      `UPDATE orders SET state = 'rejected', reason = ?, pay_before = NULL WHERE order_id IN (?)`,
      [reason, rejected.sort(byKey)],
    );
    expectRows(changed, rejected.length, `rejecting orders (${reason})`);
  }
}

/** The guard: whatever was decided above, units beyond the total are not sold. The table's CHECK is the belt under it. */
async function takeUnits(statements: Statements, soldBySale: ReadonlyMap<SaleId, number>): Promise<void> {
  for (const [saleId, sold] of [...soldBySale].sort(([one], [other]) => byKey(one, other))) {
    const changed = await statements.change(
      'UPDATE sale_stock SET sold = sold + ? WHERE sale_id = ? AND sold + ? <= total',
      [sold, saleId, sold],
    );
    expectRows(changed, 1, `selling ${sold} units of sale ${saleId}, more than are left of it`);
  }
}

async function takeQuotas(
  statements: Statements,
  mine: readonly QueuedRecord[],
  usedByShopper: ReadonlyMap<string, number>,
): Promise<void> {
  const taken = new Map<string, [SaleId, ShopperId, number]>();
  for (const { claims } of mine) {
    const key = quotaKey(claims.saleId, claims.shopperId);
    const units = usedByShopper.get(key);
    if (units !== undefined) taken.set(key, [claims.saleId, claims.shopperId, units]);
  }
  await insertRows(statements, {
    into: 'quota (sale_id, shopper_id, used)',
    template: '(?, ?, ?)',
    rows: [...taken].sort(([one], [other]) => byKey(one, other)).map(([, row]) => row),
    onDuplicate: 'used = used + VALUES(used)',
  });
}

/** Events, ledger entries and effects: what makes each decision explainable, and tells Redis of it. */
async function recordDecisions(
  statements: Statements,
  mine: readonly QueuedRecord[],
  decisions: ReadonlyMap<AttemptId, Decision>,
): Promise<Effect[]> {
  const events: SqlValue[][] = [];
  const legs: SqlValue[][] = [];
  const effects: SqlValue[][] = [];
  const told: Effect[] = [];
  for (const { claims } of mine) {
    const { attemptId, saleId, shopperId, quantity } = claims;
    const decision = decisions.get(attemptId);
    if (!decision) throw new Error(`nothing was decided about ${attemptId}`);
    events.push([attemptId, decision.state]);
    const kind = decision.state === 'rejected' ? 'void' : 'confirm';
    const reason = decision.state === 'rejected' ? decision.reason : null;
    if (decision.state === 'awaiting_payment') {
      const entryId = `${attemptId}:sell`;
      legs.push(
        [entryId, 'held', saleId, attemptId, -quantity],
        [entryId, 'sold', saleId, attemptId, quantity],
      );
    }
    effects.push([attemptId, kind, saleId, shopperId, reason]);
    told.push({ attemptId, shopperId, kind, reason });
  }
  await insertRows(statements, {
    into: 'order_event (order_id, seq, from_state, to_state, cause, at)',
    template: "(?, 1, 'queued', ?, 'written', NOW(3))",
    rows: events,
  });
  await insertRows(statements, {
    into: 'ledger (entry_id, account, sale_id, order_id, amount, at)',
    template: '(?, ?, ?, ?, ?, NOW(3))',
    rows: legs,
  });
  await insertRows(statements, {
    into: 'effect (order_id, kind, sale_id, shopper_id, reason, created_at)',
    template: '(?, ?, ?, ?, ?, NOW(3))',
    rows: effects,
  });
  return told;
}

function expectRows(changed: number, expected: number, what: string): void {
  if (changed !== expected) throw new Error(`${what}: ${changed} rows matched instead of ${expected}`);
}

/** The order in which the database sorts its ids, which are ASCII and compared byte by byte. */
function byKey(one: string, other: string): number {
  return one < other ? -1 : one > other ? 1 : 0;
}
