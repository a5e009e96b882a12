import { Controller, Inject } from '@nestjs/common';
import { GrpcMethod } from '@nestjs/microservices';
import type { token } from '@flash-sale/contracts';
import { SaleId, ShopperId } from '@flash-sale/domain';
import { itemDeadlinesMs, type CallInfo } from '@flash-sale/service';
import { Line } from './line.js';
import { ProofOfWork } from './proof-of-work.js';

/** The gRPC service `Line`: wire ↔ domain only. */
@Controller()
export class LineController {
  constructor(
    @Inject(Line) private readonly line: Line,
    @Inject(ProofOfWork) private readonly proofOfWork: ProofOfWork,
  ) {}

  @GrpcMethod('Line', 'Enter')
  async enter(request: token.EnterRequest, _: unknown, call: CallInfo): Promise<token.EnterReply> {
    return { results: await this.line.enter(request.items, itemDeadlinesMs(request, call)) };
  }

  @GrpcMethod('Line', 'FindEntries')
  async findEntries(
    request: token.FindEntriesRequest,
    _: unknown,
    call: CallInfo,
  ): Promise<token.FindEntriesReply> {
    return { results: await this.line.find(request.items, itemDeadlinesMs(request, call)) };
  }

  @GrpcMethod('Line', 'Leave')
  async leave(request: token.LeaveRequest, _: unknown, call: CallInfo): Promise<token.LeaveReply> {
    return { results: await this.line.leave(request.items, itemDeadlinesMs(request, call)) };
  }

  @GrpcMethod('Line', 'Progress')
  progress({ saleId, admitPerSecond }: token.ProgressRequest): Promise<token.ProgressReply> {
    return this.line.progress(SaleId.parse(saleId), admitPerSecond);
  }

  @GrpcMethod('Line', 'CreateChallenge')
  async createChallenge(request: token.CreateChallengeRequest): Promise<token.CreateChallengeReply> {
    const saleId = SaleId.parse(request.saleId);
    const challenge = await this.proofOfWork.create(saleId, ShopperId.parse(request.shopperId));
    return { challengeJson: JSON.stringify(challenge) };
  }
}
