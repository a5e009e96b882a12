import { Controller, Delete, Get, HttpCode, Inject, Post, Query } from '@nestjs/common';
import { OperatorsClient, type operators } from '@flash-sale/contracts';
import { ORDER_STATES, SaleId } from '@flash-sale/domain';
import type { z } from 'zod';
import { BodyOf } from './http.js';
import { AccessFor, IdInPath, WhoCalls } from './caller.guard.js';
import type { Caller } from './identity.js';
import { Refusal, answerOf, refuseProblem } from './problems.js';
import {
  DeadLetterState,
  ReasonBody,
  EmptyBody,
  instantOf,
  type AuditLogAnswer,
  type DeadLetterAnswer,
  type DeadLettersAnswer,
} from './schemas.js';

/** A replay waits for Kafka's acknowledgement. */
const CALL_WITHIN_MS = 8_000;
const ROWS_PER_PAGE = 50;
const CURSOR = /^[A-Za-z0-9_-]{1,200}$/;
const STATES = DeadLetterState.exclude(['replaying']).options;

/** What became of records that could not be decided, and of what operators did about it and about everything else. */
@Controller('v1/operator')
@AccessFor('operator')
export class OperatorDeadLettersController {
  constructor(@Inject(OperatorsClient) private readonly operators: OperatorsClient) {}

  @Get('dead-letters')
  async list(
    @Query('state') state: string | undefined,
    @Query('cursor') cursor: string | undefined,
  ): Promise<DeadLettersAnswer> {
    if (state !== undefined && !STATES.some((known) => known === state)) {
      throw new Refusal('malformed', { detail: `state: one of ${STATES.join(', ')}, or leave it out.` });
    }
    const page = await answerOf(
      this.operators.listDeadLetters(
        { state: state ?? '', cursor: cursorIn(cursor), limit: ROWS_PER_PAGE },
        CALL_WITHIN_MS,
      ),
    );
    refuseProblem(page.problem);
    return { deadLetters: page.deadLetters.map(answerFor), nextCursor: page.nextCursor || null };
  }

  @Post('dead-letters/:deadLetterId/replay')
  @HttpCode(200)
  async replay(
    @IdInPath('deadLetterId') letterId: string,
    @BodyOf(EmptyBody) _body: unknown,
    @WhoCalls() { shopperId: operator }: Caller,
  ): Promise<DeadLetterAnswer> {
    return letterIn(await answerOf(this.operators.replayDeadLetter({ letterId, operator }, CALL_WITHIN_MS)));
  }

  @Delete('dead-letters/:deadLetterId')
  @HttpCode(200)
  async drop(
    @IdInPath('deadLetterId') letterId: string,
    @BodyOf(ReasonBody) { reason }: z.infer<typeof ReasonBody>,
    @WhoCalls() { shopperId: operator }: Caller,
  ): Promise<DeadLetterAnswer> {
    return letterIn(
      await answerOf(this.operators.dropDeadLetter({ letterId, operator, reason }, CALL_WITHIN_MS)),
    );
  }

  @Get('audit-log')
  async readAuditLog(
    @Query('saleId') saleId: string | undefined,
    @Query('cursor') cursor: string | undefined,
  ): Promise<AuditLogAnswer> {
    if (saleId !== undefined && !SaleId.safeParse(saleId).success) {
      throw new Refusal('malformed', { detail: 'saleId: 1 to 40 characters of A-Z a-z 0-9 _ -.' });
    }
    const page = await answerOf(
      this.operators.listAuditLog(
        { saleId: saleId ?? '', cursor: cursorIn(cursor), limit: ROWS_PER_PAGE },
        CALL_WITHIN_MS,
      ),
    );
    refuseProblem(page.problem);
    return {
      entries: page.entries.map(({ atMs, saleId: of, before, after, ...entry }) => ({
        ...entry,
        at: instantOf(atMs),
        saleId: of || null,
        before: before || null,
        after: after || null,
      })),
      nextCursor: page.nextCursor || null,
    };
  }
}

function cursorIn(cursor: string | undefined): string {
  if (cursor === undefined) return '';
  if (CURSOR.test(cursor)) return cursor;
  throw new Refusal('malformed', { detail: 'cursor: take it from an answer.' });
}

function letterIn(reply: operators.DeadLetterReply): DeadLetterAnswer {
  refuseProblem(reply.problem, reply.detail);
  if (!reply.deadLetter)
    throw new Error('the order service answered without a problem and without a dead letter');
  return answerFor(reply.deadLetter);
}

function answerFor(letter: operators.DeadLetter): DeadLetterAnswer {
  return {
    deadLetterId: letter.letterId,
    topic: letter.topic,
    partition: letter.partition,
    offset: letter.offset,
    orderId: letter.orderId || null,
    orderState: ORDER_STATES.find((state) => state === letter.orderState) ?? null,
    cause: letter.cause,
    schemaVersion: letter.schemaVersion || null,
    state: DeadLetterState.parse(letter.state),
    replayable: letter.replayable,
    at: instantOf(letter.atMs),
    replayedAt: letter.replayAtMs === 0 ? null : instantOf(letter.replayAtMs),
    closedAt: letter.closedAtMs === 0 ? null : instantOf(letter.closedAtMs),
  };
}
