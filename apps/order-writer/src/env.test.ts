import { describe, expect, it } from '@jest/globals';
import { parseEnv } from '@flash-sale/service';
import { writerVariables } from './env.js';

describe('writerVariables', () => {
  it('has defaults for all but addresses and keys', () => {
    const parsed = parseEnv(writerVariables, {});
    const names = parsed.outcome === 'faulty' ? parsed.faults.map((fault) => fault.split(/[ :]/)[0]) : [];
    expect(names.sort()).toEqual([
      'INVENTORY_URL',
      'KAFKA_BROKERS',
      'MYSQL_URL',
      'OPS_PORT',
      'PURCHASE_TOKEN_KEYS',
    ]);
  });
});
