import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import { decideOrders, quotaKey, type QueuedOrder } from './decide-orders.js';
import { AttemptId, SaleId, ShopperId } from './ids.js';

const saleId = SaleId.parse('noon');
const order = (n: number, shopper: string, quantity = 1): QueuedOrder => ({
  attemptId: AttemptId.parse(`noon-${String(n).padStart(22, '0')}`),
  saleId,
  shopperId: ShopperId.parse(shopper),
  quantity,
});
const balance = (total: number, sold: number, limitPerShopper: number) =>
  new Map([[saleId, { total, sold, limitPerShopper }]]);
const states = (result: ReturnType<typeof decideOrders>) =>
  [...result.decisions.values()].map((d) => (d.state === 'rejected' ? d.reason : d.state));

describe('decideOrders', () => {
  it('sells in offset order until the total is reached and rejects the rest as sold out', () => {
    const result = decideOrders([order(1, 'a'), order(2, 'b'), order(3, 'c')], balance(10, 8, 1), new Map());
    expect(states(result)).toEqual(['awaiting_payment', 'awaiting_payment', 'sold_out']);
    expect(result.soldBySale.get(saleId)).toBe(2);
  });

  it('lets a smaller order behind a rejected larger one have the last unit', () => {
    const result = decideOrders([order(1, 'a', 2), order(2, 'b', 1)], balance(10, 9, 2), new Map());
    expect(states(result)).toEqual(['sold_out', 'awaiting_payment']);
  });

  it('counts what the shopper has and what this very batch gave', () => {
    const used = new Map([[quotaKey(saleId, ShopperId.parse('a')), 1]]);
    const result = decideOrders([order(1, 'a'), order(2, 'a'), order(3, 'b', 3)], balance(10, 0, 2), used);
    expect(states(result)).toEqual(['awaiting_payment', 'limit', 'limit']);
    expect(result.usedByShopper).toEqual(new Map([['noon|a', 1]]));
  });

  it('never sells past the total or past a limit, whatever comes', () => {
    const orders = fc.array(
      fc.record({ shopper: fc.constantFrom('a', 'b', 'c', 'd'), quantity: fc.integer({ min: 1, max: 4 }) }),
    );
    fc.assert(
      fc.property(
        orders,
        fc.nat(30),
        fc.nat(10),
        fc.integer({ min: 1, max: 6 }),
        (list, total, sold, limit) => {
          fc.pre(sold <= total);
          const queued = list.map(({ shopper, quantity }, n) => order(n, shopper, quantity));
          const result = decideOrders(queued, balance(total, sold, limit), new Map());
          expect(result.decisions.size).toBe(queued.length);
          expect(sold + (result.soldBySale.get(saleId) ?? 0)).toBeLessThanOrEqual(total);
          for (const used of result.usedByShopper.values()) expect(used).toBeLessThanOrEqual(limit);
          const accepted = queued.filter(
            (q) => result.decisions.get(q.attemptId)?.state === 'awaiting_payment',
          );
          expect(accepted.reduce((sum, q) => sum + q.quantity, 0)).toBe(result.soldBySale.get(saleId) ?? 0);
        },
      ),
    );
  });

  it('throws when a sale was not locked, rather than guess its balance', () => {
    expect(() => decideOrders([order(1, 'a')], new Map(), new Map())).toThrow(
      /no locked stock row for sale noon/,
    );
  });
});
