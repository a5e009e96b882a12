import { ArgumentsHost, Catch, HttpException, type ExceptionFilter } from '@nestjs/common';
import {
  CallFailed,
  NotSent,
  problemForStatus,
  problemOf,
  readProblem,
  type ProblemCode,
} from '@flash-sale/contracts';
import { meter, type EarlyAnswer, type Log } from '@flash-sale/service';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { RouteTable } from './route-table.js';

const OUTAGE_LINE_EVERY_MS = 1_000;

/** One fault of a field: where it is and what is wrong with it. Never the value. */
export interface FieldFault {
  readonly field: string;
  readonly message: string;
}

/** Ends a request with a problem of the table. Thrown by controllers only; what decides answers by values. */
export class Refusal extends Error {
  override readonly name = 'Refusal';
  constructor(
    readonly code: ProblemCode,
    readonly more: {
      readonly detail?: string;
      readonly fields?: readonly FieldFault[];
      readonly retryAfterSeconds?: number;
      /** Why another service gave no answer: for the log only. */
      readonly cause?: Error;
    } = {},
  ) {
    // It says where nothing went wrong: a stack would take longer than the refusal itself.
    const { stackTraceLimit } = Error;
    Error.stackTraceLimit = 0;
    super(code);
    Error.stackTraceLimit = stackTraceLimit;
  }
}

/** Throws if a service answered with a problem. */
export function refuseProblem(text: string, detail = ''): void {
  const code = readProblem(text);
  if (code) throw new Refusal(code, detail === '' ? {} : { detail });
}

/**
 * Awaits another service's answer. Where none came, whether it was carried out is not known: the shopper is asked to repeat,
 * which is harmless, because every call is idempotent.
 */
export async function answerOf<Result>(
  call: Promise<Result>,
  unknown: 'unavailable' | 'enqueue_unknown' = 'unavailable',
): Promise<Result> {
  try {
    return await call;
  } catch (error) {
    if (error instanceof CallFailed || error instanceof NotSent) throw new Refusal(unknown, { cause: error });
    throw error;
  }
}

/** The body of a problem (RFC 9457). */
export function problemDocument(
  code: ProblemCode,
  requestId: string,
  more: Refusal['more'] = {},
): Record<string, unknown> {
  const { status, title } = problemOf(code);
  return {
    type: `urn:flash-sale:problem:${code}`,
    title,
    status,
    code,
    ...(more.detail === undefined ? {} : { detail: more.detail }),
    ...(more.fields === undefined ? {} : { errors: more.fields }),
    requestId,
  };
}

/** What every answer carries. */
export const PLAIN_HEADERS = {
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
} as const;
const PROBLEM_HEADERS = {
  'cache-control': 'no-store',
  'content-type': 'application/problem+json; charset=utf-8',
} as const;
/** Since the start. Read when somebody asks, because a counter of the library looks its series up for each request. */
const problems = new Map<ProblemCode, number>();
meter()
  .createObservableCounter('http_problems', { description: 'Refused requests, by code' })
  .addCallback((result) => {
    for (const [code, count] of problems) result.observe(count, { code });
  });

function countProblem(code: ProblemCode): void {
  problems.set(code, (problems.get(code) ?? 0) + 1);
}

/** Answers with a problem. */
export function sendProblem(
  request: FastifyRequest,
  reply: FastifyReply,
  code: ProblemCode,
  more: Refusal['more'] = {},
): void {
  const { status, retryAfterSeconds = 1 } = problemOf(code);
  countProblem(code);
  if (status === 429 || status === 503) {
    void reply.header(
      'retry-after',
      String(Math.max(1, Math.ceil(more.retryAfterSeconds ?? retryAfterSeconds))),
    );
  }
  if (status === 401) void reply.header('www-authenticate', 'Bearer');
  void reply
    .status(status)
    .headers(PROBLEM_HEADERS)
    .send(JSON.stringify(problemDocument(code, request.id, more)));
}

/**
 * The same answer for whoever is refused before there is a request of the framework: all but the request id is put together
 * once. Gives the answer by its `Retry-After`, seconds, where it has one.
 */
export function preparedProblem(
  code: ProblemCode,
  route: string,
): (retryAfterSeconds?: number) => EarlyAnswer {
  const { status } = problemOf(code);
  const [before = '', after = ''] = JSON.stringify(problemDocument(code, '\0')).split(JSON.stringify('\0'));
  // A request id has no character that JSON would write in another way.
  const body = (requestId: string) => `${before}"${requestId}"${after}`;
  const made = new Map<number | undefined, EarlyAnswer>();
  return (retryAfterSeconds) => {
    countProblem(code);
    const known = made.get(retryAfterSeconds);
    if (known) return known;
    const headers = [...Object.entries(PLAIN_HEADERS), ...Object.entries(PROBLEM_HEADERS)].flat();
    if (retryAfterSeconds !== undefined) headers.push('retry-after', String(retryAfterSeconds));
    const answer = { status, route, headers, body };
    made.set(retryAfterSeconds, answer);
    return answer;
  };
}

/**
 * The only way in which an error leaves: as a problem. What nobody expected is logged with its cause and answered with
 * `internal` and nothing else.
 */
@Catch()
export class ProblemFilter implements ExceptionFilter {
  private lastOutageMs = Number.NEGATIVE_INFINITY;
  private outages = 0;

  constructor(
    private readonly routes: RouteTable,
    private readonly log: Log,
  ) {}

  catch(error: unknown, host: ArgumentsHost): void {
    const http = host.switchToHttp();
    const request = http.getRequest<FastifyRequest>();
    const reply = http.getResponse<FastifyReply>();
    if (reply.sent || reply.raw.headersSent) {
      // A stream that has begun cannot become a problem; its reader sees the end and comes again.
      this.log.error({ err: error, requestId: request.id }, 'an error after the answer had begun');
      reply.raw.destroy();
      return;
    }
    if (error instanceof Refusal) {
      if (error.more.cause) this.logOutage(error.more.cause, request.id);
      sendProblem(request, reply, error.code, error.more);
      return;
    }
    const status = statusOf(error);
    if (status === 404) {
      const allowed = this.routes.methodsFor(request.url);
      if (allowed.length === 0) sendProblem(request, reply, 'not_found');
      else {
        void reply.header('allow', allowed.join(', '));
        sendProblem(request, reply, 'method_not_allowed');
      }
      return;
    }
    if (status === 500) this.log.error({ err: error, requestId: request.id }, 'a request met a defect');
    sendProblem(request, reply, problemForStatus(status));
  }

  /** Thousands of requests may meet one outage: it has a line a second. */
  private logOutage(cause: Error, requestId: string): void {
    this.outages += 1;
    const nowMs = performance.now();
    if (nowMs - this.lastOutageMs < OUTAGE_LINE_EVERY_MS) return;
    this.log.warn(
      { err: cause, requestId, requests: this.outages },
      'a service did not answer; shoppers are asked to repeat',
    );
    this.lastOutageMs = nowMs;
    this.outages = 0;
  }
}

/** The status that a framework meant; 500 for everything that is not its refusal of a request. */
function statusOf(error: unknown): number {
  const status =
    error instanceof HttpException
      ? error.getStatus()
      : error instanceof Error && 'statusCode' in error
        ? error.statusCode
        : undefined;
  return typeof status === 'number' && status >= 400 && status < 500 ? status : status === 503 ? 503 : 500;
}
