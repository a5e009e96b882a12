import type { Mutation } from './mutations.js';
import type { Story } from './synthetic-sale.js';

const of = (story: Story) => ({ order_id: story.attemptId });

/** What breaks in the eyes of the crowd, in what the services count, and in what is left for operators. */
export const ANSWER_MUTATIONS: readonly Mutation[] = [
  {
    breaks: 'I8',
    when: 'a cancelled order is paid later',
    log: (sale) => {
      const story = sale.story('cancelled');
      const answer = { atMs: 30_000, http: 200, state: 'paid' };
      return [...sale.log(), sale.exchange(story, 'order-status', answer)];
    },
    witness: (sale) => ({ attemptId: sale.story('cancelled').attemptId, from: 'cancelled', to: 'paid' }),
  },
  {
    breaks: 'I8',
    when: 'an order is taken after its token was refused for good',
    log: (sale) => {
      const story = sale.story('paid', 1);
      const answer = { atMs: 200, http: 410, code: 'token_expired' };
      return [sale.exchange(story, 'order', answer), ...sale.log()];
    },
    witness: (sale) => ({ attemptId: sale.story('paid', 1).attemptId, from: 'token_expired', to: 'queued' }),
  },
  {
    breaks: 'I8',
    when: 'one key is answered with two entries',
    log: (sale) => {
      const story = sale.story('paid', 1);
      const other = sale.story('paid', 2).attemptId;
      return [
        ...sale.log(),
        sale.exchange(story, 'entry', { atMs: 600, http: 200, state: 'granted', attemptId: other }),
      ];
    },
    witness: (sale) => ({ attemptId: sale.story('paid', 1).attemptId }),
  },
  {
    breaks: 'I12',
    when: 'two bodies under one key were acted on',
    log: (sale) => {
      const story = sale.story('paid');
      const answer = { atMs: 400, http: 200, state: 'granted', quantity: 1 };
      return [...sale.log(), sale.exchange(story, 'entry', answer)];
    },
    witness: (sale) => ({ attemptId: sale.story('paid').attemptId, what: 'entry', actedOn: 2 }),
  },
  {
    breaks: 'I12',
    when: 'two deliveries of one order were taken',
    log: (sale) => {
      const story = sale.story('paid', 1);
      const answer = { atMs: 1_500, http: 202, state: 'queued', bodyHash: 'delivery-2' };
      return [...sale.log(), sale.exchange(story, 'order', answer)];
    },
    witness: (sale) => ({ attemptId: sale.story('paid', 1).attemptId, what: 'order', actedOn: 2 }),
  },
  {
    breaks: 'I12',
    when: 'a repetition is refused as if it were another body',
    log: (sale) => {
      const story = sale.story('paid', 1);
      const answer = { atMs: 400, http: 422, code: 'idempotency_key_reused', attemptId: '' };
      return [...sale.log(), sale.exchange(story, 'entry', answer)];
    },
    witness: (sale) => ({ attemptId: sale.story('paid', 1).attemptId, what: 'entry', refused: 1 }),
  },
  {
    breaks: 'I13',
    when: 'an order that was known is not found later',
    log: (sale) => {
      const story = sale.story('paid');
      const answer = { atMs: 4_000, http: 404, code: 'not_found' };
      return [...sale.log(), sale.exchange(story, 'order-status', answer)];
    },
    witness: (sale) => ({ attemptId: sale.story('paid').attemptId, from: 'awaiting_payment', to: '404' }),
  },
  {
    breaks: 'I13',
    when: 'an order goes back to queued',
    log: (sale) => {
      const story = sale.story('paid');
      return [
        ...sale.log(),
        sale.exchange(story, 'order-status', { atMs: 4_000, http: 200, state: 'queued' }),
      ];
    },
    witness: (sale) => ({ attemptId: sale.story('paid').attemptId, from: 'awaiting_payment', to: 'queued' }),
  },
  {
    breaks: 'I13',
    when: 'whoever was granted units is sent back to the line',
    log: (sale) => {
      const story = sale.story('released');
      const answer = { atMs: 4_000, http: 200, state: 'waiting' };
      return [...sale.log(), sale.exchange(story, 'entry-status', answer)];
    },
    witness: (sale) => ({ attemptId: sale.story('released').attemptId, from: 'granted', to: 'waiting' }),
  },
  {
    breaks: 'I23',
    when: 'a dead letter is in no table',
    mutate: (sale) => sale.sql('DELETE FROM dead_letter'),
    witness: (sale) => ({ key: sale.story('dead_letter').attemptId, cause: 'not_json' }),
  },
  {
    breaks: 'I23',
    when: 'the table says another cause',
    mutate: (sale) => sale.sql("UPDATE dead_letter SET cause = 'too_large'"),
    witness: () => ({ cause: 'not_json', tableCause: 'too_large' }),
  },
  {
    breaks: 'I23',
    when: 'a dropped dead letter has no row',
    mutate: (sale) => sale.forget(sale.story('dead_letter')),
    witness: (sale) => ({ ...of(sale.story('dead_letter')), states: 'dropped' }),
  },
  {
    breaks: 'I23',
    when: 'an attempt whose dead letter was dropped ended as a mere tombstone',
    mutate: (sale) =>
      sale.sql("UPDATE orders SET state = 'expired', reason = 'hold_expired' WHERE order_id = ?", [
        sale.story('dead_letter').attemptId,
      ]),
    witness: (sale) => ({ ...of(sale.story('dead_letter')), state: 'expired', letters: 'dropped' }),
  },
  {
    breaks: 'I23',
    when: 'an order is rejected as poison while its letter is pending',
    mutate: (sale) => sale.sql("UPDATE dead_letter SET state = 'pending'"),
    witness: (sale) => ({ ...of(sale.story('dead_letter')), letters: 'pending' }),
  },
  {
    breaks: 'I26',
    when: 'somebody is told of an order that is another’s',
    log: (sale) => {
      const answer = { atMs: 5_000, http: 200, state: 'awaiting_payment', shopperId: 'a-stranger' };
      return [...sale.log(), sale.exchange(sale.story('paid'), 'order-status', answer)];
    },
    witness: (sale) => ({
      attemptId: sale.story('paid').attemptId,
      owner: sale.story('paid').shopperId,
      told: 'a-stranger',
    }),
  },
  {
    breaks: 'I26',
    when: 'an answer carries the id of another order',
    log: (sale) =>
      sale.logWith(sale.story('paid'), 'order-status', { answeredId: sale.story('paid', 1).attemptId }),
    witness: (sale) => ({ attemptId: sale.story('paid').attemptId, op: 'order-status' }),
  },
  {
    breaks: 'I27',
    when: 'a defect was answered',
    log: (sale) => {
      const answer = { atMs: 6_000, http: 500, code: 'internal' };
      return [...sale.log(), sale.exchange(sale.story('paid'), 'order-status', answer)];
    },
    witness: () => ({ http: 500, code: 'internal' }),
  },
  {
    breaks: 'I27',
    when: 'a 429 does not say when to come back',
    log: (sale) =>
      sale.log().map((line) => {
        if (line['http'] !== 429) return line;
        const { retryAfter: _, ...rest } = line;
        return rest;
      }),
    witness: () => ({ http: 429, code: 'rate_limited' }),
  },
  {
    breaks: 'I27',
    when: 'a refusal has a code that nobody knows',
    log: (sale) => {
      const answer = { atMs: 6_000, http: 409, code: 'computer_says_no' };
      return [...sale.log(), sale.exchange(sale.story('paid'), 'payment', answer)];
    },
    witness: () => ({ op: 'payment', code: 'computer_says_no' }),
  },
  {
    breaks: 'I27',
    when: 'somebody waited in vain',
    log: (sale) => {
      const line = sale.exchange(sale.story('paid'), 'payment', { atMs: 6_000, http: 0, code: 'timeout' });
      return [...sale.log(), { ...line, receivedMs: sale.startMs + 18_000 }];
    },
    witness: () => ({ op: 'payment', http: 0 }),
  },
  {
    breaks: 'I27',
    when: 'a refusal is a page and no problem document',
    log: (sale) => {
      const answer = {
        atMs: 6_000,
        http: 503,
        code: 'unavailable',
        contentType: 'text/html',
        retryAfter: '1',
      };
      return [...sale.log(), sale.exchange(sale.story('paid'), 'payment', answer)];
    },
    witness: () => ({ op: 'payment', http: 503 }),
  },
  {
    breaks: 'I28',
    when: 'the writer counts an order too few',
    metrics: (metrics) => metrics.replace('reason=""} 12', 'reason=""} 11'),
    witness: () => ({ counter: 'orders_written_total{state="awaiting_payment"}', counted: 11, truth: 12 }),
  },
  {
    breaks: 'I28',
    when: 'fewer orders are counted than the crowd was promised',
    metrics: (metrics) => metrics.replace('otel_scope_name="x"} 12', 'otel_scope_name="x"} 10'),
    witness: () => ({ counter: 'orders_placed_total{answer="accepted"}', counted: 10, truth: 12 }),
  },
  {
    breaks: 'I28',
    when: 'more is shown as sold than is',
    metrics: (metrics) => metrics.replace('state="sold"} 9', 'state="sold"} 10'),
    witness: () => ({ counter: 'sale_stock_units{state="sold"}', counted: 10, truth: 9 }),
  },
  {
    breaks: 'I28',
    when: 'a tombstone was not counted',
    metrics: (metrics) => metrics.replace(/^inventory_tombstones_total.*released.*$/m, ''),
    witness: () => ({ counter: 'inventory_tombstones_total', counted: 2, truth: 3 }),
  },
  {
    breaks: 'I29',
    when: 'an accepted order waited long to be decided',
    mutate: (sale) =>
      sale.sql('UPDATE orders SET created_at = created_at + INTERVAL 7 SECOND WHERE order_id = ?', [
        sale.story('awaiting_payment').attemptId,
      ]),
    witness: (sale) => ({ ...of(sale.story('awaiting_payment')), worstMs: 7_100 }),
  },
  {
    breaks: 'I29',
    when: 'an order was decided long after the last fault had healed',
    healedAtMs: 5_000,
    mutate: (sale) =>
      sale.sql('UPDATE orders SET created_at = created_at + INTERVAL 40 SECOND WHERE order_id = ?', [
        sale.story('awaiting_payment').attemptId,
      ]),
    witness: (sale) => ({ ...of(sale.story('awaiting_payment')), worstMs: 36_100 }),
  },
  {
    breaks: 'I29',
    when: 'no order is accepted again after healing',
    healedAtMs: 2_000,
    log: (sale) => {
      const story = sale.story('hold_expired');
      const unknown = { http: 503, code: 'enqueue_unknown' };
      return [
        ...sale.log(),
        sale.exchange(story, 'order', { atMs: 10_000, ...unknown }),
        sale.exchange(story, 'order', { atMs: 60_000, ...unknown }),
      ];
    },
    witness: (sale) => ({ healedAtMs: sale.startMs + 2_000, asked: 1 }),
  },
];
