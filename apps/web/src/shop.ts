/**
 * The shopper's side of the HTTP contract. Every call that may be repeated is repeated with the same key, so a click, a
 * reload and a lost answer all end in one attempt.
 */

export interface Sale {
  readonly saleId: string;
  readonly title: string;
  readonly unitPrice: number;
  readonly currency: string;
  readonly opensAt: string;
  readonly closesAt: string;
  readonly phase: 'draft' | 'warming' | 'warmed' | 'open' | 'paused' | 'sold_out' | 'closed' | 'settled';
  readonly limitPerShopper: number;
  readonly stockLevel: 'plenty' | 'low' | 'none';
}

export interface Entry {
  readonly entryId: string;
  readonly state: 'waiting' | 'granted' | 'ordered' | 'expired' | 'released' | 'sold_out';
  readonly purchaseToken?: string;
  readonly expiresAt?: string;
  readonly ticket?: string;
  readonly position?: number;
  readonly estimatedWaitSeconds?: number;
  readonly pollAfterMs?: number;
}

export interface Order {
  readonly orderId: string;
  readonly state: string;
  readonly reason?: string | null;
  readonly amount?: number;
  readonly currency?: string;
  readonly payBefore?: string | null;
}

export interface Delivery {
  readonly name: string;
  readonly phone: string;
  readonly address: string;
}

/** An answer that is a problem document; `code` is stable. */
export class Refused extends Error {
  constructor(
    readonly code: string,
    readonly title: string,
    readonly status: number,
    readonly retryAfterSeconds: number,
  ) {
    super(`${code}: ${title}`);
  }
}

const REQUEST_TIMEOUT_MS = 15_000;

export class Shop {
  private accessToken = '';
  /** Server time minus this device's, ms; from the sample with the shortest round trip. */
  clockOffsetMs = 0;

  constructor(private readonly shopperId: string) {}

  /** Demo identity: a shop would send its visitors to its own sign-in. */
  async signIn(): Promise<void> {
    const session = await this.call<{ accessToken: string }>('POST', '/v1/sessions', {
      shopperId: this.shopperId,
    });
    this.accessToken = session.accessToken;
  }

  async setClock(): Promise<void> {
    let best = Number.POSITIVE_INFINITY;
    for (let sample = 0; sample < 3; sample += 1) {
      const sent = Date.now();
      const { now } = await this.call<{ now: string }>('GET', '/v1/time');
      const roundTrip = Date.now() - sent;
      if (roundTrip >= best) continue;
      best = roundTrip;
      this.clockOffsetMs = Date.parse(now) + roundTrip / 2 - Date.now();
    }
  }

  now(): number {
    return Date.now() + this.clockOffsetMs;
  }

  async sales(): Promise<readonly Sale[]> {
    return (await this.call<{ sales: Sale[] }>('GET', '/v1/sales')).sales;
  }
  sale(saleId: string): Promise<Sale> {
    return this.call('GET', `/v1/sales/${saleId}`);
  }
  enter(saleId: string, key: string): Promise<Entry> {
    return this.call('POST', `/v1/sales/${saleId}/entries`, { quantity: 1 }, { 'idempotency-key': key });
  }
  entry(entryId: string, ticket?: string): Promise<Entry> {
    return this.call('GET', `/v1/entries/${entryId}`, undefined, ticket ? { 'x-entry-ticket': ticket } : {});
  }
  giveUp(entryId: string): Promise<void> {
    return this.call('DELETE', `/v1/entries/${entryId}`);
  }
  order(purchaseToken: string, delivery: Delivery): Promise<Order> {
    return this.call('POST', '/v1/orders', { purchaseToken, delivery });
  }
  readOrder(orderId: string): Promise<Order> {
    return this.call('GET', `/v1/orders/${orderId}`);
  }
  pay(orderId: string, card: string, key: string): Promise<Order> {
    return this.call(
      'POST',
      `/v1/orders/${orderId}/payment`,
      { method: 'test-card', card },
      { 'idempotency-key': key },
    );
  }
  cancel(orderId: string): Promise<Order> {
    return this.call('DELETE', `/v1/orders/${orderId}`);
  }

  private async call<T>(
    method: string,
    path: string,
    body?: unknown,
    headers: Readonly<Record<string, string>> = {},
  ): Promise<T> {
    const response = await fetch(path, {
      method,
      headers: {
        ...(this.accessToken ? { authorization: `Bearer ${this.accessToken}` } : {}),
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS),
    });
    if (response.ok) return (response.status === 204 ? undefined : await response.json()) as T;
    const problem = (await response.json().catch(() => ({}))) as { code?: string; title?: string };
    throw new Refused(
      problem.code ?? 'unavailable',
      problem.title ?? 'The shop did not answer as expected.',
      response.status,
      Number(response.headers.get('retry-after') ?? 1),
    );
  }
}
