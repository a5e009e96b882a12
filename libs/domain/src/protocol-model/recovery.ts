import { countsAsSold } from '../order.js';
import { splitAllotment } from '../sale.js';
import { StockModel } from '../stock-model.js';
import { agrees, correctRecord, recordOf, rowsOf } from './reconcile.js';
import { destinationOf } from './sweeper.js';
import type { Bucket, OrderRow } from './stores.js';
import type { Inventory, Steps, World } from './world.js';

/** Redis was lost, emptied, rolled back or restarted. */

const LEASE_MS = 10_000;
const MAX_WAITS = 40;

/**
 * What every instance of inventory does all the time: it compares the Redis processes that it is connected to with those
 * that MySQL says the open epoch was made on. The same: serve in that epoch. Others: something may be forgotten, recover.
 */
export function* watch(world: World, inventory: Inventory): Steps {
  const { epoch, runIds } = world.database.sale;
  if (needsRecovery(world)) {
    yield;
    yield* recover(world, inventory);
    return;
  }
  yield;
  inventory.epoch = epoch;
  inventory.runIds = runIds;
  yield* openBuckets(world, { epoch, runIds });
}

function needsRecovery(world: World): boolean {
  const { recovering, runIds } = world.database.sale;
  return recovering || world.nodes.some((node, index) => node.runId !== runIds[index]);
}

/** One recovery, fenced by its epoch and by the Redis processes that it counts: whatever changes under it ends it. */
class Recovery {
  /** By bucket: what has been counted by no other recovery since the sale was last open. */
  readonly survivors: number[] = [];
  readonly lost: number[] = [];

  constructor(
    private readonly world: World,
    readonly epoch: number,
    readonly runIds: readonly number[],
  ) {}

  get isCurrent(): boolean {
    const { world, epoch, runIds } = this;
    return (
      world.database.sale.epoch === epoch && world.nodes.every((node, index) => node.runId === runIds[index])
    );
  }

  /** A bucket that this recovery froze or loaded. */
  bucket(index: number): Bucket | undefined {
    const bucket = this.world.nodeOf(index).data.buckets.get(index);
    return bucket?.epoch === this.epoch ? bucket : undefined;
  }

  /** Nothing but an order moves in a frozen bucket, and calls of the old epoch are refused for good. */
  freeze(index: number, openEpoch: number): void {
    const bucket = this.world.nodeOf(index).data.buckets.get(index);
    if (bucket && bucket.epoch >= openEpoch && bucket.epoch <= this.epoch) {
      bucket.epoch = this.epoch;
      bucket.frozen = true;
      this.survivors.push(index);
    } else this.lost.push(index);
  }
}

function* recover(world: World, inventory: Inventory): Steps {
  const { sale } = world.database;
  // Under the lock of the sale's row: another owner may be at it, or be done.
  if (!needsRecovery(world)) return;
  if (sale.leaseEndsAtMs > world.nowMs && sale.recoverer !== inventory.name) return;
  // First of all, durably: from now on no tombstone of an older epoch can be written.
  sale.epoch += 1;
  sale.recovering = true;
  sale.recoverer = inventory.name;
  sale.leaseEndsAtMs = world.nowMs + LEASE_MS;
  const recovery = new Recovery(world, sale.epoch, world.runIds());
  const { openEpoch } = sale;
  world.note(`${inventory.name}: Redis has changed, recovery in epoch ${sale.epoch}`);
  for (let index = 0; index < world.setup.buckets; index += 1) {
    yield;
    if (!recovery.isCurrent) return;
    recovery.freeze(index, openEpoch);
  }
  yield* finishTransfers(world, recovery);
  if (!world.without('rebuild before the drain') && !(yield* waitForWriter(world))) return;
  yield;
  // One snapshot of MySQL, and Redis after it. Effects are kept meanwhile, so that nothing moves between the two.
  const rows = [...world.database.orders.values()].map((row) => ({ ...row }));
  const { sold } = world.database;
  yield* load(world, recovery, { rows, sold });
  for (const index of recovery.survivors) {
    yield;
    if (!recovery.isCurrent) return;
    repair(world, recovery.bucket(index), rowsOf(world, rows, index));
  }
  yield;
  if (!recovery.isCurrent) return;
  // The last belt: an acknowledged order of an earlier epoch has a row now.
  requireCounted(world, recovery.epoch);
  sale.recovering = false;
  sale.openEpoch = recovery.epoch;
  sale.runIds = recovery.runIds;
  sale.leaseEndsAtMs = 0;
  world.note(`${inventory.name}: epoch ${recovery.epoch} is open`);
  yield* openBuckets(world, recovery);
}

/** Between survivors they arrive; to a bucket that was lost they need not: its units are what is left over. */
function* finishTransfers(world: World, recovery: Recovery): Steps {
  for (const source of recovery.survivors) {
    for (const { tid, units } of recovery.bucket(source)?.stock.departures() ?? []) {
      const destination = destinationOf(tid);
      if (recovery.survivors.includes(destination)) {
        yield;
        if (!recovery.isCurrent) return;
        recovery.bucket(destination)?.stock.transferIn(tid, units, [], 0);
      }
      yield;
      if (!recovery.isCurrent) return;
      recovery.bucket(source)?.stock.transferDone(tid);
      world.note(`recovery: ${tid} closed`);
    }
  }
}

/** So that whatever was accepted before is in the sum. Gives up after a while; the next recovery begins anew. */
function* waitForWriter(world: World): Steps<boolean> {
  const ends = world.log.ends();
  for (let wait = 0; wait < MAX_WAITS; wait += 1) {
    yield;
    if (world.log.hasPassed(ends)) return true;
  }
  return false;
}

/**
 * A lost bucket gets a record for each row of its shoppers, and all lost ones together the units that are neither sold nor
 * in a surviving bucket. A unit in a surviving bucket counts there, unless its attempt is sold: also one that MySQL has
 * ended and whose return is still to be told.
 */
function* load(
  world: World,
  recovery: Recovery,
  { rows, sold }: { readonly rows: readonly OrderRow[]; readonly sold: number },
): Steps {
  const rowOf = new Map(rows.map((row) => [String(row.order.attemptId), row]));
  let surviving = 0;
  for (const index of recovery.survivors) {
    const stock = recovery.bucket(index)?.stock;
    if (!stock) return;
    surviving += stock.units;
    for (const [id, { state, quantity }] of stock.attempts) {
      const row = rowOf.get(id);
      const isSold = row !== undefined && countsAsSold(row.state);
      const overlooked = world.without('rebuild overlooks units about to return') && row !== undefined;
      if (state !== 'V' && (isSold || overlooked)) surviving -= quantity;
    }
  }
  // Fewer than none: survivors offer what an old token has sold behind their backs. The guard holds until it is corrected.
  const left = world.setup.total - sold - surviving;
  if (left < 0) world.torn = true;
  const shares = splitAllotment(Math.max(0, left), Math.max(1, recovery.lost.length));
  for (const [at, index] of recovery.lost.entries()) {
    yield;
    if (!recovery.isCurrent || recovery.bucket(index)) return;
    const own = rowsOf(world, rows, index);
    const soldHere = own
      .filter(({ state }) => countsAsSold(state))
      .reduce((sum, { order }) => sum + order.quantity, 0);
    const stock = new StockModel((shares[at] ?? 0) + soldHere, world.gate());
    for (const row of own) stock.attempts.set(row.order.attemptId, recordOf(row));
    world.nodeOf(index).data.buckets.set(index, { epoch: recovery.epoch, frozen: true, stock });
    world.note(`recovery: bucket ${index} loaded, ${shares[at] ?? 0} free, ${soldHere} sold`);
  }
}

/** Every row of a surviving bucket's shoppers has its record, whatever Redis had forgotten. */
function repair(world: World, bucket: Bucket | undefined, rows: readonly OrderRow[]): void {
  for (const row of rows) {
    if (!bucket || agrees(bucket, row) || !correctRecord(bucket, row)) continue;
    world.note(`${row.order.attemptId}: record corrected to ${row.state}`);
  }
}

/** Idempotent, and the last act of a recovery; an owner that dies before it is followed by whoever watches. */
function* openBuckets(
  world: World,
  { epoch, runIds }: { readonly epoch: number; readonly runIds: readonly number[] },
): Steps {
  const isSame = () => world.nodes.every((node, index) => node.runId === runIds[index]);
  if (isSame() && world.stateNode.data.state?.epoch !== epoch) {
    world.stateNode.data.state = { epoch, credit: 0, soldOut: false };
  }
  for (const { index, bucket } of world.bucketsInRedis()) {
    if (!bucket.frozen || bucket.epoch !== epoch) continue;
    yield;
    const now = world.nodeOf(index).data.buckets.get(index);
    if (isSame() && now?.epoch === epoch) now.frozen = false;
  }
}

function requireCounted(world: World, epoch: number): void {
  const { accepted, database, log } = world;
  for (const [attemptId, acceptedIn] of accepted) {
    const isDead = database.deadLetters.some(({ record }) => record.order.attemptId === attemptId);
    const isKnown =
      acceptedIn === epoch || database.orders.has(attemptId) || log.lost.has(attemptId) || isDead;
    world.require(
      isKnown,
      'a rebuild counts what was promised',
      () => `${attemptId} was not read before epoch ${epoch}`,
    );
  }
}
