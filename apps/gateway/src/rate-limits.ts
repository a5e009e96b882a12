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
const BEYOND_HERE: RateVerdict = { outcome: 'beyond', retryAfterSeconds: 1, slightly: false };
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
  private readonly pages: SecondCounter | null;

  constructor({ redis, perShopper, perAddress }: RateLimitsOptions) {
    this.shopper = perShopper > 0 ? new TwoStageLimit(redis, 'shopper', perShopper) : null;
    this.address = perAddress > 0 ? new TwoStageLimit(redis, 'address', perAddress) : null;
    this.pages = perAddress > 0 ? new SecondCounter(perAddress) : null;
  }

  /** Counts a request; the stricter limit answers. */
  async take(address: string, shopperId: string | null): Promise<RateVerdict> {
    const byAddress = this.address ? await this.address.take(address) : WITHIN;
    if (byAddress.outcome === 'beyond' || !this.shopper || shopperId === null) return byAddress;
    return this.shopper.take(shopperId);
  }

  /** Counts a request that memory answers, here alone: to ask Redis about it would cost more than to answer it. */
  takeHere(address: string): RateVerdict {
    return !this.pages || this.pages.take(address) ? WITHIN : BEYOND_HERE;
  }
}

/** Counts by key within a second that is the same for all keys: its end forgets them all, and none has a timer of its own. */
class SecondCounter {
  private readonly taken = new Map<string, number>();
  private endsMs = 0;

  constructor(private readonly points: number) {}

  /** False where the key's points of this second are used up. */
  take(key: string): boolean {
    const nowMs = performance.now();
    if (nowMs >= this.endsMs) {
      this.taken.clear();
      this.endsMs = nowMs + 1_000;
    }
    const taken = this.taken.get(key) ?? 0;
    if (taken >= this.points) return false;
    this.taken.set(key, taken + 1);
    return true;
  }
}

class TwoStageLimit {
  private readonly free: SecondCounter;
  private readonly shared: RateLimiterRedis;

  constructor(
    redis: RedisClient,
    name: string,
    private readonly points: number,
  ) {
    const freePoints = Math.max(1, Math.floor(points * FREE_SHARE));
    this.free = new SecondCounter(freePoints);
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
    if (this.free.take(key)) return WITHIN;
    const shared = await consume(this.shared, key);
    if (shared === null) return WITHIN;
    return {
      outcome: 'beyond',
      retryAfterSeconds: Math.max(1, Math.ceil(shared.msBeforeNext / 1_000)),
      slightly: shared.consumedPoints > 0 && shared.consumedPoints <= this.points * SLIGHTLY,
    };
  }
}

/** `null` when the point was there. */
async function consume(limiter: RateLimiterRedis, key: string): Promise<RateLimiterRes | null> {
  try {
    await limiter.consume(key);
    return null;
  } catch (refused) {
    if (refused instanceof RateLimiterRes) return refused;
    throw refused;
  }
}
