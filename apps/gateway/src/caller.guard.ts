import {
  Inject,
  Injectable,
  SetMetadata,
  createParamDecorator,
  type CanActivate,
  type ExecutionContext,
} from '@nestjs/common';
import type { item } from '@flash-sale/contracts';
import { IdempotencyKey } from '@flash-sale/domain';
import { currentTraceparent } from '@flash-sale/service';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { AccessTokens, bearerToken, type Caller } from './identity.js';
import { Refusal } from './problems.js';
import { RateLimits } from './rate-limits.js';

declare module 'fastify' {
  interface FastifyRequest {
    /** Set by {@link CallerGuard}. */
    caller?: Caller;
  }
}

/** What a handler asks of its caller; without it: a shopper, within the rate limits. */
export interface Access {
  /** `anybody` needs no access token. */
  readonly who: 'anybody' | 'shopper' | 'operator';
  /** Where the request is counted: by all gateways together, by this one alone, or by the handler itself. */
  readonly counted: 'together' | 'here' | 'by handler';
}

const ACCESS = 'flash-sale:access';
const DEFAULT_ACCESS: Access = { who: 'shopper', counted: 'together' };

/** States who may call a handler, or all handlers of a controller. */
export const AccessFor = (who: Access['who'], counted: Access['counted'] = 'together') =>
  SetMetadata(ACCESS, { who, counted } satisfies Access);

/** Who calls comes from the verified access token and from nowhere else. */
@Injectable()
export class CallerGuard implements CanActivate {
  constructor(
    @Inject(AccessTokens) private readonly tokens: AccessTokens,
    @Inject(RateLimits) private readonly limits: RateLimits,
  ) {}

  async canActivate(execution: ExecutionContext): Promise<boolean> {
    const request = execution.switchToHttp().getRequest<FastifyRequest>();
    void execution.switchToHttp().getResponse<FastifyReply>().header('cache-control', 'no-store');
    const { who, counted } = accessOf(execution);
    let shopperId: string | null = null;
    if (who !== 'anybody') {
      const caller = await this.identify(request);
      if (who === 'operator' && caller.role !== 'operator') throw new Refusal('forbidden');
      request.caller = caller;
      shopperId = caller.shopperId;
    }
    if (counted !== 'by handler') {
      const rate =
        counted === 'here' ? this.limits.takeHere(request.ip) : await this.limits.take(request.ip, shopperId);
      if (rate.outcome === 'beyond') {
        throw new Refusal('rate_limited', { retryAfterSeconds: rate.retryAfterSeconds });
      }
    }
    return true;
  }

  private async identify({ headers }: FastifyRequest): Promise<Caller> {
    const token = bearerToken(headers);
    const caller = token === null ? null : await this.tokens.verify(token);
    if (!caller) throw new Refusal('unauthenticated');
    return caller;
  }
}

function accessOf(execution: ExecutionContext): Access {
  for (const target of [execution.getHandler(), execution.getClass()]) {
    const access = Reflect.getMetadata(ACCESS, target) as Access | undefined;
    if (access) return access;
  }
  return DEFAULT_ACCESS;
}

/** The verified caller. */
export const WhoCalls = createParamDecorator((_: unknown, execution: ExecutionContext): Caller => {
  const { caller } = execution.switchToHttp().getRequest<FastifyRequest>();
  if (!caller) throw new Error('a handler that asks for its caller is open to anybody');
  return caller;
});

/** The well-formed `Idempotency-Key`, without which the call is refused. */
export const RetryKey = createParamDecorator((_: unknown, execution: ExecutionContext): IdempotencyKey => {
  const { headers } = execution.switchToHttp().getRequest<FastifyRequest>();
  const parsed = IdempotencyKey.safeParse(headers['idempotency-key']);
  if (parsed.success) return parsed.data;
  throw new Refusal('malformed', {
    detail: 'Idempotency-Key: 1 to 128 characters of A-Z a-z 0-9 _ . - are needed.',
  });
});

/** What travels with a request to the other services. */
export const Origin = createParamDecorator((_: unknown, execution: ExecutionContext): item.ItemContext => {
  const { id } = execution.switchToHttp().getRequest<FastifyRequest>();
  return { traceparent: currentTraceparent() ?? '', requestId: id };
});

const ID = /^[A-Za-z0-9_-]{1,64}$/;

/** An id of the address; anything that cannot be one is malformed, before it is used for anything. */
export const IdInPath = createParamDecorator((name: string, execution: ExecutionContext): string => {
  const value = (execution.switchToHttp().getRequest<FastifyRequest>().params as Record<string, unknown>)[
    name
  ];
  if (typeof value === 'string' && ID.test(value)) return value;
  throw new Refusal('malformed', { detail: `${name}: 1 to 64 characters of A-Z a-z 0-9 _ - are needed.` });
});
