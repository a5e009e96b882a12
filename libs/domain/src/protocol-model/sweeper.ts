import type { QueuedOrder } from '../decide-orders.js';
import type { AttemptId, ShopperId } from '../ids.js';
import { effectOf } from '../order.js';
import type { ModelAttempt } from '../stock-model.js';
import type { Effect, OrderRow } from './stores.js';
import { tell } from './writer.js';
import { GRACE_MS, SALE, type Inventory, type Steps, type World } from './world.js';

/** Ends what nobody ended. Anybody may sweep at any time; whoever dies half-way is followed by the next. */

const MAX_WAITS = 30;
const MAX_EFFECTS = 4;

interface Due {
  readonly order: QueuedOrder;
  /** As it was when it was found. */
  readonly attempt: ModelAttempt;
}

/** One pass over one bucket: half transfers, then attempts that are past their deadline and the grace. */
export function* sweep(world: World, inventory: Inventory): Steps {
  const { epoch } = inventory;
  const index = world.draw(world.setup.buckets);
  const bucket = inventory.serve(index, epoch);
  if (!bucket) return;
  for (const { tid, units } of bucket.stock.departures()) {
    const id = world.without('transfer finished under a new id') ? world.newId('again') : tid;
    yield;
    const to = inventory.serve(destinationOf(tid), epoch);
    if (!to) return;
    to.stock.transferIn(id, units, [], 0);
    world.note(`${inventory.name}: ${tid} finished, ${units} in at bucket ${destinationOf(tid)}`);
    yield;
    inventory.credit(epoch);
    yield;
    inventory.serve(index, epoch)?.stock.transferDone(tid);
  }
  yield;
  const due = beginExpiry(world, inventory, { index, epoch });
  const acknowledged = due.filter(({ attempt }) => attempt.state === 'Q');
  const expiring = due.filter(({ attempt }) => attempt.state !== 'Q');
  if (acknowledged.length > 0) yield* settleAcknowledged(world, inventory, { due: acknowledged, epoch });
  if (expiring.length > 0) yield* expire(world, inventory, { due: expiring, epoch });
}

export function destinationOf(tid: string): number {
  return Number(tid.slice(tid.indexOf('>') + 1));
}

/** From here on nothing is produced for these any more; what was allowed before had the grace to arrive. */
function beginExpiry(
  world: World,
  inventory: Inventory,
  { index, epoch }: { readonly index: number; readonly epoch: number },
): Due[] {
  const bucket = inventory.serve(index, epoch);
  if (!bucket) return [];
  const overdueMs = world.redisNowMs(index) - GRACE_MS;
  return bucket.stock.beginExpiry(overdueMs).flatMap((id) => {
    const attempt = bucket.stock.attempts.get(id);
    if (!attempt) return [];
    const isHurried = attempt.reason === 'released' && world.without('no grace after giving up');
    if (attempt.deadlineMs > overdueMs && !isHurried) return [];
    world.note(`${inventory.name}: ${id} is overdue, ${attempt.state}`);
    const { shopperId, quantity } = attempt;
    const order = {
      attemptId: id as AttemptId,
      saleId: SALE,
      shopperId: shopperId as ShopperId,
      quantity,
    };
    return [{ order, attempt: { ...attempt } }];
  });
}

/** Waits for the writer, makes "never an order" durable where there is no row, and tells Redis what the rows say. */
function* expire(
  world: World,
  inventory: Inventory,
  { due, epoch }: { readonly due: readonly Due[]; readonly epoch: number },
): Steps {
  if (world.without('tombstone skipped')) {
    yield* tell(
      world,
      inventory,
      due.map(({ order }) => ({ order, kind: 'void' as const, reason: 'hold_expired', applied: false })),
    );
    return;
  }
  yield;
  const ends = world.log.ends();
  for (let wait = 0; !world.without('tombstone without waiting for the writer'); wait += 1) {
    yield;
    if (world.log.hasPassed(ends)) break;
    if (wait >= MAX_WAITS) return;
  }
  yield;
  const what = `${inventory.name}: tombstones for ${due.map(({ order }) => order.attemptId).join(' ')}`;
  const rows = world.transact(what, () => insertTombstones(world, due, epoch));
  if (rows === 'unknown') return;
  yield* tell(world, inventory, rows.map(effectFor));
}

/** The first row on the primary key wins: an order that came first stays one, a record that comes later is dropped. */
function insertTombstones(world: World, due: readonly Due[], epoch: number): OrderRow[] {
  const { database } = world;
  // The sale's row is locked: after a recovery began, nobody knows what Redis still says of these attempts.
  if (database.sale.epoch !== epoch && !world.without('tombstone of an older epoch')) {
    world.note(`of epoch ${epoch}: none are written`);
    return [];
  }
  const batchId = world.newId('sweep');
  return due.flatMap(({ order, attempt }) => {
    // Replayed or not: a dead letter is pending until there is a row.
    const isDead = database.deadLetters.some(
      ({ record }) => record.order.attemptId === order.attemptId && !database.orders.has(order.attemptId),
    );
    if (isDead && !world.without('tombstone for a dead letter')) return [];
    const row = database.insert({ order, state: 'expired', reason: attempt.reason, batchId });
    if (row.batchId === batchId) database.tell(order, 'void', attempt.reason);
    return [row];
  });
}

/** Accepted orders of which Redis has not heard for long: late news, a slow writer, or a loss in Kafka. */
function* settleAcknowledged(
  world: World,
  inventory: Inventory,
  { due, epoch }: { readonly due: readonly Due[]; readonly epoch: number },
): Steps {
  const { log, database } = world;
  const ends = log.ends();
  yield;
  // Before the rows: the writer commits its rows first, so a committed record without a row was never written.
  const committed = [...log.committed];
  yield;
  for (const { order, attempt } of due) {
    const row = database.orders.get(order.attemptId);
    if (row) {
      yield* tell(world, inventory, [effectFor(row)]);
      continue;
    }
    if (database.deadLetters.some(({ record }) => record.order.attemptId === order.attemptId)) continue;
    const [partition = 0, offset = 0] = attempt.offset.split(':').map(Number);
    const isGone = offset >= (ends[partition] ?? 0) || offset < (committed[partition] ?? 0);
    if (!isGone) continue;
    yield;
    const bucket = inventory.serve(world.homeOf(order.shopperId), epoch);
    if (bucket?.stock.beginLost(order.attemptId, attempt.offset)) {
      world.note(`${inventory.name}: Kafka has lost ${order.attemptId}`);
    }
  }
}

/** What a row means to Redis, whether or not it was told before: it may have forgotten. */
function effectFor(row: OrderRow): Effect {
  const { order } = row;
  const kind = effectOf(row.state);
  return { order, kind, reason: kind === 'void' ? row.reason || row.state : '', applied: false };
}

/** The outbox: effects that nobody has told Redis of, in the order of an attempt's life. */
export function* applyOutbox(world: World, inventory: Inventory): Steps {
  const open = world.database.effects.filter(({ applied }) => !applied).slice(0, MAX_EFFECTS);
  if (open.length > 0) yield* tell(world, inventory, open);
}

/** While "sold out" stands, every second: a unit may have come back by a hand that died before it said so. */
export function* rescan(world: World, inventory: Inventory): Steps {
  const { epoch } = inventory;
  if (!inventory.state(epoch)?.soldOut) return;
  for (let index = 0; index < world.setup.buckets; index += 1) {
    yield;
    if ((inventory.serve(index, epoch)?.stock.free ?? 0) > 0) {
      yield;
      inventory.credit(epoch);
      world.note(`${inventory.name}: sold out lifted`);
      return;
    }
  }
}
