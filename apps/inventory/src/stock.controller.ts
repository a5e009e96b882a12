import type { inventory } from '@flash-sale/contracts';
import { isAbandoned, type CallInfo } from '@flash-sale/service';
import { AttemptId, ShopperId } from '@flash-sale/domain';
import { Controller, Inject } from '@nestjs/common';
import { GrpcMethod, RpcException } from '@nestjs/microservices';
import { Effects } from './effects.js';
import { Stock, type FindOutcome, type GrantOutcome, type Hold } from './stock.js';

const GRPC_CANCELLED = 1;

const GRANT_OUTCOMES = {
  sold_out: 'SOLD_OUT',
  not_enough_left: 'NOT_ENOUGH_LEFT',
  limit: 'LIMIT_REACHED',
  entry_exists: 'ENTRY_EXISTS',
  mismatch: 'KEY_REUSED',
  not_open: 'NOT_OPEN',
  paused: 'PAUSED',
  closed: 'CLOSED',
  unknown_sale: 'UNKNOWN_SALE',
  unavailable: 'UNAVAILABLE',
} as const satisfies Record<Exclude<GrantOutcome['outcome'], 'hold'>, inventory.GrantResult_Outcome>;

const HOLD_OUTCOMES = {
  held: 'HELD',
  queued: 'QUEUED',
  expiring: 'EXPIRING',
  confirmed: 'CONFIRMED',
  void: 'VOID',
} as const satisfies Record<Hold['state'], inventory.FindHoldResult_Outcome>;

/** The wire's side of stock: words and shapes, nothing else. */
@Controller()
export class StockController {
  constructor(
    @Inject(Stock) private readonly stock: Stock,
    @Inject(Effects) private readonly effects: Effects,
  ) {}

  @GrpcMethod('Stock', 'Grant')
  async grant(request: inventory.GrantRequest, _: unknown, call: CallInfo): Promise<inventory.GrantReply> {
    // A hold that nobody waits for would keep a unit from the others until it expires.
    if (isAbandoned(call)) throw new RpcException({ code: GRPC_CANCELLED, message: 'nobody waits any more' });
    const outcomes = await this.stock.grant(
      request.items.map(({ attemptId, shopperId, quantity }) => ({
        attemptId: attemptId as AttemptId,
        shopperId: shopperId as ShopperId,
        quantity,
      })),
    );
    return {
      results: outcomes.map((found) =>
        found.outcome === 'hold'
          ? {
              outcome: outcomeOf(found.hold),
              hold: holdOnWire(found.hold),
              created: found.created,
            }
          : { outcome: GRANT_OUTCOMES[found.outcome], hold: undefined, created: false },
      ),
    };
  }

  @GrpcMethod('Stock', 'FindHolds')
  async findHolds(request: inventory.FindHoldsRequest): Promise<inventory.FindHoldsReply> {
    const outcomes = await this.stock.findHolds(request.items);
    return {
      results: outcomes.map((found: FindOutcome) =>
        found.outcome === 'hold'
          ? { outcome: outcomeOf(found.hold), hold: holdOnWire(found.hold) }
          : { outcome: found.outcome === 'unknown' ? 'UNKNOWN' : 'UNAVAILABLE', hold: undefined },
      ),
    };
  }

  @GrpcMethod('Stock', 'Release')
  async release(request: inventory.ReleaseRequest): Promise<inventory.ReleaseReply> {
    const outcomes = await this.stock.release(request.items);
    const words = {
      released: 'RELEASED',
      already_ordered: 'ALREADY_ORDERED',
      unknown: 'UNKNOWN',
      unavailable: 'UNAVAILABLE',
    } as const;
    return { results: outcomes.map((outcome) => ({ outcome: words[outcome] })) };
  }

  @GrpcMethod('Stock', 'Queue')
  async queue(request: inventory.QueueRequest, _: unknown, call: CallInfo): Promise<inventory.QueueReply> {
    if (isAbandoned(call)) throw new RpcException({ code: GRPC_CANCELLED, message: 'nobody waits any more' });
    const outcomes = await this.stock.queue(request.items);
    const words = {
      queued: 'QUEUED',
      decided: 'DECIDED',
      expiring: 'EXPIRING',
      token_expired: 'TOKEN_EXPIRED',
      other_delivery: 'OTHER_DELIVERY',
      missing: 'MISSING',
      unavailable: 'UNAVAILABLE',
    } as const;
    return { results: outcomes.map((outcome) => ({ outcome: words[outcome] })) };
  }

  @GrpcMethod('Stock', 'RecordOffsets')
  async recordOffsets(request: inventory.RecordOffsetsRequest): Promise<inventory.RecordOffsetsReply> {
    await this.stock.recordOffsets(request.items);
    return {};
  }

  @GrpcMethod('Stock', 'ApplyEffects')
  async applyEffects(request: inventory.ApplyEffectsRequest): Promise<inventory.ApplyEffectsReply> {
    const known = request.effects.filter(({ kind }) => kind !== 'UNSPECIFIED');
    const applied = await this.effects.apply(
      known.map(({ attemptId, shopperId, kind, reason }) => ({
        attemptId,
        shopperId,
        kind: kind === 'CONFIRM' ? 'confirm' : 'void',
        reason,
      })),
    );
    return { applied };
  }
}

/** An order that is being checked is a queued one to its shopper; only a hold without an order is said to be expiring. */
function outcomeOf(hold: Hold): (typeof HOLD_OUTCOMES)[Hold['state']] {
  return hold.state === 'expiring' && hold.deliveryHash !== null ? 'QUEUED' : HOLD_OUTCOMES[hold.state];
}

function holdOnWire(hold: Hold): inventory.Hold {
  const { attemptId, shopperId, skuId, quantity, epoch, grantedAtMs, deadlineMs, reason } = hold;
  return { attemptId, shopperId, skuId, quantity, epoch, grantedAtMs, deadlineMs, reason };
}
