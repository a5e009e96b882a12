import { createHmac, createPrivateKey, generateKeyPairSync, randomBytes, type KeyObject } from 'node:crypto';
import { beforeAll, describe, expect, it } from '@jest/globals';
import { ShopperId } from '@flash-sale/domain';
import { SignJWT, exportJWK } from 'jose';
import { AccessTokens, type AccessTokensOptions } from './identity.js';

/** Tokens are assembled by hand, because a library would refuse to make the wrong ones. */
const NOW_MS = Date.parse('2026-11-11T12:00:00.000Z');
const NOW = NOW_MS / 1_000;
const secret = randomBytes(32);
const CLAIMS = { sub: 'alice', aud: 'flash-sale', iss: 'idp', iat: NOW, exp: NOW + 60, jti: 'j1' };

const base64 = (value: object | string) =>
  Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url');
const hs256 = (header: object, claims: object | string, key: string | Buffer = secret) => {
  const body = `${base64(header)}.${base64(claims)}`;
  return `${body}.${createHmac('sha256', key).update(body).digest('base64url')}`;
};
const good = hs256({ alg: 'HS256', typ: 'at+jwt' }, CLAIMS);

function tokens(options: Partial<AccessTokensOptions> = {}, clock = { nowMs: NOW_MS }) {
  return new AccessTokens({
    algorithm: 'HS256',
    keys: { kind: 'secret', secret },
    audience: 'flash-sale',
    issuer: 'idp',
    now: () => clock.nowMs,
    ...options,
  });
}

describe('AccessTokens.verify', () => {
  it('says whose token it is', async () => {
    expect(await tokens().verify(good)).toEqual({
      shopperId: 'alice',
      role: null,
      expiresAtMs: NOW_MS + 60_000,
    });
    const operator = hs256({ alg: 'HS256' }, { ...CLAIMS, role: 'operator' });
    expect(await tokens().verify(operator)).toMatchObject({ role: 'operator' });
  });

  it.each([
    ['no signature', `${base64({ alg: 'none' })}.${base64(CLAIMS)}.`],
    ['alg nOnE', `${base64({ alg: 'nOnE', typ: 'JWT' })}.${base64(CLAIMS)}.`],
    ['another algorithm', hs256({ alg: 'HS512' }, CLAIMS)],
    ['another secret', hs256({ alg: 'HS256' }, CLAIMS, randomBytes(32))],
    ['a flipped payload', good.replace(base64(CLAIMS), base64({ ...CLAIMS, sub: 'mallory' }))],
    ['a flipped signature', `${good.slice(0, -2)}${good.endsWith('AA') ? 'BB' : 'AA'}`],
    ['a kid that is a path', hs256({ alg: 'HS256', kid: '../../dev/null' }, CLAIMS)],
    ['a kid that is SQL', hs256({ alg: 'HS256', kid: "' OR 1=1 --" }, CLAIMS)],
    ['an unknown kid', hs256({ alg: 'HS256', kid: 'k2' }, CLAIMS)],
    ['a jku', hs256({ alg: 'HS256', jku: 'https://evil.example/jwks' }, CLAIMS)],
    ['an x5u', hs256({ alg: 'HS256', x5u: 'https://evil.example/cert' }, CLAIMS)],
    ['a jwk', hs256({ alg: 'HS256', jwk: { kty: 'oct', k: 'AAAA' } }, CLAIMS)],
    ['crit', hs256({ alg: 'HS256', crit: ['b64'], b64: false }, CLAIMS)],
    ['another typ', hs256({ alg: 'HS256', typ: 'dpop+jwt' }, CLAIMS)],
    ['another audience', hs256({ alg: 'HS256' }, { ...CLAIMS, aud: 'purchase' })],
    ['another issuer', hs256({ alg: 'HS256' }, { ...CLAIMS, iss: 'evil' })],
    ['no exp', hs256({ alg: 'HS256' }, { ...CLAIMS, exp: undefined })],
    ['exp as text', hs256({ alg: 'HS256' }, { ...CLAIMS, exp: String(NOW + 60) })],
    [
      'exp that is infinite',
      hs256({ alg: 'HS256' }, JSON.stringify(CLAIMS).replace(String(NOW + 60), '1e400')),
    ],
    ['exp beyond all times', hs256({ alg: 'HS256' }, { ...CLAIMS, exp: 1e15 })],
    ['no jti', hs256({ alg: 'HS256' }, { ...CLAIMS, jti: undefined })],
    ['no sub', hs256({ alg: 'HS256' }, { ...CLAIMS, sub: undefined })],
    ['a sub that is no id', hs256({ alg: 'HS256' }, { ...CLAIMS, sub: "x' OR '1'='1" })],
    ['a sub that is an object', hs256({ alg: 'HS256' }, { ...CLAIMS, sub: { id: 1 } })],
    ['iat in the future', hs256({ alg: 'HS256' }, { ...CLAIMS, iat: NOW + 7 })],
    ['nbf in the future', hs256({ alg: 'HS256' }, { ...CLAIMS, nbf: NOW + 7 })],
    ['expired by a second beyond the tolerance', hs256({ alg: 'HS256' }, { ...CLAIMS, exp: NOW - 6 })],
    ['deep claims', hs256({ alg: 'HS256' }, `{"a":${'['.repeat(1_500)}${']'.repeat(1_500)}}`)],
    ['claims that are a list', hs256({ alg: 'HS256' }, '[]')],
    ['a megabyte', 'x'.repeat(1_000_000)],
    ['five parts', 'a.b.c.d.e'],
    ['a purchase token', `v1.k1.${base64({ a: 'sale-x' })}.${base64('mac')}`],
    ['nothing', ''],
  ])('refuses a token with %s', async (_, token) => {
    expect(await tokens().verify(token)).toBeNull();
  });

  it('tolerates clocks that differ by five seconds', async () => {
    expect(await tokens().verify(hs256({ alg: 'HS256' }, { ...CLAIMS, exp: NOW - 4 }))).not.toBeNull();
    expect(
      await tokens().verify(hs256({ alg: 'HS256' }, { ...CLAIMS, iat: NOW + 4, nbf: NOW + 4 })),
    ).not.toBeNull();
  });

  it('does not believe a remembered token after its end', async () => {
    const clock = { nowMs: NOW_MS };
    const verifier = tokens({}, clock);
    expect(await verifier.verify(good)).not.toBeNull();
    clock.nowMs = NOW_MS + 66_000;
    expect(await verifier.verify(good)).toBeNull();
  });
});

describe('AccessTokens with a public key', () => {
  let privateKey: KeyObject;
  let pem: string;
  const rs256 = (key: KeyObject, header: object = {}) =>
    new SignJWT(CLAIMS).setProtectedHeader({ alg: 'RS256', ...header }).sign(key);

  beforeAll(() => {
    const pair = generateKeyPairSync('rsa', { modulusLength: 2048 });
    privateKey = createPrivateKey(pair.privateKey.export({ type: 'pkcs8', format: 'pem' }));
    pem = pair.publicKey.export({ type: 'spki', format: 'pem' }).toString();
  });

  it('takes a token signed by the private key, and no HS256 made with the public one', async () => {
    const verifier = tokens({ algorithm: 'RS256', keys: { kind: 'pem', pem } });
    expect(await verifier.verify(await rs256(privateKey))).not.toBeNull();
    expect(await verifier.verify(hs256({ alg: 'HS256' }, CLAIMS, pem))).toBeNull();
    expect(await verifier.verify(hs256({ alg: 'RS256' }, CLAIMS, pem))).toBeNull();
  });

  it('rotates keys by kid: an old key counts until it is taken out of the set', async () => {
    const other = generateKeyPairSync('rsa', { modulusLength: 2048 });
    const jwk = async (key: KeyObject | string, kid: string) => ({
      ...(await exportJWK(typeof key === 'string' ? createPrivateKey(key) : key)),
      kid,
      alg: 'RS256',
    });
    const oldKey = await jwk(privateKey, 'old');
    const { n, e, kty } = oldKey;
    const both = { keys: [{ n, e, kty, kid: 'old', alg: 'RS256' }, await jwk(other.publicKey, 'new')] };
    const newOnly = { keys: both.keys.slice(1) };
    const set = (keys: object) =>
      tokens({ algorithm: 'RS256', keys: { kind: 'jwks', json: JSON.stringify(keys) } });
    const oldToken = await rs256(privateKey, { kid: 'old' });
    const newToken = await rs256(other.privateKey, { kid: 'new' });
    expect(await set(both).verify(oldToken)).not.toBeNull();
    expect(await set(both).verify(newToken)).not.toBeNull();
    expect(await set(newOnly).verify(oldToken)).toBeNull();
    expect(await set(newOnly).verify(await rs256(privateKey, { kid: 'new' }))).toBeNull();
  });

  it('refuses to be set up with a key for another algorithm', () => {
    expect(() => tokens({ algorithm: 'HS256', keys: { kind: 'pem', pem } })).toThrow('not for HS256');
    expect(() => tokens({ algorithm: 'RS256' })).toThrow('not for RS256');
  });
});

describe('AccessTokens.signSession', () => {
  it('signs a token that is believed, for the time asked', async () => {
    const verifier = tokens();
    const { accessToken, expiresAtMs } = await verifier.signSession(ShopperId.parse('bob'), 60_000);
    expect(expiresAtMs).toBe(NOW_MS + 60_000);
    expect(await verifier.verify(accessToken)).toEqual({ shopperId: 'bob', role: null, expiresAtMs });
  });
});
