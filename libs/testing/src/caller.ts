import { appendFileSync } from 'node:fs';
import { sleep, until } from './waiting.js';

export interface Answer {
  /** HTTP status, or 0 where the connection was cut. */
  readonly status: number;
  readonly body: Readonly<Record<string, unknown>>;
  readonly headers: Headers;
}

/** Somebody with an access token. Every exchange of a shopper is written to the client's log, for the auditor. */
export class Caller {
  constructor(
    private readonly baseUrl: string,
    private readonly accessToken: string,
    readonly id: string,
    private readonly logFile: string | null,
  ) {}

  async call(
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<Answer> {
    const sentMs = Date.now();
    const answer = await this.exchange(method, path, body, headers);
    this.log(method, path, body, headers, sentMs, answer);
    return answer;
  }

  /** The body of an answer with the status expected; throws with the whole answer otherwise. */
  async expect(
    status: number,
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ) {
    const answer = await this.call(method, path, body, headers);
    if (answer.status !== status) {
      throw new Error(
        `${method} ${path}: expected ${status}, got ${answer.status} ${JSON.stringify(answer.body)}`,
      );
    }
    return answer.body;
  }

  enter(saleId: string, key: string, quantity = 1): Promise<Answer> {
    return this.call('POST', `/v1/sales/${saleId}/entries`, { quantity }, { 'idempotency-key': key });
  }

  order(purchaseToken: unknown, delivery: Readonly<Record<string, string>> = DELIVERY): Promise<Answer> {
    return this.call('POST', '/v1/orders', { purchaseToken, delivery });
  }

  pay(orderId: string, key: string, card = '4242424242424242'): Promise<Answer> {
    return this.call(
      'POST',
      `/v1/orders/${orderId}/payment`,
      { method: 'test-card', card },
      { 'idempotency-key': key },
    );
  }

  /** Polls an order until it is in one of the states given. */
  async orderIn(orderId: string, states: readonly string[], withinMs = 20_000): Promise<Answer['body']> {
    let last: Answer | undefined;
    await until(`order ${orderId} to be ${states.join(' or ')}`, withinMs, async () => {
      last = await this.call('GET', `/v1/orders/${orderId}`);
      return last.status === 200 && states.includes(String(last.body['state']));
    }).catch((error: unknown) => {
      throw new Error(`${String(error)}; last seen: ${last?.status} ${JSON.stringify(last?.body)}`);
    });
    return last?.body ?? {};
  }

  /** The whole way from the entry to the paid order; repeats what is not known. */
  async buy(saleId: string, key = 'k'): Promise<Answer['body']> {
    const entry = await this.persist(() => this.enter(saleId, key));
    if (!entry.body['purchaseToken'])
      throw new Error(`${this.id} was not granted: ${JSON.stringify(entry.body)}`);
    const order = await this.persist(() => this.order(entry.body['purchaseToken']));
    if (order.status !== 202)
      throw new Error(`${this.id}'s order was not taken: ${JSON.stringify(order.body)}`);
    const orderId = String(order.body['orderId']);
    await this.orderIn(orderId, ['awaiting_payment']);
    await this.persist(() => this.pay(orderId, `${key}-pay`));
    return this.orderIn(orderId, ['paid']);
  }

  /** Repeats a call while its outcome is unknown or the suite asks to come back. */
  async persist(call: () => Promise<Answer>, withinMs = 30_000): Promise<Answer> {
    const giveUpAt = Date.now() + withinMs;
    for (;;) {
      const answer = await call();
      const passing = answer.status === 0 || answer.status === 429 || answer.status === 503;
      if (!passing || Date.now() > giveUpAt) return answer;
      await sleep(200);
    }
  }

  private async exchange(
    method: string,
    path: string,
    body: unknown,
    headers: Record<string, string>,
  ): Promise<Answer> {
    try {
      const response = await fetch(`${this.baseUrl}${path}`, {
        method,
        headers: {
          authorization: `Bearer ${this.accessToken}`,
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
          ...headers,
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(CLIENT_DEADLINE_MS),
      });
      const text = await response.text();
      const parsed = text.startsWith('{') ? (JSON.parse(text) as Record<string, unknown>) : {};
      return { status: response.status, body: parsed, headers: response.headers };
    } catch {
      return { status: 0, body: {}, headers: new Headers() };
    }
  }

  private readonly entries = new Map<string, { saleId: string; quantity: number; key: string }>();

  /** One line per exchange, in the form that the auditor's `--log` describes. */
  private log(
    method: string,
    path: string,
    body: unknown,
    headers: Record<string, string>,
    sentMs: number,
    answer: Answer,
  ): void {
    if (!this.logFile) return;
    const line = this.logLine(method, path, body, headers, answer);
    if (!line) return;
    const common = {
      shopperId: this.id,
      skuId: SKU_ID,
      sentMs,
      receivedMs: Date.now(),
      http: answer.status,
      code: answer.body['code'] ?? '',
      deadlineMs: CLIENT_DEADLINE_MS,
      contentType: answer.headers.get('content-type') ?? '',
      ...(answer.headers.has('retry-after') ? { retryAfter: answer.headers.get('retry-after') } : {}),
      answeredId: answer.body['orderId'] ?? answer.body['entryId'] ?? '',
    };
    appendFileSync(
      this.logFile,
      `${JSON.stringify({ ...line, ...common, state: answer.body['state'] ?? '' })}\n`,
    );
  }

  private logLine(
    method: string,
    path: string,
    body: unknown,
    headers: Record<string, string>,
    answer: Answer,
  ): object | null {
    const entered = /^\/v1\/sales\/([^/]+)\/entries$/.exec(path)?.[1];
    if (entered) {
      const { quantity } = body as { quantity: number };
      const { entryId } = answer.body;
      const attemptId = typeof entryId === 'string' ? entryId : '';
      const key = headers['idempotency-key'] ?? '';
      if (attemptId) this.entries.set(attemptId, { saleId: entered, quantity, key });
      const purchaseToken = answer.body['purchaseToken'];
      return {
        op: 'entry',
        saleId: entered,
        attemptId,
        quantity,
        key,
        ...(purchaseToken ? { purchaseToken } : {}),
      };
    }
    const orderOf = (id: string) => ({
      attemptId: id,
      ...(this.entries.get(id) ?? { saleId: id.slice(0, -23), quantity: 1, key: '' }),
    });
    if (method === 'POST' && path === '/v1/orders') {
      const { purchaseToken, delivery } = body as { purchaseToken: unknown; delivery?: unknown };
      const token = String(purchaseToken);
      const payload = Buffer.from(token.split('.')[2] ?? '', 'base64url').toString();
      const id = payload.startsWith('{') ? ((JSON.parse(payload) as { a?: string }).a ?? '') : '';
      return id ? { op: 'order', ...orderOf(id), bodyHash: JSON.stringify(delivery ?? null) } : null;
    }
    const match = /^\/v1\/(orders|entries)\/([A-Za-z0-9_-]{24,64})(\/payment)?$/.exec(path);
    if (!match?.[2]) return null;
    const op =
      match[1] === 'entries'
        ? method === 'DELETE'
          ? 'leave'
          : 'entry-status'
        : match[3]
          ? 'payment'
          : method === 'DELETE'
            ? 'cancel'
            : 'order-status';
    return { op, ...orderOf(match[2]) };
  }
}

/** How long people wait for an answer. */
const CLIENT_DEADLINE_MS = 15_000;

/** What is sold in tests. */
export const SKU_ID = 'sku-test';

/** Somewhere to send it, for tests. */
export const DELIVERY = {
  name: 'Alice Example',
  phone: '+86 138 0000 0000',
  address: '1 Example Road',
} as const;
