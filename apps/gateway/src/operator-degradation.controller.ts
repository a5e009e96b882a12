import { Controller, Get, Inject, Put } from '@nestjs/common';
import { OperatorsClient } from '@flash-sale/contracts';
import type { Log } from '@flash-sale/service';
import type { z } from 'zod';
import { BodyOf } from './http.js';
import { AccessFor, WhoCalls } from './caller.guard.js';
import { Degradation, type DegradationModes, type Switch } from './degradation.js';
import type { Caller } from './identity.js';
import { Refusal } from './problems.js';
import { DegradationBody, type DegradationAnswer } from './schemas.js';

const RECORD_WITHIN_MS = 1_000;

/** For {@link OperatorDegradationController}. */
export class DegradationLog {
  constructor(readonly log: Log) {}
}

/** What operators do without on a bad day, and take back on a better one. */
@Controller('v1/operator/degradation')
@AccessFor('operator')
export class OperatorDegradationController {
  constructor(
    @Inject(Degradation) private readonly degradation: Degradation,
    @Inject(OperatorsClient) private readonly operators: OperatorsClient,
    @Inject(DegradationLog) private readonly log: DegradationLog,
  ) {}

  @Get()
  async read(): Promise<DegradationAnswer> {
    return this.answerOf(await unlessAway(this.degradation.read()));
  }

  @Put()
  async change(
    @BodyOf(DegradationBody) changes: z.infer<typeof DegradationBody>,
    @WhoCalls() { shopperId: operator }: Caller,
  ): Promise<DegradationAnswer> {
    const before = await unlessAway(this.degradation.read());
    const after: DegradationModes = {
      eventStreams: changes.eventStreams ?? before.eventStreams,
      productDetails: changes.productDetails ?? before.productDetails,
    };
    const recorded = await this.record(operator, before, after);
    await unlessAway(this.degradation.write(after));
    return { ...this.answerOf(after), recorded };
  }

  /** A switch for bad days must work while the books are away: then the log line is the record. */
  private async record(
    operator: string,
    before: DegradationModes,
    after: DegradationModes,
  ): Promise<boolean> {
    const detail = JSON.stringify({ before, after });
    try {
      const { problem } = await this.operators.record(
        { operator, operation: 'degradation', detail },
        RECORD_WITHIN_MS,
      );
      if (problem === '') return true;
      throw new Error(`the order service answered ${problem}`);
    } catch (error) {
      this.log.log.warn(
        { err: error, operator, before, after },
        'an operator changed what is degraded; it could not be recorded in the operator log, so this line is the record',
      );
      return false;
    }
  }

  private answerOf(modes: DegradationModes): DegradationAnswer {
    const of = (name: Switch) => ({ mode: modes[name], degraded: this.degradation.isDegraded(name) });
    return { eventStreams: of('eventStreams'), productDetails: of('productDetails') };
  }
}

async function unlessAway<Result>(call: Promise<Result>): Promise<Result> {
  try {
    return await call;
  } catch (cause) {
    throw new Refusal('unavailable', {
      detail: 'Redis, which tells all gateways, does not answer; repeat the call.',
      ...(cause instanceof Error && { cause }),
    });
  }
}
