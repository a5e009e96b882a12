import { describe, expect, it } from '@jest/globals';
import { parseEnv } from '@flash-sale/service';
import { orderRules, orderVariables } from './env.js';

const given = {
  OPS_PORT: '9090',
  GRPC_PORT: '9000',
  KAFKA_BROKERS: 'localhost:9092',
  MYSQL_URL: 'mysql://root@localhost:3306/flash_sale',
  PURCHASE_TOKEN_KEYS: `k1:${Buffer.alloc(32, 7).toString('base64')}`,
  INVENTORY_URL: 'localhost:9001',
};

describe('orderVariables', () => {
  it('has defaults that fit the protocol', () => {
    const parsed = parseEnv(orderVariables, given, orderRules);
    expect(parsed).toMatchObject({
      outcome: 'ok',
      env: { ENQUEUE_WINDOW_MS: 10_000, ACK_WINDOW_MS: 1_500, PAYMENT_ASK_AFTER_MS: 10_000 },
    });
  });

  it('says everything that is wrong at once, and repeats no secret', () => {
    const parsed = parseEnv(orderVariables, {
      ...given,
      INVENTORY_URL: 'inventory',
      MAX_WRITER_LAG: '0',
      PAYMENT_WEBHOOK_URL: 'ftp://x',
      PAYMENT_WEBHOOK_SECRET: 'short',
    });
    expect(parsed).toMatchObject({ outcome: 'faulty' });
    const faults = parsed.outcome === 'faulty' ? parsed.faults.join('\n') : '';
    for (const name of ['INVENTORY_URL', 'MAX_WRITER_LAG', 'PAYMENT_WEBHOOK_URL', 'PAYMENT_WEBHOOK_SECRET']) {
      expect(faults).toContain(name);
    }
    expect(faults).not.toContain('short');
  });

  it('wants a secret where there is a webhook to sign', () => {
    const parsed = parseEnv(
      orderVariables,
      { ...given, PAYMENT_WEBHOOK_URL: 'http://gateway:8080/v1/payments/webhook' },
      orderRules,
    );
    expect(parsed).toMatchObject({ outcome: 'faulty', faults: [expect.stringContaining('to sign')] });
  });
});
