import type { Answer, ShopperRequest } from './shopper.js';

/** One HTTP request of a shopper, apart from who is asking. */
export interface WireRequest {
  readonly method: 'GET' | 'POST';
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | undefined;
}

const DELIVERY = { name: 'A. Shopper', phone: '+8613800000000', address: '1 Nanjing Road, Shanghai' };
const LONGEST_RETRY_AFTER_MS = 10_000;

/** How a request is spelled in the HTTP contract. */
export function wireOf(request: ShopperRequest, saleId: string): WireRequest {
  switch (request.kind) {
    case 'entry':
      return post(`/v1/sales/${saleId}/entries`, { quantity: 1 }, { 'idempotency-key': request.key });
    case 'line':
      return get(
        `/v1/entries/${request.entryId}`,
        request.ticket === undefined ? {} : { 'x-entry-ticket': request.ticket },
      );
    case 'order':
      return post('/v1/orders', { purchaseToken: request.purchaseToken, delivery: DELIVERY });
    case 'order_status':
      return get(`/v1/orders/${request.orderId}`);
    case 'payment': {
      const body = { method: 'test-card', card: request.card };
      return post(`/v1/orders/${request.orderId}/payment`, body, { 'idempotency-key': request.key });
    }
    default:
      return request satisfies never;
  }
}

/** Reads a reply. One that is not JSON is an answer all the same, with the code `protocol_error`. */
export function readAnswer(http: number, retryAfter: string | string[] | undefined, text: string): Answer {
  const retryAfterMs = Math.min(LONGEST_RETRY_AFTER_MS, Math.max(0, Number(retryAfter ?? 0) * 1_000 || 0));
  const body = parseObject(text);
  if (body === undefined) return { http, code: 'protocol_error', body: {}, retryAfterMs };
  const code = http >= 400 ? (typeof body['code'] === 'string' ? body['code'] : 'protocol_error') : '';
  return { http, code, body, retryAfterMs };
}

/** What the client log keeps of an answer's headers. */
interface SeenHeaders {
  /** As it was; absent where there was none. */
  readonly retryAfter?: string;
  readonly contentType: string;
}

export const NO_HEADERS: SeenHeaders = { contentType: '' };

export function headersOf(headers: Readonly<Record<string, string | string[] | undefined>>): SeenHeaders {
  const retryAfter = headers['retry-after'];
  return {
    contentType: String(headers['content-type'] ?? ''),
    ...(retryAfter === undefined ? {} : { retryAfter: String(retryAfter) }),
  };
}

export function isTimeout(error: unknown): boolean {
  return error instanceof Error && /TIMEOUT/.test((error as NodeJS.ErrnoException).code ?? '');
}

function post(path: string, body: object, headers: Record<string, string> = {}): WireRequest {
  const all = { 'content-type': 'application/json', ...headers };
  return { method: 'POST', path, headers: all, body: JSON.stringify(body) };
}

function get(path: string, headers: Record<string, string> = {}): WireRequest {
  return { method: 'GET', path, headers, body: undefined };
}

function parseObject(text: string): Readonly<Record<string, unknown>> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : undefined;
  } catch {
    return undefined;
  }
}

const OPERATIONS = {
  entry: 'entry',
  line: 'entry-status',
  order: 'order',
  order_status: 'order-status',
  payment: 'payment',
} as const satisfies Record<ShopperRequest['kind'], string>;

/**
 * One line of the client log, in the auditor's format (apps/auditor/src/read-log.ts): what was sent, what came back, and
 * when, by the crowd's own clock.
 */
export function recordOf(
  exchange: SeenHeaders & {
    readonly saleId: string;
    readonly skuId: string;
    readonly shopperId: string;
    /** The idempotency key of the entry that this exchange belongs to. */
    readonly entryKey: string;
    readonly request: ShopperRequest;
    readonly answer: Answer;
    readonly sentMs: number;
    readonly receivedMs: number;
    /** How long the crowd waits for an answer. */
    readonly deadlineMs: number;
  },
): object {
  const { request, answer, entryKey, ...rest } = exchange;
  const { state, purchaseToken, unitPrice, orderId, entryId } = answer.body;
  const answeredId = orderId ?? entryId;
  return {
    op: OPERATIONS[request.kind],
    attemptId: attemptOf(request, answer),
    saleId: rest.saleId,
    shopperId: rest.shopperId,
    skuId: rest.skuId,
    quantity: 1,
    key: entryKey,
    sentMs: rest.sentMs,
    receivedMs: rest.receivedMs,
    deadlineMs: rest.deadlineMs,
    contentType: rest.contentType,
    ...(rest.retryAfter === undefined ? {} : { retryAfter: rest.retryAfter }),
    answeredId: typeof answeredId === 'string' ? answeredId : '',
    http: answer.http,
    code: answer.code,
    state: typeof state === 'string' ? state : '',
    ...(typeof purchaseToken === 'string' ? { purchaseToken } : {}),
    ...(typeof unitPrice === 'number' ? { unitPrice } : {}),
  };
}

/** What was asked about; for an entry, what was answered. */
function attemptOf(request: ShopperRequest, answer: Answer): string {
  if (request.kind === 'order_status' || request.kind === 'payment') return request.orderId;
  if (request.kind !== 'entry') return request.entryId;
  return typeof answer.body['entryId'] === 'string' ? answer.body['entryId'] : '';
}
