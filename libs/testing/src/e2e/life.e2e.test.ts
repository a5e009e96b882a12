import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { DELIVERY, type Answer } from '../caller.js';
import { sleep, until } from '../waiting.js';
import { World } from '../world.js';

/** The lives of a sale, a hold and an order over HTTP, through the five real services. */
describe('over HTTP', () => {
  let world: World;
  beforeAll(async () => {
    world = await World.start();
  }, 60_000);
  afterAll(() => world?.stop(), 60_000);

  const clean = async (saleId: string) => {
    const { verdict, printed } = await world.audit(saleId);
    expect({
      broken: verdict.invariants.broken,
      printed: verdict.invariants.broken.length > 0 ? printed : '',
    }).toEqual({
      broken: [],
      printed: '',
    });
    return verdict;
  };
  const phaseOf = async (saleId: string) =>
    (await world.shopper('onlooker').call('GET', `/v1/sales/${saleId}`)).body['phase'];
  const phaseBecomes = (saleId: string, phase: string) =>
    until(`the gateway to say ${phase}`, 5_000, async () => (await phaseOf(saleId)) === phase);

  describe('a sale', () => {
    it('goes from draft to settled, and every phase is seen by shoppers', async () => {
      const operator = world.operator();
      const opensAt = new Date(Date.now() + 2_500).toISOString();
      const created = await operator.expect(201, 'POST', '/v1/operator/sales', {
        title: 'Life',
        skuId: 'sku-test',
        allotment: 2,
        unitPrice: 500,
        currency: 'CNY',
        opensAt,
        closesAt: new Date(Date.now() + 600_000).toISOString(),
        limitPerShopper: 1,
        buckets: 4,
        holdSeconds: 60,
        paySeconds: 60,
      });
      const saleId = String(created['saleId']);
      const change = (operation: string, status = 200) =>
        operator.expect(status, 'POST', `/v1/operator/sales/${saleId}/${operation}`);
      expect(created['phase']).toBe('draft');
      expect((await change('warm-up'))['phase']).toBe('warmed');
      await phaseBecomes(saleId, 'warmed');

      const early = await world.shopper('early').enter(saleId, 'k');
      expect([early.status, early.body['code']]).toEqual([409, 'sale_not_open']);

      await phaseBecomes(saleId, 'open');
      await world.shopper('life-1').buy(saleId);
      expect((await change('pause'))['phase']).toBe('paused');
      await phaseBecomes(saleId, 'paused');
      const during = await world.shopper('life-2').enter(saleId, 'k');
      expect([during.status, during.body['code']]).toEqual([409, 'sale_paused']);
      await change('resume');
      await phaseBecomes(saleId, 'open');
      await world.shopper('life-2').buy(saleId);

      const late = await world.shopper('life-3').persist(() => world.shopper('life-3').enter(saleId, 'k'));
      expect([late.status, late.body['code']]).toEqual([410, 'sold_out']);
      await phaseBecomes(saleId, 'sold_out');
      expect((await change('close'))['phase']).toBe('closed');
      await phaseBecomes(saleId, 'closed');
      const closed = await world.shopper('life-4').enter(saleId, 'k');
      expect([closed.status, closed.body['code']]).toEqual([409, 'sale_closed']);
      const again = await operator.call('POST', `/v1/operator/sales/${saleId}/resume`);
      expect([again.status, again.body['code']]).toEqual([409, 'wrong_phase']);

      await until('the stores to be quiet', 15_000, async () => {
        const report = await operator.expect(200, 'GET', `/v1/operator/sales/${saleId}/report`);
        return report['verdict'] === 'balanced';
      });
      expect((await change('settle'))['phase']).toBe('settled');
      const verdict = await clean(saleId);
      expect(verdict).toMatchObject({
        allotment: 2,
        sold: 2,
        oversold: 0,
        undersold: 0,
        lost: 0,
        duplicates: 0,
      });
    }, 60_000);

    it('cannot be settled while a hold or an unpaid order is open', async () => {
      const saleId = await world.openSale({ allotment: 3 });
      await world.shopper('holds').enter(saleId, 'k');
      const operator = world.operator();
      await operator.expect(200, 'POST', `/v1/operator/sales/${saleId}/close`);
      const answer = await operator.call('POST', `/v1/operator/sales/${saleId}/settle`);
      expect([answer.status, answer.body['code']]).toEqual([409, 'unresolved']);
    });

    it('is created once, however often the same request comes, and not over another one', async () => {
      const saleId = await world.openSale({ title: 'Once' });
      const answer = await world.operator().call('POST', '/v1/operator/sales', {
        saleId,
        title: 'Another',
        skuId: 'sku-test',
        allotment: 10,
        unitPrice: 1999,
        currency: 'CNY',
        opensAt: '2026-11-11T12:00:00.000Z',
        closesAt: '2026-11-11T13:00:00.000Z',
        limitPerShopper: 1,
      });
      expect([answer.status, answer.body['code']]).toEqual([409, 'sale_exists']);
    });
  });

  describe('a hold', () => {
    it('is one, however often the button is clicked', async () => {
      const saleId = await world.openSale({ allotment: 5, limitPerShopper: 5 });
      const clicker = world.shopper('clicker');
      const answers = await Promise.all(
        Array.from({ length: 20 }, () => clicker.enter(saleId, 'same-click')),
      );
      expect(new Set(answers.map((answer) => answer.body['entryId'])).size).toBe(1);
      expect(new Set(answers.map((answer) => answer.body['purchaseToken'])).size).toBe(1);
      expect(answers.every((answer) => answer.status === 200 || answer.status === 201)).toBe(true);
      // Units that were fetched for the other clicks may still be between two buckets when the first is answered.
      let redis: unknown;
      await until('the last transfer to be done', 5_000, async () => {
        redis = (await world.operator().expect(200, 'GET', `/v1/operator/sales/${saleId}/report`))['redis'];
        return (redis as { openTransfers: number }).openTransfers === 0;
      });
      expect(redis).toMatchObject({ free: 4, held: 1 });
    });

    it('is the same under another key of the same shopper, and refuses another quantity meanwhile', async () => {
      const saleId = await world.openSale({ allotment: 5, limitPerShopper: 5 });
      const shopper = world.shopper('two-tabs');
      const first = await shopper.enter(saleId, 'tab-1');
      const second = await shopper.enter(saleId, 'tab-2');
      expect(second.body['purchaseToken']).toBe(first.body['purchaseToken']);
      const other = await shopper.enter(saleId, 'tab-3', 2);
      expect([other.status, other.body['code']]).toEqual([409, 'entry_exists']);
      const reused = await shopper.enter(saleId, 'tab-1', 2);
      expect([reused.status, reused.body['code']]).toEqual([422, 'idempotency_key_reused']);
    });

    it('that is given up goes to somebody else', async () => {
      const saleId = await world.openSale({ allotment: 1 });
      const first = world.shopper('gives-up');
      const entry = await first.enter(saleId, 'k');
      const refused = await world.shopper('takes-over').enter(saleId, 'k');
      expect([refused.status, refused.body['code']]).toEqual([410, 'sold_out']);
      expect((await first.call('DELETE', `/v1/entries/${String(entry.body['entryId'])}`)).status).toBe(204);
      const second = world.shopper('takes-over');
      await until('the unit to come back', 15_000, async () => {
        const answer = await second.enter(saleId, 'k');
        return answer.status === 200 || answer.status === 201;
      });
      await second.buy(saleId);
      const gone = await first.order(entry.body['purchaseToken']);
      expect([gone.status, gone.body['code']]).toEqual([410, 'token_expired']);
      expect((await clean(saleId)).sold).toBe(1);
    }, 40_000);

    it('that expires is bought by somebody else', async () => {
      const saleId = await world.openSale({ allotment: 1, holdSeconds: 1 });
      const sleeper = world.shopper('sleeper');
      const entry = await sleeper.enter(saleId, 'k');
      expect(entry.status).toBe(201);
      const next = world.shopper('awake');
      await until('the hold to expire and its unit to come back', 20_000, async () => {
        const answer = await next.enter(saleId, 'k');
        return answer.status === 200 || answer.status === 201;
      });
      const late = await sleeper.order(entry.body['purchaseToken']);
      expect([late.status, late.body['code']]).toEqual([410, 'token_expired']);
      const state = await sleeper.call('GET', `/v1/entries/${String(entry.body['entryId'])}`);
      expect(state.body['state']).toBe('expired');
      await next.buy(saleId);
      expect((await clean(saleId)).sold).toBe(1);
    }, 40_000);

    it('counts against the limit of its shopper', async () => {
      const saleId = await world.openSale({ allotment: 10, limitPerShopper: 2 });
      const shopper = world.shopper('greedy');
      expect((await shopper.enter(saleId, 'a', 3)).status).toBe(409);
      await shopper.buy(saleId, 'b');
      await shopper.buy(saleId, 'c');
      const third = await shopper.enter(saleId, 'd');
      expect([third.status, third.body['code']]).toEqual([409, 'limit_reached']);
      expect((await clean(saleId)).sold).toBe(2);
    }, 40_000);
  });

  describe('an order', () => {
    it('is the same for the same token and delivery, and refuses another delivery', async () => {
      const saleId = await world.openSale();
      const shopper = world.shopper('twice');
      const entry = await shopper.enter(saleId, 'k');
      const token = entry.body['purchaseToken'];
      const answers = await Promise.all([shopper.order(token), shopper.order(token), shopper.order(token)]);
      expect(answers.map((answer) => answer.status)).toEqual([202, 202, 202]);
      expect(new Set(answers.map((answer) => answer.body['orderId']))).toEqual(
        new Set([entry.body['entryId']]),
      );
      const other = await shopper.order(token, { ...DELIVERY, address: '2 Example Road' });
      expect([other.status, other.body['code']]).toEqual([422, 'idempotency_key_reused']);
      await shopper.orderIn(String(entry.body['entryId']), ['awaiting_payment']);
      const later = await shopper.order(token, { ...DELIVERY, address: '3 Example Road' });
      expect([later.status, later.body['code']]).toEqual([422, 'idempotency_key_reused']);
      expect((await shopper.order(token)).status).toBe(202);
    });

    it('belongs to its shopper alone', async () => {
      const saleId = await world.openSale();
      const owner = world.shopper('owner');
      const thief = world.shopper('thief');
      const entry = await owner.enter(saleId, 'k');
      const stolen = await thief.order(entry.body['purchaseToken']);
      expect([stolen.status, stolen.body['code']]).toEqual([403, 'forbidden']);
      const order = await owner.buy(saleId);
      for (const [method, path] of [
        ['GET', `/v1/orders/${String(order['orderId'])}`],
        ['DELETE', `/v1/orders/${String(order['orderId'])}`],
        ['GET', `/v1/entries/${String(order['orderId'])}`],
      ] as const) {
        const answer = await thief.call(method, path);
        expect([path, answer.status]).toEqual([path, 404]);
      }
      expect((await thief.pay(String(order['orderId']), 'k')).status).toBe(404);
      const mine = await thief.expect(200, 'GET', '/v1/orders');
      expect(mine['orders']).toEqual([]);
      const owned = await owner.expect(200, 'GET', '/v1/orders');
      expect(owned['orders']).toMatchObject([{ orderId: order['orderId'], state: 'paid', amount: 1999 }]);
    });

    it('can be cancelled until it is paid, and its unit is sold again', async () => {
      const saleId = await world.openSale({ allotment: 1 });
      const first = world.shopper('changes-mind');
      const entry = await first.enter(saleId, 'k');
      await first.order(entry.body['purchaseToken']);
      const orderId = String(entry.body['entryId']);
      await first.orderIn(orderId, ['awaiting_payment']);
      const cancelled = await first.expect(200, 'DELETE', `/v1/orders/${orderId}`);
      expect(cancelled['state']).toBe('cancelled');
      expect((await first.expect(200, 'DELETE', `/v1/orders/${orderId}`))['state']).toBe('cancelled');
      const unpayable = await first.pay(orderId, 'k');
      expect([unpayable.status, unpayable.body['code']]).toEqual([409, 'not_payable']);

      const second = world.shopper('gets-it');
      await until(
        'the unit to come back',
        10_000,
        async () => (await second.enter(saleId, 'k')).status < 300,
      );
      const paid = await second.buy(saleId);
      const late = await second.call('DELETE', `/v1/orders/${String(paid['orderId'])}`);
      expect([late.status, late.body['code']]).toEqual([409, 'not_cancellable']);
      expect((await clean(saleId)).sold).toBe(1);
    }, 40_000);

    it('that is not paid in time ends as unpaid, and its unit is sold again', async () => {
      const saleId = await world.openSale({ allotment: 1, paySeconds: 4 });
      const forgetful = world.shopper('forgetful');
      const entry = await forgetful.enter(saleId, 'k');
      await forgetful.order(entry.body['purchaseToken']);
      const orderId = String(entry.body['entryId']);
      await forgetful.orderIn(orderId, ['unpaid'], 15_000);
      const late = await forgetful.pay(orderId, 'k');
      expect([late.status, late.body['code']]).toEqual([409, 'order_expired']);
      const next = world.shopper('pays');
      await until('the unit to come back', 10_000, async () => (await next.enter(saleId, 'k')).status < 300);
      await next.buy(saleId);
      expect((await clean(saleId)).sold).toBe(1);
    }, 40_000);

    it('survives a declined card and takes another, and is paid once however often it is asked', async () => {
      const saleId = await world.openSale();
      const shopper = world.shopper('two-cards');
      const entry = await shopper.enter(saleId, 'k');
      const orderId = String(entry.body['entryId']);
      await shopper.order(entry.body['purchaseToken']);
      await shopper.orderIn(orderId, ['awaiting_payment']);
      const declined = await shopper.pay(orderId, 'first', '4000000000000002');
      expect([declined.status, declined.body['code']]).toEqual([402, 'payment_declined']);
      const paid = await Promise.all(Array.from({ length: 5 }, () => shopper.pay(orderId, 'second')));
      expect(paid.some((answer) => answer.status === 200)).toBe(true);
      await shopper.orderIn(orderId, ['paid']);
      expect((await shopper.pay(orderId, 'second')).status).toBe(200);
      await clean(saleId);
    });

    it('is paid by a provider that answers late, through its signed webhook', async () => {
      const saleId = await world.openSale();
      const shopper = world.shopper('late-card');
      const entry = await shopper.enter(saleId, 'k');
      const orderId = String(entry.body['entryId']);
      await shopper.order(entry.body['purchaseToken']);
      await shopper.orderIn(orderId, ['awaiting_payment']);
      const pending = await shopper.pay(orderId, 'late', '4000000000000259');
      expect([pending.status, pending.body['state']]).toEqual([202, 'pending']);
      await shopper.orderIn(orderId, ['paid'], 15_000);
      await clean(saleId);
    });
  });

  describe('the line', () => {
    it('lets people in one after another, tells them their place, and loses no unit of those who leave', async () => {
      const saleId = await world.openSale({ allotment: 20, line: { mode: 'fifo', admitPerSecond: 2 } });
      const people = Array.from({ length: 8 }, (_, i) => world.shopper(`line-${i}`));
      const answers: Answer[] = [];
      for (const person of people) answers.push(await person.enter(saleId, 'k'));
      const admitted = people.filter((_, i) => answers[i]?.status === 201);
      for (const person of admitted) await person.buy(saleId);
      const waiting = answers.flatMap((answer, i) =>
        answer.status === 202 ? [{ person: people[i], answer }] : [],
      );
      expect(waiting.length).toBeGreaterThan(0);
      for (const { answer } of waiting) {
        expect(answer.body).toMatchObject({ state: 'waiting' });
        expect(Number(answer.body['position'])).toBeGreaterThan(0);
        expect(Number(answer.body['pollAfterMs'])).toBeGreaterThan(0);
        expect(typeof answer.body['ticket']).toBe('string');
      }
      const leaver = waiting.at(-1);
      const left = await leaver?.person?.call(
        'DELETE',
        `/v1/entries/${String(leaver.answer.body['entryId'])}`,
      );
      expect(left?.status).toBe(204);
      for (const { person, answer } of waiting.slice(0, -1)) {
        const path = `/v1/entries/${String(answer.body['entryId'])}`;
        await until(
          'to be let in',
          20_000,
          async () => (await person?.call('GET', path))?.body['state'] === 'granted',
        );
        await person?.buy(saleId);
      }
      expect((await clean(saleId)).sold).toBe(people.length - 1);
    }, 60_000);

    it('pushes what it has to say as server-sent events', async () => {
      const saleId = await world.openSale({ allotment: 5, line: { mode: 'fifo', admitPerSecond: 1 } });
      await Promise.all(Array.from({ length: 4 }, (_, i) => world.shopper(`ahead-${i}`).enter(saleId, 'k')));
      const shopper = world.shopper('listens');
      const entry = await shopper.enter(saleId, 'k');
      const response = await fetch(`${world.shopUrl}/v1/entries/${String(entry.body['entryId'])}/events`, {
        headers: { authorization: `Bearer ${world.accessToken('listens')}` },
        signal: AbortSignal.timeout(20_000),
      });
      expect(response.headers.get('content-type')).toMatch(/text\/event-stream/);
      let text = '';
      const decoder = new TextDecoder();
      for await (const chunk of response.body ?? []) {
        text += decoder.decode(chunk, { stream: true });
        if (text.includes('"granted"')) break;
      }
      expect(text).toMatch(/"state":"granted"/);
    }, 40_000);
  });

  it('nobody sees an order that was never placed as one of their orders', async () => {
    const saleId = await world.openSale({ holdSeconds: 1 });
    const shopper = world.shopper('window-shopper');
    const entry = await shopper.enter(saleId, 'k');
    await sleep(6_000);
    const orders = await shopper.expect(200, 'GET', '/v1/orders');
    expect(orders['orders']).toEqual([]);
    expect((await shopper.call('GET', `/v1/orders/${String(entry.body['entryId'])}`)).status).toBe(404);
  }, 20_000);
});
