import { once } from 'node:events';
import { connect } from 'node:net';
import { Database } from '@flash-sale/database';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { until } from '../waiting.js';
import { World } from '../world.js';

/**
 * The operator's report and the auditor read the same stores, each with its own code. For one sale they must give the same
 * figures and the same verdict: on clean books, and on books that are broken in one place.
 */
describe('the operator’s report and the auditor', () => {
  let world: World;
  let database: Database;
  let saleId: string;

  beforeAll(async () => {
    // What is broken here must stay broken until both have seen it.
    world = await World.start({ env: { RECONCILE_INTERVAL_MS: '600000' } });
    database = new Database({ url: world.mysqlUrl, poolSize: 1 });
    saleId = await world.openSale({ allotment: 20, limitPerShopper: 3, holdSeconds: 2, paySeconds: 300 });
    await liveThrough();
  }, 120_000);
  afterAll(async () => {
    await database?.close();
    await world?.stop();
  }, 60_000);

  /** A sale with every kind of end: paid, cancelled, waiting for payment, expired and given up. */
  async function liveThrough(): Promise<void> {
    const order = async (name: string, quantity = 1) => {
      const shopper = world.shopper(name);
      const entry = await shopper.persist(() => shopper.enter(saleId, 'k', quantity));
      const placed = await shopper.persist(() => shopper.order(entry.body['purchaseToken']));
      const orderId = String(placed.body['orderId']);
      await shopper.orderIn(orderId, ['awaiting_payment']);
      return { shopper, orderId };
    };
    await Promise.all([world.shopper('pays-1').buy(saleId), world.shopper('pays-2').buy(saleId)]);
    const two = await order('pays-for-two', 2);
    await two.shopper.persist(() => two.shopper.pay(two.orderId, 'pay'));
    await two.shopper.orderIn(two.orderId, ['paid']);
    await order('waits');
    const gone = await order('cancels');
    await gone.shopper.expect(200, 'DELETE', `/v1/orders/${gone.orderId}`);
    await world.shopper('sleeps').enter(saleId, 'k');
    const idle = world.shopper('gives-up');
    const entry = await idle.enter(saleId, 'k');
    await idle.expect(204, 'DELETE', `/v1/entries/${String(entry.body['entryId'])}`);
    await until('the report to balance', 60_000, async () => (await report()).verdict === 'balanced');
  }

  /** A statement in MySQL, or a change of the first bucket's account in Redis. */
  async function run(change: string): Promise<void> {
    const [command, ...words] = change.split(' ');
    if (command !== 'HINCRBY') {
      await database.query(change);
      return;
    }
    const redis = new URL(world.environment['REDIS_URL'] ?? '');
    const socket = connect(Number(redis.port), redis.hostname);
    socket.write(`HINCRBY fs:{${saleId}:0}:account ${words.join(' ')}\r\n`);
    const [reply] = (await once(socket, 'data')) as [Buffer];
    socket.destroy();
    if (!/^:\d/.test(reply.toString())) throw new Error(`Redis refused ${change}: ${reply.toString()}`);
  }

  interface Report {
    readonly allotment: number;
    readonly redis: Readonly<Record<string, unknown>>;
    readonly kafka: Readonly<Record<string, number>>;
    readonly mysql: Readonly<Record<string, unknown>>;
    readonly differences: readonly string[];
    readonly verdict: string;
  }

  async function report(): Promise<Report> {
    const body = await world.operator().expect(200, 'GET', `/v1/operator/sales/${saleId}/report`);
    return body as unknown as Report;
  }

  /** Both look at the same sale; their figures must be equal whatever state it is in. */
  async function bothLook() {
    const told = await report();
    const { verdict, printed } = await world.audit(saleId, '--quiet-wait-ms', '2000');
    const { free, held, queued, sold, openTransfers } = told.redis;
    expect(verdict.books).toEqual({
      redis: { free, held, queued, sold, openTransfers },
      mysql: told.mysql,
      kafka: told.kafka,
    });
    expect(verdict.allotment).toBe(told.allotment);
    return { told, broken: verdict.invariants.broken, printed };
  }

  it('agree that a clean sale is clean, figure by figure', async () => {
    const { told, broken, printed } = await bothLook();
    expect({ broken, printed: broken.length > 0 ? printed : '' }).toEqual({ broken: [], printed: '' });
    expect(told).toMatchObject({
      verdict: 'balanced',
      differences: [],
      mysql: { total: 20, sold: 5, paid: 4, returned: 1, ordersByState: { paid: 3, expired: 2 } },
    });
  });

  it.each([
    [
      'sale_stock.sold',
      'UPDATE sale_stock SET sold = sold + 1',
      'UPDATE sale_stock SET sold = sold - 1',
      'I1',
    ],
    [
      'sale_stock.total',
      'UPDATE sale_stock SET total = total + 1',
      'UPDATE sale_stock SET total = total - 1',
      'I3',
    ],
    [
      'the quantity of an order',
      "UPDATE orders SET quantity = 9 WHERE state = 'awaiting_payment'",
      "UPDATE orders SET quantity = 1 WHERE state = 'awaiting_payment'",
      'I1',
    ],
    [
      'a shopper’s quota',
      "UPDATE quota SET used = used + 1 WHERE shopper_id = 'waits'",
      "UPDATE quota SET used = used - 1 WHERE shopper_id = 'waits'",
      'I14',
    ],
    ['the limit', 'UPDATE sale SET limit_per_shopper = 1', 'UPDATE sale SET limit_per_shopper = 3', 'I14'],
    [
      'the price of an order',
      "UPDATE orders SET unit_price = unit_price - 1 WHERE state = 'awaiting_payment'",
      "UPDATE orders SET unit_price = unit_price + 1 WHERE state = 'awaiting_payment'",
      'I17',
    ],
    [
      'an order’s history',
      "UPDATE order_event SET order_id = CONCAT('x', SUBSTRING(order_id, 2)) WHERE to_state = 'cancelled'",
      "UPDATE order_event SET order_id = CONCAT('t', SUBSTRING(order_id, 2)) WHERE to_state = 'cancelled'",
      'I18',
    ],
    [
      'captured money',
      "UPDATE payment SET state = 'declined' WHERE shopper_id = 'pays-1'",
      "UPDATE payment SET state = 'captured' WHERE shopper_id = 'pays-1'",
      'I19',
    ],
    [
      'the ledger’s return of a cancelled order',
      "UPDATE ledger SET account = 'nowhere' WHERE account = 'free' AND entry_id LIKE '%:return'",
      "UPDATE ledger SET account = 'free' WHERE account = 'nowhere'",
      'I20',
    ],
    [
      'one leg of the ledger',
      "UPDATE ledger SET amount = amount - 1 WHERE account = 'held' AND entry_id LIKE '%:sell'",
      "UPDATE ledger SET amount = amount + 1 WHERE account = 'held' AND entry_id LIKE '%:sell'",
      'I21',
    ],
    ['a free unit too many in Redis', 'HINCRBY free 1', 'HINCRBY free -1', 'I2'],
    ['a sold unit too many in Redis', 'HINCRBY sold 1', 'HINCRBY sold -1', 'I3'],
  ])('agree that %s is wrong', async (_what, breakIt, mendIt, invariant) => {
    await run(breakIt);
    const { told, broken } = await bothLook();
    await run(mendIt);
    expect(broken).toContain(invariant);
    expect({ verdict: told.verdict, differences: told.differences.length > 0 }).toEqual({
      verdict: 'differs',
      differences: true,
    });
  });

  it('agree that all is well again when everything is mended', async () => {
    const { told, broken } = await bothLook();
    expect({ verdict: told.verdict, broken }).toEqual({ verdict: 'balanced', broken: [] });
  });
});
