import type { RedisClient } from '@flash-sale/redis';
import { RateLimiterMemory, RateLimiterRedis, RateLimiterRes } from 'rate-limiter-flexible';

export interface RateLimitsOptions {
  readonly redis: RedisClient;
  /** Requests a second of one shopper and of one address on all gateways together; 0: no limit. */
  readonly perShopper: number;
  readonly perAddress: number;
}

/** What a limit says of one request. */
export type RateVerdict =
  | { readonly outcome: 'within' }
  | {
      readonly outcome: 'beyond';
      readonly retryAfterSeconds: number;
      /** Whether it is not even a multiple of the limit: somebody's retries in a bad moment rather than a machine's. */
      readonly slightly: boolean;
    };

const WITHIN: RateVerdict = { outcome: 'within' };
/** Up to this multiple of the limit a shopper who may own something is still answered. */
const SLIGHTLY = 4;
/** This share of a limit is counted in memory alone, so that almost nobody's request costs a call to Redis. */
const FREE_SHARE = 0.1;

/**
 * Limits by shopper and by address. Each gateway counts in its own memory first; only who uses up a tenth of the limit there
 * is counted in Redis, for all gateways together. So with G gateways the true limit lies between the configured one and that
 * plus G tenths. Redis keys are `fs:rate:…`. Where Redis does not answer, each gateway counts alone.
 */
export class RateLimits {
  private readonly shopper: TwoStageLimit | null;
  private readonly address: TwoStageLimit | null;
  private readonly pages: RateLimiterMemory | null;

  constructor({ redis, perShopper, perAddress }: RateLimitsOptions) {
    this.shopper = perShopper > 0 ? new TwoStageLimit(redis, 'shopper', perShopper) : null;
    this.address = perAddress > 0 ? new TwoStageLimit(redis, 'address', perAddress) : null;
    this.pages =
      perAddress > 0 ? new RateLimiterMemory({ points: perAddress, duration: 1, keyPrefix: 'pages' }) : null;
  }

  /** Counts a request; the stricter limit answers. */
  async take(address: string, shopperId: string | null): Promise<RateVerdict> {
    const byAddress = this.address ? await this.address.take(address) : WITHIN;
    if (byAddress.outcome === 'beyond' || !this.shopper || shopperId === null) return byAddress;
    return this.shopper.take(shopperId);
  }

  /** Counts a request that memory answers, here alone: to ask Redis about it would cost more than to answer it. */
  async takeHere(address: string): Promise<RateVerdict> {
    const beyond = this.pages && (await consume(this.pages, address));
    return beyond ? { ...beyondOf(beyond), slightly: false } : WITHIN;
  }
}

function beyondOf({ msBeforeNext }: RateLimiterRes) {
  return { outcome: 'beyond', retryAfterSeconds: Math.max(1, Math.ceil(msBeforeNext / 1_000)) } as const;
}

class TwoStageLimit {
  private readonly free: RateLimiterMemory;
  private readonly shared: RateLimiterRedis;

  constructor(
    redis: RedisClient,
    name: string,
    private readonly points: number,
  ) {
    const freePoints = Math.max(1, Math.floor(points * FREE_SHARE));
    this.free = new RateLimiterMemory({ points: freePoints, duration: 1, keyPrefix: name });
    const sharedPoints = Math.max(1, points - freePoints);
    this.shared = new RateLimiterRedis({
      storeClient: redis,
      points: sharedPoints,
      duration: 1,
      keyPrefix: `fs:rate:${name}`,
      // Who is far beyond is refused from memory for the rest of the second.
      inMemoryBlockOnConsumed: sharedPoints * SLIGHTLY,
      inMemoryBlockDuration: 1,
      rejectIfRedisNotReady: true,
      insuranceLimiter: new RateLimiterMemory({
        points: sharedPoints,
        duration: 1,
        keyPrefix: `insurance-${name}`,
      }),
    });
  }

  async take(key: string): Promise<RateVerdict> {
    const free = await consume(this.free, key);
    if (free === null) return WITHIN;
    const shared = await consume(this.shared, key);
    if (shared === null) return WITHIN;
    return {
      ...beyondOf(shared),
      slightly: shared.consumedPoints > 0 && shared.consumedPoints <= this.points * SLIGHTLY,
    };
  }
}

/** `null` when the point was there. */
async function consume(
  limiter: RateLimiterMemory | RateLimiterRedis,
  key: string,
): Promise<RateLimiterRes | null> {
  try {
    await limiter.consume(key);
    return null;
  } catch (refused) {
    if (refused instanceof RateLimiterRes) return refused;
    throw refused;
  }
}
