import { setTimeout as sleep } from 'node:timers/promises';
import { request } from 'undici';
import { z } from 'zod';

/** What the operator API answers about a sale, as far as it is looked at here. */
const Report = z.object({
  phase: z.string(),
  mysql: z.object({ sold: z.number(), paid: z.number() }),
  differences: z.array(z.string()),
  verdict: z.string(),
});
export type Report = z.infer<typeof Report>;

export interface SaleSettings {
  readonly saleId: string;
  readonly title: string;
  readonly skuId: string;
  readonly allotment: number;
  readonly buckets: number;
  readonly holdSeconds: number;
  readonly paySeconds: number;
  /** Counted from now. */
  readonly closesAfterSeconds: number;
}

export interface Operator {
  /** The operators' port, for example `http://127.0.0.1:8081`. */
  readonly operatorOrigin: string;
  /** The shoppers' port. */
  readonly shopOrigin: string;
  readonly accessToken: string;
  readonly signal: AbortSignal;
}

const CALL_TIMEOUT_MS = 10_000;
const OPENS_AFTER_MS = 1_500;
const OPEN_TIMEOUT_MS = 30_000;
const SETTLE_TIMEOUT_MS = 300_000;

/** A sale's life as its operator leads it, over the operators' HTTP API. Every call may be repeated. */
export class SaleDesk {
  constructor(private readonly operator: Operator) {}

  /** Creates the sale, warms it up and returns once shoppers see it open. */
  async open(settings: SaleSettings): Promise<void> {
    const { closesAfterSeconds, ...sale } = settings;
    const opensAtMs = Date.now() + OPENS_AFTER_MS;
    await this.#call('POST', '/v1/operator/sales', {
      ...sale,
      unitPrice: 99_900,
      currency: 'CNY',
      opensAt: new Date(opensAtMs).toISOString(),
      closesAt: new Date(opensAtMs + closesAfterSeconds * 1_000).toISOString(),
      limitPerShopper: 1,
    });
    await this.#call('POST', `/v1/operator/sales/${sale.saleId}/warm-up`);
    await this.#untilOpen(sale.saleId);
  }

  async report(saleId: string): Promise<Report> {
    return Report.parse(await this.#call('GET', `/v1/operator/sales/${saleId}/report`));
  }

  async close(saleId: string): Promise<void> {
    await this.#call('POST', `/v1/operator/sales/${saleId}/close`);
  }

  /** Settles as soon as nothing is unresolved: every hold ended, every order decided, paid or timed out. */
  async settle(saleId: string): Promise<void> {
    const deadline = Date.now() + SETTLE_TIMEOUT_MS;
    for (;;) {
      const { status, body } = await this.#send('POST', `/v1/operator/sales/${saleId}/settle`);
      if (status < 300) return;
      const mayBecome = status === 503 || body['code'] === 'unresolved';
      if (!mayBecome || Date.now() >= deadline) {
        throw new Error(`the sale could not be settled: ${status} ${JSON.stringify(body)}`);
      }
      await sleep(500, undefined, { signal: this.operator.signal });
    }
  }

  async #untilOpen(saleId: string): Promise<void> {
    const deadline = Date.now() + OPEN_TIMEOUT_MS;
    let seen = 'nothing';
    while (Date.now() < deadline) {
      const reply = await request(`${this.operator.shopOrigin}/v1/sales/${saleId}`, {
        signal: this.#signal(),
      });
      const sale = await reply.body.text();
      if (/"phase":"open"/.test(sale)) return;
      seen = sale;
      await sleep(50, undefined, { signal: this.operator.signal });
    }
    throw new Error(`the sale did not open within ${OPEN_TIMEOUT_MS / 1_000} s; its page says ${seen}`);
  }

  async #call(method: 'GET' | 'POST', path: string, body?: object): Promise<unknown> {
    const { status, body: answer } = await this.#send(method, path, body);
    if (status < 300) return answer;
    throw new Error(`${method} ${path} was answered ${status}: ${JSON.stringify(answer)}`);
  }

  async #send(
    method: 'GET' | 'POST',
    path: string,
    body?: object,
  ): Promise<{ status: number; body: Record<string, unknown> }> {
    const reply = await request(`${this.operator.operatorOrigin}${path}`, {
      method,
      headers: {
        authorization: `Bearer ${this.operator.accessToken}`,
        ...(body ? { 'content-type': 'application/json' } : {}),
      },
      ...(body ? { body: JSON.stringify(body) } : {}),
      signal: this.#signal(),
    });
    return { status: reply.statusCode, body: (await reply.body.json()) as Record<string, unknown> };
  }

  #signal(): AbortSignal {
    return AbortSignal.any([this.operator.signal, AbortSignal.timeout(CALL_TIMEOUT_MS)]);
  }
}
