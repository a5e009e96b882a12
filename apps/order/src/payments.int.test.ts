import { createHmac, randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { NotSent } from '@flash-sale/contracts';
import { Database, dropTestDatabase, migrate } from '@flash-sale/database';
import {
  IdempotencyKey,
  SaleId,
  ShopperId,
  attemptIdOf,
  parseSigningKeys,
  type AttemptId,
} from '@flash-sale/domain';
import { createLog } from '@flash-sale/service';
import { FaultProxy } from '@flash-sale/testing';
import { OrderEnder } from './end-orders.js';
import { Gate } from './load.js';
import { TestPaymentProvider, type PaymentProvider } from './payment-provider.js';
import { Payments, type PaymentsOptions } from './payments.js';
import { OrderReader } from './read-orders.js';

/** Runs on the server of MYSQL_URL and, where MYSQL_REAL_URL names one, on a real MySQL as well. */
const servers: [string, string][] = [['MYSQL_URL', process.env['MYSQL_URL'] ?? '']];
if (process.env['MYSQL_REAL_URL']) servers.push(['MYSQL_REAL_URL', process.env['MYSQL_REAL_URL']]);
else process.stderr.write('order: REAL MYSQL WAS NOT TESTED, because MYSQL_REAL_URL is not set\n');

const keys = parseSigningKeys(`k1:${Buffer.alloc(32, 7).toString('base64')}`);
const log = createLog('order-test', 'silent');
const GOOD = '4242424242424242';
const BAD = '4000000000000002';
const LATE = '4000000000000259';
const LATE_BAD = '4000000000000341';
const soon = () => performance.now() + 5_000;
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

interface TestOrder {
  readonly orderId: AttemptId;
  readonly shopperId: string;
}

describe.each(servers)('payments and the ends of orders on %s', (_, server) => {
  const base = server.endsWith('/') ? server : `${server}/`;
  const url = new URL(`test_order_${randomBytes(4).toString('hex')}`, base).href;
  let database: Database;
  let nextSale = 0;

  beforeAll(async () => {
    await migrate(url);
    database = new Database({ url, poolSize: 16 });
  });
  afterAll(async () => {
    await database.close();
    await dropTestDatabase(url);
  });

  async function addSale(): Promise<SaleId> {
    const saleId = SaleId.parse(`sale${(nextSale += 1)}`);
    await database.change(
      `INSERT INTO sale (sale_id, title, sku_id, allotment, unit_price, currency, opens_at, closes_at,
          limit_per_shopper, bucket_count, hold_ms, pay_ms, line_mode, admit_per_second, overbook, phase, created_at,
          updated_at)
        VALUES (?, 'A sale', 'sku', 1000, 4200, 'CNY', NOW(3), NOW(3) + INTERVAL 1 DAY, 10, 1, 1000, 60000, 'off', 1000,
          0, 'warmed', NOW(3), NOW(3))`,
      [saleId],
    );
    await database.change('INSERT INTO sale_stock (sale_id, total, sold) VALUES (?, 1000, 0)', [saleId]);
    return saleId;
  }

  /** Orders as the writer leaves them. */
  async function addOrders(
    saleId: SaleId,
    count: number,
    payMs = 60_000,
    quantity = 2,
  ): Promise<TestOrder[]> {
    const orders = Array.from({ length: count }, (_, n) => {
      const shopperId = ShopperId.parse(`shopper${n % 50}`);
      return { orderId: attemptIdOf(saleId, shopperId, IdempotencyKey.parse(`k${n}`)), shopperId };
    });
    const ids = orders.map((order) => order.orderId);
    await database.change(
      `INSERT INTO orders (order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, state, batch_id, epoch,
          delivery, delivery_hash, pay_before, created_at, updated_at)
        VALUES ${orders.map(() => `(?, ?, ?, 'sku', ?, 4200, 'CNY', 'awaiting_payment', 'b', 1, '{}', 'hash', NOW(3) + INTERVAL ? MICROSECOND, NOW(3), NOW(3))`).join(', ')}`,
      orders.flatMap(({ orderId, shopperId }) => [orderId, saleId, shopperId, quantity, payMs * 1_000]),
    );
    await database.change(
      `INSERT INTO order_event SELECT order_id, 1, 'queued', state, 'written', created_at FROM orders WHERE order_id IN (?)`,
      [ids],
    );
    await database.change(
      `INSERT INTO quota SELECT sale_id, shopper_id, SUM(quantity) FROM orders WHERE order_id IN (?) GROUP BY 1, 2`,
      [ids],
    );
    await database.change('UPDATE sale_stock SET sold = sold + ? WHERE sale_id = ?', [
      count * quantity,
      saleId,
    ]);
    return orders;
  }
  async function addOrder(payMs?: number): Promise<TestOrder & { readonly saleId: SaleId }> {
    const saleId = await addSale();
    const [order] = await addOrders(saleId, 1, payMs);
    if (!order) throw new Error('no order was added');
    return { ...order, saleId };
  }

  function start(options: Partial<PaymentsOptions> = {}, on = database) {
    const told: string[] = [];
    const gate = new Gate(6, 1_000);
    const reader = new OrderReader({
      database: on,
      stock: {
        findHold: async ({ shopperId, attemptId }) =>
          shopperId === 'queueing'
            ? {
                outcome: 'QUEUED',
                hold: { ...HOLD, attemptId, shopperId },
              }
            : { outcome: 'UNKNOWN', hold: undefined },
      },
      lag: { hasWritten: async () => true },
    });
    const provider = new TestPaymentProvider({ database: on, lateMs: 300, webhook: undefined, log });
    const payments = new Payments({
      database: on,
      provider,
      reader,
      keys,
      callTimeoutMs: 2_000,
      askAfterMs: 0,
      log,
      ...options,
    });
    const stock = {
      applyEffects: async ({ effects }: { effects: readonly { attemptId: string; reason: string }[] }) => {
        told.push(...effects.map((effect) => `${effect.attemptId} ${effect.reason}`));
        return { applied: effects.length };
      },
    };
    const ender = new OrderEnder({ database: on, stock, reader, log, batch: 20 });
    const pay = async (order: TestOrder, card: string, idempotencyKey = 'p1') => {
      const request = { ...order, idempotencyKey, method: 'test-card', card };
      const paid = await gate.run(() => payments.pay(request, soon()), soon());
      return paid.outcome === 'problem' ? paid.problem : paid.outcome;
    };
    return { payments, provider, ender, reader, pay, gate, told };
  }

  const statesOf = async (orders: readonly TestOrder[]) => {
    const rows = await database.query<{ order_id: string; state: string }>(
      'SELECT order_id, state FROM orders WHERE order_id IN (?)',
      [orders.map((order) => order.orderId)],
    );
    const byId = new Map(rows.map((row) => [row.order_id, row.state]));
    return orders.map((order) => byId.get(order.orderId));
  };
  const stateOf = async (order: TestOrder) => (await statesOf([order]))[0];
  const countOf = async (table: string, condition: string, orderId: string) =>
    Number(
      (
        await database.query<{ n: string }>(
          `SELECT COUNT(*) AS n FROM ${table} WHERE ${condition} AND order_id = ?`,
          [orderId],
        )
      )[0]?.n,
    );
  const eventsOf = async ({ orderId }: TestOrder) =>
    (
      await database.query<{ edge: string }>(
        `SELECT CONCAT(seq, ' ', from_state, ' ', to_state) AS edge FROM order_event WHERE order_id = ? ORDER BY seq`,
        [orderId],
      )
    ).map((event) => event.edge);
  const chargesOf = async ({ orderId }: TestOrder) =>
    (
      await database.query<{ result: string; refunded: string | number }>(
        `SELECT result, refunded_at IS NOT NULL AS refunded FROM test_provider_charge c
          JOIN payment p ON p.payment_id = c.payment_id WHERE p.order_id = ? ORDER BY result`,
        [orderId],
      )
    ).map((charge) => `${charge.result}${Number(charge.refunded) === 1 ? ' refunded' : ''}`);

  /** What must hold for a sale whatever happened. */
  async function expectConsistent(saleId: SaleId): Promise<void> {
    const sums = async (sql: string) =>
      Number((await database.query<{ n: string | null }>(sql, [saleId]))[0]?.n ?? 0);
    const live = `state IN ('awaiting_payment', 'paid')`;
    const units = await sums(`SELECT SUM(quantity) AS n FROM orders WHERE sale_id = ? AND ${live}`);
    const returned = await sums(`SELECT SUM(quantity) AS n FROM orders WHERE sale_id = ? AND NOT ${live}`);
    const ended = await sums(`SELECT COUNT(*) AS n FROM orders WHERE sale_id = ? AND NOT ${live}`);
    expect(await sums('SELECT sold AS n FROM sale_stock WHERE sale_id = ?')).toBe(units);
    expect(await sums('SELECT SUM(used) AS n FROM quota WHERE sale_id = ?')).toBe(units);
    expect(await sums(`SELECT SUM(amount) AS n FROM ledger WHERE sale_id = ? AND account = 'free'`)).toBe(
      returned,
    );
    expect(await sums(`SELECT SUM(amount) AS n FROM ledger WHERE sale_id = ? AND account = 'sold'`)).toBe(
      0 - returned,
    );
    expect(await sums('SELECT COUNT(*) AS n FROM ledger WHERE sale_id = ?')).toBe(2 * ended);
    expect(await sums(`SELECT COUNT(*) AS n FROM effect WHERE sale_id = ? AND kind = 'void'`)).toBe(ended);
    const wrongVersions = await sums(
      `SELECT COUNT(*) AS n FROM orders o WHERE sale_id = ? AND (version <> (SELECT COUNT(*) FROM order_event e
        WHERE e.order_id = o.order_id) OR state <> (SELECT to_state FROM order_event e
        WHERE e.order_id = o.order_id AND e.seq = o.version))`,
    );
    const paidTooLate = await sums(
      `SELECT COUNT(*) AS n FROM orders o JOIN order_event e ON e.order_id = o.order_id AND e.to_state = 'paid'
        WHERE sale_id = ? AND e.at >= o.pay_before`,
    );
    const moneyWithoutWin = await sums(
      `SELECT COUNT(*) AS n FROM payment p JOIN orders o ON o.order_id = p.order_id
        LEFT JOIN refund r ON r.payment_id = p.payment_id
        WHERE p.sale_id = ? AND p.state = 'captured' AND (o.state = 'paid') = (r.payment_id IS NOT NULL)`,
    );
    expect([wrongVersions, paidTooLate, moneyWithoutWin]).toEqual([0, 0, 0]);
  }

  describe('Payments.pay', () => {
    it('pays an order once, and answers the same key alike', async () => {
      const order = await addOrder();
      const { pay } = start();
      expect([await pay(order, GOOD), await pay(order, GOOD)]).toEqual(['paid', 'paid']);
      expect(await eventsOf(order)).toEqual(['1 queued awaiting_payment', '2 awaiting_payment paid']);
      expect(await chargesOf(order)).toEqual(['captured']);
      await expectConsistent(order.saleId);
    });

    it('takes the amount from the order', async () => {
      const order = await addOrder();
      await start().pay(order, GOOD);
      expect(
        await database.query(
          'SELECT p.amount, p.currency, c.amount AS charged FROM payment p JOIN test_provider_charge c ON c.payment_id = p.payment_id WHERE order_id = ?',
          [order.orderId],
        ),
      ).toEqual([{ amount: '8400', currency: 'CNY', charged: '8400' }]);
    });

    it('keeps no card, not even as a hash that could be guessed', async () => {
      const order = await addOrder();
      const { pay } = start();
      await pay(order, GOOD);
      const [row] = await database.query('SELECT * FROM payment WHERE order_id = ?', [order.orderId]);
      expect(JSON.stringify(row)).not.toContain(GOOD);
      const guess = createHmac('sha256', '').update(GOOD).digest('base64url').slice(0, 22);
      expect(row?.['body_hash']).not.toBe(guess);
    });

    it('refuses another card under the same key', async () => {
      const order = await addOrder();
      const { pay } = start();
      await pay(order, BAD);
      expect(await pay(order, GOOD)).toBe('idempotency_key_reused');
      expect(await stateOf(order)).toBe('awaiting_payment');
    });

    it('declines, says so again, and takes another card under another key', async () => {
      const order = await addOrder();
      const { pay } = start();
      expect([await pay(order, BAD), await pay(order, BAD)]).toEqual([
        'payment_declined',
        'payment_declined',
      ]);
      expect(await pay(order, GOOD, 'p2')).toBe('paid');
      await expectConsistent(order.saleId);
    });

    it('charges once when two keys pay at the same moment', async () => {
      const saleId = await addSale();
      const { pay } = start();
      for (const order of await addOrders(saleId, 20)) {
        const answers = await Promise.all([pay(order, GOOD, 'a'), pay(order, GOOD, 'b')]);
        expect(answers.filter((answer) => answer === 'paid').length).toBe(1);
        expect(['in_progress', 'not_payable']).toContain(answers.find((answer) => answer !== 'paid'));
        expect(await chargesOf(order)).toEqual(['captured']);
      }
      await expectConsistent(saleId);
    });

    it('charges once when one key is clicked many times at the same moment', async () => {
      const order = await addOrder();
      const { pay } = start();
      const answers = await Promise.all(Array.from({ length: 10 }, () => pay(order, GOOD)));
      expect(new Set(answers)).toEqual(new Set(['paid']));
      expect(await chargesOf(order)).toEqual(['captured']);
      await expectConsistent(order.saleId);
    });

    it('answers what is not there, not theirs, not decided yet, or not a card', async () => {
      const order = await addOrder();
      const { pay } = start();
      expect(await pay({ ...order, shopperId: 'somebody' }, GOOD)).toBe('not_found');
      const other = attemptIdOf(order.saleId, ShopperId.parse('queueing'), IdempotencyKey.parse('x'));
      expect(await pay({ orderId: other, shopperId: 'queueing' }, GOOD)).toBe('not_payable');
      expect(await pay({ orderId: other, shopperId: 'nobody' }, GOOD)).toBe('not_found');
      expect(await pay(order, 'drop table')).toBe('invalid');
    });

    it('does not ask for money once the time is over, swept or not', async () => {
      const order = await addOrder(0);
      const { pay, ender } = start();
      expect(await pay(order, GOOD)).toBe('order_expired');
      await ender.endUnpaid();
      expect(await pay(order, GOOD, 'p2')).toBe('order_expired');
      expect(await countOf('payment', '1 = 1', order.orderId)).toBe(0);
    });
  });

  describe('a late answer', () => {
    it('is pending, lets no second payment begin, and ends by the webhook, told twice', async () => {
      const order = await addOrder();
      const { pay, payments } = start();
      expect([await pay(order, LATE), await pay(order, LATE), await pay(order, GOOD, 'p2')]).toEqual([
        'pending',
        'pending',
        'in_progress',
      ]);
      const paymentId = await paymentOf(order);
      expect(await payments.settleByEvent('evt-1', paymentId, 'captured')).toBe(true);
      expect(await payments.settleByEvent('evt-1', paymentId, 'captured')).toBe(true);
      expect(await pay(order, LATE)).toBe('paid');
      expect((await eventsOf(order)).length).toBe(2);
      expect(await countOf('refund', '1 = 1', order.orderId)).toBe(0);
      await expectConsistent(order.saleId);
    });

    it('ends by the sweeper where no webhook comes', async () => {
      const [good, bad] = [await addOrder(), await addOrder()];
      const { pay, payments } = start();
      expect([await pay(good, LATE), await pay(bad, LATE_BAD)]).toEqual(['pending', 'pending']);
      await payments.askAboutPending();
      expect([await stateOf(good), await stateOf(bad)]).toEqual(['awaiting_payment', 'awaiting_payment']);
      await sleep(350);
      await Promise.all([payments.askAboutPending(), start().payments.askAboutPending()]);
      expect([await stateOf(good), await stateOf(bad)]).toEqual(['paid', 'awaiting_payment']);
      expect(await pay(bad, LATE_BAD)).toBe('payment_declined');
      expect(await pay(bad, GOOD, 'p2')).toBe('paid');
      await expectConsistent(good.saleId);
      await expectConsistent(bad.saleId);
    });

    it('is refunded exactly once when the time-out was faster, however often it is told', async () => {
      const order = await addOrder(100);
      const { pay, payments, ender } = start();
      expect(await pay(order, LATE)).toBe('pending');
      await sleep(150);
      await ender.endUnpaid();
      expect(await stateOf(order)).toBe('unpaid');
      await sleep(250);
      const paymentId = await paymentOf(order);
      await Promise.all([
        payments.settleByEvent('evt-a', paymentId, 'captured'),
        payments.settleByEvent('evt-a', paymentId, 'captured'),
        payments.askAboutPending(),
      ]);
      expect(await countOf('refund', `state = 'pending'`, order.orderId)).toBe(1);
      expect(await chargesOf(order)).toEqual(['captured']);
      await Promise.all([payments.refundDue(), start().payments.refundDue()]);
      await payments.refundDue();
      expect(await countOf('refund', `state = 'done'`, order.orderId)).toBe(1);
      expect(await chargesOf(order)).toEqual(['captured refunded']);
      expect(await pay(order, LATE)).toBe('order_expired');
      await expectConsistent(order.saleId);
    });

    it('is refunded when the order was cancelled meanwhile', async () => {
      const order = await addOrder();
      const { pay, payments, ender } = start();
      await pay(order, LATE);
      expect((await ender.cancel(order.orderId, order.shopperId, soon())).outcome).toBe('cancelled');
      await payments.settleByEvent('evt-c', await paymentOf(order), 'captured');
      await payments.refundDue();
      expect(await chargesOf(order)).toEqual(['captured refunded']);
      expect(await pay(order, LATE)).toBe('not_payable');
      await expectConsistent(order.saleId);
    });

    it('does not know a payment that nobody opened', async () => {
      expect(await start().payments.settleByEvent('evt-x', 'pay-unknown', 'captured')).toBe(false);
    });

    it('gives money back that a provider took though it had declined', async () => {
      const order = await addOrder();
      const { pay, payments } = start();
      await pay(order, BAD);
      await pay(order, GOOD, 'p2');
      const [declined] = await database.query<{ payment_id: string }>(
        `SELECT payment_id FROM payment WHERE order_id = ? AND state = 'declined'`,
        [order.orderId],
      );
      await payments.settleByEvent('evt-d', declined?.payment_id ?? '', 'captured');
      expect(await countOf('refund', `payment_id = '${declined?.payment_id}'`, order.orderId)).toBe(1);
      expect(await stateOf(order)).toBe('paid');
    });
  });

  describe('a provider without an answer', () => {
    const broken = (part: Partial<PaymentProvider>): PaymentProvider => {
      const real = new TestPaymentProvider({ database, lateMs: 0, webhook: undefined, log });
      return {
        charge: (request) => real.charge(request),
        find: (paymentId) => real.find(paymentId),
        close: (paymentId, amount) => real.close(paymentId, amount),
        refund: (paymentId) => real.refund(paymentId),
        ...part,
      };
    };
    const lost = () => Promise.reject(new Error('the connection was reset'));

    it('leaves the payment pending; one that never arrived is closed by asking, and cannot arrive later', async () => {
      const order = await addOrder();
      const { pay, payments, provider } = start({ callTimeoutMs: 200, provider: broken({ charge: lost }) });
      expect(await pay(order, GOOD)).toBe('pending');
      await payments.askAboutPending();
      expect(await pay(order, GOOD)).toBe('pending'); // It may still be on its way.
      await sleep(450);
      await payments.askAboutPending();
      expect(await pay(order, GOOD)).toBe('payment_declined');
      const late = { paymentId: await paymentOf(order), amount: 8_400, currency: 'CNY', card: GOOD };
      expect(await provider.charge(late)).toBe('declined');
      expect(await start().pay(order, GOOD, 'p2')).toBe('paid');
      await expectConsistent(order.saleId);
    });

    it('finds out that it had charged, though its answer was lost', async () => {
      const order = await addOrder();
      const real = broken({});
      const { pay, payments } = start({
        provider: broken({ charge: (request) => real.charge(request).then(lost) }),
      });
      expect(await pay(order, GOOD)).toBe('pending');
      await payments.askAboutPending();
      expect(await stateOf(order)).toBe('paid');
      expect(await chargesOf(order)).toEqual(['captured']);
      await expectConsistent(order.saleId);
    });

    it('is waited for so long and no longer', async () => {
      const order = await addOrder();
      const { pay } = start({
        callTimeoutMs: 50,
        provider: broken({ charge: () => new Promise<never>(() => undefined) }),
      });
      expect(await pay(order, GOOD)).toBe('pending');
    });

    it('is left alone after five failures: the shopper repeats, and the same payment goes on when it is back', async () => {
      const order = await addOrder();
      let asked = 0;
      let isBack = false;
      const real = broken({});
      const away = broken({
        charge: (request) => {
          asked += 1;
          return isBack ? real.charge(request) : lost();
        },
      });
      const { pay } = start({ provider: away });
      for (let failures = 0; failures < 5; failures += 1) expect(await pay(order, GOOD)).toBe('pending');
      await expect(pay(order, GOOD)).rejects.toBeInstanceOf(NotSent);
      expect(asked).toBe(5);
      isBack = true;
      const giveUpAtMs = performance.now() + 10_000;
      let outcome = 'not sent';
      while (outcome === 'not sent' && performance.now() < giveUpAtMs) {
        await sleep(20);
        outcome = await pay(order, GOOD).catch(() => 'not sent');
      }
      expect(outcome).toBe('paid');
      expect(await chargesOf(order)).toEqual(['captured']);
      await expectConsistent(order.saleId);
    });

    it('gets a refund asked for again until it succeeds', async () => {
      const order = await addOrder(0);
      const { payments, ender } = start({ provider: broken({ refund: lost }) });
      await ender.endUnpaid();
      const paymentId = `pay-${order.orderId}`;
      await database.change(
        `INSERT INTO payment VALUES (?, ?, ?, ?, 'k', 'h', 8400, 'CNY', 'test-card', 'pending', NOW(3), NOW(3))`,
        [paymentId, order.orderId, order.saleId, order.shopperId],
      );
      await start().provider.charge({ paymentId, amount: 8_400, currency: 'CNY', card: GOOD });
      await payments.settleByEvent('evt-r', paymentId, 'captured');
      await sleep(2);
      await payments.refundDue();
      expect(await countOf('refund', `state = 'pending'`, order.orderId)).toBe(1);
      await sleep(1_050);
      await start().payments.refundDue();
      expect([await countOf('refund', `state = 'done'`, order.orderId), await chargesOf(order)]).toEqual([
        1,
        ['captured refunded'],
      ]);
    });
  });

  describe('the time-out', () => {
    it('ends due orders once, though several instances sweep at once, and leaves the others', async () => {
      const saleId = await addSale();
      const due = await addOrders(saleId, 70, 0, 1);
      const waiting = await addOrder();
      const instances = Array.from({ length: 4 }, () => start());
      await Promise.all(
        instances.map(async ({ ender }) => {
          while (await ender.endUnpaid());
        }),
      );
      const told = instances.flatMap((instance) => instance.told);
      expect(told.sort()).toEqual(due.map((order) => `${order.orderId} unpaid`).sort());
      expect(await stateOf(waiting)).toBe('awaiting_payment');
      await expectConsistent(saleId);
    });

    it('and a payment in the same millisecond: one of them wins, and money without a win goes back', async () => {
      const saleId = await addSale();
      const { pay, ender, payments } = start();
      const orders = await addOrders(saleId, 200, 400, 1);
      const sweepUntilMs = performance.now() + 2_500;
      const sweeping = (async () => {
        while (performance.now() < sweepUntilMs) await ender.endUnpaid();
      })();
      // Spread around the edge, so that some come well before it, some after it, and many at it.
      const answers = await Promise.all(
        orders.map(async (order, n) => {
          await sleep(100 + n * 2);
          return pay(order, n % 4 === 0 ? LATE : GOOD);
        }),
      );
      await sweeping;
      await sleep(350);
      await payments.askAboutPending();
      await payments.askAboutPending();
      await payments.askAboutPending();
      while (await payments.refundDue());
      const states = await statesOf(orders);
      expect(new Set(states)).toEqual(new Set(['paid', 'unpaid']));
      answers.forEach((answer, n) => {
        if (answer === 'paid') expect(states[n]).toBe('paid');
        if (answer === 'order_expired') expect(states[n]).toBe('unpaid');
      });
      await expectConsistent(saleId);
      const [owed] = await database.query<{ n: string }>(
        `SELECT COUNT(*) AS n FROM test_provider_charge c JOIN payment p ON p.payment_id = c.payment_id
          JOIN orders o ON o.order_id = p.order_id
          WHERE o.sale_id = ? AND c.result = 'captured' AND (o.state = 'paid') = (c.refunded_at IS NOT NULL)`,
        [saleId],
      );
      expect(Number(owed?.n)).toBe(0);
    });

    it('and a payment and a cancellation at once: one of them wins', async () => {
      const saleId = await addSale();
      const { pay, ender, gate } = start();
      const orders = await addOrders(saleId, 60, 150, 1);
      await sleep(110);
      await Promise.all([
        ...orders.map((order) => pay(order, GOOD)),
        ...orders.map(async (order, n) => {
          await sleep(n);
          return gate.run(() => ender.cancel(order.orderId, order.shopperId, soon()), soon());
        }),
        ...Array.from({ length: 10 }, async (_, n) => {
          await sleep(n * 8);
          await ender.endUnpaid();
        }),
      ]);
      for (const state of await statesOf(orders)) {
        expect(['paid', 'cancelled', 'unpaid']).toContain(state);
      }
      await expectConsistent(saleId);
    });
  });

  describe('OrderEnder.cancel', () => {
    it('returns the units, tells inventory, and answers a repetition alike', async () => {
      const order = await addOrder();
      const { ender, told } = start();
      for (let n = 0; n < 2; n += 1) {
        const cancelled = await ender.cancel(order.orderId, order.shopperId, soon());
        expect(cancelled).toMatchObject({ outcome: 'cancelled', order: { state: 'cancelled' } });
      }
      expect(told).toEqual([`${order.orderId} cancelled`]);
      await expectConsistent(order.saleId);
    });

    it('refuses what is paid, what is not decided and what is not theirs', async () => {
      const order = await addOrder();
      const { ender, pay } = start();
      await pay(order, GOOD);
      const cancel = async (orderId: string, shopperId: string) => ender.cancel(orderId, shopperId, soon());
      expect(await cancel(order.orderId, order.shopperId)).toMatchObject({ problem: 'not_cancellable' });
      expect(await cancel(order.orderId, 'somebody')).toMatchObject({ problem: 'not_found' });
      const queued = attemptIdOf(order.saleId, ShopperId.parse('queueing'), IdempotencyKey.parse('x'));
      expect(await cancel(queued, 'queueing')).toMatchObject({ problem: 'not_cancellable' });
      await expectConsistent(order.saleId);
    });

    it.each(['request', 'reply'] as const)(
      'and a payment happen once when the %s of COMMIT is lost, and the connection with it',
      async (part) => {
        const [first, second] = [await addOrder(), await addOrder()];
        const proxy = await FaultProxy.before('mysql', url);
        const loseCommit = () => proxy.lose({ request: 'COMMIT', part, connection: 'cut' });
        const proxied = new Database({ url: proxy.through(url), poolSize: 2 });
        const { ender, payments, pay } = start({}, proxied);
        loseCommit();
        const cancelled = await ender.cancel(first.orderId, first.shopperId, soon());
        expect(cancelled).toMatchObject({ outcome: 'cancelled' });
        loseCommit();
        expect(await pay(second, LATE)).toBe('pending');
        loseCommit();
        await payments.settleByEvent(`evt-${part}`, await paymentOf(second), 'captured');
        expect([await stateOf(second), proxy.figures().lost]).toEqual(['paid', 3]);
        await proxied.close();
        await proxy.stop();
        await expectConsistent(first.saleId);
        await expectConsistent(second.saleId);
      },
    );
  });

  async function paymentOf({ orderId }: TestOrder): Promise<string> {
    const [payment] = await database.query<{ payment_id: string }>(
      'SELECT payment_id FROM payment WHERE order_id = ?',
      [orderId],
    );
    return payment?.payment_id ?? '';
  }
});

const HOLD = { skuId: 'sku', quantity: 1, epoch: 1, grantedAtMs: 1_000, deadlineMs: 2_000, reason: '' };
