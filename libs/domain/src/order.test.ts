import { describe, expect, it } from '@jest/globals';
import { ORDER_STATES, countsAsSold, effectOf, mayBecome } from './order.js';

describe('order states', () => {
  it('have exactly the edges of the protocol', () => {
    const edges = ORDER_STATES.flatMap((from) =>
      ORDER_STATES.filter((to) => mayBecome(from, to)).map((to) => `${from}>${to}`),
    );
    expect(edges).toEqual([
      'queued>awaiting_payment',
      'queued>expired',
      'queued>rejected',
      'awaiting_payment>paid',
      'awaiting_payment>cancelled',
      'awaiting_payment>unpaid',
      'paid>refunding',
      'refunding>refunded',
    ]);
  });

  it('count as sold, and confirm the hold, while somebody has or may pay for the units', () => {
    expect(ORDER_STATES.filter(countsAsSold)).toEqual(['awaiting_payment', 'paid']);
    expect(effectOf('awaiting_payment')).toBe('confirm');
    expect(effectOf('paid')).toBe('confirm');
    for (const state of ['cancelled', 'unpaid', 'expired', 'rejected', 'refunding', 'refunded'] as const) {
      expect(effectOf(state)).toBe('void');
    }
  });
});
