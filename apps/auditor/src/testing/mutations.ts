import { bucketKeys } from '../grammar.js';
import type { Verdict } from '../report.js';
import { TOTAL, type LogLine, type Story, type SyntheticSale } from './synthetic-sale.js';

/** What is broken, how, and what the witness must show. */
export interface Mutation {
  readonly breaks: string;
  readonly when: string;
  /** Breaks it in a store. */
  readonly mutate?: (sale: SyntheticSale) => Promise<unknown>;
  /** Breaks it in the crowd's log. */
  readonly log?: (sale: SyntheticSale) => LogLine[];
  /** The attempt that a witness must name, or what else it must contain. */
  readonly witness: (sale: SyntheticSale) => object;
  readonly figures?: Partial<Verdict>;
  readonly env?: Record<string, string>;
  /** Breaks it in what the services count. */
  readonly metrics?: (metrics: string) => string;
  /** When the last fault was healed, ms after the sale's first grant; the run is then one with faults. */
  readonly healedAtMs?: number;
}

const of = (story: Story) => ({ order_id: story.attemptId });

/** What breaks in the stores: with those of answer-mutations.ts, at least one for every invariant. */
export const STORE_MUTATIONS: readonly Mutation[] = [
  {
    breaks: 'I1',
    when: 'sale_stock.sold is raised',
    mutate: (sale) => sale.sql('UPDATE sale_stock SET sold = sold + 1'),
    witness: (sale) => ({ sale_id: sale.saleId, sold: 10, liveUnits: 9 }),
  },
  {
    breaks: 'I1',
    when: 'more is sold than there is',
    mutate: (sale) =>
      sale.sql('UPDATE orders SET quantity = 50 WHERE order_id = ?', [sale.story('paid').attemptId]),
    witness: () => ({ liveUnits: 57 }),
    figures: { oversold: 57 - TOTAL },
  },
  {
    breaks: 'I2',
    when: 'a unit appears in a bucket',
    mutate: (sale) => sale.change(0, { free: 1 }),
    witness: () => ({ bucket: 0, free: 4 }),
  },
  {
    breaks: 'I2',
    when: 'a count is below zero although the sum is right',
    mutate: (sale) => sale.change(1, { held: -1, free: 1 }),
    witness: () => ({ bucket: 1, held: -1 }),
  },
  {
    breaks: 'I2',
    when: 'units arrive that never left',
    mutate: (sale) => sale.change(1, { in: 1, free: 1 }),
    witness: () => ({ sumOfInMinusOut: 1, inFlight: 0 }),
  },
  {
    breaks: 'I2',
    when: 'a finished transfer has not arrived',
    mutate: (sale) => sale.redis.del(bucketKeys(sale.saleId, 1).transfers),
    witness: () => ({ transfer: 'tid-1', source: 0, units: 2 }),
  },
  {
    breaks: 'I3',
    when: 'Redis counts a sold unit as free',
    mutate: (sale) => sale.change(0, { sold: -1, free: 1 }),
    witness: () => ({ mysqlSold: 9, sold: 8 }),
  },
  {
    breaks: 'I3',
    when: 'a bucket is missing',
    mutate: (sale) => sale.redis.del(bucketKeys(sale.saleId, 1).account),
    witness: () => ({ bucket: 1 }),
  },
  {
    breaks: 'I3',
    when: 'a hold never ended',
    mutate: (sale) => sale.change(0, { free: -1, held: 1 }),
    witness: () => ({ held: 1 }),
  },
  {
    breaks: 'I4',
    when: 'a held count has no hold behind it',
    mutate: (sale) => sale.change(0, { free: -1, held: 1 }),
    witness: () => ({ bucket: 0, held: 1, attempts: 0 }),
  },
  {
    breaks: 'I4',
    when: 'units went back without a row that says never',
    mutate: (sale) => sale.forget(sale.story('released')),
    witness: (sale) => ({ attemptId: sale.story('released').attemptId, redis: 'V', mysql: null }),
  },
  {
    breaks: 'I4',
    when: 'an order that lives is void in Redis',
    mutate: (sale) => sale.setAttempt(sale.story('paid'), (packed) => packed.replace('C|', 'V|')),
    witness: (sale) => ({ attemptId: sale.story('paid').attemptId, redis: 'V', mysql: 'paid' }),
  },
  {
    breaks: 'I4',
    when: 'an issued token has no hold',
    mutate: async (sale) => {
      const story = sale.story('hold_expired');
      await sale.redis.hdel(bucketKeys(sale.saleId, story.bucket).attempts, story.attemptId.slice(-22));
    },
    witness: (sale) => ({ attemptId: sale.story('hold_expired').attemptId }),
  },
  {
    breaks: 'I5',
    when: 'somebody is told sold_out long after units came back',
    log: (sale) => {
      const story = sale.story('refused', 1);
      return [...sale.log(), sale.exchange(story, 'entry', { atMs: 90_000, http: 410, code: 'sold_out' })];
    },
    witness: (sale) => ({ attemptId: sale.story('refused', 1).attemptId, free: TOTAL - 9 }),
    figures: { undersold: TOTAL - 9 },
  },
  {
    breaks: 'I5',
    when: 'a unit is lost although people were told sold_out',
    mutate: (sale) => sale.change(0, { initial: -1, free: -1 }),
    witness: () => ({ stranded: 1, free: TOTAL - 10 }),
  },
  {
    breaks: 'I6',
    when: 'the row of an accepted order is gone',
    mutate: (sale) => sale.forget(sale.story('paid', 1)),
    witness: (sale) => of(sale.story('paid', 1)),
    figures: { lost: 1 },
  },
  {
    breaks: 'I6',
    when: 'an accepted order expired although Kafka has it',
    mutate: async (sale) => {
      const { attemptId } = sale.story('cancelled');
      await sale.sql("UPDATE orders SET state = 'expired', reason = 'lost' WHERE order_id = ?", [attemptId]);
    },
    witness: (sale) => ({ ...of(sale.story('cancelled')), state: 'expired' }),
    figures: { lost: 1 },
  },
  {
    breaks: 'I6',
    when: 'a shopper was shown a state that cannot lead to the row',
    log: (sale) => sale.logWith(sale.story('paid'), 'order-status', { state: 'unpaid' }),
    witness: (sale) => ({ ...of(sale.story('paid')), lastAnswer: 'unpaid' }),
  },
  {
    breaks: 'I7',
    when: 'an order is booked as sold twice',
    mutate: (sale) => {
      const { attemptId: orderId, quantity: units } = sale.story('awaiting_payment', 1);
      return sale.move(`${orderId}:sell-again`, { from: 'held', to: 'sold', units, orderId, at: new Date() });
    },
    witness: (sale) => ({ ...of(sale.story('awaiting_payment', 1)), times: 2 }),
    figures: { duplicates: 1 },
  },
  {
    breaks: 'I7',
    when: 'two orders come from one record',
    mutate: async (sale) => {
      const { partition, offset } = sale.offsetOf(sale.story('paid'));
      await sale.sql('UPDATE orders SET kafka_partition = ?, kafka_offset = ? WHERE order_id = ?', [
        partition,
        offset,
        sale.story('unpaid').attemptId,
      ]);
    },
    witness: (sale) => ({ record: '0/0', kafka_offset: sale.offsetOf(sale.story('paid')).offset }),
  },
  {
    breaks: 'I9',
    when: 'a 202 came before its record',
    log: (sale) => {
      const receivedMs = sale.startMs + 500;
      return sale.logWith(sale.story('paid'), 'order', { sentMs: sale.startMs + 480, receivedMs });
    },
    witness: (sale) => ({ ...of(sale.story('paid')), recordedAtMs: sale.startMs + 1_000 }),
  },
  {
    breaks: 'I10',
    when: 'a row has no record',
    mutate: async (sale) => {
      const order_id = `${sale.saleId}-${'z'.repeat(22)}`;
      await sale.sql('UPDATE orders SET order_id = ? WHERE order_id = ?', [
        order_id,
        sale.story('rejected').attemptId,
      ]);
    },
    witness: (sale) => ({ order_id: `${sale.saleId}-${'z'.repeat(22)}` }),
  },
  {
    breaks: 'I10',
    when: 'an order is for more than the shopper sent',
    mutate: (sale) =>
      sale.sql('UPDATE orders SET quantity = 2 WHERE order_id = ?', [sale.story('cancelled').attemptId]),
    witness: (sale) => ({ ...of(sale.story('cancelled')), field: 'quantity', row: 2, sent: 1 }),
  },
  {
    breaks: 'I10',
    when: 'nobody in the log made the attempt',
    log: (sale) => sale.logWithout(sale.story('paid', 1), 'entry'),
    witness: (sale) => of(sale.story('paid', 1)),
  },
  {
    breaks: 'I10',
    when: 'a tombstone does not say why',
    mutate: (sale) =>
      sale.sql('UPDATE orders SET reason = NULL WHERE order_id = ?', [sale.story('released').attemptId]),
    witness: (sale) => of(sale.story('released')),
  },
  {
    breaks: 'I11',
    when: 'an entry that was refused has an order',
    log: (sale) => {
      const story = sale.story('paid');
      const others = sale.log().filter((line) => line['attemptId'] !== story.attemptId);
      return [...others, sale.exchange(story, 'entry', { atMs: 100, http: 409, code: 'limit_reached' })];
    },
    witness: (sale) => ({ attemptId: sale.story('paid').attemptId, refused: 'limit_reached', mysql: 'paid' }),
  },
  {
    breaks: 'I11',
    when: 'an order that was refused exists',
    log: (sale) => sale.logWith(sale.story('paid'), 'order', { http: 410, code: 'token_expired', state: '' }),
    witness: (sale) => ({ attemptId: sale.story('paid').attemptId, refused: 'token_expired' }),
  },
  {
    breaks: 'I11',
    when: 'a refused entry holds units',
    mutate: async (sale) => {
      const story = sale.story('refused');
      await sale.setAttempt(story, () => `H|${story.shopperId}|1|0|||||0|1`);
    },
    witness: (sale) => ({ attemptId: sale.story('refused').attemptId, redis: 'H' }),
  },
  {
    breaks: 'I14',
    when: 'a quota row is wrong',
    mutate: (sale) =>
      sale.sql('UPDATE quota SET used = used + 1 WHERE shopper_id = ?', [sale.story('paid').shopperId]),
    witness: (sale) => ({ shopper_id: sale.story('paid').shopperId, quotaUsed: 3, liveUnits: 2 }),
  },
  {
    breaks: 'I14',
    when: 'somebody has more than the limit',
    mutate: (sale) => sale.sql('UPDATE sale SET limit_per_shopper = 1'),
    witness: (sale) => ({ shopper_id: sale.story('paid').shopperId, liveUnits: 2, limit: 1 }),
  },
  {
    breaks: 'I14',
    when: 'Redis forgot what somebody has',
    mutate: async (sale) => {
      const { bucket, shopperId } = sale.story('paid');
      await sale.redis.hset(bucketKeys(sale.saleId, bucket).shoppers, shopperId, '0|');
    },
    witness: (sale) => ({ shopper_id: sale.story('paid').shopperId, redisUsed: 0 }),
  },
  {
    breaks: 'I15',
    when: 'an order differs from its token',
    mutate: (sale) =>
      sale.sql("UPDATE orders SET shopper_id = 'somebody-else' WHERE order_id = ?", [
        sale.story('cancelled').attemptId,
      ]),
    witness: (sale) => of(sale.story('cancelled')),
  },
  {
    breaks: 'I15',
    when: 'an order was made from a token that nobody was handed',
    log: (sale) => sale.logWith(sale.story('unpaid'), 'entry', { purchaseToken: '' }),
    witness: (sale) => of(sale.story('unpaid')),
  },
  {
    breaks: 'I15',
    when: 'somebody was handed the token of another attempt',
    log: (sale) => sale.logWith(sale.story('released'), 'entry', { purchaseToken: sale.story('paid').token }),
    witness: (sale) => ({
      attemptId: sale.story('released').attemptId,
      tokenFor: sale.story('paid').attemptId,
    }),
  },
  {
    breaks: 'I15',
    when: 'tokens were signed with a key that nobody has',
    witness: () => ({}),
    env: { PURCHASE_TOKEN_KEYS: `test:${Buffer.alloc(32).toString('base64')}` },
  },
  {
    breaks: 'I16',
    when: 'units were granted before the sale opened',
    mutate: (sale) =>
      sale.setAttempt(sale.story('cancelled'), (packed) =>
        packed.replace(`|${sale.startMs}|1`, `|${sale.startMs - 60_000}|1`),
      ),
    witness: (sale) => ({
      attemptId: sale.story('cancelled').attemptId,
      grantedAtMs: sale.startMs - 60_000,
    }),
  },
  {
    breaks: 'I16',
    when: 'a token was issued after the sale had closed',
    mutate: (sale) => sale.sql('UPDATE sale SET closes_at = ?', [new Date(sale.startMs + 105)]),
    witness: (sale) => ({ ...of(sale.story('refunded')), issuedAtMs: sale.startMs + 110 }),
  },
  {
    breaks: 'I16',
    when: 'an order is taken long after its token has expired',
    log: (sale) =>
      sale.logWith(sale.story('paid'), 'order', {
        sentMs: sale.startMs + 150_000,
        receivedMs: sale.startMs + 150_020,
      }),
    witness: (sale) => ({ ...of(sale.story('paid')), orderSentMs: sale.startMs + 150_000 }),
  },
  {
    breaks: 'I17',
    when: 'an order costs one less',
    mutate: (sale) =>
      sale.sql('UPDATE orders SET unit_price = unit_price - 1 WHERE order_id = ?', [
        sale.story('paid').attemptId,
      ]),
    witness: (sale) => of(sale.story('paid')),
  },
  {
    breaks: 'I17',
    when: 'a shopper was shown another price',
    log: (sale) => sale.logWith(sale.story('paid'), 'order-status', { unitPrice: 1 }),
    witness: (sale) => ({ ...of(sale.story('paid')), shown: 1 }),
  },
  {
    breaks: 'I18',
    when: 'an event is missing',
    mutate: (sale) =>
      sale.sql('DELETE FROM order_event WHERE order_id = ? AND seq = 1', [sale.story('paid').attemptId]),
    witness: (sale) => of(sale.story('paid')),
  },
  {
    breaks: 'I18',
    when: 'an order took an edge that there is not',
    mutate: (sale) =>
      sale.sql("UPDATE order_event SET to_state = 'refunded' WHERE order_id = ? AND seq = 1", [
        sale.story('rejected').attemptId,
      ]),
    witness: (sale) => ({ ...of(sale.story('rejected')), to: 'refunded' }),
  },
  {
    breaks: 'I18',
    when: 'a state has no event',
    mutate: (sale) =>
      sale.sql("UPDATE orders SET state = 'refunding', version = 3 WHERE order_id = ?", [
        sale.story('paid').attemptId,
      ]),
    witness: (sale) => ({ ...of(sale.story('paid')), version: 3 }),
  },
  {
    breaks: 'I19',
    when: 'an order was paid too late',
    mutate: (sale) =>
      sale.sql('UPDATE orders SET pay_before = created_at WHERE order_id = ?', [
        sale.story('paid').attemptId,
      ]),
    witness: (sale) => of(sale.story('paid')),
  },
  {
    breaks: 'I19',
    when: 'captured money of a cancelled order stays',
    mutate: (sale) => sale.pay(sale.story('cancelled'), { id: 'kept', refunded: false, at: new Date() }),
    witness: (sale) => ({ ...of(sale.story('cancelled')), state: 'cancelled' }),
  },
  {
    breaks: 'I19',
    when: 'an order was both cancelled and timed out',
    mutate: (sale) => {
      const { attemptId: order_id } = sale.story('unpaid');
      const edge = { from_state: 'awaiting_payment', to_state: 'cancelled', cause: 'test', at: new Date() };
      return sale.insert('order_event', { order_id, seq: 3, ...edge });
    },
    witness: (sale) => ({ ...of(sale.story('unpaid')), ends: 'unpaid cancelled' }),
  },
  {
    breaks: 'I20',
    when: 'a cancelled order never gave its units back',
    mutate: (sale) =>
      sale.sql('DELETE FROM ledger WHERE entry_id = ?', [`${sale.story('cancelled').attemptId}:return`]),
    witness: (sale) => of(sale.story('cancelled')),
  },
  {
    breaks: 'I20',
    when: 'Redis is not told of a return',
    mutate: (sale) =>
      sale.sql("DELETE FROM effect WHERE kind = 'void' AND order_id = ?", [sale.story('unpaid').attemptId]),
    witness: (sale) => ({ ...of(sale.story('unpaid')), voids: 0 }),
  },
  {
    breaks: 'I20',
    when: 'an order that lives gave its units back',
    mutate: (sale) => {
      const { attemptId: orderId, quantity: units } = sale.story('paid');
      return sale.move(`${orderId}:return`, { from: 'sold', to: 'free', units, orderId, at: new Date() });
    },
    witness: (sale) => ({ ...of(sale.story('paid')), state: 'paid' }),
  },
  {
    breaks: 'I21',
    when: 'a ledger leg is doubled',
    mutate: (sale) =>
      sale.sql("UPDATE ledger SET amount = amount * 2 WHERE account = 'sold' AND entry_id = ?", [
        `${sale.story('paid').attemptId}:sell`,
      ]),
    witness: (sale) => ({ entry_id: `${sale.story('paid').attemptId}:sell`, sum: 2 }),
  },
  {
    breaks: 'I21',
    when: 'an order is not in the ledger',
    mutate: (sale) =>
      sale.sql('DELETE FROM ledger WHERE entry_id = ?', [`${sale.story('paid').attemptId}:sell`]),
    witness: (sale) => of(sale.story('paid')),
  },
  {
    breaks: 'I22',
    when: 'the writer passed a record without writing a row',
    mutate: (sale) => sale.forget(sale.story('rejected')),
    witness: (sale) => ({
      key: sale.story('rejected').attemptId,
      ...sale.offsetOf(sale.story('rejected')),
    }),
  },
  {
    breaks: 'I21',
    when: 'a leg was changed after the snapshot, and the entry still adds up',
    mutate: (sale) =>
      sale.sql('UPDATE ledger SET at = at + INTERVAL 1 SECOND WHERE entry_id = ?', [
        `${sale.saleId}:allot:1`,
      ]),
    witness: (sale) => ({ entry_id: `${sale.saleId}:allot:1`, account: 'free' }),
  },
  {
    breaks: 'I21',
    when: 'an entry was removed after the snapshot',
    mutate: (sale) =>
      sale.sql('DELETE FROM ledger WHERE entry_id = ?', [`${sale.story('unpaid').attemptId}:return`]),
    witness: (sale) => ({ entry_id: `${sale.story('unpaid').attemptId}:return`, now: null }),
  },
  {
    breaks: 'I24',
    when: 'Redis was never told of a decision',
    mutate: (sale) =>
      sale.sql("UPDATE effect SET applied_at = NULL WHERE kind = 'confirm' AND order_id = ?", [
        sale.story('paid').attemptId,
      ]),
    witness: (sale) => ({ ...of(sale.story('paid')), kind: 'confirm' }),
  },
  {
    breaks: 'I24',
    when: 'a hold is long past its deadline and nothing looks at it',
    mutate: (sale) =>
      sale.setAttempt(sale.story('refused'), () => `H|${sale.story('refused').shopperId}|1|1000|||||1000|1`),
    witness: (sale) => ({ attemptId: sale.story('refused').attemptId, redis: 'H', deadlineMs: 1_000 }),
  },
  {
    breaks: 'I24',
    when: 'something resolved is still to be looked at',
    mutate: (sale) => {
      const { bucket, attemptId } = sale.story('paid');
      return sale.redis.zadd(bucketKeys(sale.saleId, bucket).deadlines, 5, attemptId.slice(-22));
    },
    witness: (sale) => ({ attemptId: sale.story('paid').attemptId, redis: 'C' }),
  },
  {
    breaks: 'I24',
    when: 'an open transfer is forgotten',
    mutate: async (sale) => {
      await sale.redis.hset(bucketKeys(sale.saleId, 0).transfers, 'tid-2', 'out|1|1|5');
      await sale.change(0, { free: -1, out: 1 });
    },
    witness: () => ({ transfer: 'tid-2', bucket: 0, units: 1 }),
  },
  {
    breaks: 'I25',
    when: 'an order that was recorded twice is sold twice',
    mutate: (sale) => {
      const { attemptId: orderId, quantity: units } = sale.story('paid');
      return sale.move(`${orderId}:sell-again`, { from: 'held', to: 'sold', units, orderId, at: new Date() });
    },
    witness: (sale) => ({ ...of(sale.story('paid')), records: 2, times: 2 }),
  },
];
