import { STATUS_CODES } from 'node:http';

/**
 * Every code a shopper or an operator may meet, with its HTTP status. Services return these codes as values; only the
 * gateway turns them into `application/problem+json` (RFC 9457). 429 and 503 always carry `Retry-After`.
 */
const PROBLEMS = {
  malformed: { status: 400, title: 'The request cannot be read.' },
  unauthenticated: { status: 401, title: 'A valid access token is needed.' },
  invalid_token: { status: 401, title: 'This purchase token is not valid.' },
  payment_declined: { status: 402, title: 'The payment was declined.' },
  forbidden: { status: 403, title: 'This is not yours to use.' },
  challenge_required: { status: 403, title: 'Solve the challenge first.' },
  blocked: { status: 403, title: 'This account may not take part.' },
  not_found: { status: 404, title: 'There is no such thing, or it is not yours.' },
  method_not_allowed: { status: 405, title: 'This address does not take that method.' },
  sale_not_open: { status: 409, title: 'The sale has not opened yet.' },
  sale_closed: { status: 409, title: 'The sale is closed.' },
  sale_paused: { status: 409, title: 'The sale is paused.' },
  limit_reached: { status: 409, title: 'You have as many units as one shopper may have.' },
  entry_exists: { status: 409, title: 'You already have an entry with another quantity.' },
  not_enough_left: { status: 409, title: 'Fewer units are left than you asked for.' },
  already_ordered: { status: 409, title: 'This entry has become an order.' },
  order_expired: { status: 409, title: 'The time to pay for this order is over.' },
  not_payable: { status: 409, title: 'This order cannot be paid.' },
  not_cancellable: { status: 409, title: 'This order cannot be cancelled.' },
  in_progress: { status: 409, title: 'The same request is being handled at this moment.' },
  wrong_phase: { status: 409, title: 'The sale is not in a phase that allows this.' },
  unresolved: { status: 409, title: 'Holds, orders or payments of this sale are not resolved yet.' },
  sale_exists: { status: 409, title: 'A sale with this id exists with other settings.' },
  blocklist_full: { status: 409, title: 'No more shoppers can be blocked.' },
  dead_letter_closed: { status: 409, title: 'This dead letter was replayed or dropped before.' },
  not_replayable: { status: 409, title: 'This dead letter cannot be replayed.' },
  challenge_used: { status: 409, title: 'This challenge has been used.' },
  sold_out: { status: 410, title: 'Everything is sold or held by others at the moment.' },
  token_expired: { status: 410, title: 'The time to use this purchase token is over.' },
  too_large: { status: 413, title: 'The request is too large.' },
  unsupported_media_type: { status: 415, title: 'Send application/json.' },
  invalid: { status: 422, title: 'Some fields are not as they must be.' },
  idempotency_key_reused: { status: 422, title: 'This key was used with another body.' },
  rate_limited: { status: 429, title: 'Too many requests.', retryAfterSeconds: 1 },
  headers_too_large: { status: 431, title: 'The request headers are too large.' },
  internal: { status: 500, title: 'A defect on our side. It has been recorded.' },
  unavailable: { status: 503, title: 'Not available at the moment.', retryAfterSeconds: 1 },
  enqueue_unknown: {
    status: 503,
    title: 'It is not known yet whether the order was taken. Repeat the request with the same token.',
    retryAfterSeconds: 1,
  },
} as const satisfies Record<string, { status: number; title: string; retryAfterSeconds?: number }>;

export type ProblemCode = keyof typeof PROBLEMS;
export const PROBLEM_CODES = Object.keys(PROBLEMS) as readonly ProblemCode[];

export interface Problem {
  readonly code: ProblemCode;
  readonly status: number;
  readonly title: string;
  /** Seconds; set for 429 and 503. */
  readonly retryAfterSeconds?: number;
}

export function problemOf(code: ProblemCode): Problem {
  return { code, ...PROBLEMS[code] };
}

/** Reads a code that came over the wire: `null` for none, and a fault for one that nobody defined. */
export function readProblem(text: string): ProblemCode | null {
  if (text === '') return null;
  if (Object.hasOwn(PROBLEMS, text)) return text as ProblemCode;
  throw new Error(`unknown problem code "${text}": two services disagree about contracts/problem.ts`);
}

/** The code for a status that a framework raised before any handler of ours ran. */
export function problemForStatus(status: number): ProblemCode {
  const found = PROBLEM_CODES.find((code) => PROBLEMS[code].status === status);
  if (
    status === 400 ||
    status === 404 ||
    status === 405 ||
    status === 413 ||
    status === 415 ||
    status === 431
  ) {
    return found ?? 'malformed';
  }
  if (status >= 400 && status < 500 && STATUS_CODES[status])
    return status === 408 ? 'malformed' : (found ?? 'malformed');
  return status === 503 ? 'unavailable' : 'internal';
}
