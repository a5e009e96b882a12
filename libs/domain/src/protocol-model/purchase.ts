import type { QueuedOrder } from '../decide-orders.js';
import type { AttemptId } from '../ids.js';
import type { ModelWish } from '../stock-model.js';
import type { Bucket } from './stores.js';
import { tell } from './writer.js';
import {
  ACKNOWLEDGED_WITHIN_MS,
  OFFSET_AHEAD_MS,
  PRODUCE_WITHIN_MS,
  QUEUE_AHEAD_MS,
  SALE,
  type Inventory,
  type Steps,
  type Token,
  type World,
} from './world.js';

/** What a shopper does: enter, order, give up. Every call may be repeated, by the same id, by anybody, at any time. */

export interface Wish extends ModelWish {
  readonly id: AttemptId;
  readonly shopperId: Token['shopperId'];
}

export type Entered =
  | { readonly outcome: 'held'; readonly token: Token }
  | { readonly outcome: 'refused' | 'unavailable' };

const REFUSED = { outcome: 'refused' } as const;
const UNAVAILABLE = { outcome: 'unavailable' } as const;
const MAX_ROUNDS = 4;

/** A hold of units in the shopper's home bucket, or in another's that are fetched to it. */
export function* enter(world: World, inventory: Inventory, wish: Wish): Steps<Entered> {
  const { epoch } = inventory;
  const home = world.homeOf(wish.shopperId);
  yield;
  const entered = grantIn(world, inventory.serve(home, epoch), wish);
  if (entered) return entered;
  if (world.without('sold out without looking')) return saySoldOut(world, wish, epoch);
  return yield* fetchUnits(world, inventory, wish, epoch);
}

/** Grants in one bucket; undefined where it has too few units. */
function grantIn(world: World, bucket: Bucket | undefined, wish: Wish): Entered | undefined {
  if (!bucket) return UNAVAILABLE;
  const [grant] = bucket.stock.grant([wish], world.redisNowMs(world.homeOf(wish.shopperId)));
  world.note(`${wish.id}: enter, ${grant?.outcome}`);
  if (grant?.outcome === 'empty') return undefined;
  if (grant?.outcome !== 'granted' && grant?.outcome !== 'known') return REFUSED;
  const { shopperId, quantity } = wish;
  return {
    outcome: 'held',
    token: { attemptId: grant.id as AttemptId, shopperId, quantity, epoch: bucket.epoch },
  };
}

/**
 * Shoppers stay, stock moves. "Sold out" is a claim about all buckets at one moment: the counter is read before the scan,
 * nothing is free anywhere nor on the way, and the counter has not moved when the claim is made.
 */
function* fetchUnits(world: World, inventory: Inventory, wish: Wish, epoch: number): Steps<Entered> {
  const home = world.homeOf(wish.shopperId);
  for (let round = 0; round < MAX_ROUNDS; round += 1) {
    yield;
    const state = inventory.state(epoch);
    if (!state) return UNAVAILABLE;
    if (state.soldOut) return saySoldOut(world, wish, epoch);
    const { credit } = state;
    const free: number[] = [];
    let onTheWay = 0;
    for (let index = 0; index < world.setup.buckets; index += 1) {
      yield;
      const bucket = inventory.serve(index, epoch);
      if (!bucket) return UNAVAILABLE;
      free.push(bucket.stock.free);
      onTheWay += bucket.stock.openTransfers;
    }
    const sum = free.reduce((total, units) => total + units, 0);
    if (sum === 0 && onTheWay === 0) {
      yield;
      const now = inventory.state(epoch);
      if (!now) return UNAVAILABLE;
      if (now.credit !== credit) continue;
      now.soldOut = true;
      return saySoldOut(world, wish, epoch);
    }
    if (sum < wish.quantity) {
      if (onTheWay === 0) return REFUSED;
      continue;
    }
    const source = free.findIndex((units, index) => units > 0 && index !== home);
    // Units may have come back to the home bucket itself.
    const onArrival = (to: Bucket | undefined) => grantIn(world, to, wish);
    const entered =
      source < 0
        ? onArrival(inventory.serve(home, epoch))
        : yield* transfer(world, inventory, {
            source,
            destination: home,
            units: wish.quantity,
            epoch,
            onArrival,
          });
    if (entered) return entered;
  }
  return UNAVAILABLE;
}

function saySoldOut(world: World, wish: Wish, epoch: number): Entered {
  world.note(`${wish.id}: enter, sold out`);
  world.require(
    world.emptyIn.has(epoch),
    'sold out is said of an empty sale only',
    () => `told to ${wish.id}`,
  );
  return REFUSED;
}

/**
 * out in the source, in at the destination, done in the source; each idempotent by tid. What the units were fetched for
 * happens in one script with their arrival, so that they are not pulled away again before it.
 *
 * @returns undefined where the source has nothing to give
 */
export function* transfer<T>(
  world: World,
  inventory: Inventory,
  move: {
    readonly source: number;
    readonly destination: number;
    readonly units: number;
    readonly epoch: number;
    readonly onArrival: (to: Bucket | undefined) => T;
  },
): Steps<T | undefined> {
  const { source, destination, epoch, onArrival } = move;
  const tid = `${world.newId('t')}>${destination}`;
  const units = inventory.serve(source, epoch)?.stock.transferOut(tid, move.units) ?? 0;
  if (units === 0) return undefined;
  world.note(`${tid}: ${units} out of bucket ${source}`);
  yield;
  const to = inventory.serve(destination, epoch);
  if (!to) return onArrival(undefined);
  to.stock.transferIn(tid, units, [], 0);
  world.note(`${tid}: ${units} in at bucket ${destination}`);
  const arrived = onArrival(to);
  yield;
  inventory.credit(epoch);
  yield;
  inventory.serve(source, epoch)?.stock.transferDone(tid);
  return arrived;
}

export type Placed = 'accepted' | 'unknown' | 'unavailable' | 'token_expired';

/** 202 is said in two cases only: Kafka acknowledged the record in time, or MySQL has decided. */
export function* place(world: World, inventory: Inventory, token: Token): Steps<Placed> {
  const { attemptId, shopperId, quantity } = token;
  const order: QueuedOrder = { attemptId, saleId: SALE, shopperId, quantity };
  const home = world.homeOf(shopperId);
  const askedAtMs = world.nowMs;
  yield;
  const bucket = inventory.find(home);
  // Redis has lost the account: nobody knows what a sweeper has begun. The recovery raises the epoch first.
  if (!bucket) return 'unavailable';
  const passesBy = token.epoch !== bucket.epoch && world.without('an old token passes by its record');
  const outcome = passesBy
    ? 'missing'
    : bucket.stock.queue(
        { id: attemptId, shopperId, quantity, deliveryHash: 'd' },
        world.redisNowMs(home),
        QUEUE_AHEAD_MS,
      );
  world.note(`${attemptId}: order, ${outcome}`);
  if (outcome === 'expiring') return 'unknown';
  if (outcome === 'token_expired') return 'token_expired';
  if (outcome === 'contradicts' || outcome === 'other_delivery') return 'unavailable';
  if (outcome === 'missing' || outcome === 'decided') {
    // Redis has forgotten the hold, or knows its end: MySQL has the word.
    yield;
    if (world.database.orders.has(attemptId)) return 'accepted';
    if (outcome === 'decided') return 'unknown';
  }
  yield;
  return yield* produce(world, inventory, { order, askedAtMs });
}

function* produce(
  world: World,
  inventory: Inventory,
  { order, askedAtMs }: { readonly order: QueuedOrder; readonly askedAtMs: number },
): Steps<Placed> {
  const { attemptId } = order;
  if (world.nowMs - askedAtMs > PRODUCE_WITHIN_MS) return 'unknown';
  const sending = world.log.send({ order, readable: world.healed || world.draw(6) > 0 }, world.nowMs);
  world.note(`${attemptId}: produced, not acknowledged yet`);
  if (world.without('accepted before the acknowledgement')) accept(world, attemptId);
  for (;;) {
    yield;
    if (sending.acknowledged) break;
    if (world.nowMs - sending.sentAtMs > ACKNOWLEDGED_WITHIN_MS && world.draw(8) === 0) {
      // Not known: the record may be in the log, or come there yet. Nothing is returned, the shopper asks again.
      if (world.without('units returned when a produce fails')) {
        const effect = { order, kind: 'void', reason: 'failed', applied: false } as const;
        yield* tell(world, inventory, [effect]);
      }
      return 'unknown';
    }
  }
  // The clock is read when the answer is handled: a process that slept does not believe in one of long ago.
  const isInTime = world.nowMs - sending.sentAtMs <= ACKNOWLEDGED_WITHIN_MS;
  if (!isInTime && !world.without('a late acknowledgement counts')) return 'unknown';
  accept(world, attemptId);
  yield;
  // So that the sweeper knows it as acknowledged; the shopper does not wait for it, and nothing depends on it.
  if (!world.healed && world.draw(3) === 0) return 'accepted';
  const home = world.homeOf(order.shopperId);
  const { partition, offset } = sending.acknowledged;
  const place = `${partition}:${offset}`;
  inventory.find(home)?.stock.recordOffset(attemptId, place, world.redisNowMs(home), OFFSET_AHEAD_MS);
  return 'accepted';
}

function accept(world: World, attemptId: AttemptId): void {
  if (!world.accepted.has(attemptId)) world.accepted.set(attemptId, world.database.sale.epoch);
  world.note(`${attemptId}: 202`);
}

/** Gives a hold up. The units come back as they do from an expired hold: behind a tombstone. */
export function* release(world: World, inventory: Inventory, wish: Wish): Steps {
  const { epoch } = inventory;
  const home = world.homeOf(wish.shopperId);
  yield;
  const bucket = inventory.serve(home, epoch);
  const outcome = bucket?.stock.release(wish.id, wish.shopperId);
  world.note(`${wish.id}: give up, ${outcome ?? 'unavailable'}`);
  const attempt = bucket?.stock.attempts.get(wish.id);
  // Overdue from now on, so that the sweeper's grace covers a produce that was allowed before Redis forgot it.
  if (outcome === 'released' && attempt?.state === 'h') {
    attempt.deadlineMs = Math.min(attempt.deadlineMs, world.redisNowMs(home));
  }
}
