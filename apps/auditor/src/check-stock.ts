import type {
  BucketEvidence,
  OrderRow,
  RedisAttempt,
  RedisFigures,
  Sale,
  ShopperSlice,
  Slice,
} from './evidence.js';
import type { Check, Findings, Invariant } from './findings.js';
import { homeBucketOf, LIVE } from './grammar.js';

/** Redis keeps what it knows of an ended attempt at least this long. */
const ATTEMPT_KEPT_MS = 24 * 3_600_000;
/** Phases in which no bucket exists yet. */
const WITHOUT_BUCKETS: ReadonlySet<string> = new Set(['draft', 'warming']);

/** Where the account counts an attempt's units while it is in a state; a void one counts nowhere. */
const FIELD_OF_STATE: Readonly<Record<string, 'held' | 'queued' | 'sold'>> = {
  H: 'held',
  h: 'held',
  Q: 'queued',
  q: 'queued',
  C: 'sold',
};

const sumOf = <T>(items: Iterable<T>, value: (item: T) => number): number => {
  let sum = 0;
  for (const item of items) sum += value(item);
  return sum;
};

/** Units of the rows that count as sold. */
export function liveUnits(orders: readonly OrderRow[]): number {
  return sumOf(orders, ({ state, quantity }) => (LIVE.has(state) ? quantity : 0));
}

function noOversell({ saleId, mysql }: Sale, found: Findings): Check {
  const { total, sold } = mysql.stock;
  let live = 0;
  found.look();
  return {
    slice: ({ orders }) => {
      found.look(orders.length);
      live += liveUnits(orders);
    },
    finish: () => {
      const witness = { sale_id: saleId, total, sold, liveUnits: live };
      if (live > total) found.breach(witness, `${live} units are sold of ${total}: oversold`);
      if (sold !== live)
        found.breach(witness, `sale_stock.sold is ${sold}, but the live orders add up to ${live}`);
      if (sold < 0 || sold > total)
        found.breach(witness, `sale_stock.sold is ${sold}, outside 0 to ${total}`);
    },
  };
}

function bucketsConserve({ redis, mysql }: Sale, found: Findings): void {
  const present = redis.buckets.filter((bucket) => bucket.present);
  found.look(present.length);
  for (const { bucket, account } of present) {
    const { initial, free, held, queued, sold, in: movedIn, out: movedOut } = account;
    const witness = { bucket, ...account };
    const odd = Object.entries(account).find(([, value]) => !Number.isInteger(value) || value < 0);
    if (odd) found.breach(witness, `the account's ${odd[0]} is ${odd[1]}, no integer of at least 0`);
    const had = initial + movedIn - movedOut;
    const has = free + held + queued + sold;
    if (had !== has)
      found.breach(witness, `it got ${had} units (initial + in − out), but accounts for ${has}`);
  }
  const inFlight = unitsInFlight(present, { wasRebuilt: mysql.sale.epoch > 1 }, found);
  const balance = sumOf(present, ({ account }) => account.in - account.out);
  if (balance + inFlight !== 0) {
    found.breach(
      { sumOfInMinusOut: balance, inFlight },
      `moved in minus moved out is ${balance} over all buckets, with ${inFlight} units under way`,
    );
  }
}

/**
 * Units that left one bucket and have not arrived in another; notes halves that do not fit each other. A bucket that was lost
 * and built anew has forgotten its halves, and what it sent or got is counted as its beginning.
 */
function unitsInFlight(
  buckets: readonly BucketEvidence[],
  { wasRebuilt }: { wasRebuilt: boolean },
  found: Findings,
): number {
  const sent = new Map<string, { bucket: number; kind: string; units: number }>();
  const received = new Map<string, { bucket: number; units: number }>();
  for (const { bucket, transfers } of buckets) {
    for (const [id, { kind, units }] of transfers) {
      if (kind === 'in') received.set(id, { bucket, units });
      else if (kind === 'out' || kind === 'done') sent.set(id, { bucket, kind, units });
    }
  }
  let inFlight = 0;
  for (const [id, { bucket, kind, units }] of sent) {
    const arrived = received.get(id);
    if (!arrived && kind === 'out') inFlight += units;
    if (!arrived && kind === 'done' && !wasRebuilt) {
      found.breach({ transfer: id, source: bucket, units }, `transfer ${id} is done, but arrived nowhere`);
    }
    if (arrived && arrived.units !== units) {
      found.breach(
        { transfer: id, source: bucket, units, destination: arrived.bucket, arrived: arrived.units },
        `transfer ${id} left with ${units} units and arrived with ${arrived.units}`,
      );
    }
  }
  for (const [id, { bucket, units }] of received) {
    if (sent.has(id) || wasRebuilt) continue;
    found.breach(
      { transfer: id, destination: bucket, units },
      `transfer ${id} arrived, but left from nowhere`,
    );
  }
  return inFlight;
}

/** Units by account, over all buckets. */
export function unitsInRedis({ buckets }: RedisFigures) {
  const sum = (field: 'initial' | 'free' | 'held' | 'queued' | 'sold') =>
    sumOf(buckets, ({ account }) => account[field] || 0);
  return {
    initial: sum('initial'),
    free: sum('free'),
    held: sum('held'),
    queued: sum('queued'),
    sold: sum('sold'),
  };
}

function storesAgree({ saleId, mysql, redis }: Sale, found: Findings): void {
  if (WITHOUT_BUCKETS.has(mysql.sale.phase)) return;
  const { total, sold } = mysql.stock;
  const { allotment } = mysql.sale;
  found.look(redis.buckets.length);
  if (total !== allotment) {
    found.breach(
      { sale_id: saleId, total, allotment },
      `sale_stock.total is ${total}, the sale's allotment ${allotment}`,
    );
  }
  for (const { bucket, present } of redis.buckets) {
    if (!present)
      found.breach({ sale_id: saleId, bucket }, `bucket ${bucket} of a warmed-up sale is not in Redis`);
  }
  const sums = unitsInRedis(redis);
  const witness = { sale_id: saleId, total, mysqlSold: sold, ...sums };
  if (sums.initial !== total)
    found.breach(witness, `the buckets were given ${sums.initial} units of ${total}`);
  if (sums.free + sums.sold !== total) {
    found.breach(witness, `free and sold are ${sums.free + sums.sold} units in Redis, not ${total}`);
  }
  if (sums.held + sums.queued !== 0) {
    found.breach(witness, `${sums.held} units are still held and ${sums.queued} queued`);
  }
  if (sums.sold !== sold) found.breach(witness, `Redis says ${sums.sold} units are sold, MySQL ${sold}`);
}

function holdsAddUp({ redis }: Sale, found: Findings): Check {
  const unitsOf = new Map<string, number>();
  return {
    slice: (slice) => {
      found.look(slice.holds.size);
      for (const attempt of slice.holds.values()) {
        const place = `${attempt.bucket}/${FIELD_OF_STATE[attempt.state] ?? ''}`;
        unitsOf.set(place, (unitsOf.get(place) ?? 0) + attempt.quantity);
        checkHold(attempt, slice, found);
      }
      for (const order of slice.orders) {
        if (!LIVE.has(order.state) || slice.holds.has(order.orderId)) continue;
        found.breach(
          { order_id: order.orderId, state: order.state },
          'an order counts as sold, but Redis has no such attempt',
        );
      }
      checkIssuedTokens(slice, found);
    },
    finish: () => {
      for (const { bucket, present, account } of redis.buckets) {
        if (!present) continue;
        for (const field of ['held', 'queued', 'sold'] as const) {
          const units = unitsOf.get(`${bucket}/${field}`) ?? 0;
          if (units === account[field]) continue;
          found.breach(
            { bucket, [field]: account[field], attempts: units },
            `the account says ${account[field]} units are ${field}, its attempts add up to ${units}`,
          );
        }
      }
    },
  };
}

function checkHold(attempt: RedisAttempt, { sale, ordersById }: Slice, found: Findings): void {
  const { attemptId, bucket, state, shopperId, quantity } = attempt;
  const order = ordersById.get(attemptId);
  const witness = { attemptId, bucket, redis: state, quantity, mysql: order?.state ?? null };
  if (!/^[HhQqCV]$/.test(state) || !Number.isInteger(quantity) || quantity < 1) {
    found.breach(witness, 'the attempt in Redis is not in any state that the protocol knows');
    return;
  }
  const home = homeBucketOf(shopperId, sale.mysql.sale.bucketCount);
  if (bucket !== home)
    found.breach({ ...witness, home }, `the attempt lies outside its shopper's bucket ${home}`);
  if (order && order.quantity !== quantity) {
    found.breach(
      { ...witness, rowQuantity: order.quantity },
      `Redis has ${quantity} units for it, MySQL ${order.quantity}`,
    );
  }
  const live = order !== undefined && LIVE.has(order.state);
  if (state === 'C' && !live) found.breach(witness, 'Redis counts it as sold, MySQL does not');
  if (state === 'V' && live)
    found.breach(witness, 'its units went back on sale, but MySQL counts it as sold');
  if (state === 'V' && !order) {
    found.breach(witness, 'its units went back on sale, but no row says that it can never become an order');
  }
  if (state !== 'C' && state !== 'V' && live) {
    found.breach(witness, 'MySQL counts it as sold, Redis still holds it undecided');
  }
}

/** A token that was handed out stands for a hold, and Redis remembers it unless the stock was built anew. */
function checkIssuedTokens({ sale, logged, holds }: Slice, found: Findings): void {
  if (!logged || sale.mysql.sale.epoch > 1) return;
  const keptSinceMs = Date.now() - ATTEMPT_KEPT_MS;
  for (const [attemptId, { tokens }] of logged) {
    const claims = tokens[0]?.claims;
    if (!claims || claims.issuedAtMs < keptSinceMs) continue;
    found.look();
    const hold = holds.get(attemptId);
    if (!hold) {
      found.breach(
        { attemptId, issuedAtMs: claims.issuedAtMs },
        'a token was issued, but Redis has no hold for it',
      );
    } else if (hold.quantity !== claims.quantity) {
      found.breach(
        { attemptId, token: claims.quantity, redis: hold.quantity },
        `its token is for ${claims.quantity} units, its hold for ${hold.quantity}`,
      );
    }
  }
}

function withinLimit(slice: ShopperSlice, found: Findings): void {
  const { sale, live, quota, redis } = slice;
  const { limitPerShopper, bucketCount } = sale.mysql.sale;
  const shoppers = new Set([...live.keys(), ...quota.keys(), ...redis.keys()]);
  found.look(shoppers.size);
  for (const shopperId of shoppers) {
    const has = live.get(shopperId) ?? 0;
    const quotaUsed = quota.get(shopperId) ?? 0;
    const usage = redis.get(shopperId);
    const witness = {
      shopper_id: shopperId,
      liveUnits: has,
      quotaUsed,
      redisUsed: usage?.used ?? null,
      limit: limitPerShopper,
    };
    if (has > limitPerShopper) found.breach(witness, `has ${has} units, the limit is ${limitPerShopper}`);
    if (quotaUsed !== has)
      found.breach(witness, `quota.used is ${quotaUsed}, the live orders add up to ${has}`);
    if ((usage?.used ?? 0) !== has) {
      found.breach(witness, `Redis counts ${usage?.used ?? 0} units used, the live orders add up to ${has}`);
    }
    if (usage && usage.bucket !== homeBucketOf(shopperId, bucketCount)) {
      found.breach({ ...witness, bucket: usage.bucket }, 'is counted outside the home bucket');
    }
  }
}

/** A check of what is known of the sale as a whole. */
const atOnce =
  (look: (sale: Sale, found: Findings) => void): Invariant['begin'] =>
  (sale, found) => ({ finish: () => look(sale, found) });

/** I1 to I4 and I14: units and who has them. */
export const STOCK_INVARIANTS: readonly Invariant[] = [
  { id: 'I1', says: 'nothing is oversold: live orders add up to what is sold', begin: noOversell },
  { id: 'I2', says: 'no bucket gains or loses a unit, transfers included', begin: atOnce(bucketsConserve) },
  { id: 'I3', says: 'Redis and MySQL agree on what is free and sold', begin: atOnce(storesAgree) },
  { id: 'I4', says: 'every held, queued and sold unit belongs to one attempt', begin: holdsAddUp },
  {
    id: 'I14',
    says: 'nobody has more than the limit',
    begin: (_sale, found) => ({ shoppers: (slice) => withinLimit(slice, found) }),
  },
];
