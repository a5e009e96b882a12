import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { sleep } from '../waiting.js';
import { World, type ServiceName } from '../world.js';

/**
 * Each service is killed with SIGKILL once, while people are buying, and started again; then the auditor looks at
 * everything that was promised. People repeat what they have no answer to, with the same key, as the page does.
 */
describe('kill -9 during a running sale', () => {
  let world: World;
  beforeAll(async () => {
    world = await World.start();
  }, 60_000);
  afterAll(() => world?.stop(), 60_000);

  const ALLOTMENT = 60;
  const SHOPPERS = 120;

  it.each<ServiceName>(['gateway', 'token', 'inventory', 'order', 'order-writer'])(
    'of %s loses no accepted order and sells no unit twice',
    async (victim) => {
      const saleId = await world.openSale({
        allotment: ALLOTMENT,
        buckets: 8,
        holdSeconds: 20,
        paySeconds: 60,
      });
      let arrived = 0;
      const journeys = Array.from({ length: SHOPPERS }, async (_, i) => {
        await sleep(i * 25);
        arrived += 1;
        const shopper = world.shopper(`${victim}-${i}`);
        const entry = await shopper.persist(() => shopper.enter(saleId, 'k'), 45_000);
        if (!entry.body['purchaseToken']) return String(entry.body['code'] ?? entry.status);
        const order = await shopper.persist(() => shopper.order(entry.body['purchaseToken']), 45_000);
        if (order.status !== 202) return String(order.body['code'] ?? order.status);
        await shopper.orderIn(String(order.body['orderId']), ['awaiting_payment', 'paid'], 45_000);
        const paid = await shopper.persist(() => shopper.pay(String(order.body['orderId']), 'pay'), 45_000);
        return paid.status === 200 ? 'paid' : String(paid.body['code'] ?? paid.status);
      });
      await sleep(1_000);
      expect(arrived).toBeLessThan(SHOPPERS);
      await world.kill(victim);
      await sleep(500);
      await world.startService(victim);
      const outcomes = await Promise.all(journeys);

      const counts = Object.groupBy(outcomes, (outcome) => outcome);
      expect({ paid: counts['paid']?.length ?? 0, others: Object.keys(counts).sort() }).toMatchObject({
        paid: ALLOTMENT,
        others: ['paid', 'sold_out'],
      });
      // Faults were injected: times are not judged, and what was rejected is counted below.
      const { exitCode, verdict, printed } = await world.audit(saleId, '--faults');
      expect({ exitCode, printed: exitCode === 0 ? '' : printed }).toEqual({ exitCode: 0, printed: '' });
      expect(verdict).toMatchObject({
        sold: ALLOTMENT,
        oversold: 0,
        lost: 0,
        duplicates: 0,
        rejectedAfterAccept: 0,
      });
    },
    150_000,
  );
});
