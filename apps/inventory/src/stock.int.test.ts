import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { startRedisCluster, type RedisCluster } from '@flash-sale/stack';
import { SALE_FEED, decodeSnapshot } from '@flash-sale/contracts';
import { ShopperId, mayHold } from '@flash-sale/domain';
import { until } from '@flash-sale/testing';
import { TestInventory, shopperOf, shoppersOf, wishOf } from './fixtures/test-inventory.js';
import { redisUrl } from './fixtures/redis-under-test.js';
import type { Inventory } from './inventory.js';
import { bucketKeys, stateKey } from './keys.js';
import type { KnownSale } from './sale-book.js';
import type { GrantOutcome } from './stock.js';

/** `held`, or why not. */
const said = (outcomes: readonly GrantOutcome[]) =>
  outcomes.map((found) => (found.outcome === 'hold' ? found.hold.state : found.outcome));
const count = (outcomes: readonly GrantOutcome[], word: string) =>
  said(outcomes).filter((one) => one === word).length;

describe.each(['one Redis', 'a cluster of three masters'] as const)('Stock on %s', (where) => {
  let cluster: RedisCluster | undefined;
  let world: TestInventory;
  let inventory: Inventory;
  let second: Inventory;

  beforeAll(async () => {
    redisUrl();
    if (where !== 'one Redis') cluster = await startRedisCluster({ masters: 3, log: () => {} });
    world = await TestInventory.open({}, cluster?.nodes);
    inventory = await world.instance();
    second = await world.instance();
  }, 60_000);
  afterAll(async () => {
    await world.close();
    await cluster?.stop();
  });

  const grant = (sale: KnownSale, shoppers: readonly string[], quantity = 1, at = inventory) =>
    at.stock.grant(shoppers.map((shopper) => wishOf(sale, shopper, quantity)));

  it('answers a batch over several sales and buckets item by item, in the order asked', async () => {
    const [one, two] = [await world.openSale(inventory), await world.openSale(inventory, { allotment: 1 })];
    const wishes = [
      wishOf(one, 'alice'),
      wishOf(two, 'alice', 2),
      { ...wishOf(one, 'bob'), attemptId: 'nosale-AAAAAAAAAAAAAAAAAAAAAA' as never },
      wishOf(one, 'carol'),
      wishOf(one, 'bob'),
      { ...wishOf(one, 'bob'), attemptId: 'not an id' as never },
      wishOf(one, 'alice'),
    ];
    expect(said(await inventory.stock.grant(wishes))).toEqual([
      'held',
      'not_enough_left',
      'unknown_sale',
      'held',
      'held',
      'unknown_sale',
      'held',
    ]);
  });

  it('says of each grant whether this call made it, and what the hold is', async () => {
    const sale = await world.openSale(inventory);
    const [first] = await grant(sale, ['alice']);
    const [again] = await grant(sale, ['alice'], 1, second);
    expect(first).toMatchObject({
      outcome: 'hold',
      created: true,
      hold: { skuId: 'sku', epoch: 1, quantity: 1 },
    });
    expect(again).toEqual({ ...first, created: false });
  });

  it('fetches units: nobody is told sold out while another bucket has one', async () => {
    const sale = await world.openSale(inventory, { allotment: 4, bucketCount: 4 });
    const crowd = shoppersOf(2, 4, 4);
    expect(said(await grant(sale, crowd))).toEqual(['held', 'held', 'held', 'held']);
    expect(await world.total(sale, 'held')).toBe(4);
    expect((await world.account(sale, 2)).held).toBe(4);
    expect(await world.total(sale, 'openTransfers')).toBe(0);
  });

  it('sells 10 units in 64 buckets to the first 10 of 300, and only then says sold out', async () => {
    const sale = await world.openSale(inventory, { allotment: 10, bucketCount: 64 });
    const crowd = Array.from({ length: 300 }, (_, n) => `shopper-${n}`);
    const outcomes = (
      await Promise.all(
        crowd.map((shopper, n) => grant(sale, [shopper], 1, n % 2 === 0 ? inventory : second)),
      )
    ).flat();
    expect(count(outcomes, 'held')).toBe(10);
    // While units are on their way nobody is refused for good; asked again, everybody is.
    const undecided = crowd.filter((_, n) => said(outcomes)[n] === 'unavailable');
    const later = await grant(sale, undecided);
    expect(count(later, 'sold_out')).toBe(undecided.length);
    expect(count(outcomes, 'sold_out')).toBe(290 - undecided.length);
    expect([await world.total(sale, 'held'), await world.total(sale, 'free')]).toEqual([10, 0]);
  });

  it('gives the last unit, wanted by 200 at once through two instances, to exactly one', async () => {
    const sale = await world.openSale(inventory, { allotment: 1, bucketCount: 8 });
    const outcomes = (
      await Promise.all(
        Array.from({ length: 200 }, (_, n) => grant(sale, [`s${n}`], 1, n % 2 ? inventory : second)),
      )
    ).flat();
    expect(count(outcomes, 'held')).toBe(1);
    expect(count(outcomes, 'sold_out') + count(outcomes, 'unavailable')).toBe(199);
    expect(count(outcomes, 'sold_out')).toBeGreaterThan(100);
  });

  it('gathers several units from several buckets for one shopper', async () => {
    const sale = await world.openSale(inventory, { allotment: 4, bucketCount: 4, limitPerShopper: 3 });
    expect(said(await grant(sale, ['alice'], 3))).toEqual(['held']);
    expect(said(await grant(sale, ['bob'], 2))).toEqual(['not_enough_left']);
    expect(said(await grant(sale, ['bob'], 1))).toEqual(['held']);
    expect(said(await grant(sale, ['carol'], 2))).toEqual(['sold_out']);
  });

  it('does not swap the last units between two buckets for ever: one of two who want both gets them', async () => {
    for (let round = 0; round < 10; round += 1) {
      const sale = await world.openSale(inventory, { allotment: 2, bucketCount: 2 });
      const [a, b] = [shopperOf(0, 2), shopperOf(1, 2)];
      const both = await Promise.all([grant(sale, [a], 2), grant(sale, [b], 2, second)]);
      const outcomes = both.flat();
      expect(count(outcomes, 'held')).toBe(1);
      expect(await world.total(sale, 'held')).toBe(2);
    }
  });

  it('answers a known attempt as before while the sale is sold out', async () => {
    const sale = await world.openSale(inventory, { allotment: 1 });
    expect(said(await grant(sale, ['alice']))).toEqual(['held']);
    expect(said(await grant(sale, ['bob']))).toEqual(['sold_out']);
    expect(said(await grant(sale, ['alice', 'carol'], 1, second))).toEqual(['held', 'sold_out']);
  });

  it('lifts sold out as soon as a unit comes back, and sells it', async () => {
    const sale = await world.openSale(inventory, { allotment: 1 });
    await grant(sale, ['alice']);
    expect(said(await grant(sale, ['bob']))).toEqual(['sold_out']);
    const effect = { ...wishOf(sale, 'alice'), kind: 'void', reason: 'cancelled' } as const;
    expect(await second.stock.applyEffects([effect])).toEqual([{ outcome: 'applied' }]);
    expect(await inventory.state.read(sale)).toMatchObject({ soldOut: false });
    expect(said(await grant(sale, ['carol']))).toEqual(['held']);
  });

  it('finds within one watch what a crash left: units that were never credited', async () => {
    const sale = await world.openSale(inventory, { allotment: 1 });
    await grant(sale, ['alice']);
    expect(said(await grant(sale, ['bob']))).toEqual(['sold_out']);
    // As if the process had died between the bucket's write and the credit.
    const { account } = bucketKeys(sale.saleId, 3);
    await world.redis.hincrby(account, 'free', 1);
    await world.redis.hincrby(account, 'initial', 1);
    await second.watch.pass();
    expect(await inventory.state.read(sale)).toMatchObject({ soldOut: false });
    expect(said(await grant(sale, ['carol']))).toEqual(['held']);
  });

  it('never claims sold out over a unit that became free while it was looking', async () => {
    const sale = await world.openSale(inventory, { allotment: 1 });
    await grant(sale, ['alice']);
    const view = await inventory.state.look(sale);
    if (view === 'unavailable') throw new Error('the sale is there');
    await second.state.credit(sale);
    expect(await inventory.state.claimSoldOut(sale, view)).toBe('credited');
    expect(await inventory.state.read(sale)).toMatchObject({ soldOut: false });
  });

  it('never claims sold out over a unit that arrived in a bucket it had looked at before', async () => {
    const sale = await world.openSale(inventory, { allotment: 1, bucketCount: 2 });
    await grant(sale, [shopperOf(0, 2)]);
    const view = await inventory.state.look(sale);
    if (view === 'unavailable') throw new Error('the sale is there');
    const keys = bucketKeys(sale.saleId, 0);
    await world.redis.hset(keys.account, 'initial', 2, 'out', 1, 'openTransfers', 1);
    await world.redis.hset(keys.transfers, 'late', 'out|1|1|1');
    await world.redis.zadd(keys.deadlines, 1, 't:late');
    await second.book.refresh();
    await second.sweeper.pass();
    expect((await world.account(sale, 1)).free).toBe(1);
    expect(await inventory.state.claimSoldOut(sale, view)).toBe('credited');
  });

  it('does not say sold out while a unit is between two buckets, and finishes what was left half done', async () => {
    const sale = await world.openSale(inventory, { allotment: 1, bucketCount: 2 });
    const keys = bucketKeys(sale.saleId, 0);
    // The first step of somebody who then died.
    await world.redis.hset(keys.account, 'free', 0, 'out', 1, 'openTransfers', 1);
    await world.redis.hset(keys.transfers, 'dead', 'out|1|1|1');
    await world.redis.zadd(keys.deadlines, 1, 't:dead');
    expect(said(await grant(sale, ['alice']))).toEqual(['unavailable']);
    await Promise.all([inventory.sweeper.pass(), second.sweeper.pass()]);
    expect(await world.total(sale, 'openTransfers')).toBe(0);
    expect((await world.account(sale, 1)).free).toBe(1);
    expect(said(await grant(sale, ['alice']))).toEqual(['held']);
  });

  it('says unavailable, never sold out, where Redis has lost the sale’s marker or a bucket', async () => {
    const sale = await world.openSale(inventory, { allotment: 1, bucketCount: 2 });
    const [a = '', b = ''] = shoppersOf(0, 2, 2);
    expect(said(await grant(sale, [a]))).toEqual(['held']);
    await world.redis.del(stateKey(sale.saleId));
    expect(said(await grant(sale, [b]))).toEqual(['unavailable']);
    await world.redis.del(bucketKeys(sale.saleId, 0).account);
    expect(said(await grant(sale, [a]))).toEqual(['unavailable']);
    expect(await inventory.stock.findHolds([wishOf(sale, a)])).toEqual([{ outcome: 'unavailable' }]);
    expect(await inventory.stock.release([wishOf(sale, a)])).toEqual(['unavailable']);
    const effect = { ...wishOf(sale, a), kind: 'void', reason: 'limit' } as const;
    expect(await inventory.stock.applyEffects([effect])).toEqual([{ outcome: 'unavailable' }]);
  });

  it('reads the sale again when Redis knows a later epoch, and waits where Redis knows an earlier one', async () => {
    const sale = await world.openSale(inventory, { bucketCount: 1 });
    await world.redis.hset(bucketKeys(sale.saleId, 0).account, 'epoch', 2);
    await world.redis.hset(stateKey(sale.saleId), 'epoch', 2);
    expect(said(await grant(sale, ['alice']))).toEqual(['unavailable']);
    await world.database.change('UPDATE sale SET epoch = 2, version = version + 1 WHERE sale_id = ?', [
      sale.saleId,
    ]);
    expect(said(await grant(sale, ['alice']))).toEqual(['held']);
    await world.redis.hset(bucketKeys(sale.saleId, 0).account, 'epoch', 1);
    expect(said(await grant(sale, ['bob']))).toEqual(['unavailable']);
  });

  it('tells gateways of sold out with the filter of those who hold units, and of its end', async () => {
    const sale = await world.openSale(inventory, { allotment: 3, limitPerShopper: 1 });
    const told = async () => decodeSnapshot((await world.redis.hget(SALE_FEED.snapshots, sale.saleId)) ?? '');
    const holders = ['alice', 'bob', 'carol'];
    await grant(sale, [...holders, 'dave']);
    await until('sold out to be published', 2_000, async () => (await told()).soldOut);
    const snapshot = await told();
    expect(snapshot).toMatchObject({ stockLevel: 'none', filterBits: 1024, filterVersion: 3 });
    const filter = (await world.redis.getBuffer(SALE_FEED.holders(sale.saleId))) ?? Buffer.alloc(0);
    expect(filter).toHaveLength((4 * 1024) / 8);
    const known = [...holders, 'mallory'].map((name) => mayHold(filter, ShopperId.parse(name), 4, 1024));
    expect(known).toEqual([true, true, true, false]);
    await inventory.watch.pass();
    expect((await told()).version).toBe(snapshot.version);

    const effect = { ...wishOf(sale, 'alice'), kind: 'void', reason: 'unpaid' } as const;
    await second.stock.applyEffects([effect]);
    await until('the end of it to be published', 2_000, async () => !(await told()).soldOut);
    expect((await told()).version).toBeGreaterThan(snapshot.version);
  });

  it('queues, finds and releases over the service as the scripts do', async () => {
    const sale = await world.openSale(inventory);
    await grant(sale, ['alice', 'bob']);
    const order = (shopper: string) => ({ ...wishOf(sale, shopper), epoch: 1, deliveryHash: 'd' });
    expect(await inventory.stock.queue([order('alice'), order('zoe')])).toEqual(['queued', 'missing']);
    await second.stock.recordOffsets([{ ...wishOf(sale, 'alice'), partition: 1, offset: '42' }]);
    expect(await second.stock.findHolds([wishOf(sale, 'alice'), wishOf(sale, 'zoe')])).toMatchObject([
      { outcome: 'hold', hold: { state: 'queued', placedAt: { partition: 1, offset: 42n } } },
      { outcome: 'unknown' },
    ]);
    expect(
      await inventory.stock.release([wishOf(sale, 'alice'), wishOf(sale, 'bob'), wishOf(sale, 'zoe')]),
    ).toEqual(['already_ordered', 'released', 'unknown']);
  });
});
