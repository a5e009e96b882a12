import { describe, expect, it } from '@jest/globals';
import { parseEnv } from '@flash-sale/service';
import { gatewayRules, gatewayVariables } from './env.js';

const GOOD = {
  OPS_PORT: '1',
  PORT: '2',
  OPERATOR_PORT: '3',
  REDIS_URL: 'redis://127.0.0.1:6379',
  TOKEN_URL: 'token:1',
  INVENTORY_URL: 'inventory:1',
  ORDER_URL: 'order:1',
  JWT_HS256_SECRET: Buffer.alloc(32, 'x').toString('base64'),
  PAYMENT_WEBHOOK_SECRET: '0123456789abcdef',
};
const faultsOf = (changes: Record<string, string | undefined>) => {
  const parsed = parseEnv(gatewayVariables, { ...GOOD, ...changes }, gatewayRules);
  return parsed.outcome === 'ok' ? [] : parsed.faults;
};

describe('the environment of the gateway', () => {
  it('is complete with what is needed, and hands out no sessions by default', () => {
    const parsed = parseEnv(gatewayVariables, GOOD, gatewayRules);
    expect(parsed).toMatchObject({ outcome: 'ok', env: { DEV_LOGIN: false, JWT_ALGORITHM: 'HS256' } });
  });

  it.each([
    ['a short secret', { JWT_HS256_SECRET: 'c2hvcnQ=' }, 'JWT_HS256_SECRET'],
    ['no key for HS256', { JWT_HS256_SECRET: undefined }, 'needs JWT_HS256_SECRET'],
    ['no key for RS256', { JWT_ALGORITHM: 'RS256', JWT_HS256_SECRET: undefined }, 'exactly one of'],
    ['a secret with RS256', { JWT_ALGORITHM: 'RS256', JWT_JWKS: '{}' }, 'takes no JWT_HS256_SECRET'],
    ['a public key with HS256', { JWT_JWKS: '{}' }, 'takes no JWT_PUBLIC_KEY'],
    [
      'sessions without a secret',
      { JWT_ALGORITHM: 'ES256', JWT_JWKS: '{}', JWT_HS256_SECRET: undefined, DEV_LOGIN: 'true' },
      'DEV_LOGIN',
    ],
    ['an unknown algorithm', { JWT_ALGORITHM: 'none' }, 'JWT_ALGORITHM'],
    ['two addresses of Redis', { REDIS_CLUSTER_NODES: 'a:1' }, 'REDIS_URL'],
    ['a webhook secret that can be guessed', { PAYMENT_WEBHOOK_SECRET: 'x' }, 'PAYMENT_WEBHOOK_SECRET'],
    ['a flag that is no flag', { DEV_LOGIN: 'yes' }, 'DEV_LOGIN'],
  ])('says what is wrong with %s', (_, changes, words) => {
    expect(faultsOf(changes).join('\n')).toContain(words);
  });

  it('names every fault at once and repeats no secret', () => {
    const faults = faultsOf({ PORT: 'x', OPERATOR_PORT: '70000', JWT_HS256_SECRET: 'short-secret' }).join(
      '\n',
    );
    expect(faults).toMatch(/PORT[\s\S]*OPERATOR_PORT[\s\S]*JWT_HS256_SECRET/);
    expect(faults).not.toContain('short-secret');
  });
});
