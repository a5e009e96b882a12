import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from '@jest/globals';
import { grpcTarget } from './grpc.js';
import { decodeOrderEvent, deliveryHashOf, encodeOrderEvent } from './order-event.js';
import { PROBLEM_CODES, problemForStatus, problemOf, readProblem } from './problem.js';
import { SaleSnapshot, decodeSnapshot, encodeSnapshot, isNewer } from './sale-feed.js';

describe('generated types', () => {
  it('are what the .proto files say', () => {
    const script = fileURLToPath(new URL('../generate.mjs', import.meta.url));
    expect(() => execFileSync(process.execPath, [script, '--check'], { stdio: 'pipe' })).not.toThrow();
  });
});

describe('problems', () => {
  it('tell how long to wait wherever they ask to come back', () => {
    for (const code of PROBLEM_CODES) {
      const problem = problemOf(code);
      expect(problem.retryAfterSeconds !== undefined).toBe(problem.status === 429 || problem.status === 503);
      expect(problem.title).toMatch(/\.$/);
    }
  });

  it('are read from the wire as a closed set', () => {
    expect(readProblem('')).toBeNull();
    expect(readProblem('sold_out')).toBe('sold_out');
    expect(() => readProblem('toString')).toThrow(/unknown problem code/);
    expect(() => readProblem('solled_out')).toThrow(/unknown problem code/);
  });

  it.each([
    [400, 'malformed'],
    [404, 'not_found'],
    [405, 'method_not_allowed'],
    [408, 'malformed'],
    [413, 'too_large'],
    [415, 'unsupported_media_type'],
    [431, 'headers_too_large'],
    [500, 'internal'],
    [503, 'unavailable'],
  ])('stand for a status that a framework raised: %d is %s', (status, code) => {
    expect(problemForStatus(status)).toBe(code);
  });
});

describe('an address of a service', () => {
  it.each([
    ['order:9000', 'dns:///order:9000'],
    ['10.0.0.1:9000,10.0.0.2:9001', 'ipv4:10.0.0.1:9000,10.0.0.2:9001'],
    ['dns://10.0.0.53:53/order:9000', 'dns://10.0.0.53:53/order:9000'],
  ])('%s is balanced over %s', (address, target) => {
    expect(grpcTarget(address)).toBe(target);
  });

  it.each([
    'order',
    'order:9000,order:9001',
    '10.0.0.1:9000,',
    'dns://10.0.0.53/order',
    'http://order:9000',
    '',
  ])('is refused, naming the forms that would do: "%s"', (address) => {
    expect(() => grpcTarget(address)).toThrow(/host:port.*dns:.*10\.0\.0\.1:9000/);
  });
});

const delivery = { name: 'Alice Example', phone: '+86 138 0000 0000', address: '1 Example Road' };
const event = { v: 1 as const, token: 'v1.k.p.m', delivery, deliveryHash: deliveryHashOf(delivery) };

describe('order events', () => {
  it('of the first version decode for ever: these are the bytes that lie in Kafka', () => {
    const bytes = Buffer.from(
      '{"v":1,"token":"v1.k.p.m","delivery":{"name":"Alice Example","phone":"+86 138 0000 0000","address":"1 Example Road"},"deliveryHash":"f3rt4qELHSpFxGqEfFVDTH"}',
    );
    expect(decodeOrderEvent(bytes)).toEqual({ outcome: 'ok', event });
    expect(encodeOrderEvent(event).toString()).toBe(bytes.toString());
  });

  it.each([
    ['null', null, 'empty', ''],
    ['nothing', Buffer.alloc(0), 'empty', ''],
    ['no JSON', Buffer.from('{"v":1'), 'not_json', ''],
    ['a later version', Buffer.from('{"v":2}'), 'unknown_version', '2'],
    ['no version', Buffer.from('[]'), 'unknown_version', ''],
    ['a missing field', Buffer.from('{"v":1,"token":"x"}'), 'wrong_shape', '1'],
    ['an unknown field', Buffer.from(JSON.stringify({ ...event, price: 1 })), 'wrong_shape', '1'],
  ])('name the cause when a record holds %s', (_, value, cause, schema) => {
    expect(decodeOrderEvent(value)).toEqual({ outcome: 'dead', cause, schema });
  });

  it('tell two deliveries apart even when their fields run into each other', () => {
    expect(deliveryHashOf({ ...delivery, name: 'ab', address: 'c' })).not.toBe(
      deliveryHashOf({ ...delivery, name: 'a', address: 'bc' }),
    );
  });
});

describe('the sale feed', () => {
  const snapshot = SaleSnapshot.parse({
    saleId: 'noon',
    title: 'Noon',
    skuId: 'sku-1',
    allotment: 10,
    unitPrice: 999,
    currency: 'CNY',
    opensAtMs: 1,
    closesAtMs: 2,
    limitPerShopper: 1,
    bucketCount: 8,
    challenge: null,
    line: { mode: 'off', admitPerSecond: 1000, overbook: 0 },
    storedPhase: 'warmed',
    epoch: 1,
    version: 7,
    soldOut: false,
    stockLevel: 'plenty',
    filterBits: 1024,
    filterVersion: 1,
  });

  it('carries a snapshot unchanged', () => {
    expect(decodeSnapshot(encodeSnapshot(snapshot))).toEqual(snapshot);
  });

  it('replaces by epoch first and version second, so a late message never undoes a newer one', () => {
    expect(isNewer(snapshot, undefined)).toBe(true);
    expect(isNewer(snapshot, snapshot)).toBe(false);
    expect(isNewer({ ...snapshot, version: 8 }, snapshot)).toBe(true);
    expect(isNewer({ ...snapshot, epoch: 2, version: 1 }, snapshot)).toBe(true);
    expect(isNewer(snapshot, { ...snapshot, epoch: 2, version: 1 })).toBe(false);
  });
});
