import { effectOf } from '../order.js';
import type { ModelState } from '../stock-model.js';
import { transfer } from './purchase.js';
import type { Bucket, OrderRow } from './stores.js';
import type { Inventory, Steps, World } from './world.js';

/** What one comparison of all records and counters has seen. */
interface Pass {
  readonly differences: ReadonlyMap<string, { readonly row: OrderRow; readonly index: number }>;
  /** Of every bucket: what came, what went, what is there. */
  readonly counters: string;
  readonly units: number;
  readonly openTransfers: number;
}

/**
 * Compares every few seconds. A record is corrected where two passes saw the same difference to its row; the sum of units
 * where the first pass saw nothing on the way and the second the same counters in every bucket, because then there was a
 * moment between the passes at which all of them were true at once.
 */
export function* reconcile(world: World, inventory: Inventory): Steps {
  const { epoch } = inventory;
  if (world.without('no reconciler')) return;
  yield* applyCorrections(world, inventory, epoch);
  const first = yield* compare(world, inventory, epoch);
  if (!first) return;
  yield;
  const second = yield* compare(world, inventory, epoch);
  if (!second) return;
  for (const [key, { row, index }] of second.differences) {
    if (!first.differences.has(key)) continue;
    yield;
    const { attemptId, quantity } = row.order;
    const onArrival = (bucket: Bucket | undefined) => {
      if (!bucket || agrees(bucket, row)) return true;
      const isCorrected = correctRecord(bucket, row);
      if (isCorrected) world.note(`${inventory.name}: record of ${attemptId} corrected to ${row.state}`);
      return isCorrected;
    };
    if (onArrival(inventory.serve(index, epoch))) {
      yield;
      inventory.credit(epoch);
      continue;
    }
    // The units that its order has taken are free elsewhere; or nowhere, and then the guard refuses somebody first.
    const source = richest(world, index);
    if (source === undefined) continue;
    yield* transfer(world, inventory, { source, destination: index, units: quantity, epoch, onArrival });
  }
  const missing = world.setup.total - second.units;
  if (missing === 0 || first.counters !== second.counters || first.openTransfers > 0) return;
  yield;
  const index = richest(world) ?? 0;
  const free = world.nodeOf(index).data.buckets.get(index)?.stock.free ?? 0;
  const units = Math.max(missing, -free);
  if (units === 0) return;
  const id = world.newId('correction');
  world.database.corrections.push({ id, epoch, bucket: index, units, applied: false });
  world.note(`${inventory.name}: ${id}, ${units} units in bucket ${index}`);
  yield* applyCorrections(world, inventory, epoch);
}

/** MySQL first, Redis second: a row that is there is true of whatever Redis says later, but for effects on the way. */
function* compare(world: World, inventory: Inventory, epoch: number): Steps<Pass | undefined> {
  const { database } = world;
  const untold = new Set(
    database.effects.flatMap(({ applied, order }) => (applied ? [] : [order.attemptId])),
  );
  const rows = [...database.orders.values()].flatMap((row) =>
    untold.has(row.order.attemptId) ? [] : [{ ...row }],
  );
  const differences = new Map<string, { row: OrderRow; index: number }>();
  const counters: string[] = [];
  let units = 0;
  let openTransfers = 0;
  for (let index = 0; index < world.setup.buckets; index += 1) {
    yield;
    const bucket = inventory.serve(index, epoch);
    if (!bucket) return undefined;
    const { stock } = bucket;
    for (const row of rowsOf(world, rows, index)) {
      const record = stock.attempts.get(row.order.attemptId)?.state ?? 'missing';
      if (!agrees(bucket, row))
        differences.set(`${row.order.attemptId} ${row.state} ${record}`, { row, index });
    }
    counters.push(`${stock.in} ${stock.out} ${stock.units}`);
    units += stock.units;
    openTransfers += stock.openTransfers;
  }
  return { differences, counters: counters.join(), units, openTransfers };
}

/** Each correction has an id and an entry in MySQL before it changes Redis; it is applied once, in its epoch or never. */
function* applyCorrections(world: World, inventory: Inventory, epoch: number): Steps {
  for (const correction of world.database.corrections) {
    if (correction.applied || correction.epoch !== epoch) continue;
    yield;
    const bucket = inventory.serve(correction.bucket, epoch);
    if (!bucket) return;
    const outcome = bucket.stock.correct(correction.id, correction.units);
    world.note(`${correction.id}: ${outcome}`);
    yield;
    inventory.credit(epoch);
    correction.applied = true;
  }
}

/** The bucket with the most free units, but for one that they are wanted for. */
function richest(world: World, but?: number): number | undefined {
  const [first] = world
    .bucketsInRedis()
    .filter(({ index }) => index !== but)
    .sort((a, b) => b.bucket.stock.free - a.bucket.stock.free);
  return first?.index;
}

/** Rows of the shoppers that are at home in a bucket. */
export function rowsOf(world: World, rows: readonly OrderRow[], index: number): OrderRow[] {
  return rows.filter(({ order }) => world.homeOf(order.shopperId) === index);
}

/** Whether a bucket's record says what the row does. An attempt that is over and unknown here has nothing to return. */
export function agrees({ stock }: Bucket, row: OrderRow): boolean {
  const record = stock.attempts.get(row.order.attemptId);
  if (!record) return false;
  return record.state === stateOf(row);
}

/** A record that was missing takes its units from what is free. Returns false where there are too few. */
export function correctRecord({ stock }: Bucket, row: OrderRow): boolean {
  const { attemptId, quantity } = row.order;
  if (stock.attempts.has(attemptId)) stock.apply(attemptId, effectOf(row.state), row.reason || row.state);
  else if (stateOf(row) === 'V' || stock.free >= quantity) stock.attempts.set(attemptId, recordOf(row));
  else return false;
  return true;
}

function stateOf(row: OrderRow): ModelState {
  return effectOf(row.state) === 'confirm' ? 'C' : 'V';
}

/** What a bucket keeps of an attempt that has a row. */
export function recordOf(row: OrderRow) {
  const { shopperId, quantity } = row.order;
  const reason = effectOf(row.state) === 'confirm' ? '' : row.reason || row.state;
  return { shopperId, quantity, state: stateOf(row), deadlineMs: 0, deliveryHash: 'd', offset: '', reason };
}
