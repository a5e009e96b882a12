import { Controller, Delete, Get, HttpCode, Inject, Put } from '@nestjs/common';
import { BlocklistClient, type inventory } from '@flash-sale/contracts';
import { ShopperId } from '@flash-sale/domain';
import type { z } from 'zod';
import { BodyOf } from './http.js';
import { AccessFor, IdInPath, WhoCalls } from './caller.guard.js';
import type { Caller } from './identity.js';
import { answerOf, refuseProblem } from './problems.js';
import { ReasonBody, instantOf, type BlockedShopperAnswer } from './schemas.js';

const CALL_WITHIN_MS = 5_000;

/** Who may not take part in any sale. */
@Controller('v1/operator/blocklist/:shopperId')
@AccessFor('operator')
export class OperatorBlocklistController {
  constructor(@Inject(BlocklistClient) private readonly blocklist: BlocklistClient) {}

  @Get()
  async read(@IdInPath('shopperId') shopperId: string): Promise<BlockedShopperAnswer> {
    return blockedIn(await answerOf(this.blocklist.find({ shopperId }, CALL_WITHIN_MS)));
  }

  @Put()
  async block(
    @IdInPath('shopperId') shopperId: string,
    @BodyOf(ReasonBody) { reason }: z.infer<typeof ReasonBody>,
    @WhoCalls() { shopperId: operator }: Caller,
  ): Promise<BlockedShopperAnswer> {
    return blockedIn(await answerOf(this.blocklist.block({ shopperId, operator, reason }, CALL_WITHIN_MS)));
  }

  @Delete()
  @HttpCode(204)
  async unblock(
    @IdInPath('shopperId') shopperId: string,
    @BodyOf(ReasonBody) { reason }: z.infer<typeof ReasonBody>,
    @WhoCalls() { shopperId: operator }: Caller,
  ): Promise<void> {
    const reply = await answerOf(this.blocklist.unblock({ shopperId, operator, reason }, CALL_WITHIN_MS));
    refuseProblem(reply.problem, reply.detail);
  }
}

function blockedIn({ problem, detail, blocked }: inventory.BlockedReply): BlockedShopperAnswer {
  refuseProblem(problem, detail);
  if (!blocked) throw new Error('inventory answered without a problem and without a blocked shopper');
  const { reason, operator, atMs } = blocked;
  return { shopperId: ShopperId.parse(blocked.shopperId), reason, operator, at: instantOf(atMs) };
}
