import { createPublicKey, createSecretKey, hash, randomUUID, type KeyObject } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import { ShopperId } from '@flash-sale/domain';
import {
  SignJWT,
  createLocalJWKSet,
  createRemoteJWKSet,
  decodeProtectedHeader,
  errors,
  jwtVerify,
  type JSONWebKeySet,
  type JWTVerifyGetKey,
} from 'jose';
import { LRUCache } from 'lru-cache';
import { z } from 'zod';

/** Who calls. */
export interface Caller {
  readonly shopperId: ShopperId;
  readonly role: 'operator' | null;
  /** When the access token ends, milliseconds since 1970. */
  readonly expiresAtMs: number;
}

/** Where the keys are that tokens are verified with. */
export type KeySource =
  | { readonly kind: 'secret'; readonly secret: Buffer }
  | { readonly kind: 'pem'; readonly pem: string }
  | { readonly kind: 'jwks'; readonly json: string }
  | { readonly kind: 'jwks-url'; readonly url: string };

export interface AccessTokensOptions {
  readonly algorithm: 'HS256' | 'RS256' | 'PS256' | 'ES256' | 'EdDSA';
  readonly keys: KeySource;
  readonly audience: string;
  readonly issuer: string;
  /** The clock, milliseconds since 1970. */
  readonly now: () => number;
}

/** How far the clocks of the identity provider and ours may be apart. */
const TOLERANCE_SECONDS = 5;
/** Longer is refused before anything is parsed. */
const MAX_TOKEN_LENGTH = 4_096;
const CACHED_TOKENS = 100_000;
/** Latest time that is taken as a time: the year 5138. Anything beyond is an attempt to break arithmetic. */
const MAX_NUMERIC_DATE = 1e11;

const instant = z.number().positive().max(MAX_NUMERIC_DATE);
const Claims = z.object({
  sub: ShopperId,
  exp: instant,
  iat: instant,
  nbf: instant.optional(),
  jti: z.string().min(1).max(256),
  role: z.unknown().optional(),
});

/** Nothing in the header may choose a key or an algorithm for us; `kid` picks one of those that we have. */
const Header = z.strictObject({
  alg: z.string(),
  typ: z
    .string()
    .regex(/^(at\+jwt|JWT)$/i)
    .optional(),
  kid: z
    .string()
    .regex(/^[A-Za-z0-9_.=-]{1,64}$/)
    .optional(),
});

/**
 * Access tokens: JWTs of one pinned algorithm, audience and issuer, with `sub`, `exp`, `iat` and `jti`. A token that was
 * verified is remembered by its hash until it ends, so that its owner's next requests cost no signature.
 */
export class AccessTokens {
  private readonly verified = new LRUCache<string, Caller>({ max: CACHED_TOKENS });
  private readonly key: JWTVerifyGetKey;

  /** @throws when the key cannot be read, or is not one for the algorithm */
  constructor(private readonly options: AccessTokensOptions) {
    this.key = keyResolver(options);
  }

  /** Whose request it is, where the token is remembered and has not ended; `null` where only {@link verify} can tell. */
  recallCaller(headers: IncomingHttpHeaders): Caller | null {
    const token = bearerToken(headers);
    const known = token === null ? undefined : this.verified.get(fingerprint(token));
    return known && !this.isOver(known) ? known : null;
  }

  /** Whose token it is, or `null` for every token that must not be believed. */
  async verify(token: string): Promise<Caller | null> {
    if (token.length > MAX_TOKEN_LENGTH) return null;
    const key = fingerprint(token);
    const known = this.verified.get(key);
    if (known) return this.isOver(known) ? null : known;
    const caller = await this.verifySignature(token);
    if (caller) this.verified.set(key, caller);
    return caller;
  }

  /**
   * Signs a session for a name that nobody proved: for `DEV_LOGIN` only.
   *
   * @throws unless the algorithm is HS256
   */
  async signSession(
    shopperId: ShopperId,
    lifetimeMs: number,
  ): Promise<{ accessToken: string; expiresAtMs: number }> {
    const { keys, audience, issuer, now } = this.options;
    if (keys.kind !== 'secret') throw new Error('sessions can only be signed with HS256');
    const issuedAt = Math.floor(now() / 1_000);
    const expiresAt = issuedAt + Math.ceil(lifetimeMs / 1_000);
    const accessToken = await new SignJWT()
      .setProtectedHeader({ alg: 'HS256', typ: 'at+jwt' })
      .setSubject(shopperId)
      .setAudience(audience)
      .setIssuer(issuer)
      .setIssuedAt(issuedAt)
      .setExpirationTime(expiresAt)
      .setJti(randomUUID())
      .sign(keys.secret);
    return { accessToken, expiresAtMs: expiresAt * 1_000 };
  }

  private isOver(caller: Caller): boolean {
    return caller.expiresAtMs + TOLERANCE_SECONDS * 1_000 <= this.options.now();
  }

  private async verifySignature(token: string): Promise<Caller | null> {
    const { algorithm, audience, issuer, now } = this.options;
    if (!hasPlainHeader(token)) return null;
    try {
      const { payload } = await jwtVerify(token, this.key, {
        algorithms: [algorithm],
        audience,
        issuer,
        clockTolerance: TOLERANCE_SECONDS,
        currentDate: new Date(now()),
        requiredClaims: ['sub', 'exp', 'iat', 'jti'],
      });
      const claims = Claims.safeParse(payload);
      if (!claims.success) return null;
      const { sub, exp, iat, role } = claims.data;
      // jose does not look at `iat`; a token from the future was not made by a clock that we trust.
      if (iat > now() / 1_000 + TOLERANCE_SECONDS) return null;
      return { shopperId: sub, role: role === 'operator' ? 'operator' : null, expiresAtMs: exp * 1_000 };
    } catch (error) {
      if (error instanceof errors.JOSEError) return null;
      throw error;
    }
  }
}

/** What a token is remembered by: however long it is, this has 32 bytes. */
function fingerprint(token: string): string {
  return hash('sha256', token, 'binary');
}

/** The access token of a request; `null` where there is none, or nothing like one. */
export function bearerToken({ authorization }: IncomingHttpHeaders): string | null {
  return /^Bearer ([A-Za-z0-9_.~+/=-]+)$/i.exec(authorization ?? '')?.[1] ?? null;
}

function hasPlainHeader(token: string): boolean {
  try {
    return Header.safeParse(decodeProtectedHeader(token)).success;
  } catch {
    // It is no JWT at all.
    return false;
  }
}

function keyResolver({ algorithm, keys }: AccessTokensOptions): JWTVerifyGetKey {
  if ((keys.kind === 'secret') !== (algorithm === 'HS256')) {
    throw new Error(`a key of the kind "${keys.kind}" is not for ${algorithm}`);
  }
  switch (keys.kind) {
    case 'secret':
      return onlyKey(createSecretKey(keys.secret));
    case 'pem':
      return onlyKey(createPublicKey(keys.pem));
    case 'jwks':
      return createLocalJWKSet(JSON.parse(keys.json) as JSONWebKeySet);
    case 'jwks-url':
      return createRemoteJWKSet(new URL(keys.url), { timeoutDuration: 2_000, cooldownDuration: 5_000 });
  }
}

/** Our one key has no name: a token that names one means another. An object, because jose then imports it once only. */
function onlyKey(key: KeyObject): JWTVerifyGetKey {
  return ({ kid }) => {
    if (kid !== undefined) throw new errors.JWKSNoMatchingKey();
    return key;
  };
}
