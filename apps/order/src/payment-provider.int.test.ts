import { createHmac, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { Database, dropTestDatabase, migrate } from '@flash-sale/database';
import { createLog } from '@flash-sale/service';
import { TestPaymentProvider } from './payment-provider.js';

const server = process.env['MYSQL_URL'] ?? '';
const url = new URL(
  `test_order_${randomBytes(4).toString('hex')}`,
  server.endsWith('/') ? server : `${server}/`,
).href;
const log = createLog('order-test', 'silent');
const BAD = '4000000000000002';
const LATE = '4000000000000259';
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

describe('TestPaymentProvider', () => {
  let database: Database;

  beforeAll(async () => {
    await migrate(url);
    database = new Database({ url, poolSize: 4 });
  });
  afterAll(async () => {
    await database.close();
    await dropTestDatabase(url);
  });

  it('reports a late result, signed, until it is taken, and under one id', async () => {
    const received: { id: string; valid: boolean }[] = [];
    const receiver = createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        const body = Buffer.concat(chunks).toString();
        const timestamp = String(request.headers['x-payment-timestamp']);
        const expected = createHmac('sha256', 'webhook-secret').update(`${timestamp}.${body}`).digest('hex');
        received.push({
          id: (JSON.parse(body) as { eventId: string }).eventId,
          valid:
            request.headers['x-payment-signature'] === expected &&
            Math.abs(Number(timestamp) - Date.now() / 1_000) < 5,
        });
        response.writeHead(received.length === 1 ? 503 : 204).end();
      });
    });
    await new Promise<void>((resolve) => receiver.listen(0, '127.0.0.1', resolve));
    const webhook = {
      url: `http://127.0.0.1:${(receiver.address() as AddressInfo).port}/`,
      secret: 'webhook-secret',
    };
    const provider = new TestPaymentProvider({ database, lateMs: 1, webhook, log });
    await provider.charge({ paymentId: 'pay-hook', amount: 1, currency: 'CNY', card: LATE });
    await sleep(10);
    for (let n = 0; n < 3; n += 1) await provider.reportDue();
    expect(received).toEqual([
      { id: 'evt-pay-hook', valid: true },
      { id: 'evt-pay-hook', valid: true },
    ]);
    await new Promise((resolve) => receiver.close(resolve));
  });

  it('refunds a captured charge only', async () => {
    const provider = new TestPaymentProvider({ database, lateMs: 0, webhook: undefined, log });
    await provider.charge({ paymentId: 'pay-no', amount: 1, currency: 'CNY', card: BAD });
    await expect(provider.refund('pay-no')).rejects.toThrow('was not captured');
  });
});
