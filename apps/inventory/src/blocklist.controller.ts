import type { inventory } from '@flash-sale/contracts';
import { Controller, Inject } from '@nestjs/common';
import { GrpcMethod } from '@nestjs/microservices';
import { Blocklist, type BlockOutcome } from './blocklist.js';

/** The wire's side of the blocklist. */
@Controller()
export class BlocklistController {
  constructor(@Inject(Blocklist) private readonly blocklist: Blocklist) {}

  @GrpcMethod('Blocklist', 'Find')
  async find({ shopperId }: inventory.FindBlockedRequest): Promise<inventory.BlockedReply> {
    return onWire(await this.blocklist.find(shopperId));
  }

  @GrpcMethod('Blocklist', 'Block')
  async block(request: inventory.ChangeBlockedRequest): Promise<inventory.BlockedReply> {
    return onWire(await this.blocklist.block(request.shopperId, request.operator, request.reason));
  }

  @GrpcMethod('Blocklist', 'Unblock')
  async unblock(request: inventory.ChangeBlockedRequest): Promise<inventory.BlockedReply> {
    return onWire(await this.blocklist.unblock(request.shopperId, request.operator, request.reason));
  }
}

function onWire(outcome: BlockOutcome): inventory.BlockedReply {
  if ('problem' in outcome) return { ...outcome, blocked: undefined };
  const { blocked } = outcome;
  if (!blocked) return { problem: '', detail: '', blocked: undefined };
  const { at, ...same } = blocked;
  return { problem: '', detail: '', blocked: { ...same, atMs: at.getTime() } };
}
