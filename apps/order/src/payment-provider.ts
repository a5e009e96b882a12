import { createHmac } from 'node:crypto';
import type { Log } from '@flash-sale/service';
import type { OrderDatabase } from './load.js';

/** What a provider knows of a payment. `pending`: ask again, or wait to be told. */
export type ChargeResult = 'captured' | 'declined' | 'pending';

export interface ChargeRequest {
  /** Also the provider's idempotency key: the same id is charged at most once, and always answered alike. */
  readonly paymentId: string;
  /** Minor units of the currency. */
  readonly amount: number;
  readonly currency: string;
  /** Never logged, never stored. */
  readonly card: string;
}

/**
 * Whoever moves the money. Each call may throw, which means that nothing is known; each may be repeated.
 */
export interface PaymentProvider {
  charge(request: ChargeRequest): Promise<ChargeResult>;
  /** What became of a payment; `unknown` where the provider never heard of it. */
  find(paymentId: string): Promise<ChargeResult | 'unknown'>;
  /** Closes a payment that the provider never heard of: it is declined, and a charge that arrives later is declined too. */
  close(paymentId: string, amount: number): Promise<ChargeResult>;
  /** Returns a captured payment's money, once. */
  refund(paymentId: string): Promise<void>;
}

export interface TestProviderOptions {
  readonly database: OrderDatabase;
  /** How long a late card takes. */
  readonly lateMs: number;
  /** Where late results are reported; without it the provider must be asked. */
  readonly webhook: { readonly url: string; readonly secret: string } | undefined;
  readonly log: Log;
}

const LATE_CAPTURED = '4000000000000259';
const LATE_DECLINED = '4000000000000341';
const APPROVED = '4242424242424242';
const WEBHOOK_BATCH = 50;
const WEBHOOK_WITHIN_MS = 3_000;

/**
 * A payment provider for tests and demos. The card decides: 4242424242424242 is approved, 4000000000000259 is approved
 * late, 4000000000000341 is declined late, every other one is declined. Its books are a table, as a real provider's would be
 * somewhere else, so that it survives a crash and is one provider to all instances.
 */
export class TestPaymentProvider implements PaymentProvider {
  constructor(private readonly options: TestProviderOptions) {}

  async charge(request: ChargeRequest): Promise<ChargeResult> {
    const late = request.card === LATE_CAPTURED || request.card === LATE_DECLINED;
    const approved = request.card === LATE_CAPTURED || request.card === APPROVED;
    return this.book(request.paymentId, request.amount, {
      result: approved ? 'captured' : 'declined',
      lateMs: late ? this.options.lateMs : 0,
    });
  }

  async find(paymentId: string): Promise<ChargeResult | 'unknown'> {
    const [charge] = await this.options.database.query<{
      result: 'captured' | 'declined';
      settled: string | number;
    }>('SELECT result, settles_at <= NOW(3) AS settled FROM test_provider_charge WHERE payment_id = ?', [
      paymentId,
    ]);
    if (!charge) return 'unknown';
    return Number(charge.settled) === 1 ? charge.result : 'pending';
  }

  async close(paymentId: string, amount: number): Promise<ChargeResult> {
    return this.book(paymentId, amount, { result: 'declined', lateMs: 0 });
  }

  async refund(paymentId: string): Promise<void> {
    await this.options.database.change(
      `UPDATE test_provider_charge SET refunded_at = NOW(3)
        WHERE payment_id = ? AND result = 'captured' AND refunded_at IS NULL`,
      [paymentId],
    );
    const [charge] = await this.options.database.query(
      'SELECT 1 FROM test_provider_charge WHERE payment_id = ? AND refunded_at IS NOT NULL',
      [paymentId],
    );
    if (!charge) throw new Error(`payment ${paymentId} was not captured, so it cannot be refunded`);
  }

  /**
   * Reports late results that are due. What is not taken is reported again; the same result has the same event id.
   *
   * @returns whether there may be more
   */
  async reportDue(): Promise<boolean> {
    const { database, webhook, log } = this.options;
    if (!webhook) return false;
    const due = await database.query<{ payment_id: string; result: string }>(
      `SELECT payment_id, result FROM test_provider_charge
        WHERE notified_at IS NULL AND settles_at <= NOW(3) ORDER BY settles_at LIMIT ?`,
      [WEBHOOK_BATCH],
    );
    const reports = await Promise.allSettled(
      due.map(async ({ payment_id: paymentId, result }) => {
        await post(webhook, { eventId: `evt-${paymentId}`, paymentId, result });
        await database.change(
          'UPDATE test_provider_charge SET notified_at = NOW(3) WHERE payment_id = ? AND notified_at IS NULL',
          [paymentId],
        );
      }),
    );
    const failed = reports.find((report) => report.status === 'rejected');
    if (failed) log.warn({ err: failed.reason as unknown }, 'a late payment result could not be reported');
    return due.length === WEBHOOK_BATCH && !failed;
  }

  /** The first entry of a payment stays; whoever comes later reads it. */
  private async book(
    paymentId: string,
    amount: number,
    { result, lateMs }: { readonly result: 'captured' | 'declined'; readonly lateMs: number },
  ): Promise<ChargeResult> {
    const { database } = this.options;
    await database.change(
      `INSERT INTO test_provider_charge (payment_id, amount, result, settles_at, notified_at)
        VALUES (?, ?, ?, NOW(3) + INTERVAL ? MICROSECOND, IF(?, NULL, NOW(3)))
        ON DUPLICATE KEY UPDATE payment_id = payment_id`,
      [paymentId, amount, result, lateMs * 1_000, lateMs > 0 ? 1 : 0],
    );
    const booked = await this.find(paymentId);
    if (booked === 'unknown') throw new Error(`payment ${paymentId} vanished from the test provider's books`);
    return booked;
  }
}

/** Signed over the time and the body, so that neither can be changed nor an old report sent again later. */
async function post(
  { url, secret }: { readonly url: string; readonly secret: string },
  event: { readonly eventId: string; readonly paymentId: string; readonly result: string },
): Promise<void> {
  const body = JSON.stringify(event);
  const timestamp = String(Math.floor(Date.now() / 1_000));
  const response = await fetch(url, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      'x-payment-timestamp': timestamp,
      'x-payment-signature': createHmac('sha256', secret).update(`${timestamp}.${body}`).digest('hex'),
    },
    body,
    signal: AbortSignal.timeout(WEBHOOK_WITHIN_MS),
  });
  await response.arrayBuffer();
  if (!response.ok) throw new Error(`the webhook answered ${response.status}`);
}
