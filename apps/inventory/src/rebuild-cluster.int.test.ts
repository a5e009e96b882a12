/** One lost master of three, on a real Redis Cluster with instances that find and rebuild by themselves. */
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { RedisWatch } from '@flash-sale/redis';
import { startRedisCluster, type RedisCluster } from '@flash-sale/stack';
import { until } from '@flash-sale/testing';
import { TestBooks } from './fixtures/test-books.js';
import { TestInventory, shoppersOf, wishOf } from './fixtures/test-inventory.js';
import type { Inventory } from './inventory.js';
import { bucketKeys } from './keys.js';

const BUCKETS = 6;
let cluster: RedisCluster;
let world: TestInventory;
let books: TestBooks;
let servers: RedisWatch;
let instances: Inventory[];

beforeAll(async () => {
  cluster = await startRedisCluster({ masters: 3, log: () => {} });
  world = await TestInventory.open(
    {
      rebuildLeaseMs: 2_000,
      incarnationOf: (key) => {
        const { status, incarnation } = servers.serverOf(key);
        return status === 'serving' ? incarnation : undefined;
      },
    },
    cluster.nodes,
  );
  servers = new RedisWatch(world.redis);
  await servers.start();
  books = new TestBooks(world);
  instances = await Promise.all([world.instance(), world.instance()]);
}, 90_000);
afterAll(async () => {
  servers.stop();
  await Promise.all(instances.map((instance) => instance.stop()));
  await world.close();
  await cluster.stop();
});

describe('A sale on a Redis Cluster', () => {
  it('of which one master of three has lost everything keeps what the others know, and all its units', async () => {
    const [inventory, second] = instances as [Inventory, Inventory];
    const sale = await world.openSale(inventory, { bucketCount: BUCKETS, allotment: 40 });
    const shoppers = Array.from({ length: BUCKETS }, (_, bucket) => shoppersOf(bucket, BUCKETS, 3)).flat();
    const granted = await inventory.stock.grant(shoppers.map((shopper) => wishOf(sale, shopper)));
    expect(granted.every(({ outcome }) => outcome === 'hold')).toBe(true);
    const ordered = shoppers.filter((_, index) => index % 3 === 0);
    for (const shopper of ordered) await books.write(sale, shopper);
    await inventory.effects.sweep(0, [sale.saleId]);
    const holds = async () => {
      const found = await second.stock.findHolds(shoppers.map((shopper) => wishOf(sale, shopper)));
      return found.map((each) => (each.outcome === 'hold' ? each.hold.state : each.outcome));
    };
    await second.book.refresh();
    for (const instance of instances) instance.start();

    const { address } = servers.serverOf(bucketKeys(sale.saleId, 0).account);
    const lost = Array.from({ length: BUCKETS }, (_, bucket) => bucket).filter(
      (bucket) => servers.serverOf(bucketKeys(sale.saleId, bucket).account).address === address,
    );
    const masters = 'nodes' in world.redis ? world.redis.nodes('master') : [];
    await masters.find(({ options }) => `${options.host}:${options.port}` === address)?.flushall();
    const said = new Set<string>();
    await until('the sale to be served again', 30_000, async () => {
      const [outcome] = await second.stock.grant([wishOf(sale, 'newcomer')]);
      said.add(outcome?.outcome ?? 'none');
      return said.has('hold') && (await books.isServed(sale));
    });
    expect([...said].filter((outcome) => outcome !== 'unavailable')).toEqual(['hold']);
    await inventory.effects.sweep(0, [sale.saleId]);
    const kept = shoppers.length - lost.length * 3;
    const held = kept - (BUCKETS - lost.length) + 1;
    expect(await books.balance(sale)).toBe(
      `free ${40 - held - BUCKETS} held ${held} queued 0 sold ${BUCKETS}, MySQL ${BUCKETS}`,
    );
    expect(await holds()).toEqual(
      shoppers.map((_, index) =>
        index % 3 === 0 ? 'confirmed' : lost.includes(Math.floor(index / 3)) ? 'unknown' : 'held',
      ),
    );
    const [row] = await world.database.query('SELECT lost_buckets, epoch FROM rebuild WHERE sale_id = ?', [
      sale.saleId,
    ]);
    expect(row).toEqual({ lost_buckets: lost.length, epoch: 2 });
  }, 90_000);
});
