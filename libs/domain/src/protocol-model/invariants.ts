import { countsAsSold } from '../order.js';
import type { Rule } from './flaws.js';
import type { World } from './world.js';

/** What must hold after every step. Each is a statement about what lies in the stores, not about how it came there. */
export function checkStep(world: World): void {
  checkBooks(world);
  checkBuckets(world);
  checkLog(world);
}

function checkBooks(world: World): void {
  const { database, setup } = world;
  let sold = 0;
  const used = new Map<string, number>();
  for (const { order, state } of database.orders.values()) {
    if (!countsAsSold(state)) continue;
    sold += order.quantity;
    used.set(order.shopperId, (used.get(order.shopperId) ?? 0) + order.quantity);
  }
  world.require(sold <= setup.total, 'never oversold', () => `${sold} of ${setup.total} units are sold`);
  let entered = 0;
  for (const units of database.ledger.values()) entered += units;
  const isEven = sold === database.sold && sold === entered;
  world.require(isEven, 'the books add up', () => `rows ${sold}, stock ${database.sold}, ledger ${entered}`);
  for (const shopper of world.shoppers) {
    const units = used.get(shopper) ?? 0;
    world.require(units <= setup.limit, 'nobody has more than the limit', () => `${shopper} has ${units}`);
    world.require(units === database.usedBy(shopper), 'the books add up', () => `the quota of ${shopper}`);
  }
}

function checkBuckets(world: World): void {
  const { database, setup } = world;
  // A bucket of an older epoch than the open one is a remnant that nobody serves.
  const buckets = world.bucketsInRedis().filter(({ bucket }) => bucket.epoch >= database.sale.openEpoch);
  let [units, taken] = [0, 0];
  for (const { index, bucket } of buckets) {
    const here = bucket.stock.units;
    let takenHere = 0;
    for (const [id, { state, quantity }] of bucket.stock.attempts) {
      if (state !== 'V') {
        takenHere += quantity;
        continue;
      }
      const row = database.orders.get(id as never);
      const isOver = row !== undefined && !countsAsSold(row.state);
      world.require(
        isOver,
        'units return only behind a durable row',
        () => `${id} is void, its row ${row?.state}`,
      );
    }
    world.require(
      takenHere <= here,
      'no unit exists twice',
      () => `bucket ${index}: ${takenHere} of ${here} taken`,
    );
    units += here;
    taken += takenHere;
    for (const departure of bucket.stock.departures()) {
      if (!buckets.some((other) => other.bucket.stock.hasArrived(departure.tid))) units += departure.units;
    }
  }
  // Where one of several nodes is behind the others, halves of transfers are missing until the sum is corrected.
  const isWhole = world.torn || units <= setup.total;
  world.require(isWhole, 'no unit exists twice', () => `Redis has ${units} of ${setup.total} units`);
  const { epoch } = database.sale;
  const isComplete =
    buckets.length === setup.buckets && buckets.every(({ bucket }) => bucket.epoch === epoch);
  if (isComplete && units === taken) world.emptyIn.add(epoch);
}

function checkLog(world: World): void {
  const { database, log } = world;
  log.partitions.forEach((records, partition) => {
    for (const record of records.slice(0, log.committed[partition])) {
      const { attemptId } = record.order;
      const isTraced =
        database.orders.has(attemptId) || database.deadLetters.some((letter) => letter.record === record);
      world.require(isTraced, 'no offset passes a record without a trace', () => attemptId);
    }
  });
  for (const attemptId of world.accepted.keys()) {
    const hasExpired = database.orders.get(attemptId)?.state === 'expired' && !log.lost.has(attemptId);
    world.require(!hasExpired, 'an accepted order never expires', () => attemptId);
  }
}

/** What must hold once all is healed and everybody had time. Undefined when it does. */
export function unrest(world: World): { readonly rule: Rule; readonly witness: string } | undefined {
  const { database, log } = world;
  for (const attemptId of world.accepted.keys()) {
    const row = database.orders.get(attemptId);
    if (!row && !log.lost.has(attemptId))
      return { rule: 'every accepted order is decided', witness: attemptId };
    if (row?.state === 'rejected' && row.reason !== 'poison' && !world.forgot) {
      return { rule: 'only a loss rejects an accepted order', witness: `${attemptId}: ${row.reason}` };
    }
  }
  return unresolved(world) ?? difference(world);
}

function unresolved(world: World): ReturnType<typeof unrest> {
  const { database } = world;
  const rule = 'nothing stays unresolved';
  if (database.sale.recovering) return { rule, witness: 'the recovery' };
  const untold = database.effects.find(({ applied }) => !applied);
  if (untold) return { rule, witness: `the effect of ${untold.order.attemptId}` };
  for (const { index, bucket } of world.bucketsInRedis()) {
    if (bucket.frozen) return { rule, witness: `bucket ${index} is frozen` };
    const [departure] = bucket.stock.departures();
    if (departure) return { rule, witness: `transfer ${departure.tid}` };
    for (const [id, { state }] of bucket.stock.attempts) {
      if (state !== 'C' && state !== 'V') return { rule, witness: `${id} is ${state}` };
    }
  }
  return undefined;
}

function difference(world: World): ReturnType<typeof unrest> {
  const { database, setup } = world;
  let free = 0;
  const records = new Map<string, string>();
  for (const { bucket } of world.bucketsInRedis()) {
    free += bucket.stock.free;
    for (const [id, { state }] of bucket.stock.attempts) records.set(id, state);
  }
  const rule = 'Redis and MySQL agree';
  for (const [id, { state }] of database.orders) {
    if (countsAsSold(state) !== (records.get(id) === 'C')) return { rule, witness: `${id}: ${state}` };
    records.delete(id);
  }
  for (const [id, state] of records) if (state === 'C') return { rule, witness: `${id} has no row` };
  const stranded = setup.total - database.sold - free;
  const isHidden = free > 0 && world.stateNode.data.state?.soldOut === true;
  if (stranded === 0 && !isHidden) return undefined;
  return { rule: 'no unit is stranded', witness: `${stranded} too few are free, ${free} behind "sold out"` };
}
