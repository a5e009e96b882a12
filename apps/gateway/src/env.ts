import {
  serviceAddressVariable,
  callVariables,
  chassisVariables,
  flagVariable,
  intVariable,
  msVariable,
  portVariable,
  readEnv,
  redisRule,
  redisVariables,
  type Env,
} from '@flash-sale/service';
import { z } from 'zod';

const base64Secret = z
  .string()
  .transform((text) => Buffer.from(text, 'base64'))
  .refine((secret) => secret.length >= 32, 'must be base64 of at least 32 bytes')
  .meta({ example: '$(openssl rand -base64 32)', secret: true });

export const gatewayVariables = {
  ...chassisVariables,
  ...callVariables,
  ...redisVariables,
  HOST: z.string().default('0.0.0.0'),
  /** Where shoppers call. */
  PORT: portVariable.meta({ example: '8080' }),
  /** Where operators call; never in the public ingress. */
  OPERATOR_PORT: portVariable.meta({ example: '8081' }),
  TOKEN_URL: serviceAddressVariable.meta({ example: 'token:9000' }),
  INVENTORY_URL: serviceAddressVariable.meta({ example: 'inventory:9000' }),
  ORDER_URL: serviceAddressVariable.meta({ example: 'order:9000' }),

  /**
   * The one signature algorithm that is taken. HS256 needs JWT_HS256_SECRET; the others need exactly one of JWT_PUBLIC_KEY,
   * JWT_JWKS and JWT_JWKS_URL.
   */
  JWT_ALGORITHM: z
    .enum(['HS256', 'RS256', 'PS256', 'ES256', 'EdDSA'], 'must be HS256, RS256, PS256, ES256 or EdDSA')
    .default('HS256')
    .meta({ example: 'RS256' }),
  JWT_HS256_SECRET: base64Secret.optional(),
  /** A public key in PEM (SPKI). */
  JWT_PUBLIC_KEY: z
    .string()
    .startsWith('-----BEGIN PUBLIC KEY-----', 'must be a public key in PEM')
    .optional(),
  /** A JSON Web Key Set, written out. Tokens then name their key by `kid`, so that keys can be rotated. */
  JWT_JWKS: z.string().startsWith('{', 'must be a JSON object').optional(),
  /** Where the identity provider publishes its JSON Web Key Set. */
  JWT_JWKS_URL: z.url({ protocol: /^https?$/, error: 'must be an http(s) URL' }).optional(),
  JWT_AUDIENCE: z.string().default('flash-sale'),
  JWT_ISSUER: z.string().default('flash-sale'),
  /** Whether anybody may have an access token for any name by `POST /v1/sessions`. For demonstrations and tests only. */
  DEV_LOGIN: flagVariable.default(false),
  /** How long such a session lasts. */
  DEV_SESSION_MS: msVariable.default(6 * 3_600_000),

  /** Shared with the payment provider: its events are signed with it. */
  PAYMENT_WEBHOOK_SECRET: z
    .string()
    .min(16, 'must have at least 16 characters')
    .meta({ example: '$(openssl rand -hex 32)', secret: true }),

  /** Requests a second that one shopper may make, on all gateways together; 0: no limit. */
  RATE_LIMIT_PER_SHOPPER_PER_SECOND: intVariable({ max: 1_000_000 }).default(20),
  /** Requests a second from one address, on all gateways together; 0: no limit. Many shoppers may share an address. */
  RATE_LIMIT_PER_ADDRESS_PER_SECOND: intVariable({ max: 1_000_000 }).default(10_000),
  /**
   * New entries that this gateway lets in a second; 0: as many as the services behind turn out to manage. What the suite was
   * measured to carry, divided by the number of gateways, keeps a rush from ever reaching it.
   */
  MAX_ENTRIES_PER_SECOND: intVariable({ max: 1_000_000 }).default(0),
  /** Proxies in front whose X-Forwarded-For is believed. */
  TRUSTED_PROXY_HOPS: intVariable({ max: 10 }).default(0),

  /** Connections open at once on each port; more are closed at once. */
  MAX_CONNECTIONS: intVariable({ min: 1, max: 1_000_000 }).default(20_000),
  /** Event streams open at once in this process; more are refused with 503. */
  MAX_EVENT_STREAMS: intVariable({ min: 1, max: 200_000 }).default(10_000),
  /** How often the state behind an event stream is looked at. */
  EVENT_POLL_MS: msVariable.default(750),

  /** The folder of the built shopper page; nothing is served where it is absent. */
  WEB_ROOT: z.string().optional(),
  /** Whether `/openapi.json` and `/docs` are served. */
  DOCS: flagVariable.default(true),
} as const;

export type GatewayEnv = Env<typeof gatewayVariables>;

/** What must hold between the variables. */
export function gatewayRules(env: GatewayEnv): readonly string[] {
  const faults = [...redisRule(env)];
  const keySources = [env.JWT_PUBLIC_KEY, env.JWT_JWKS, env.JWT_JWKS_URL].filter(
    (value) => value !== undefined,
  );
  if (env.JWT_ALGORITHM === 'HS256') {
    if (!env.JWT_HS256_SECRET)
      faults.push('JWT_ALGORITHM=HS256 needs JWT_HS256_SECRET, base64 of at least 32 bytes');
    if (keySources.length > 0)
      faults.push('JWT_ALGORITHM=HS256 takes no JWT_PUBLIC_KEY, JWT_JWKS or JWT_JWKS_URL');
  } else {
    if (env.JWT_HS256_SECRET) faults.push(`JWT_ALGORITHM=${env.JWT_ALGORITHM} takes no JWT_HS256_SECRET`);
    if (keySources.length !== 1) {
      faults.push(
        `JWT_ALGORITHM=${env.JWT_ALGORITHM} needs exactly one of JWT_PUBLIC_KEY, JWT_JWKS and JWT_JWKS_URL`,
      );
    }
    if (env.DEV_LOGIN)
      faults.push('DEV_LOGIN=true needs JWT_ALGORITHM=HS256: nobody else can sign sessions here');
  }
  return faults;
}

export function readGatewayEnv(): GatewayEnv {
  return readEnv(gatewayVariables, gatewayRules);
}
