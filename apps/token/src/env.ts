import {
  serviceAddressVariable,
  callVariables,
  chassisVariables,
  grpcVariables,
  intVariable,
  msVariable,
  purchaseTokenVariables,
  readEnv,
  redisRule,
  redisVariables,
  type Env,
} from '@flash-sale/service';

const variables = {
  ...chassisVariables,
  ...callVariables,
  ...grpcVariables,
  ...redisVariables,
  ...purchaseTokenVariables,
  /** Where inventory answers. */
  INVENTORY_URL: serviceAddressVariable.meta({ example: 'inventory:9000' }),
  /** How long inventory may take; below the 1,500 ms that the gateway waits for us. */
  STOCK_TIMEOUT_MS: msVariable.default(1_200),
  /** Work in one try of a challenge: iterations of PBKDF2. */
  CHALLENGE_COST: intVariable({ min: 1, max: 1_000_000 }).default(1_000),
  /** Tries that a challenge takes at most. */
  CHALLENGE_MAX_TRIES: intVariable({ min: 2, max: 10_000_000 }).default(2_000),
  /** How long a challenge may be used. */
  CHALLENGE_LIFETIME_MS: msVariable.default(600_000),
} as const;

export type TokenEnv = Env<typeof variables>;

export function readTokenEnv(): TokenEnv {
  return readEnv(variables, redisRule);
}
