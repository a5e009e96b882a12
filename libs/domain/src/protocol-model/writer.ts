import { decideOrders, quotaKey, type Decision, type QueuedOrder } from '../decide-orders.js';
import { countsAsSold, effectOf } from '../order.js';
import type { DecidedState, Effect, LogRecord, OrderRow } from './stores.js';
import { SALE, type Inventory, type Steps, type World } from './world.js';

/** Whatever writes rows of orders, and tells Redis of them. */

const CHUNK = 3;
const TRIES = 5;

/** Reads one partition on from its committed offset: rows first, then the offset, then Redis. */
export function* write(world: World, writer: number): Steps {
  const { log } = world;
  const mine = log.readers.flatMap((reader, partition) => (reader === writer ? [partition] : []));
  const partition = world.pick(mine);
  if (partition === undefined) return;
  const from = log.committed[partition] ?? 0;
  const chunk = (log.partitions[partition] ?? []).slice(from, from + CHUNK);
  if (chunk.length === 0) return;
  const commit = () => {
    // A writer that slept while its partition moved may only set the offset back: then rows are met again, not skipped.
    log.committed[partition] = from + chunk.length;
    world.note(`writer ${writer}: offset ${from + chunk.length} of partition ${partition} committed`);
  };
  if (world.without('offset committed first')) commit();
  let batchId = world.newId('batch');
  let effects: readonly Effect[] | 'unknown' = 'unknown';
  for (let attempt = 0; attempt < TRIES && effects === 'unknown'; attempt += 1) {
    yield;
    const what = `writer ${writer}: ${chunk.map(({ order }) => order.attemptId).join(' ')}`;
    effects = world.transact(what, () => writeChunk(world, chunk, batchId));
    if (!world.without('same batch id on a repetition')) batchId = world.newId('batch');
  }
  if (effects === 'unknown') return;
  yield;
  if (!world.without('offset committed first')) commit();
  yield* tell(world, world.anyInventory(), effects);
}

/** The transaction that decides. What it finds decided, by another copy of the record or by a tombstone, it leaves alone. */
function writeChunk(world: World, chunk: readonly LogRecord[], batchId: string): Effect[] {
  const { database } = world;
  for (const record of chunk) {
    const known = database.deadLetters.some((letter) => letter.record === record);
    if (!record.readable && !known) database.deadLetters.push({ record, state: 'pending' });
  }
  const claimed = new Map<string, OrderRow>();
  for (const { order, readable } of chunk) {
    if (!readable) continue;
    const row = database.insert({ order, state: 'awaiting_payment', reason: '', batchId });
    if (row.batchId === batchId) claimed.set(order.attemptId, row);
  }
  const rows = [...claimed.values()];
  const decisions = decide(
    world,
    rows.map(({ order }) => order),
  );
  return rows.map((row) => {
    const { order } = row;
    const decision = decisions.get(order.attemptId);
    if (decision?.state === 'rejected') {
      // Not an edge of an order's life: inside the transaction that makes the row.
      database.orders.set(order.attemptId, { ...row, state: 'rejected', reason: decision.reason });
      return database.tell(order, 'void', decision.reason);
    }
    database.book(`${order.attemptId}:sell`, order, order.quantity);
    return database.tell(order, 'confirm', '');
  });
}

/** The last guard, on balances that the transaction has locked. */
function decide(world: World, orders: readonly QueuedOrder[]): Map<QueuedOrder['attemptId'], Decision> {
  const { database, setup } = world;
  const balance = {
    total: world.without('no guard') ? Number.POSITIVE_INFINITY : database.total,
    sold: database.sold,
    limitPerShopper: world.without('no limit behind Redis') ? Number.POSITIVE_INFINITY : setup.limit,
  };
  const used = new Map(
    orders.map(({ shopperId }) => [quotaKey(SALE, shopperId), database.usedBy(shopperId)]),
  );
  return decideOrders(orders, new Map([[SALE, balance]]), used).decisions;
}

/**
 * Tells Redis of rows: by whoever comes first, as often as it takes. What Redis does not know gets no credit. An effect is
 * marked only after Redis was told; one that could not be told is kept.
 */
export function* tell(world: World, inventory: Inventory, effects: readonly Effect[]): Steps {
  const { epoch } = inventory;
  for (const effect of effects) {
    yield;
    const { attemptId, shopperId, quantity } = effect.order;
    const bucket = inventory.serve(world.homeOf(shopperId), epoch);
    if (!bucket) continue;
    const { outcome } = bucket.stock.apply(attemptId, effect.kind, effect.reason);
    world.note(`${attemptId}: ${effect.kind} (${effect.reason || 'sold'}), ${outcome}`);
    if (outcome === 'missing' && effect.kind === 'void' && world.without('credit for a missing record')) {
      bucket.stock.correct(`credit for ${attemptId}`, quantity);
    }
    yield;
    if (outcome === 'applied' && effect.kind === 'void') inventory.credit(epoch);
    yield;
    effect.applied = true;
  }
}

/** Pays, cancels, times out, refunds: one row, one edge, whoever comes first. MySQL first, Redis after it. */
export function* change(world: World, inventory: Inventory, row: OrderRow, to: DecidedState): Steps {
  const { order } = row;
  const before = row.state;
  const isReturn = countsAsSold(before) && effectOf(to) === 'void';
  if (isReturn && world.without('units returned before the order ends')) {
    yield* tell(world, inventory, [{ order, kind: 'void', reason: to, applied: false }]);
  }
  yield;
  const effect = world.transact(`${order.attemptId}: ${before} → ${to}`, () => {
    const { database } = world;
    if (row.state !== before) return undefined;
    database.move(row, to);
    if (!isReturn) return undefined;
    database.book(`${order.attemptId}:return`, order, -order.quantity);
    return database.tell(order, 'void', to);
  });
  if (effect && effect !== 'unknown') yield* tell(world, inventory, [effect]);
}

/** An operator goes through what could not be read: a corrected reader decides it, or it is dropped with a row that says so. */
export function* settleDeadLetter(world: World, inventory: Inventory): Steps {
  const { database, log } = world;
  const letter = world.pick(
    database.deadLetters.filter(
      ({ state, record }) => state !== 'dropped' && !database.orders.has(record.order.attemptId),
    ),
  );
  if (!letter) return;
  const { order } = letter.record;
  yield;
  if (world.draw(2) === 0) {
    const sending = log.send({ order, readable: true }, world.nowMs);
    world.note(`${order.attemptId}: dead letter replayed`);
    for (let wait = 0; wait < 10 && !sending.acknowledged; wait += 1) yield;
    // What is not known to have arrived is replayed again.
    if (sending.acknowledged) letter.state = 'replayed';
    return;
  }
  const effect = world.transact(`${order.attemptId}: dead letter dropped`, () => {
    letter.state = 'dropped';
    const row: OrderRow = { order, state: 'rejected', reason: 'poison', batchId: world.newId('drop') };
    return database.insert(row) === row ? database.tell(order, 'void', 'poison') : undefined;
  });
  if (effect && effect !== 'unknown') yield* tell(world, inventory, [effect]);
}
