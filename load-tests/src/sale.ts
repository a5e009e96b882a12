import { setTimeout as sleep } from 'node:timers/promises';
import type { RunningSuite } from './suite.js';

/** Sales of load tests begin with this, so that nobody takes one for a real sale, and no real one is ever loaded. */
export const TEST_SALE_PREFIX = 'loadtest-';

export interface TestSale {
  readonly saleId: string;
  readonly skuId: string;
  readonly units: number;
  readonly buckets: number;
  /** From opening to closing, seconds; longer than the load lasts. */
  readonly openSeconds: number;
}

const OPENS_AFTER_MS = 2_000;
const OPEN_TIMEOUT_MS = 30_000;
const SETTLE_TIMEOUT_MS = 120_000;
const CALL_TIMEOUT_MS = 10_000;
/** Short, so that a run is at rest soon after its load. */
const HOLD_SECONDS = 10;
const PAY_SECONDS = 30;

/** The sale that a load test is run against, through the operators' API. */
export class SaleDesk {
  constructor(private readonly suite: RunningSuite) {}

  /** Creates the sale, warms it up and returns once shoppers see it open. */
  async open({ saleId, skuId, units, buckets, openSeconds }: TestSale): Promise<void> {
    if (!saleId.startsWith(TEST_SALE_PREFIX)) throw new Error(`${saleId} is not the sale of a load test`);
    const opensAtMs = Date.now() + OPENS_AFTER_MS;
    await this.must('POST', '/v1/operator/sales', {
      saleId,
      skuId,
      title: 'Load test, not for sale',
      allotment: units,
      buckets,
      unitPrice: 100,
      currency: 'CNY',
      opensAt: new Date(opensAtMs).toISOString(),
      closesAt: new Date(opensAtMs + openSeconds * 1_000).toISOString(),
      limitPerShopper: 1,
      holdSeconds: HOLD_SECONDS,
      paySeconds: PAY_SECONDS,
    });
    await this.must('POST', `/v1/operator/sales/${saleId}/warm-up`);
    const deadline = Date.now() + OPEN_TIMEOUT_MS;
    for (let phase = ''; phase !== 'open'; await sleep(100)) {
      if (Date.now() > deadline) throw new Error(`the sale did not open within 30 s; it is ${phase}`);
      const answer = await this.call('GET', `${this.suite.baseUrl}/v1/sales/${saleId}`);
      phase = String(answer.body['phase']);
    }
  }

  /** Ends the sale; returns when every hold and every order has ended, so that it can be judged. */
  async settle(saleId: string): Promise<void> {
    await this.must('POST', `/v1/operator/sales/${saleId}/close`);
    const deadline = Date.now() + SETTLE_TIMEOUT_MS;
    for (;;) {
      const answer = await this.call('POST', `${this.suite.operatorUrl}/v1/operator/sales/${saleId}/settle`);
      if (answer.status < 300) return;
      if (Date.now() >= deadline || (answer.status !== 503 && answer.status !== 409)) {
        throw new Error(`the sale could not be settled: ${answer.status} ${JSON.stringify(answer.body)}`);
      }
      await sleep(1_000);
    }
  }

  private async must(method: 'POST', path: string, body?: object): Promise<void> {
    const answer = await this.call(method, `${this.suite.operatorUrl}${path}`, body);
    if (answer.status >= 300) {
      throw new Error(`${method} ${path} was answered ${answer.status}: ${JSON.stringify(answer.body)}`);
    }
  }

  private async call(
    method: 'GET' | 'POST',
    url: string,
    body?: object,
  ): Promise<{ status: number; body: Record<string, unknown> }> {
    const answer = await fetch(url, {
      method,
      headers: {
        authorization: `Bearer ${this.suite.operatorToken}`,
        ...(body ? { 'content-type': 'application/json' } : {}),
      },
      ...(body ? { body: JSON.stringify(body) } : {}),
      signal: AbortSignal.timeout(CALL_TIMEOUT_MS),
    }).catch((error: unknown) => {
      const reason = error instanceof Error && error.cause instanceof Error ? error.cause : error;
      throw new Error(`${method} ${url} was not answered: ${String(reason)}`, { cause: error });
    });
    return {
      status: answer.status,
      body: (await answer.json().catch(() => ({}))) as Record<string, unknown>,
    };
  }
}
