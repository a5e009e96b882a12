import { describe, expect, it } from '@jest/globals';
import { Figures } from './figures.js';
import type { Intention } from './seeded.js';
import { DECLINED_CARD, GOOD_CARD, Shopper, type Answer, type ShopperRequest, type Step } from './shopper.js';

describe('a shopper', () => {
  const answer = (http: number, body: Record<string, unknown> = {}, retryAfterMs = 0): Answer => ({
    http,
    code: typeof body['code'] === 'string' ? body['code'] : '',
    body,
    retryAfterMs,
  });
  const granted = answer(201, { entryId: 'e1', state: 'granted', purchaseToken: 't1' });
  const accepted = answer(202, { orderId: 'e1', state: 'queued' });
  const status = (state: string) => answer(200, { orderId: 'e1', state });

  /** Plays answers one after another; returns the last step and the requests that led there. */
  const visit = (intention: Intention, ...answers: Answer[]) => {
    const figures = new Figures();
    const shopper = new Shopper('anna', intention, figures, () => 0.5);
    const requests: ShopperRequest[] = [];
    let step: Step = shopper.arrive();
    for (const each of answers) {
      if (step.do === 'leave') throw new Error('the shopper has left already');
      requests.push(step.request);
      step = shopper.next(step.request, each);
    }
    return { step, requests, figures, shopper };
  };

  it('buys: grant, order, row, payment', () => {
    const { step, requests, figures } = visit(
      'buy',
      granted,
      accepted,
      status('queued'),
      status('awaiting_payment'),
      status('paid'),
    );
    expect(step).toEqual({ do: 'leave', how: 'paid' });
    expect(requests.map(({ kind }) => kind)).toEqual([
      'entry',
      'order',
      'order_status',
      'order_status',
      'payment',
    ]);
    expect(requests.at(-1)).toMatchObject({ orderId: 'e1', card: GOOD_CARD });
    expect(figures).toMatchObject({
      arrived: 1,
      waiting: 0,
      granted: 1,
      ordered: 1,
      written: 1,
      paid: 1,
      left: 1,
    });
    expect(figures.refused).toEqual({});
  });

  it('asks again with a new key after a refusal, and is not counted as refused once granted', () => {
    const refused = visit('buy', answer(410, { code: 'sold_out' }, 1_000));
    expect(refused.step).toEqual({
      do: 'ask_again',
      request: { kind: 'entry', key: 'visit-2' },
      afterMs: 3_500,
    });
    expect(refused.figures.refused).toEqual({ sold_out: 1 });
    expect(refused.figures.waiting).toBe(1);
    expect(visit('buy', answer(410, { code: 'sold_out' }), granted).figures.refused).toEqual({});
  });

  it.each([answer(503, { code: 'unavailable' }, 1_000), { ...answer(0), code: 'timeout' }])(
    'repeats the very same entry, order and payment when it cannot know what happened (%j)',
    (unknown) => {
      const again = visit('buy', unknown);
      expect(again.step).toMatchObject({ do: 'ask_again', request: { kind: 'entry', key: 'visit-1' } });
      const order = visit('buy', granted, unknown);
      expect(order.step).toMatchObject({ do: 'send', request: { kind: 'order', purchaseToken: 't1' } });
      const payment = visit('buy', granted, accepted, status('awaiting_payment'), unknown);
      expect(payment.step).toMatchObject({ do: 'send', request: { kind: 'payment', key: 'payment-1' } });
      if (payment.step.do === 'send')
        expect(payment.step.afterMs).toBeGreaterThanOrEqual(unknown.retryAfterMs);
    },
  );

  it('waits in the line with its ticket', () => {
    const waiting = answer(202, { entryId: 'e1', state: 'waiting', ticket: 'k', pollAfterMs: 700 });
    const { step } = visit('buy', waiting);
    const look = { kind: 'line', entryId: 'e1', ticket: 'k' };
    expect(step).toEqual({ do: 'send', request: look, afterMs: 700 });
    expect(visit('buy', waiting, granted).step).toMatchObject({ request: { kind: 'order' } });
  });

  it.each<[Intention, Answer[], number]>([
    ['leave_after_grant', [granted], 0],
    ['leave_after_order', [granted, accepted, status('awaiting_payment')], 1],
  ])('%s: walks away without a word', (intention, answers, ordered) => {
    const { step, figures } = visit(intention, ...answers);
    expect(step).toEqual({ do: 'leave', how: 'walked_away' });
    expect(figures).toMatchObject({ granted: 1, ordered, paid: 0 });
  });

  it('tries a declined card once', () => {
    const declined = answer(402, { code: 'payment_declined' });
    const { step, requests } = visit(
      'pay_with_declined_card',
      granted,
      accepted,
      status('awaiting_payment'),
      declined,
    );
    expect(step).toEqual({ do: 'leave', how: 'declined' });
    expect(requests.at(-1)).toMatchObject({ card: DECLINED_CARD });
  });

  it('starts over when the hold ran out before the order', () => {
    const { step, figures } = visit('buy', granted, answer(410, { code: 'token_expired' }));
    expect(step).toMatchObject({ do: 'ask_again', request: { kind: 'entry', key: 'visit-2' } });
    expect(figures.granted).toBe(1);
  });

  it('leaves at a refusal that asking again cannot change', () => {
    const { step, figures } = visit('buy', answer(409, { code: 'sale_closed' }));
    expect(step).toEqual({ do: 'leave', how: 'refused' });
    expect(figures.refused).toEqual({ sale_closed: 1 });
    expect(figures.waiting).toBe(0);
  });

  it('gives up an order that stays undecided, after a bounded number of looks', () => {
    let { step, shopper } = visit('buy', granted, accepted);
    let looks = 0;
    for (; step.do !== 'leave' && looks < 1_000; looks += 1)
      step = shopper.next(step.request, status('queued'));
    expect(step).toEqual({ do: 'leave', how: 'undecided' });
    expect(looks).toBeLessThan(200);
  });
});
