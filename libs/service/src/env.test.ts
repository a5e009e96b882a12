import { describe, expect, test } from '@jest/globals';
import { z } from 'zod';
import {
  addressesVariable,
  chassisVariables,
  flagVariable,
  intVariable,
  kafkaVariables,
  msVariable,
  mysqlVariables,
  parseEnv,
  portVariable,
  purchaseTokenVariables,
  redisRule,
  redisVariables,
} from './env.js';

const faultsOf = (shape: Record<string, z.ZodType>, variables: Record<string, string>): readonly string[] => {
  const parsed = parseEnv(shape, variables);
  return parsed.outcome === 'faulty' ? parsed.faults : [];
};

describe('parseEnv', () => {
  test('gives typed values, defaults included, and takes an empty variable for an absent one', () => {
    const parsed = parseEnv(
      { ...chassisVariables, ...kafkaVariables, DEV_LOGIN: flagVariable.default(false) },
      { OPS_PORT: '9090', LOG_LEVEL: '', KAFKA_BROKERS: 'a:1, b:2', DEV_LOGIN: 'true' },
    );
    expect(parsed).toEqual({
      outcome: 'ok',
      env: {
        OPS_PORT: 9090,
        LOG_LEVEL: 'info',
        DRAIN_WAIT_MS: 3000,
        KAFKA_BROKERS: ['a:1', 'b:2'],
        DEV_LOGIN: true,
      },
    });
  });

  test('finds all faults in one go, each with its variable, what is wrong, and an example', () => {
    const shape = { PORT: portVariable, HOLD_MS: msVariable, DEV_LOGIN: flagVariable, ...kafkaVariables };
    expect(faultsOf(shape, { PORT: '70000', HOLD_MS: '1.5', DEV_LOGIN: 'yes' })).toEqual([
      'PORT: must be from 0 to 65535 (it is "70000"), e.g. PORT=8080',
      'HOLD_MS: must be a whole number (it is "1.5"), e.g. HOLD_MS=1500',
      'DEV_LOGIN: must be true or false (it is "yes"), e.g. DEV_LOGIN=true',
      'KAFKA_BROKERS is missing, e.g. KAFKA_BROKERS=localhost:9092',
    ]);
  });

  test.each(['-1', '1e3', ' 5', '0x10', '12345678901234567', 'NaN'])(
    'refuses %j for a whole number',
    (value) => {
      expect(faultsOf({ N: intVariable() }, { N: value })).toHaveLength(1);
    },
  );

  test.each(['host', 'host:', 'a:1,,b:2', 'a:1;b:2', 'http://a:1'])('refuses %j for addresses', (value) => {
    expect(faultsOf({ A: addressesVariable }, { A: value })).not.toEqual([]);
  });

  test('never repeats a secret', () => {
    const faults = faultsOf(
      { ...purchaseTokenVariables, ...mysqlVariables, ...redisVariables },
      { PURCHASE_TOKEN_KEYS: 'k1:c2hvcnQ=', MYSQL_URL: 'mysql://user:hunter2@host', REDIS_URL: 'hunter2' },
    );
    expect(faults).toHaveLength(3);
    expect(faults[0]).toContain('PURCHASE_TOKEN_KEYS: key "k1" has 5 bytes, 32 are needed');
    expect(faults.join('\n')).not.toMatch(/hunter2|c2hvcnQ/);
  });

  test('asks the rules between variables once each variable is good by itself', () => {
    const both = { REDIS_URL: 'redis://a:1', REDIS_CLUSTER_NODES: 'b:2' };
    expect(parseEnv(redisVariables, both, redisRule)).toMatchObject({ outcome: 'faulty' });
    expect(parseEnv(redisVariables, {}, redisRule)).toMatchObject({ outcome: 'faulty' });
    expect(parseEnv(redisVariables, { REDIS_URL: 'redis://a:1/2' }, redisRule)).toMatchObject({
      outcome: 'ok',
      env: { REDIS_URL: 'redis://a:1/2' },
    });
  });
});
