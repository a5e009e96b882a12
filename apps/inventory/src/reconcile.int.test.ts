/** The reconciler on a real Redis and MySQL: the books are put wrong by hand, and passes are made until they are right. */
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { TestBooks } from './fixtures/test-books.js';
import { TestInventory, shoppersOf, wishOf } from './fixtures/test-inventory.js';
import type { Inventory } from './inventory.js';
import { bucketKeys } from './keys.js';
import type { KnownSale } from './sale-book.js';

let world: TestInventory;
let books: TestBooks;
let inventory: Inventory;
let second: Inventory;

beforeAll(async () => {
  world = await TestInventory.open();
  books = new TestBooks(world);
  inventory = await world.instance();
  second = await world.instance();
}, 60_000);
afterAll(() => world.close());

const openSale = async (changes: Readonly<Record<string, unknown>> = {}) => {
  const sale = await world.openSale(inventory, { bucketCount: 1, allotment: 10, ...changes });
  await second.book.refresh();
  return sale;
};
const recordKey = (sale: KnownSale, shopper: string) =>
  wishOf(sale, shopper).attemptId.slice(sale.saleId.length + 1);
/** Orders with their effects applied. */
const sell = async (sale: KnownSale, ...shoppers: readonly string[]) => {
  for (const shopper of shoppers) {
    await inventory.stock.grant([wishOf(sale, shopper)]);
    await books.write(sale, shopper);
  }
  await inventory.effects.sweep(0, [sale.saleId]);
};
const passes = async (count: number, ...at: readonly Inventory[]) => {
  for (let pass = 0; pass < count; pass += 1) {
    await Promise.all((at.length > 0 ? at : [inventory]).map((instance) => instance.reconciler.pass()));
  }
};
/** Redis forgets one attempt, as if its last writes were lost. */
const forget = async (sale: KnownSale, shopper: string) => {
  const { account, attempts, shoppers } = bucketKeys(sale.saleId, 0);
  await world.redis.hdel(attempts, recordKey(sale, shopper));
  await world.redis.hdel(shoppers, shopper);
  await world.redis.hincrby(account, 'sold', -1);
  await world.redis.hincrby(account, 'free', 1);
};

describe('Reconciler', () => {
  it('changes nothing where the books agree, however often it looks', async () => {
    const sale = await openSale({ bucketCount: 4 });
    await sell(sale, 'anna', 'bob');
    await inventory.stock.grant([wishOf(sale, 'carol')]);
    await passes(4, inventory, second);
    expect(await books.balance(sale)).toBe('free 7 held 1 queued 0 sold 2, MySQL 2');
    expect(await books.corrections(sale)).toEqual([]);
  });

  it('takes a unit back that MySQL has sold and Redis has forgotten, seen twice, once', async () => {
    const sale = await openSale();
    await sell(sale, 'anna', 'bob');
    await forget(sale, 'anna');
    await passes(1);
    expect(await books.corrections(sale)).toEqual([]);
    await passes(2, inventory, second);
    expect(await books.balance(sale)).toBe('free 8 held 0 queued 0 sold 2, MySQL 2');
    expect(await books.corrections(sale)).toEqual(['redis_free -1', 'redis_sold 1']);
    await passes(2, inventory, second);
    expect(await books.corrections(sale)).toHaveLength(2);
  });

  it('gives a unit back that Redis believes sold and MySQL does not, and lifts sold out', async () => {
    const sale = await openSale({ allotment: 2 });
    await sell(sale, 'anna', 'bob');
    expect((await inventory.stock.grant([wishOf(sale, 'carol')]))[0]?.outcome).toBe('sold_out');
    await books.cancel(sale, 'anna');
    await world.database.change('UPDATE effect SET applied_at = NOW(3) WHERE sale_id = ?', [sale.saleId]);
    await passes(2);
    expect(await books.balance(sale)).toBe('free 1 held 0 queued 0 sold 1, MySQL 1');
    expect(await books.corrections(sale)).toEqual(['redis_sold -1', 'redis_free 1']);
    expect((await inventory.stock.grant([wishOf(sale, 'carol')]))[0]?.outcome).toBe('hold');
  });

  it('corrects a record that contradicts its row, in either direction', async () => {
    const sale = await openSale();
    await sell(sale, 'anna');
    await inventory.stock.applyEffects([{ ...wishOf(sale, 'anna'), kind: 'void', reason: 'hold_expired' }]);
    expect((await inventory.stock.findHolds([wishOf(sale, 'anna')]))[0]).toMatchObject({
      hold: { state: 'void' },
    });
    await inventory.stock.grant([wishOf(sale, 'bob')]);
    await books.write(sale, 'bob', 'rejected');
    await world.database.change('UPDATE effect SET applied_at = NOW(3) WHERE sale_id = ?', [sale.saleId]);
    await passes(3);
    expect(await books.balance(sale)).toBe('free 9 held 0 queued 0 sold 1, MySQL 1');
    expect(await books.corrections(sale)).toEqual([
      'redis_free -1',
      'redis_held -1',
      'redis_free 1',
      'redis_sold 1',
    ]);
  });

  it('leaves alone what an effect is about to bring, and what has changed since it was seen', async () => {
    const sale = await openSale();
    await inventory.stock.grant([wishOf(sale, 'anna')]);
    await books.write(sale, 'anna');
    await passes(3);
    expect(await books.corrections(sale)).toEqual([]);
    await sell(sale, 'bob');
    await forget(sale, 'bob');
    await passes(1);
    // Between the two looks the effect is applied after all.
    await inventory.effects.applyRows([
      { attemptId: wishOf(sale, 'bob').attemptId, shopperId: 'bob', state: 'awaiting_payment', reason: null },
    ]);
    await passes(2);
    expect(await books.corrections(sale)).toEqual([]);
    expect(await books.balance(sale)).toBe('free 8 held 0 queued 0 sold 2, MySQL 2');
  });

  it.each([
    ['too many', 3],
    ['too few', -3],
  ])(
    'puts the number of units right where there are %s in all, by two instances once',
    async (_, surplus) => {
      const sale = await openSale({ bucketCount: 4 });
      await sell(sale, 'anna');
      const { account } = bucketKeys(sale.saleId, 0);
      for (const [bucket, units] of [
        [0, Math.sign(surplus)],
        [1, surplus - Math.sign(surplus)],
      ] as const) {
        const keys = bucketKeys(sale.saleId, bucket);
        await world.redis.hincrby(keys.account, 'free', units);
        await world.redis.hincrby(keys.account, 'initial', units);
      }
      await passes(1, inventory, second);
      expect(await books.corrections(sale)).toEqual([]);
      await passes(8, inventory, second);
      expect(await books.balance(sale)).toBe('free 9 held 0 queued 0 sold 1, MySQL 1');
      const [sum] = await world.database.query(
        "SELECT SUM(amount) AS units FROM ledger WHERE sale_id = ? AND account = 'redis_free'",
        [sale.saleId],
      );
      expect(Number(sum?.['units'])).toBe(-surplus);
      expect(Number(await world.redis.hget(account, 'free'))).toBeGreaterThanOrEqual(0);
    },
  );

  it('takes a surplus back as it becomes free, and no unit that somebody holds', async () => {
    const sale = await openSale({ allotment: 2 });
    await sell(sale, 'anna', 'bob');
    await forget(sale, 'anna');
    // Redis believes to have one, grants it, and MySQL has sold them all.
    await inventory.stock.grant([wishOf(sale, 'carol')]);
    await passes(4);
    expect([
      await world.total(sale, 'free'),
      await world.total(sale, 'held'),
      await world.total(sale, 'sold'),
    ]).toEqual([0, 1, 2]);
    await books.write(sale, 'carol', 'rejected');
    await inventory.effects.sweep(0, [sale.saleId]);
    await passes(4);
    expect(await books.balance(sale)).toBe('free 0 held 0 queued 0 sold 2, MySQL 2');
  });

  it('finishes what a process that died has begun, by its id', async () => {
    const sale = await openSale();
    await sell(sale, 'anna', 'bob');
    await forget(sale, 'anna');
    const id = (name: string) => `${sale.saleId}:fix:${name}`;
    const row = [id('attempt'), sale.saleId, wishOf(sale, 'anna').attemptId];
    await world.database.change(
      `INSERT INTO correction (correction_id, sale_id, epoch, bucket, kind, order_id, units, state, detail, at)
       VALUES (?, ?, 1, 0, 'attempt', ?, 1, 'pending', '', NOW(3) - INTERVAL 1 MINUTE)`,
      row,
    );
    // Done in Redis, and the process died before it could say so.
    const { account, transfers } = bucketKeys(sale.saleId, 0);
    await world.redis.hset(transfers, `c:${id('total-1')}`, 'fix|2');
    await world.redis.hincrby(account, 'free', 2);
    await world.redis.hincrby(account, 'initial', 2);
    await world.database.change(
      `INSERT INTO correction (correction_id, sale_id, epoch, bucket, kind, order_id, units, state, detail, at)
       VALUES (?, ?, 1, 0, 'total', NULL, 2, 'pending', '', NOW(3) - INTERVAL 1 MINUTE)`,
      [id('total-1'), sale.saleId],
    );
    await passes(1, inventory, second);
    const found = await world.database.query('SELECT state FROM correction WHERE sale_id = ?', [sale.saleId]);
    expect(found.map(({ state }) => state)).toEqual(['done', 'done']);
    await passes(3, inventory, second);
    expect(await books.balance(sale)).toBe('free 8 held 0 queued 0 sold 2, MySQL 2');
  });

  it('goes round all rows, a page a pass', async () => {
    const sale = await openSale({ allotment: 1_300, bucketCount: 2 });
    const shoppers = [...shoppersOf(0, 2, 600), ...shoppersOf(1, 2, 600)];
    await world.database.change(
      `INSERT INTO orders (order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, state, reason, batch_id,
         epoch, created_at, updated_at)
       VALUES ${shoppers.map(() => "(?, ?, ?, 'sku', 1, 1, 'CNY', 'rejected', 'limit', 'w', 1, NOW(3), NOW(3))").join(', ')}`,
      shoppers.flatMap((shopper) => [wishOf(sale, shopper).attemptId, sale.saleId, shopper]),
    );
    await passes(6);
    expect(await books.balance(sale)).toBe('free 1300 held 0 queued 0 sold 0, MySQL 0');
    expect(await books.corrections(sale)).toEqual([]);
  }, 30_000);
});
