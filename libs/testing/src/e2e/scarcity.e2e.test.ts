import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { until } from '../waiting.js';
import { World } from '../world.js';

/** Many people, few units: nobody too many is sold to, and nobody is turned away while a unit is free. */
describe('when units are scarce', () => {
  let world: World;
  beforeAll(async () => {
    world = await World.start();
  }, 60_000);
  afterAll(() => world?.stop(), 60_000);

  const granted = (status: number) => status === 200 || status === 201;

  it('the last unit goes to exactly one of 200 who want it at once', async () => {
    const saleId = await world.openSale({ allotment: 1, buckets: 8 });
    const shoppers = Array.from({ length: 200 }, (_, i) => world.shopper(`last-${i}`));
    const answers = await Promise.all(
      shoppers.map((shopper) => shopper.persist(() => shopper.enter(saleId, 'k'))),
    );
    const winners = shoppers.filter((_, i) => granted(answers[i]?.status ?? 0));
    expect(winners).toHaveLength(1);
    expect(new Set(answers.map((answer) => answer.body['code'] ?? 'granted'))).toEqual(
      new Set(['granted', 'sold_out']),
    );
    await winners[0]?.buy(saleId);
    const { exitCode, verdict, printed } = await world.audit(saleId);
    expect({ exitCode, printed: exitCode === 0 ? '' : printed }).toEqual({ exitCode: 0, printed: '' });
    expect(verdict).toMatchObject({ sold: 1, oversold: 0, undersold: 0 });
  }, 90_000);

  it('64 buckets with 10 units sell 10 to the first 10, wherever they live', async () => {
    const saleId = await world.openSale({ allotment: 10, buckets: 64 });
    for (let i = 0; i < 10; i += 1) {
      const shopper = world.shopper(`spread-${i}`);
      const answer = await shopper.persist(() => shopper.enter(saleId, 'k'));
      expect([i, answer.status]).toEqual([i, 201]);
    }
    const eleventh = world.shopper('spread-10');
    const refused = await eleventh.persist(() => eleventh.enter(saleId, 'k'));
    expect([refused.status, refused.body['code']]).toEqual([410, 'sold_out']);
  }, 60_000);

  it('64 buckets with 40 units and 300 people at once sell all 40 before anybody is told sold out', async () => {
    const saleId = await world.openSale({ allotment: 40, buckets: 64 });
    const shoppers = Array.from({ length: 300 }, (_, i) => world.shopper(`crowd-${i}`));
    const answers = await Promise.all(
      shoppers.map((shopper) => shopper.persist(() => shopper.enter(saleId, 'k'))),
    );
    expect(answers.filter((answer) => granted(answer.status))).toHaveLength(40);
    expect(answers.filter((answer) => answer.body['code'] === 'sold_out')).toHaveLength(260);
  }, 90_000);

  it('units of several buckets are gathered for one who wants many, and too few are not called sold out', async () => {
    const saleId = await world.openSale({ allotment: 16, buckets: 16, limitPerShopper: 12 });
    const many = world.shopper('wants-12');
    const answer = await many.persist(() => many.enter(saleId, 'k', 12));
    expect(answer.status).toBe(201);
    const five = world.shopper('wants-5');
    const refused = await five.persist(() => five.enter(saleId, 'k', 5));
    expect([refused.status, refused.body['code']]).toEqual([409, 'not_enough_left']);
    const four = world.shopper('wants-4');
    expect((await four.persist(() => four.enter(saleId, 'k', 4))).status).toBe(201);
  }, 60_000);

  it('one who holds a unit still meets the first answer while everybody else is told sold out', async () => {
    const saleId = await world.openSale({ allotment: 2, buckets: 4 });
    const holder = world.shopper('holder');
    const first = await holder.enter(saleId, 'k');
    await world.shopper('other').enter(saleId, 'k');
    const stranger = world.shopper('stranger');
    await until(
      'the sale to be sold out',
      10_000,
      async () => (await stranger.enter(saleId, 'k')).status === 410,
    );
    await until('the gateway to say so', 5_000, async () => {
      const sale = await stranger.call('GET', `/v1/sales/${saleId}`);
      return sale.body['phase'] === 'sold_out';
    });
    const again = await holder.enter(saleId, 'k');
    expect(granted(again.status)).toBe(true);
    expect(again.body['purchaseToken']).toBe(first.body['purchaseToken']);
    await holder.buy(saleId);
    const ordered = await holder.enter(saleId, 'k');
    expect([ordered.status, ordered.body['state']]).toEqual([200, 'ordered']);
  }, 60_000);
});
