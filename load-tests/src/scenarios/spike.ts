/**
 * The opening of a sale: arrivals jump three hundredfold in an instant, and each is a person with the whole way before
 * them: log in, ask for a unit, wait where told to, order, wait for the verdict, pay. Run by `npm run load -- spike`,
 * which says in LOAD_PLAN what to do (load-tests/src/plan.ts). What shoppers sent and were answered goes out by
 * console.log, one line per exchange, in the auditor's format (apps/auditor/src/read-log.ts).
 */
import { sleep } from 'k6';
import exec from 'k6/execution';
import http, { type RefinedResponse } from 'k6/http';
import { Counter, Trend } from 'k6/metrics';
import type { Outcome, Plan } from '../plan.js';

/** k6's own; what is logged becomes a line of the ledger. */
declare const console: { log(line: string): void };

type Json = Readonly<Record<string, unknown>>;

/** What came back. `status` 0: nothing did. `code` is the problem's, or why nothing came. */
interface Answer {
  readonly status: number;
  readonly code: string;
  readonly state: string;
  readonly body: Json;
  readonly retryAfterMs: number;
}

const plan = JSON.parse(__ENV['LOAD_PLAN'] ?? '{}') as Plan;

const attempts = new Counter('attempts');
const verdicts = new Counter('verdicts');
const paid = new Counter('paid');
const protocolErrors = new Counter('protocol_error');
const retryAfterMissing = new Counter('retry_after_missing');
const verdictFlips = new Counter('verdict_flips');
const pollCount = new Counter('poll_count');
const timeTo202 = new Trend('time_to_202', true);
const timeToVerdict = new Trend('time_to_verdict', true);

// A refusal that the contract foresees is an answer; failed are those without one, and the server's own errors.
http.setResponseCallback(http.expectedStatuses({ min: 200, max: 299 }, 402, 409, 410, 429));

export const options = {
  scenarios: {
    spike: {
      executor: 'ramping-arrival-rate',
      startRate: plan.startRate,
      timeUnit: plan.timeUnit,
      stages: plan.stages,
      preAllocatedVUs: plan.vus,
      maxVUs: plan.vus,
      gracefulStop: '30s',
    },
  },
  thresholds: plan.thresholds,
  summaryTrendStats: ['count', 'p(50)', 'p(95)', 'p(99)', 'max'],
  // Neither addresses nor ids become tags: series would grow with the crowd.
  systemTags: ['name', 'method', 'status', 'scenario', 'expected_response', 'error_code'],
  userAgent: `flash-sale-load/${plan.run}`,
};

const DELIVERY = { name: 'Load Test', phone: '+8613800000000', address: '1 Nanjing Road, Shanghai' };
const OPERATIONS: Readonly<Record<string, string>> = {
  'POST /v1/sales/{saleId}/entries': 'entry',
  'GET /v1/entries/{entryId}': 'entry-status',
  'POST /v1/orders': 'order',
  'GET /v1/orders/{orderId}': 'order-status',
  'POST /v1/orders/{orderId}/payment': 'payment',
};

export default function arrive(): void {
  new Visit(`${plan.run}-${exec.scenario.iterationInTest}`).make();
}

export function handleSummary(data: unknown): Record<string, string> {
  return { [plan.summaryFile]: JSON.stringify(data) };
}

/** One person's way. Each visit counts one attempt, whatever becomes of it. */
class Visit {
  private accessToken = '';
  private entryId = '';
  private readonly key = 'visit-1';

  constructor(private readonly shopperId: string) {}

  make(): void {
    attempts.add(1, { outcome: this.buy() });
  }

  private buy(): Outcome {
    const session = this.send('POST /v1/sessions', '/v1/sessions', { shopperId: this.shopperId });
    this.accessToken = text(session.body['accessToken']);
    if (this.accessToken === '') return outcomeOf(session);

    const askedAtMs = Date.now();
    const granted = this.untilGranted(this.enter());
    if (granted.state !== 'granted') return outcomeOf(granted);

    const purchaseToken = text(granted.body['purchaseToken']);
    const order = this.persist(() =>
      this.send('POST /v1/orders', '/v1/orders', { purchaseToken, delivery: DELIVERY }, this.entryId),
    );
    if (order.status !== 202) return outcomeOf(order);
    const acceptedAtMs = Date.now();
    timeTo202.add(acceptedAtMs - askedAtMs);
    return this.follow(text(order.body['orderId']), acceptedAtMs);
  }

  private enter(): Answer {
    const path = `/v1/sales/${plan.saleId}/entries`;
    const headers = { 'Idempotency-Key': this.key };
    const entered = this.persist(() =>
      this.send('POST /v1/sales/{saleId}/entries', path, { quantity: 1 }, '', headers),
    );
    this.entryId = text(entered.body['entryId']);
    return entered;
  }

  /** Looks again as often as the answer says, and no longer than the plan allows. */
  private untilGranted(first: Answer): Answer {
    const deadlineMs = Date.now() + plan.limits.lineMs;
    let answer = first;
    let ticket = '';
    while (Date.now() < deadlineMs) {
      const hasToken = text(answer.body['purchaseToken']) !== '';
      // Granted without a token: the hold is being decided; a moment later it is known how.
      const undecided = answer.state === 'waiting' || (answer.state === 'granted' && !hasToken);
      if (!undecided && !isUnclear(answer)) return answer;
      ticket = text(answer.body['ticket']) || ticket;
      think(Number(answer.body['pollAfterMs'] ?? 0) || Math.max(answer.retryAfterMs, 200));
      pollCount.add(1);
      const headers: Record<string, string> = ticket === '' ? {} : { 'X-Entry-Ticket': ticket };
      answer = this.send(
        'GET /v1/entries/{entryId}',
        `/v1/entries/${this.entryId}`,
        null,
        this.entryId,
        headers,
      );
    }
    return { ...answer, state: 'timeout', code: 'unknown', status: 0 };
  }

  /** From the 202 on: the verdict must come, must not change, and is then paid for. */
  private follow(orderId: string, acceptedAtMs: number): Outcome {
    const deadlineMs = acceptedAtMs + plan.limits.verdictMs;
    let order = this.look(orderId);
    while (order.state === 'queued' || isUnclear(order)) {
      if (Date.now() >= deadlineMs) return 'unknown';
      think(Math.max(order.retryAfterMs, 100));
      pollCount.add(1);
      order = this.look(orderId);
    }
    verdicts.add(1);
    timeToVerdict.add(Date.now() - acceptedAtMs);
    // A 202 is a promise: without faults nothing else may become of it.
    verdictFlips.add(order.state === 'awaiting_payment' || order.state === 'paid' ? 0 : 1);
    if (order.state !== 'awaiting_payment') return order.state === 'paid' ? 'accepted' : 'error';

    const path = `/v1/orders/${orderId}/payment`;
    const body = { method: 'test-card', card: '4242424242424242' };
    const headers = { 'Idempotency-Key': 'payment-1' };
    const payment = this.persist(() =>
      this.send('POST /v1/orders/{orderId}/payment', path, body, orderId, headers),
    );
    let state = payment.state;
    for (let looks = 0; state === 'pending' && looks < plan.limits.tries; looks += 1) {
      think(200);
      state = this.look(orderId).state === 'paid' ? 'paid' : 'pending';
    }
    paid.add(state === 'paid' ? 1 : 0);
    return state === 'paid' ? 'accepted' : outcomeOf(payment);
  }

  private look(orderId: string): Answer {
    return this.send('GET /v1/orders/{orderId}', `/v1/orders/${orderId}`, null, orderId);
  }

  /** The very same request again while it is not known whether it was acted upon, as every client must. */
  private persist(request: () => Answer): Answer {
    let answer = request();
    for (let tries = 1; tries < plan.limits.tries && isUnclear(answer); tries += 1) {
      think(Math.max(answer.retryAfterMs, 100 * 2 ** tries));
      answer = request();
    }
    return answer;
  }

  private send(
    name: string,
    path: string,
    body: object | null,
    attemptId = '',
    headers: Readonly<Record<string, string>> = {},
  ): Answer {
    const [method = 'GET'] = name.split(' ');
    const sentMs = Date.now();
    const response = http.request(
      method,
      `${plan.baseUrl}${path}`,
      body === null ? null : JSON.stringify(body),
      {
        headers: {
          ...(body === null ? {} : { 'Content-Type': 'application/json' }),
          ...(this.accessToken === '' ? {} : { Authorization: `Bearer ${this.accessToken}` }),
          ...headers,
        },
        tags: { name },
        timeout: plan.limits.requestTimeout,
      },
    );
    const answer = readAnswer(response);
    this.record(name, attemptId, answer, sentMs);
    return answer;
  }

  private record(name: string, attemptId: string, answer: Answer, sentMs: number): void {
    const op = OPERATIONS[name];
    if (op === undefined) return;
    const { purchaseToken, unitPrice, entryId } = answer.body;
    console.log(
      JSON.stringify({
        op,
        attemptId: attemptId || text(entryId),
        saleId: plan.saleId,
        shopperId: this.shopperId,
        skuId: plan.skuId,
        quantity: 1,
        key: this.key,
        sentMs,
        receivedMs: Date.now(),
        http: answer.status,
        code: answer.code,
        state: answer.state,
        ...(typeof purchaseToken === 'string' ? { purchaseToken } : {}),
        ...(typeof unitPrice === 'number' ? { unitPrice } : {}),
      }),
    );
  }
}

/** A reply that breaks the contract is an answer all the same, and is counted. */
function readAnswer(response: RefinedResponse<'text'>): Answer {
  const { status } = response;
  if (status === 0) {
    const code = response.error_code === 1050 ? 'timeout' : 'cut';
    return { status, code, state: '', body: {}, retryAfterMs: 0 };
  }
  const body = parseObject(response.body);
  const code = status < 400 ? '' : text(body?.['code']);
  const isBroken = body === undefined || (status >= 400 && code === '');
  protocolErrors.add(isBroken ? 1 : 0);
  const retryAfter = Number(response.headers['Retry-After'] ?? Number.NaN);
  retryAfterMissing.add((status === 429 || status === 503) && !(retryAfter >= 0) ? 1 : 0);
  return {
    status,
    code: isBroken ? 'protocol_error' : code,
    state: text(body?.['state']),
    body: body ?? {},
    retryAfterMs: Math.min(10_000, (retryAfter || 0) * 1_000),
  };
}

function parseObject(source: string): Json | undefined {
  try {
    const value: unknown = JSON.parse(source);
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Json) : undefined;
  } catch {
    return undefined;
  }
}

function outcomeOf({ status, code, state }: Answer): Outcome {
  if (state === 'sold_out' || state === 'expired' || state === 'released') return 'sold_out';
  if (status === 0 || status === 503) return 'unknown';
  switch (code) {
    case 'sold_out':
    case 'not_enough_left':
      return 'sold_out';
    case 'limit_reached':
      return 'limit';
    case 'sale_not_open':
    case 'sale_closed':
    case 'sale_paused':
      return 'not_started';
    case 'invalid_token':
    case 'token_expired':
      return 'token_bad';
    case 'rate_limited':
      return 'shed';
    default:
      return 'error';
  }
}

/** Whether it is not known if the request was acted upon. */
function isUnclear({ status, code }: Answer): boolean {
  return status === 0 || status === 503 || code === 'in_progress';
}

/** The pause of a client that was told, or has the manners, to look again later. The only sleep there is. */
function think(ms: number): void {
  sleep((ms * (0.8 + Math.random() * 0.4)) / 1_000);
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : '';
}
