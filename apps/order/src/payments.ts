import { createHash, createHmac } from 'node:crypto';
import { Circuit, NotSent, type ProblemCode } from '@flash-sale/contracts';
import { isOlderThan, type Statements } from '@flash-sale/database';
import type { OrderState, SigningKeys } from '@flash-sale/domain';
import { meter, type Log } from '@flash-sale/service';
import { recordEdge } from './end-orders.js';
import type { OrderDatabase } from './load.js';
import type { ChargeResult, PaymentProvider } from './payment-provider.js';
import type { OrderReader, OrderRow } from './read-orders.js';
import { transact } from './repeat.js';

export interface PayRequest {
  readonly orderId: string;
  readonly shopperId: string;
  readonly idempotencyKey: string;
  readonly method: string;
  /** Never logged, never stored. */
  readonly card: string;
}

export type Paid =
  | { readonly outcome: 'paid' | 'pending'; readonly order: OrderRow }
  | { readonly outcome: 'problem'; readonly problem: ProblemCode };

export interface PaymentsOptions {
  readonly database: OrderDatabase;
  readonly provider: PaymentProvider;
  readonly reader: Pick<OrderReader, 'find'>;
  /** Any secret that is not in the database: it keys the fingerprints of what was paid with. */
  readonly keys: SigningKeys;
  readonly callTimeoutMs: number;
  /** The provider is asked about a payment that has been pending for this long. */
  readonly askAfterMs: number;
  readonly log: Log;
}

type PaymentState = 'pending' | 'captured' | 'declined';

/** A payment of an order; at most one of an order is pending at a time. */
interface Payment {
  readonly paymentId: string;
  readonly orderId: string;
  readonly amount: number;
  readonly currency: string;
  readonly state: PaymentState;
}

type Opened =
  | { readonly outcome: 'open'; readonly payment: Payment }
  /** Settled before, by an earlier call with the same key. */
  | { readonly outcome: 'settled'; readonly state: PaymentState }
  | { readonly outcome: 'problem'; readonly problem: ProblemCode }
  | { readonly outcome: 'no_order' };

const CARD = /^\d{12,19}$/;
const KEY = /^[A-Za-z0-9_.-]{1,128}$/;
const SWEEP_BATCH = 50;
const REFUND_AGAIN_AFTER_MS = 1_000;

/**
 * Payments. The row comes first, then the provider is asked, then one conditional update says who won: the payment, while
 * the order waits for it and its time is not over by the database's clock, or the time-out. Money captured without a win
 * goes back, exactly once.
 */
export class Payments {
  private readonly settled = meter().createCounter('payments.settled', {
    description: 'Payments, by how they ended',
  });

  /** A provider that does not answer is not waited for by one payment after the other. */
  private readonly circuit = new Circuit('the payment provider', () => true);
  private readonly closeAfterMs: number;

  constructor(private readonly options: PaymentsOptions) {
    this.closeAfterMs = 2 * options.callTimeoutMs;
  }

  /** Pays. The same key with the same card is the same payment, however often it is asked for. */
  async pay(request: PayRequest, deadlineMs: number): Promise<Paid> {
    if (request.method !== 'test-card' || !CARD.test(request.card) || !KEY.test(request.idempotencyKey)) {
      return problem('invalid');
    }
    const opened = await transact(this.options.database, (statements) => this.open(statements, request));
    switch (opened.outcome) {
      case 'problem':
        return opened;
      case 'no_order':
        return this.answerWithoutRow(request, deadlineMs);
      case 'settled':
        return this.answer(request, opened.state, deadlineMs);
      case 'open': {
        const { payment } = opened;
        const result = await this.charge(payment, request.card);
        const state = result === 'pending' ? result : await this.settle(payment, result);
        return this.answer(request, state ?? 'pending', deadlineMs);
      }
    }
  }

  /**
   * Takes an event of the provider, whose signature was verified. The same event changes nothing the second time.
   *
   * @returns false where there is no such payment
   */
  async settleByEvent(eventId: string, paymentId: string, result: 'captured' | 'declined'): Promise<boolean> {
    return (await this.settle({ paymentId }, result, eventId)) !== undefined;
  }

  /**
   * Asks the provider about payments that have been pending for too long: the process that opened one may have died, or an
   * answer may have been lost.
   *
   * @returns whether there may be more
   */
  async askAboutPending(): Promise<boolean> {
    const pending = await this.options.database.query<{
      payment_id: string;
      order_id: string;
      amount: string;
      is_old: string | number;
    }>(
      `SELECT payment_id, order_id, amount, ${isOlderThan('created_at')} AS is_old FROM payment
        WHERE state = 'pending' AND ${isOlderThan('updated_at')}
        ORDER BY updated_at LIMIT ?`,
      [this.closeAfterMs * 1_000, this.options.askAfterMs * 1_000, SWEEP_BATCH],
    );
    for (const { payment_id: paymentId, order_id: orderId, amount, is_old: isOld } of pending) {
      const result = await this.ask(paymentId, Number(amount), Number(isOld) === 1);
      if (result !== 'pending') await this.settle({ paymentId, orderId }, result);
      // One that stays pending goes to the end of the line, so that it does not keep the others from being asked about.
      else await this.touch('payment', paymentId);
    }
    return pending.length === SWEEP_BATCH;
  }

  /** Returns the money of payments that did not win. Any number of instances may: the provider refunds once. */
  async refundDue(): Promise<boolean> {
    const due = await this.options.database.query<{ payment_id: string }>(
      `SELECT payment_id FROM refund WHERE state = 'pending'
        AND (updated_at = created_at OR ${isOlderThan('updated_at')})
        ORDER BY updated_at LIMIT ?`,
      [REFUND_AGAIN_AFTER_MS * 1_000, SWEEP_BATCH],
    );
    for (const { payment_id: paymentId } of due) {
      try {
        await this.withinTime(this.options.provider.refund(paymentId));
        await this.options.database.change(
          `UPDATE refund SET state = 'done', updated_at = NOW(3) WHERE payment_id = ? AND state = 'pending'`,
          [paymentId],
        );
        this.settled.add(1, { outcome: 'refunded' });
      } catch (error) {
        this.options.log.warn({ err: error, paymentId }, 'a refund failed; it is repeated');
        await this.touch('refund', paymentId);
      }
    }
    return due.length === SWEEP_BATCH;
  }

  private async open(statements: Statements, request: PayRequest): Promise<Opened> {
    const { orderId, shopperId, idempotencyKey } = request;
    const [order] = await statements.query<{
      sale_id: string;
      state: OrderState;
      amount: string;
      currency: string;
      in_time: number | null;
    }>(
      `SELECT sale_id, state, unit_price * quantity AS amount, currency, pay_before > NOW(3) AS in_time
        FROM orders WHERE order_id = ? AND shopper_id = ? FOR UPDATE`,
      [orderId, shopperId],
    );
    if (!order) return { outcome: 'no_order' };
    const known = await statements.query<{
      payment_id: string;
      idempotency_key: string;
      body_hash: string;
      state: PaymentState;
    }>('SELECT payment_id, idempotency_key, body_hash, state FROM payment WHERE order_id = ?', [orderId]);
    const paymentId = paymentIdOf(orderId, idempotencyKey);
    const amount = Number(order.amount);
    const payment: Payment = { paymentId, orderId, amount, currency: order.currency, state: 'pending' };
    const same = known.find((row) => row.idempotency_key === idempotencyKey);
    if (same) {
      if (!this.isSameBody(request, same.body_hash)) return refuse('idempotency_key_reused');
      // Asked for again while it is pending: the provider answers alike, so the call that may be lost is made again.
      return same.state === 'pending'
        ? { outcome: 'open', payment }
        : { outcome: 'settled', state: same.state };
    }
    if (order.state === 'unpaid') return refuse('order_expired');
    if (order.state === 'expired') return { outcome: 'no_order' };
    if (order.state !== 'awaiting_payment') return refuse('not_payable');
    if (Number(order.in_time) !== 1) return refuse('order_expired');
    if (known.some((row) => row.state === 'pending')) return refuse('in_progress');
    const [key] = this.options.keys;
    await statements.change(
      `INSERT INTO payment (payment_id, order_id, sale_id, shopper_id, idempotency_key, body_hash, amount, currency,
          method, state, created_at, updated_at)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'pending', NOW(3), NOW(3))`,
      [
        paymentId,
        orderId,
        order.sale_id,
        shopperId,
        idempotencyKey,
        fingerprint(request, key.secret),
        amount,
        order.currency,
        request.method,
      ],
    );
    return { outcome: 'open', payment };
  }

  private isSameBody(request: PayRequest, bodyHash: string): boolean {
    return this.options.keys.some((key) => fingerprint(request, key.secret) === bodyHash);
  }

  private async charge(payment: Payment, card: string): Promise<ChargeResult> {
    const { paymentId, orderId, amount, currency } = payment;
    try {
      const { provider } = this.options;
      return await this.circuit.run(() =>
        this.withinTime(provider.charge({ paymentId, amount, currency, card })),
      );
    } catch (error) {
      // The provider was not asked, so there is nothing to wait for: the shopper repeats, and the same payment goes on.
      if (error instanceof NotSent) throw error;
      this.options.log.warn(
        { err: error, orderId, paymentId },
        'the payment provider did not answer; it is asked later',
      );
      return 'pending';
    }
  }

  /** A payment that the provider does not know may still be on its way to it, unless it is too old for that. */
  private async ask(paymentId: string, amount: number, isOld: boolean): Promise<ChargeResult> {
    const { provider } = this.options;
    try {
      const found = await this.withinTime(provider.find(paymentId));
      if (found !== 'unknown') return found;
      return isOld ? await this.withinTime(provider.close(paymentId, amount)) : 'pending';
    } catch (error) {
      this.options.log.warn(
        { err: error, paymentId },
        'the payment provider did not answer; it is asked again',
      );
      return 'pending';
    }
  }

  /**
   * Writes down how a payment ended, and with it the order's state or the refund; the first to do so does it.
   *
   * @returns the payment's state afterwards; undefined where there is no such payment
   */
  private settle(
    { paymentId, orderId: known }: { readonly paymentId: string; readonly orderId?: string },
    result: 'captured' | 'declined',
    eventId?: string,
  ): Promise<PaymentState | undefined> {
    return transact(this.options.database, async (statements) => {
      const orderId = known ?? (await orderOf(statements, paymentId));
      if (orderId === undefined) return undefined;
      // The order's row first, as everywhere: its lock also makes the settlements of one order follow one another.
      await statements.query('SELECT order_id FROM orders WHERE order_id = ? FOR UPDATE', [orderId]);
      // A captured payment overrules a declined one: money has moved, whatever was thought before.
      const changed = await statements.change(
        `UPDATE payment SET state = ?, updated_at = NOW(3)
          WHERE payment_id = ? AND (state = 'pending' OR (state = 'declined' AND ? = 'captured'))`,
        [result, paymentId, result],
      );
      if (changed === 1 && result === 'captured') await this.win(statements, orderId, paymentId);
      if (eventId !== undefined) {
        await statements.change(
          `INSERT INTO webhook_event (event_id, payment_id, result, received_at) VALUES (?, ?, ?, NOW(3))
            ON DUPLICATE KEY UPDATE event_id = event_id`,
          [eventId, paymentId, result],
        );
      }
      if (changed === 1) return result;
      const [payment] = await statements.query<{ state: PaymentState }>(
        'SELECT state FROM payment WHERE payment_id = ?',
        [paymentId],
      );
      return payment?.state;
    });
  }

  /** One matched row wins; money without a win is owed back. */
  private async win(statements: Statements, orderId: string, paymentId: string): Promise<void> {
    const won = await statements.change(
      `UPDATE orders SET state = 'paid', version = version + 1, updated_at = NOW(3)
        WHERE order_id = ? AND state = 'awaiting_payment' AND pay_before > NOW(3)`,
      [orderId],
    );
    if (won === 1) {
      await recordEdge(statements, [orderId], 'awaiting_payment', 'paid');
      this.settled.add(1, { outcome: 'paid' });
      return;
    }
    await statements.change(
      `INSERT INTO refund (payment_id, order_id, amount, state, created_at, updated_at)
        SELECT payment_id, order_id, amount, 'pending', NOW(3), NOW(3) FROM payment WHERE payment_id = ?
        ON DUPLICATE KEY UPDATE payment_id = refund.payment_id`,
      [paymentId],
    );
    this.settled.add(1, { outcome: 'too_late' });
  }

  private async answer(request: PayRequest, state: PaymentState, deadlineMs: number): Promise<Paid> {
    const { orderId, shopperId } = request;
    if (state === 'declined') return problem('payment_declined');
    const found = await this.options.reader.find(orderId, shopperId, deadlineMs);
    if (found.outcome === 'problem') return found;
    const { order } = found;
    if (state === 'pending') return { outcome: 'pending', order };
    if (order.state === 'paid') return { outcome: 'paid', order };
    return problem(order.state === 'cancelled' ? 'not_payable' : 'order_expired');
  }

  /** The writer has not been there, or it is not this shopper's, or it never was an order. */
  private async answerWithoutRow(request: PayRequest, deadlineMs: number): Promise<Paid> {
    const found = await this.options.reader.find(request.orderId, request.shopperId, deadlineMs);
    return found.outcome === 'problem' ? found : problem('not_payable');
  }

  private touch(table: 'payment' | 'refund', paymentId: string): Promise<number> {
    return this.options.database.change(
      `UPDATE ${table} SET updated_at = NOW(3) WHERE payment_id = ? AND state = 'pending'`,
      [paymentId],
    );
  }

  private async withinTime<Result>(call: Promise<Result>): Promise<Result> {
    const { callTimeoutMs } = this.options;
    let timer: NodeJS.Timeout | undefined;
    const limit = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(new Error(`the payment provider did not answer within ${callTimeoutMs} ms`)),
        callTimeoutMs,
      );
    });
    try {
      return await Promise.race([call, limit]);
    } finally {
      clearTimeout(timer);
    }
  }
}

async function orderOf(statements: Statements, paymentId: string): Promise<string | undefined> {
  const [payment] = await statements.query<{ order_id: string }>(
    'SELECT order_id FROM payment WHERE payment_id = ?',
    [paymentId],
  );
  return payment?.order_id;
}

/** The same order and key always make the same payment, also when the answer to its INSERT was lost. */
function paymentIdOf(orderId: string, idempotencyKey: string): string {
  return `pay-${createHash('sha256').update(`${orderId}|${idempotencyKey}`).digest('base64url').slice(0, 32)}`;
}

/** Tells another card under the same key. Keyed, because a bare hash of a card number is as good as the number. */
function fingerprint({ orderId, idempotencyKey, method, card }: PayRequest, secret: Buffer): string {
  const text = JSON.stringify(['payment', orderId, idempotencyKey, method, card]);
  return createHmac('sha256', secret).update(text).digest('base64url').slice(0, 22);
}

function problem(code: ProblemCode): { readonly outcome: 'problem'; readonly problem: ProblemCode } {
  return { outcome: 'problem', problem: code };
}

function refuse(code: ProblemCode): Opened {
  return { outcome: 'problem', problem: code };
}
