import { describe, expect, it } from '@jest/globals';
import { parseEnv } from '@flash-sale/service';
import { inventoryRules, inventoryVariables } from './env.js';

const complete = {
  OPS_PORT: '9090',
  GRPC_PORT: '9000',
  REDIS_URL: 'redis://localhost:6379/1',
  KAFKA_BROKERS: 'localhost:9092',
  MYSQL_URL: 'mysql://root@localhost:3306/flash_sale',
};
const faults = (changes: Readonly<Record<string, string | undefined>>) => {
  const parsed = parseEnv(inventoryVariables, { ...complete, ...changes }, inventoryRules);
  return parsed.outcome === 'ok' ? [] : parsed.faults;
};

describe('inventory’s variables', () => {
  it('need addresses only; patience has defaults that fit each other', () => {
    const parsed = parseEnv(inventoryVariables, complete, inventoryRules);
    expect(parsed).toMatchObject({
      outcome: 'ok',
      env: { SWEEP_GRACE_MS: 15_000, QUEUED_MS: 30_000, ACKNOWLEDGED_MS: 600_000, ORDERS_TOPIC: 'orders.v1' },
    });
  });

  it('refuse a grace in which an order might still arrive', () => {
    expect(faults({ SWEEP_GRACE_MS: '12499' })).toEqual([expect.stringContaining('at least')]);
    expect(faults({ SWEEP_GRACE_MS: '12500' })).toEqual([]);
    expect(faults({ ENQUEUE_WINDOW_MS: '1000', SWEEP_GRACE_MS: '3500' })).toEqual([]);
  });

  it.each([
    ['REDIS_URL', undefined],
    ['MYSQL_URL', 'localhost'],
    ['ORDERS_TOPIC', 'a topic'],
    ['SWEEP_LEASE_MS', '1'],
    ['WATCH_INTERVAL_MS', '1.5'],
  ])('name %s when it is %s', (name, value) => {
    expect(faults({ [name]: value }).join()).toContain(name);
  });
});
