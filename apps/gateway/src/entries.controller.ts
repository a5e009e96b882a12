import { Controller, Delete, Get, Headers, HttpCode, Inject, Post, Req, Res } from '@nestjs/common';
import { BACKGROUND_SHARE, type ProblemCode, type item, type token } from '@flash-sale/contracts';
import { AttemptId, SaleId, saleIdOf, type IdempotencyKey } from '@flash-sale/domain';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { z } from 'zod';
import { BodyOf } from './http.js';
import { Admissions, type Admission } from './admission.js';
import { AccessFor, IdInPath, Origin, RetryKey, WhoCalls } from './caller.guard.js';
import { EventStreams, POLL_AFTER_MS, type Look } from './event-streams.js';
import type { Caller } from './identity.js';
import { Refusal, refuseProblem } from './problems.js';
import { EntryBody, instantOf, type EntryAnswer } from './schemas.js';

/** Answers after which nothing more is to be seen of an entry. */
const GONE: ReadonlySet<ProblemCode> = new Set<ProblemCode>(['not_found', 'blocked']);

/** Entries: the way to a purchase token. */
@Controller('v1')
export class EntriesController {
  constructor(
    @Inject(Admissions) private readonly admissions: Admissions,
    @Inject(EventStreams) private readonly streams: EventStreams,
  ) {}

  @Post('sales/:saleId/entries')
  @AccessFor('shopper', 'by handler')
  async enter(
    @IdInPath('saleId') id: string,
    @RetryKey() key: IdempotencyKey,
    @BodyOf(EntryBody) body: z.infer<typeof EntryBody>,
    @Headers('x-entry-ticket') ticket: string | undefined,
    @WhoCalls() caller: Caller,
    @Origin() context: item.ItemContext,
    @Req() request: FastifyRequest,
    @Res({ passthrough: true }) reply: FastifyReply,
  ): Promise<EntryAnswer> {
    const saleId = SaleId.safeParse(id);
    if (!saleId.success) throw new Refusal('not_found');
    const admission = await this.admissions.enter({
      saleId: saleId.data,
      shopperId: caller.shopperId,
      address: request.ip,
      key,
      quantity: body.quantity,
      challenge: body.challenge ?? '',
      hasTicket: ticket !== undefined,
      context,
      arrival: request.raw,
    });
    const entry = entryOf(admission);
    void reply
      .status(entry.created ? (entry.state === 'waiting' ? 202 : 201) : 200)
      .header('location', `/v1/entries/${entry.entryId}`);
    return answerFor(entry);
  }

  @Get('entries/:entryId')
  async read(
    @IdInPath('entryId') id: string,
    @WhoCalls() caller: Caller,
    @Origin() context: item.ItemContext,
  ): Promise<EntryAnswer> {
    return answerFor(entryOf(await this.find(id, caller, context)));
  }

  @Get('entries/:entryId/events')
  async watch(
    @IdInPath('entryId') id: string,
    @WhoCalls() caller: Caller,
    @Origin() context: item.ItemContext,
    @Res() reply: FastifyReply,
  ): Promise<void> {
    if (!this.streams.hasRoom(caller.shopperId)) throw noStream();
    const first = entryOf(await this.find(id, caller, context));
    reply.hijack();
    this.streams.start(reply.raw, headersOf(reply), {
      event: 'entry',
      shopperId: caller.shopperId,
      first: answerFor(first),
      endsAtMs: caller.expiresAtMs,
      look: async (): Promise<Look> => {
        const admission = await this.find(id, caller, context, BACKGROUND_SHARE).catch(unlessRefused);
        if (!admission) return { outcome: 'unknown' };
        if (admission.outcome === 'refused')
          return { outcome: GONE.has(admission.code) ? 'gone' : 'unknown' };
        return { outcome: 'state', body: answerFor(admission.entry), isFinal: isOver(admission.entry) };
      },
    });
    if (isOver(first)) reply.raw.end();
  }

  @Delete('entries/:entryId')
  @HttpCode(204)
  async leave(
    @IdInPath('entryId') id: string,
    @WhoCalls() caller: Caller,
    @Origin() context: item.ItemContext,
  ): Promise<void> {
    const result = await this.admissions.leave(attemptIdIn(id), caller.shopperId, context);
    refuseProblem(result.problem);
  }

  private find(id: string, caller: Caller, context: item.ItemContext, share = 1): Promise<Admission> {
    const attemptId = attemptIdIn(id);
    return this.admissions.find(attemptId, saleIdOf(attemptId), caller.shopperId, context, share);
  }
}

function attemptIdIn(id: string): AttemptId {
  const parsed = AttemptId.safeParse(id);
  // Well-formed, but of no attempt that there could be.
  if (!parsed.success) throw new Refusal('not_found');
  return parsed.data;
}

function entryOf(admission: Admission): token.Entry {
  if (admission.outcome === 'entry') return admission.entry;
  const { code, retryAfterSeconds } = admission;
  throw new Refusal(code, retryAfterSeconds === undefined ? {} : { retryAfterSeconds });
}

function isOver({ state }: token.Entry): boolean {
  return state !== 'waiting' && state !== 'granted';
}

function answerFor(entry: token.Entry): EntryAnswer {
  const { entryId, state } = entry;
  switch (state) {
    case 'granted':
      return { entryId, state, purchaseToken: entry.purchaseToken, expiresAt: instantOf(entry.expiresAtMs) };
    case 'waiting':
      return {
        entryId,
        state,
        ticket: entry.ticket,
        position: entry.position,
        estimatedWaitSeconds: entry.estimatedWaitSeconds,
        pollAfterMs: entry.pollAfterMs,
      };
    case 'ordered':
    case 'expired':
    case 'released':
    case 'sold_out':
      return { entryId, state, reason: entry.reason === '' ? null : entry.reason };
    default:
      throw new Error(`token answered with an unknown state "${state}"`);
  }
}

/** Where there is no room for a stream, or none are served at the moment: polling is always as good. */
export function noStream(): Refusal {
  const detail = `No event stream can be served now. Ask for the state itself every ${POLL_AFTER_MS} ms instead.`;
  return new Refusal('unavailable', { detail, retryAfterSeconds: 10 });
}

/** For a look behind a stream: a service that does not answer is looked at again; anything else is a defect. */
export function unlessRefused(error: unknown): null {
  if (error instanceof Refusal) return null;
  throw error;
}

/** What hooks have set so far: a stream is written past the reply object. */
export function headersOf(reply: FastifyReply): Record<string, string> {
  return Object.fromEntries(Object.entries(reply.getHeaders()).map(([name, value]) => [name, String(value)]));
}
