import { createHmac, randomUUID } from 'node:crypto';

/** What the gateway is told to trust, and what the crowd's tokens therefore carry. */
export interface Identity {
  /** Shared with the gateway of this run only. */
  readonly secret: Buffer;
  readonly issuer: string;
  readonly audience: string;
}

const LIFETIME_SECONDS = 6 * 3600;

/**
 * An access token as the identity provider of a real shop would hand it out long before the sale. That provider stands
 * outside of this suite, so the demonstration plays it: it shares one secret with the gateway and signs by itself,
 * instead of spending one call of the sold-out moment on each of 20,000 log-ins.
 */
export function signAccessToken(
  identity: Identity,
  bearer: { readonly subject: string; readonly role?: 'operator' },
): string {
  const issuedAt = Math.floor(Date.now() / 1_000) - 1;
  const claims = {
    sub: bearer.subject,
    iss: identity.issuer,
    aud: identity.audience,
    iat: issuedAt,
    exp: issuedAt + LIFETIME_SECONDS,
    jti: randomUUID(),
    ...(bearer.role ? { role: bearer.role } : {}),
  };
  const body = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode(claims)}`;
  return `${body}.${createHmac('sha256', identity.secret).update(body).digest('base64url')}`;
}

function encode(value: object): string {
  return Buffer.from(JSON.stringify(value)).toString('base64url');
}
