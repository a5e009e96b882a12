import { SaleId, ShopperId, type AttemptId } from '@flash-sale/domain';
import type { RedisClient } from '@flash-sale/redis';
import { createChallenge, randomInt, verifySolution, type Challenge } from 'altcha-lib';
import { deriveKey } from 'altcha-lib/algorithms/pbkdf2';
import { z } from 'zod';
import { usedChallengeKey } from './keys.js';

export interface ProofOfWorkOptions {
  /** Signs challenges; at least 32 bytes. */
  readonly secret: Buffer;
  /** Iterations of one try of the solver. */
  readonly cost: number;
  /** Tries a solver needs at most; on average about three quarters of it. */
  readonly maxTries: number;
  /** How long a challenge may be used after it was made, milliseconds. */
  readonly lifetimeMs: number;
  /** The clock, milliseconds since 1970. */
  readonly now: () => number;
}

/** Why a solution does not count; `null` when it does. */
export type ChallengeFault = 'challenge_required' | 'invalid_token' | 'challenge_used';

const MAX_SOLUTION_LENGTH = 4_096;
const hex = z.string().regex(/^[0-9a-f]{2,128}$/);

/** What the widget sends: base64 of this. Unknown parameters are kept, because the signature covers them. */
const Payload = z.object({
  challenge: z.object({
    parameters: z.looseObject({
      algorithm: z.literal('PBKDF2/SHA-256'),
      nonce: hex,
      salt: hex,
      cost: z.int().min(1).max(1_000_000),
      keyLength: z.literal(32),
      keyPrefix: hex,
      keySignature: hex,
      expiresAt: z.int().positive(),
      data: z.object({ saleId: SaleId, shopperId: ShopperId }),
    }),
    signature: z.string().regex(/^[0-9a-f]{64}$/),
  }),
  solution: z.object({ counter: z.int().min(0), derivedKey: hex }),
});

/**
 * Proof of work (ALTCHA): makes each entry cost its sender a moment of computing. A challenge is bound to one sale and one
 * shopper, expires, and can be used by one attempt only; that attempt may be repeated with it as often as needed.
 */
export class ProofOfWork {
  private readonly signatureSecret: string;
  private readonly keySecret: string;

  constructor(
    private readonly redis: RedisClient,
    private readonly options: ProofOfWorkOptions,
  ) {
    this.signatureSecret = `challenge:${options.secret.toString('base64url')}`;
    this.keySecret = `solution:${options.secret.toString('base64url')}`;
  }

  /** A challenge for one shopper and sale, as ALTCHA's widget reads it. */
  create(saleId: SaleId, shopperId: ShopperId): Promise<Challenge> {
    const { cost, maxTries, lifetimeMs, now } = this.options;
    return createChallenge({
      algorithm: 'PBKDF2/SHA-256',
      cost,
      counter: randomInt(maxTries, Math.ceil(maxTries / 2)),
      deriveKey,
      expiresAt: new Date(now() + lifetimeMs),
      data: { saleId, shopperId },
      hmacSignatureSecret: this.signatureSecret,
      hmacKeySignatureSecret: this.keySecret,
    });
  }

  /**
   * Checks a solution and uses it up for the attempt. Idempotent by attempt.
   *
   * @param text as the shopper sent it; empty when none was sent
   * @returns `challenge_required` when there is none, or none in time, or it is not solved; `invalid_token` when it was
   *   made up, changed, or belongs to another sale or shopper; `challenge_used` when another attempt used it
   */
  async use(
    text: string,
    saleId: SaleId,
    shopperId: ShopperId,
    attemptId: AttemptId,
  ): Promise<ChallengeFault | null> {
    if (text === '') return 'challenge_required';
    const payload = readPayload(text);
    if (!payload) return 'invalid_token';
    const { challenge, solution } = payload;
    const result = await verifySolution({
      challenge,
      solution,
      deriveKey,
      hmacSignatureSecret: this.signatureSecret,
      hmacKeySignatureSecret: this.keySecret,
    });
    const { data, expiresAt } = challenge.parameters;
    if (result.invalidSignature) return 'invalid_token';
    if (result.expired || expiresAt * 1_000 <= this.options.now()) return 'challenge_required';
    if (data.saleId !== saleId || data.shopperId !== shopperId) return 'invalid_token';
    if (!result.verified) return 'challenge_required';
    // Kept a little longer than the challenge lives, so that two clocks cannot open a gap.
    const keepMs = Math.max(1, expiresAt * 1_000 - this.options.now()) + 60_000;
    const key = usedChallengeKey(saleId, challenge.signature);
    if ((await this.redis.set(key, attemptId, 'PX', keepMs, 'NX')) === 'OK') return null;
    return (await this.redis.get(key)) === attemptId ? null : 'challenge_used';
  }
}

function readPayload(text: string): z.infer<typeof Payload> | null {
  if (text.length > MAX_SOLUTION_LENGTH) return null;
  try {
    const parsed = Payload.safeParse(JSON.parse(Buffer.from(text, 'base64').toString('utf8')));
    return parsed.success ? parsed.data : null;
  } catch {
    return null;
  }
}
