import { Controller, Inject } from '@nestjs/common';
import { GrpcMethod } from '@nestjs/microservices';
import type { ProblemCode, operators } from '@flash-sale/contracts';
import { DatabaseError } from '@flash-sale/database';
import { callDeadlineMs, type CallInfo } from '@flash-sale/service';
import { STORED_STATES, type DeadLetter, type DeadLetters, type LetterOutcome } from './dead-letters.js';
import { Overloaded, type Gate } from './load.js';
import type { LoggedOperation, OperatorLog } from './operator-log.js';

/** What {@link OperatorsController} is made of. */
export class OperatorParts {
  constructor(
    readonly deadLetters: DeadLetters,
    readonly log: OperatorLog,
    /** A few places of their own: however busy operators are, orders and payments go on, and the other way round. */
    readonly gate: Gate,
  ) {}
}

const MAX_CALL_MS = 15_000;

/** Wire ↔ domain for `Operators`. */
@Controller()
export class OperatorsController {
  constructor(@Inject(OperatorParts) private readonly parts: OperatorParts) {}

  @GrpcMethod('Operators', 'ListDeadLetters')
  listDeadLetters(
    request: operators.ListDeadLettersRequest,
    _metadata: unknown,
    call: CallInfo,
  ): Promise<operators.ListDeadLettersReply> {
    const none = (problem: ProblemCode) => ({ problem, deadLetters: [], nextCursor: '' });
    const list = async () => {
      const { cursor, limit } = request;
      const state = STORED_STATES.find((known) => known === request.state);
      if (request.state !== '' && state === undefined) return none('invalid');
      const page = await this.parts.deadLetters.list(state, cursor, limit);
      if (!page) return none('invalid');
      return { problem: '', deadLetters: page.rows.map(letterOnWire), nextCursor: page.nextCursor ?? '' };
    };
    return this.inTurn(call, list, none('unavailable'));
  }

  @GrpcMethod('Operators', 'ReplayDeadLetter')
  replayDeadLetter(
    request: operators.ReplayDeadLetterRequest,
    _metadata: unknown,
    call: CallInfo,
  ): Promise<operators.DeadLetterReply> {
    const { letterId, operator } = request;
    const replay = async () => outcomeOnWire(await this.parts.deadLetters.replay(letterId, operator));
    return this.inTurn(call, replay, NOT_AVAILABLE);
  }

  @GrpcMethod('Operators', 'DropDeadLetter')
  dropDeadLetter(
    request: operators.DropDeadLetterRequest,
    _metadata: unknown,
    call: CallInfo,
  ): Promise<operators.DeadLetterReply> {
    const { letterId, operator, reason } = request;
    const drop = async () => outcomeOnWire(await this.parts.deadLetters.drop(letterId, operator, reason));
    return this.inTurn(call, drop, NOT_AVAILABLE);
  }

  @GrpcMethod('Operators', 'ListAuditLog')
  listAuditLog(
    { saleId, cursor, limit }: operators.ListAuditLogRequest,
    _metadata: unknown,
    call: CallInfo,
  ): Promise<operators.ListAuditLogReply> {
    const none = (problem: ProblemCode) => ({ problem, entries: [], nextCursor: '' });
    const list = async () => {
      const page = await this.parts.log.list(saleId, cursor, limit);
      if (!page) return none('invalid');
      return { problem: '', entries: page.rows.map(entryOnWire), nextCursor: page.nextCursor ?? '' };
    };
    return this.inTurn(call, list, none('unavailable'));
  }

  @GrpcMethod('Operators', 'Record')
  record(
    { operator, operation, detail }: operators.RecordRequest,
    _metadata: unknown,
    call: CallInfo,
  ): Promise<operators.RecordReply> {
    const record = async () => {
      await this.parts.log.record({ operator, operation, saleId: '', before: '', after: '', detail });
      return { problem: '' };
    };
    return this.inTurn(call, record, { problem: 'unavailable' });
  }

  /** A database that cannot answer now is an expected outcome; anything else is a defect and stays one. */
  private async inTurn<Reply>(
    call: CallInfo,
    work: () => Promise<Reply>,
    unavailable: Reply,
  ): Promise<Reply> {
    const deadlineMs = Math.min(callDeadlineMs(call), performance.now() + MAX_CALL_MS);
    try {
      return await this.parts.gate.run(work, deadlineMs);
    } catch (error) {
      if (error instanceof Overloaded) return unavailable;
      if (error instanceof DatabaseError && error.retriable) return unavailable;
      throw error;
    }
  }
}

const NOT_AVAILABLE: operators.DeadLetterReply = {
  problem: 'unavailable',
  detail: 'the database does not answer in time; repeating the call is harmless',
  deadLetter: undefined,
};

function outcomeOnWire(outcome: LetterOutcome): operators.DeadLetterReply {
  return outcome.outcome === 'done'
    ? { problem: '', detail: '', deadLetter: letterOnWire(outcome.letter) }
    : { problem: outcome.problem, detail: outcome.detail, deadLetter: undefined };
}

function letterOnWire(letter: DeadLetter): operators.DeadLetter {
  return {
    letterId: letter.letterId,
    topic: letter.topic,
    partition: letter.partition,
    offset: letter.offset,
    orderId: letter.orderId ?? '',
    cause: letter.cause,
    schemaVersion: letter.schemaVersion,
    state: letter.state,
    replayable: letter.replayable,
    atMs: letter.at.getTime(),
    replayAtMs: letter.replayAt?.getTime() ?? 0,
    closedAtMs: letter.closedAt?.getTime() ?? 0,
    orderState: letter.orderState ?? '',
  };
}

function entryOnWire(entry: LoggedOperation): operators.AuditLogEntry {
  const { entryId, at, operator, operation, saleId, before, after, detail } = entry;
  return { entryId, atMs: at.getTime(), operator, operation, saleId, before, after, detail };
}
