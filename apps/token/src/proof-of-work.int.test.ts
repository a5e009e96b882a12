import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { IdempotencyKey, SaleId, ShopperId, attemptIdOf } from '@flash-sale/domain';
import { connectRedis, type RedisClient } from '@flash-sale/redis';
import { solveChallenge, type Challenge } from 'altcha-lib';
import { deriveKey } from 'altcha-lib/algorithms/pbkdf2';
import { ProofOfWork } from './proof-of-work.js';

/** Challenges are solved by ALTCHA's own solver; what is spliced is spliced by hand. Used ones are kept in a real Redis. */
const clock = { nowMs: Date.now() };
const saleId = SaleId.parse(`pow-${randomBytes(4).toString('hex')}`);
const alice = ShopperId.parse('alice');
const attempt = (key: string) => attemptIdOf(saleId, alice, IdempotencyKey.parse(key));
let redis: RedisClient;
let proofOfWork: ProofOfWork;

beforeAll(async () => {
  const address = process.env['REDIS_URL'];
  if (!address)
    throw new Error('REDIS_URL is not set: run this test by `npm test`, or start a stack and name it');
  redis = await connectRedis({ url: new URL('/3', address).href, name: 'pow-test' });
  proofOfWork = new ProofOfWork(redis, {
    secret: randomBytes(32),
    cost: 10,
    maxTries: 20,
    lifetimeMs: 60_000,
    now: () => clock.nowMs,
  });
});
afterAll(() => redis.disconnect());

const encode = (payload: object) => Buffer.from(JSON.stringify(payload)).toString('base64');
async function solved(challenge?: Challenge) {
  const given = challenge ?? (await proofOfWork.create(saleId, alice));
  const solution = await solveChallenge({ challenge: given, deriveKey });
  if (!solution) throw new Error('the challenge has no solution');
  return { challenge: given, solution };
}
const use = (text: string, key = 'k') => proofOfWork.use(text, saleId, alice, attempt(key));

describe('ProofOfWork', () => {
  it('takes a solution, again for the same attempt, and not for another', async () => {
    const text = encode(await solved());
    expect(await use(text, 'k1')).toBeNull();
    expect(await use(text, 'k1')).toBeNull();
    expect(await use(text, 'k2')).toBe('challenge_used');
  });

  it('lets one of many simultaneous attempts use a solution', async () => {
    const text = encode(await solved());
    const answers = await Promise.all(Array.from({ length: 20 }, (_, i) => use(text, `k${i}`)));
    expect(answers.filter((answer) => answer === null).length).toBe(1);
  });

  it('asks for a solution where there is none, or none that solves', async () => {
    const { challenge, solution } = await solved();
    expect(await use('')).toBe('challenge_required');
    expect(await use(encode({ challenge, solution: { ...solution, derivedKey: '00'.repeat(32) } }))).toBe(
      'challenge_required',
    );
  });

  it('refuses what was made up or changed', async () => {
    const { challenge, solution } = await solved();
    const { parameters, signature } = challenge;
    const spliced = (changes: object) =>
      encode({ challenge: { parameters: { ...parameters, ...changes }, signature }, solution });
    expect(await use(spliced({ expiresAt: (parameters.expiresAt ?? 0) + 3_600 }))).toBe('invalid_token');
    expect(await use(spliced({ cost: 1 }))).toBe('invalid_token');
    expect(await use(spliced({ keyPrefix: '00' }))).toBe('invalid_token');
    expect(await use(spliced({ data: { saleId, shopperId: 'mallory' } }))).toBe('invalid_token');
    expect(await use(encode({ challenge: { parameters }, solution }))).toBe('invalid_token');
    expect(await use(encode({ challenge: { parameters, signature: '0'.repeat(64) }, solution }))).toBe(
      'invalid_token',
    );
    expect(await use('not base64 of anything')).toBe('invalid_token');
    expect(await use(encode([]))).toBe('invalid_token');
    expect(await use('x'.repeat(5_000))).toBe('invalid_token');
  });

  it('refuses the challenge of another sale and of another shopper', async () => {
    const otherSale = encode(await solved(await proofOfWork.create(SaleId.parse('other'), alice)));
    const otherShopper = encode(await solved(await proofOfWork.create(saleId, ShopperId.parse('bob'))));
    expect(await use(otherSale)).toBe('invalid_token');
    expect(await use(otherShopper)).toBe('invalid_token');
  });

  it('asks for a new one when the time is over', async () => {
    const text = encode(await solved());
    clock.nowMs += 61_000;
    expect(await use(text)).toBe('challenge_required');
    clock.nowMs = Date.now();
  });
});
