/**
 * Sales that Redis has lost, on a real Redis and MySQL. Keys are deleted, or put back to what they were, in the middle of a
 * sale; rows are written as the writer writes them. Every test ends with the same books, see {@link TestBooks.balance}.
 */
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { SALE_FEED, decodeSnapshot } from '@flash-sale/contracts';
import { ShopperId, filterBitsFor, mayHold } from '@flash-sale/domain';
import { until } from '@flash-sale/testing';
import { TestBooks } from './fixtures/test-books.js';
import { EMPTY_KAFKA, TestInventory, shopperOf, shoppersOf, wishOf } from './fixtures/test-inventory.js';
import type { Inventory } from './inventory.js';
import { bucketKeys, stateKey } from './keys.js';
import type { KnownSale } from './sale-book.js';
import { scripts } from './scripts.js';

let world: TestInventory;
let books: TestBooks;
let inventory: Inventory;
let second: Inventory;
/** The life of the one server, as the instances see it. */
let incarnation = 'first';

beforeAll(async () => {
  world = await TestInventory.open({ rebuildLeaseMs: 500, incarnationOf: () => incarnation });
  books = new TestBooks(world);
  inventory = await world.instance();
  second = await world.instance();
}, 60_000);
afterAll(() => world.close());

/** A sale known to both instances. */
const openSale = async (changes: Readonly<Record<string, unknown>> = {}) => {
  const sale = await world.openSale(inventory, changes);
  await second.book.refresh();
  return sale;
};
const grant = async (sale: KnownSale, shopper: string, at = inventory, quantity = 1) => {
  const [found] = await at.stock.grant([wishOf(sale, shopper, quantity)]);
  return found?.outcome === 'hold' ? found.hold.state : found?.outcome;
};
const queue = async (sale: KnownSale, shopper: string, at = inventory) =>
  (await at.stock.queue([{ ...wishOf(sale, shopper), epoch: 1, deliveryHash: 'd' }]))[0];
const find = async (sale: KnownSale, shopper: string, at = inventory) => {
  const [found] = await at.stock.findHolds([wishOf(sale, shopper)]);
  return found?.outcome === 'hold' ? found.hold.state : found?.outcome;
};
/** Until an instance, or another one in its stead, has put a sale right. */
const rebuilt = (sale: KnownSale, at = inventory) =>
  until('the sale to be rebuilt', 20_000, async () => {
    at.rebuilds.consider(sale);
    return books.isServed(sale);
  });
const sweepEffects = (sale: KnownSale) => inventory.effects.sweep(0, [sale.saleId]);
const rebuildsOf = async (sale: KnownSale) =>
  (
    await world.database.query(
      `SELECT epoch, finished_at IS NOT NULL AS done, lost_buckets, restored_orders, free_units FROM rebuild
        WHERE sale_id = ? ORDER BY epoch`,
      [sale.saleId],
    )
  ).map((row) => Object.values(row).map((value) => (value === null ? null : Number(value))));
/** An instance that dies where it says something: it fails there, and is heard of no more. */
const dieAt = async (message: string, sale: KnownSale) => {
  let isDead = false;
  const say = (_: object, text: string) => {
    isDead ||= text.startsWith(message);
    if (isDead) throw new Error('died here');
  };
  const quiet = () => {};
  const dying = await world.instance({ log: { debug: quiet, info: say, warn: quiet, error: quiet } });
  dying.rebuilds.consider(sale);
  await until('the owner to die', 10_000, () => Promise.resolve(isDead));
  await dying.rebuilds.stop();
};

describe('A sale that Redis has lost', () => {
  it('is filled from MySQL, and goes on', async () => {
    const sale = await openSale({ allotment: 10, limitPerShopper: 3 });
    for (const shopper of ['held', 'sold', 'paid']) await grant(sale, shopper);
    await books.write(sale, 'sold');
    await books.write(sale, 'paid', 'paid', 2);
    await books.write(sale, 'gone', 'cancelled');
    await books.write(sale, 'late', 'expired');
    await books.loseAll(sale);
    expect([await grant(sale, 'anna'), await grant(sale, 'anna', second)]).toEqual([
      'unavailable',
      'unavailable',
    ]);
    expect([await find(sale, 'sold'), await queue(sale, 'held')]).toEqual(['unavailable', 'unavailable']);
    await rebuilt(sale);
    expect(await books.balance(sale)).toBe('free 7 held 0 queued 0 sold 3, MySQL 3');
    expect(await rebuildsOf(sale)).toEqual([[2, 1, 4, 4, 7]]);
    // Both instances go on: what is known is known, what is free is sold, and to nobody more than his limit.
    expect(await grant(sale, 'anna', second)).toBe('held');
    expect([await find(sale, 'sold'), await find(sale, 'gone')]).toEqual(['confirmed', 'void']);
    expect(await grant(sale, 'sold')).toBe('confirmed');
    const [more] = await second.stock.grant([wishOf(sale, 'paid', 2, 'another')]);
    expect(more?.outcome).toBe('limit');
    // An order of before that is cancelled now gives its unit back once.
    await books.cancel(sale, 'sold');
    await sweepEffects(sale);
    await sweepEffects(sale);
    expect(await books.balance(sale)).toBe('free 7 held 1 queued 0 sold 2, MySQL 2');
  });

  it('sells to a token of the forgotten epoch through MySQL, and takes the unit from the free ones', async () => {
    const sale = await openSale({ allotment: 3 });
    await grant(sale, 'anna');
    await books.loseAll(sale);
    await rebuilt(sale);
    expect(await queue(sale, 'anna')).toBe('missing');
    await books.write(sale, 'anna');
    await sweepEffects(sale);
    expect(await books.balance(sale)).toBe('free 2 held 0 queued 0 sold 1, MySQL 1');
    expect([await grant(sale, 'anna'), await find(sale, 'anna')]).toEqual(['confirmed', 'confirmed']);
  });

  it('is found and rebuilt by running instances without a hand, once, and gateways are told', async () => {
    const sale = await openSale({ allotment: 1 });
    await grant(sale, 'anna');
    expect(await grant(sale, 'bob')).toBe('sold_out');
    const told = async () => {
      const text = await world.redis.hget(SALE_FEED.snapshots, sale.saleId);
      return text === null ? undefined : decodeSnapshot(text);
    };
    await until('sold out to be told', 5_000, async () => (await told())?.soldOut === true);
    const running = await Promise.all([world.instance(), world.instance()]);
    await Promise.all(running.map((instance) => instance.book.refresh()));
    for (const instance of running) instance.start();
    try {
      await books.loseAll(sale);
      const said = new Set<string | undefined>();
      await until('the unit to be sold again', 20_000, async () => {
        said.add(await grant(sale, 'bob'));
        return said.has('held');
      });
      expect([...said].filter((outcome) => outcome !== 'unavailable')).toEqual(['held']);
      expect(await rebuildsOf(sale)).toEqual([[2, 1, 4, 0, 1]]);
      await until('gateways to be told', 5_000, async () => (await told())?.epoch === 2);
      await until('the feed to be whole again', 5_000, async () => {
        return (await world.redis.hexists(SALE_FEED.snapshots, SALE_FEED.complete)) === 1;
      });
    } finally {
      await Promise.all(running.map((instance) => instance.stop()));
    }
    expect(await books.balance(sale)).toBe('free 0 held 1 queued 0 sold 0, MySQL 0');
  }, 60_000);

  it('keeps what the surviving buckets know: holds, queued orders, and the units they have', async () => {
    const sale = await openSale({ allotment: 12, bucketCount: 3 });
    const [lost, kept] = [shopperOf(0, 3), shopperOf(1, 3)];
    const [queued, sold] = [shoppersOf(1, 3, 2)[1] ?? '', shopperOf(2, 3)];
    for (const shopper of [lost, kept, queued, sold]) await grant(sale, shopper);
    await queue(sale, queued);
    await books.write(sale, sold);
    await books.lose(sale, 0);
    await rebuilt(sale);
    expect(await books.balance(sale).catch(String)).toMatch(/toEqual/); // The order's effect is still to come.
    await sweepEffects(sale);
    expect(await books.balance(sale)).toBe('free 9 held 1 queued 1 sold 1, MySQL 1');
    expect(await rebuildsOf(sale)).toEqual([[2, 1, 1, 0, 4]]);
    expect([await find(sale, lost), await find(sale, kept), await find(sale, queued)]).toEqual([
      'unknown',
      'held',
      'queued',
    ]);
    // Tokens of the epoch before go on with the holds that survived.
    expect([await queue(sale, kept), await queue(sale, queued), await queue(sale, lost)]).toEqual([
      'queued',
      'queued',
      'missing',
    ]);
  });

  it('ends half transfers: units that had arrived stay, all others come back once', async () => {
    const sale = await openSale({ allotment: 12, bucketCount: 3 });
    const keys = (bucket: number) => bucketKeys(sale.saleId, bucket);
    const out = (from: number, to: number, tid: string, units: number) =>
      scripts.transferOut.run(
        world.redis,
        [keys(from).account, keys(from).transfers, keys(from).deadlines],
        [1, tid, units, to, 60_000, 0],
      );
    const arrive = (from: number, to: number, tid: string, units: number, epoch = 1) => {
      const { account, attempts, shoppers, deadlines, holders, transfers } = keys(to);
      const all = [account, attempts, shoppers, deadlines, holders, transfers];
      return scripts.transferIn.run(world.redis, all, [epoch, tid, units, from]);
    };
    // 4 units each; transfers take half of the rest too, so of 4 with 2 needed 3 leave.
    await out(1, 2, 'arrived', 2);
    await arrive(1, 2, 'arrived', 3);
    await out(2, 1, 'left', 7);
    await out(1, 0, 'to-the-lost', 1);
    await out(0, 1, 'from-the-lost', 4);
    await books.lose(sale, 0);
    await rebuilt(sale);
    expect(await books.balance(sale)).toBe('free 12 held 0 queued 0 sold 0, MySQL 0');
    expect(await world.redis.zcard(keys(1).deadlines)).toBe(0);
    // What was on its way comes too late, in whatever epoch it says.
    expect(await arrive(2, 1, 'left', 7)).toEqual({ outcome: 'other_epoch', epoch: 2 });
    expect(await books.balance(sale)).toBe('free 12 held 0 queued 0 sold 0, MySQL 0');
  });

  it('is not changed by what was sent before the freeze and arrives late', async () => {
    const sale = await openSale({ allotment: 4, bucketCount: 2 });
    await grant(sale, 'anna');
    await books.lose(sale, 0);
    await rebuilt(sale);
    const before = await books.balance(sale);
    for (const bucket of [0, 1]) {
      const { account, attempts, shoppers, deadlines, holders } = bucketKeys(sale.saleId, bucket);
      const late = ['late0000000000000000000', shopperOf(bucket, 2), 1, 0, 1, 2, 3];
      const granted = scripts.grant.run(
        world.redis,
        [account, attempts, shoppers, deadlines, holders],
        [1, ...late],
      );
      expect(await granted).toEqual({ outcome: 'other_epoch', epoch: 2 });
      const told = scripts.applyEffects.run(
        world.redis,
        [account, attempts, shoppers, deadlines],
        [1, 'x', 'void', ''],
      );
      expect(await told).toEqual({ outcome: 'other_epoch', epoch: 2 });
    }
    expect(await books.balance(sale)).toBe(before);
  });

  it('waits until the writer has passed what was queued, and says unavailable, never sold out', async () => {
    let written = 0n;
    const kafka = {
      logBounds: () => Promise.resolve({ lows: new Map([[0, 0n]]), ends: new Map([[0, 8n]]) }),
      committedOffsets: () => Promise.resolve(new Map([[0, written]])),
    };
    const sale = await openSale({ allotment: 2 });
    const waiting = await world.instance({ kafka });
    await grant(sale, 'anna');
    await grant(sale, 'bob');
    expect(await grant(sale, 'carol')).toBe('sold_out');
    await queue(sale, 'anna');
    await books.loseAll(sale);
    waiting.rebuilds.consider(sale);
    await until('the buckets to be frozen', 10_000, async () => (await rebuildsOf(sale)).length === 1);
    // Several leases long: an owner who lives is not replaced.
    for (const untilMs = performance.now() + 1_500; performance.now() < untilMs;) {
      expect(await grant(sale, 'carol', second)).toBe('unavailable');
      expect(await find(sale, 'anna', second)).toBe('unavailable');
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    expect(await rebuildsOf(sale)).toEqual([[2, 0, null, null, null]]);
    await books.write(sale, 'anna');
    // Nobody can be told of it now; the effect is kept.
    expect((await sweepEffects(sale)).applied).toBe(0);
    written = 8n;
    await rebuilt(sale, second);
    await until('the rebuild to be finished', 10_000, async () => (await rebuildsOf(sale))[0]?.[1] === 1);
    await sweepEffects(sale);
    expect(await books.balance(sale)).toBe('free 1 held 0 queued 0 sold 1, MySQL 1');
    expect(await rebuildsOf(sale)).toEqual([[2, 1, 4, 1, 1]]);
  }, 60_000);

  it('knows orders that are written while it is rebuilt, and those that are ended', async () => {
    const sale = await openSale({ allotment: 5 });
    await books.write(sale, 'ends');
    const during = await world.instance({
      kafka: {
        ...EMPTY_KAFKA,
        committedOffsets: async () => {
          await books.write(sale, 'just-in-time');
          return new Map();
        },
      },
      log: {
        debug: () => {},
        // After the rows were read.
        info: (_, message) => {
          if (message === 'the buckets are filled')
            late = Promise.all([books.write(sale, 'late'), books.cancel(sale, 'ends')]);
        },
        warn: () => {},
        error: () => {},
      },
    });
    let late: Promise<unknown> = Promise.resolve();
    await books.loseAll(sale);
    await rebuilt(sale, during);
    await late;
    await sweepEffects(sale);
    // A bucket that had no unit for the late order counts one as its own; the reconciler takes one back from the others.
    for (let pass = 0; pass < 3; pass += 1) await inventory.reconciler.pass();
    expect(await books.balance(sale)).toBe('free 3 held 0 queued 0 sold 2, MySQL 2');
  });

  it.each([
    ['when the buckets are frozen', 'the buckets are frozen'],
    ['when the writer was waited for', 'the writer has written'],
    ['when the buckets are filled, before it says so in MySQL', 'the buckets are filled'],
  ])(
    'is taken over when its owner dies %s',
    async (_, message) => {
      const sale = await openSale({ allotment: 9, bucketCount: 3 });
      const survivor = shopperOf(2, 3);
      await grant(sale, survivor);
      for (const shopper of shoppersOf(0, 3, 2)) await books.write(sale, shopper);
      await books.lose(sale, 0, 1);
      await dieAt(message, sale);
      expect(await grant(sale, 'anna')).toBe('unavailable');
      await rebuilt(sale, second);
      expect((await rebuildsOf(sale)).map(([epoch, done]) => [epoch, done])).toEqual([
        [2, 0],
        [3, 1],
      ]);
      await sweepEffects(sale);
      expect(await books.balance(sale)).toBe('free 6 held 1 queued 0 sold 2, MySQL 2');
      expect(await find(sale, survivor)).toBe('held');
    },
    30_000,
  );

  it('is taken over when its owner dies between two buckets, or between two pages', async () => {
    const sale = await openSale({ allotment: 9, bucketCount: 3 });
    for (const shopper of shoppersOf(1, 3, 3)) await books.write(sale, shopper);
    await books.loseAll(sale);
    await dieAt('the buckets are filled', sale);
    // As if he had sealed the first bucket only, and of the second had filled a part.
    await world.redis.hset(
      bucketKeys(sale.saleId, 1).account,
      'frozen',
      2,
      'sold',
      1,
      'free',
      0,
      'initial',
      1,
    );
    await world.redis.hset(bucketKeys(sale.saleId, 2).account, 'frozen', 2, 'free', 0, 'initial', 0);
    await rebuilt(sale, second);
    await sweepEffects(sale);
    expect(await books.balance(sale)).toBe('free 6 held 0 queued 0 sold 3, MySQL 3');
    expect((await rebuildsOf(sale)).at(-1)).toEqual([3, 1, 2, 3, 4]);
  }, 30_000);

  it('is opened by anybody when its owner dies before he has opened all buckets', async () => {
    const sale = await openSale({ allotment: 4, bucketCount: 2 });
    await books.loseAll(sale);
    await rebuilt(sale);
    await world.redis.hset(bucketKeys(sale.saleId, 1).account, 'frozen', 1);
    await rebuilt(sale, second);
    expect(await grant(sale, shopperOf(1, 2), second)).toBe('held');
    expect(await rebuildsOf(sale)).toHaveLength(1);
  });

  it('is not touched by an owner who wakes up when another has taken over', async () => {
    const sale = await openSale({ allotment: 6 });
    await books.write(sale, 'anna');
    let wake: (() => void) | undefined;
    const asleep = new Promise<void>((resolve) => {
      wake = resolve;
    });
    const zombie = await world.instance({
      kafka: {
        ...EMPTY_KAFKA,
        committedOffsets: async () => {
          await asleep;
          return new Map();
        },
      },
    });
    await books.loseAll(sale);
    zombie.rebuilds.consider(sale);
    await until('the first to begin', 10_000, async () => (await rebuildsOf(sale)).length === 1);
    await until('the second to take over', 10_000, async () => {
      // A stopped process renews nothing.
      await world.database.change(
        "UPDATE rebuild SET lease_until = '2000-01-01' WHERE sale_id = ? AND epoch = 2",
        [sale.saleId],
      );
      second.rebuilds.consider(sale);
      return books.isServed(sale);
    });
    expect(await grant(sale, 'bob', second)).toBe('held');
    wake?.();
    await zombie.rebuilds.stop();
    expect((await rebuildsOf(sale)).map(([epoch, done]) => [epoch, done])).toEqual([
      [2, 0],
      [3, 1],
    ]);
    await sweepEffects(sale);
    expect(await books.balance(sale)).toBe('free 4 held 1 queued 0 sold 1, MySQL 1');
  }, 30_000);

  it('is begun anew when Redis is emptied again in the middle', async () => {
    const sale = await openSale({ allotment: 6 });
    await books.write(sale, 'anna');
    let times = 0;
    const unlucky = await world.instance({
      kafka: {
        ...EMPTY_KAFKA,
        committedOffsets: async () => {
          times += 1;
          if (times <= 2) await books.loseAll(sale);
          return new Map();
        },
      },
    });
    await books.loseAll(sale);
    await rebuilt(sale, unlucky);
    await sweepEffects(sale);
    expect(await books.balance(sale)).toBe('free 5 held 0 queued 0 sold 1, MySQL 1');
    expect((await rebuildsOf(sale)).map(([, done]) => done)).toEqual([0, 0, 1]);
  }, 30_000);

  it('counts a page of rows once, however often it is written, and nothing of an owner who was replaced', async () => {
    const sale = await openSale({ bucketCount: 1 });
    const { account, attempts, shoppers, deadlines, transfers, holders } = bucketKeys(sale.saleId, 0);
    await books.loseAll(sale);
    await scripts.freeze.run(
      world.redis,
      [account, attempts, shoppers, deadlines, transfers, holders],
      [2, 1, 'sku', 1_024],
    );
    const fill = (epoch: number) =>
      scripts.fill.run(
        world.redis,
        [account, attempts, shoppers],
        [epoch, 'a', 'C|anna|1|…', 'anna', 1, 'b', 'C|anna|2|…', 'anna', 2, 'c', 'V|bert|1|…', 'bert', 0],
      );
    const seal = (sold: number, orders = 3) =>
      scripts.seal.run(
        world.redis,
        [account, transfers, holders, attempts],
        [2, 4, 'life', sold, Buffer.from([0x80, 0xff]), 2, orders],
      );
    expect([await fill(2), await fill(2), await fill(1)]).toEqual([
      { outcome: 'filled' },
      { outcome: 'filled' },
      { outcome: 'other_epoch', epoch: 2 },
    ]);
    expect(await world.redis.hgetall(shoppers)).toEqual({ anna: '3|' });
    expect(await world.redis.hlen(attempts)).toBe(3);
    // A server that took over with fewer records than were written is found out.
    expect(await seal(4)).toEqual({ outcome: 'forgot', units: 3 });
    // Neither may an order without units be missing: its shopper would be granted other units for it.
    expect(await seal(3, 4)).toEqual({ outcome: 'forgot', units: 3 });
    expect(await seal(3)).toMatchObject({ outcome: 'sealed' });
    expect(await world.account(sale, 0)).toMatchObject({ initial: 7, free: 4, sold: 3, grants: 2 });
    expect(await world.redis.getBuffer(holders)).toEqual(Buffer.from([0x80, 0xff]));
    expect(await fill(2)).toEqual({ outcome: 'frozen', filling: false });
  });

  it('still knows who may hold units of it', async () => {
    const sale = await openSale({ allotment: 200, bucketCount: 1 });
    const bought = shoppersOf(0, 1, 100);
    for (const shopper of bought) await books.write(sale, shopper);
    await books.loseAll(sale);
    await rebuilt(sale);
    const filter = await world.redis.getBuffer(bucketKeys(sale.saleId, 0).holders);
    const known = (shopper: string) =>
      mayHold(filter ?? Buffer.alloc(0), ShopperId.parse(shopper), 1, filterBitsFor(200, 1));
    expect(bought.filter(known)).toEqual(bought);
    expect(shoppersOf(0, 1, 100, 'stranger').filter(known).length).toBeLessThan(10);
  });

  it('is built anew where only its marker is gone, without touching a bucket', async () => {
    const sale = await openSale({ allotment: 5 });
    await grant(sale, 'anna');
    await world.redis.del(stateKey(sale.saleId));
    await rebuilt(sale);
    expect(await rebuildsOf(sale)).toEqual([[2, 1, 0, 0, 0]]);
    expect(await books.balance(sale)).toBe('free 4 held 1 queued 0 sold 0, MySQL 0');
  });

  it('counts an old copy of a bucket, from before the last rebuild, as lost', async () => {
    const sale = await openSale({ allotment: 8, bucketCount: 2 });
    const back = await books.copy(sale, 0);
    await books.lose(sale, 1);
    await rebuilt(sale);
    for (const shopper of shoppersOf(0, 2, 3)) expect(await grant(sale, shopper)).toBe('held');
    await back();
    await rebuilt(sale);
    expect((await rebuildsOf(sale)).at(-1)?.slice(0, 3)).toEqual([3, 1, 1]);
    expect(await books.balance(sale)).toBe('free 8 held 0 queued 0 sold 0, MySQL 0');
  });

  it('goes beyond an epoch that MySQL has forgotten', async () => {
    const sale = await openSale({ allotment: 4, bucketCount: 2 });
    await grant(sale, 'anna');
    for (const bucket of [0, 1]) await world.redis.hset(bucketKeys(sale.saleId, bucket).account, 'epoch', 7);
    await rebuilt(sale);
    expect(await rebuildsOf(sale)).toEqual([[8, 1, 0, 0, 0]]);
    expect([await books.balance(sale), await find(sale, 'anna')]).toEqual([
      'free 3 held 1 queued 0 sold 0, MySQL 0',
      'held',
    ]);
  });
});

describe('A sale on a Redis that may have forgotten its last writes', () => {
  const moved = async (sale: KnownSale, at = inventory) => {
    incarnation = `after ${sale.saleId} ${(await rebuildsOf(sale)).length}`;
    // From the first moment nothing is granted or queued by what it may have forgotten, and nobody is turned away.
    expect(await grant(sale, 'stranger', second)).toBe('unavailable');
    expect([await queue(sale, 'held', second), await find(sale, 'held', second)]).toEqual([
      'unavailable',
      'unavailable',
    ]);
    // Other tests' sales move too; each is looked after when somebody looks at it.
    at.rebuilds.consider(sale);
    await until('the sale to be looked through', 20_000, async () => {
      at.rebuilds.consider(sale);
      const [row] = (await rebuildsOf(sale)).slice(-1);
      return row?.[1] === 1 && books.isServed(sale);
    });
  };

  it('is told again what was decided, keeps its holds, and has all its units', async () => {
    const sale = await openSale({ allotment: 12, bucketCount: 2, limitPerShopper: 5 });
    for (const shopper of ['held', 'confirmed', 'void']) await grant(sale, shopper);
    const back = await books.copy(sale);
    await grant(sale, 'forgotten');
    await grant(sale, 'forgotten-order');
    for (const shopper of ['confirmed', 'forgotten-order']) await books.write(sale, shopper);
    await books.write(sale, 'void', 'rejected');
    await sweepEffects(sale);
    expect(await books.balance(sale)).toBe('free 8 held 2 queued 0 sold 2, MySQL 2');
    await back();
    await moved(sale);
    expect(await books.balance(sale)).toBe('free 9 held 1 queued 0 sold 2, MySQL 2');
    expect([await find(sale, 'held'), await queue(sale, 'held')]).toEqual(['held', 'queued']);
    expect(await rebuildsOf(sale)).toEqual([[2, 1, 0, 3, 0]]);
    // Once: the server is the one it was found whole on.
    inventory.rebuilds.consider(sale);
    second.rebuilds.consider(sale);
    await Promise.all([inventory.watch.pass(), second.watch.pass()]);
    expect(await rebuildsOf(sale)).toHaveLength(1);
  });

  it('loses and doubles no unit where one side of a transfer was forgotten', async () => {
    const sale = await openSale({ allotment: 8, bucketCount: 2 });
    const [home] = shoppersOf(0, 2, 1);
    const [source, destination] = [await books.copy(sale, 1), await books.copy(sale, 0)];
    for (const shopper of shoppersOf(0, 2, 5)) await grant(sale, shopper);
    // The source forgets that units have left: for a moment there are more than there are.
    await source();
    await moved(sale);
    expect(await books.balance(sale)).toBe('free 3 held 5 queued 0 sold 0, MySQL 0');
    expect(await books.corrections(sale)).toEqual([
      expect.stringMatching(/^redis_free -[1-4]$/),
      expect.stringMatching(/^redis_lost [1-4]$/),
    ]);
    // The destination forgets everything that came: it is an old copy now.
    await destination();
    await rebuilt(sale);
    expect(await books.balance(sale)).toBe('free 8 held 0 queued 0 sold 0, MySQL 0');
    expect(await find(sale, home ?? '')).toBe('unknown');
  });
});
