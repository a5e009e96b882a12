import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { ClientLog } from './client-log.js';
import { Crowd } from './crowd.js';
import { Figures } from './figures.js';

/**
 * The crowd against a counter of units behind a socket: no stock rules are tested here, only that the crowd arrives at its
 * rate, keeps within its bounds, tells the truth and goes home. The real services meet it in the end-to-end tests.
 */
describe('the crowd', () => {
  let folder: string;
  let server: Server;
  let origin: string;
  let free: number;
  let cutsFirst: boolean;
  let entriesAtMs: number[];
  let inFlight: { now: number; most: number };
  const keys = new Map<string, number>();

  const reply = (response: ServerResponse, http: number, body: object) => {
    inFlight.now -= 1;
    response.writeHead(http, { 'content-type': 'application/json' });
    response.end(JSON.stringify(body));
  };
  const answer = (request: IncomingMessage, response: ServerResponse) => {
    const id = String(request.headers.authorization).replace('Bearer ', '');
    if (request.url === '/v1/sales/s1/entries') {
      entriesAtMs.push(performance.now());
      const key = `${id}/${String(request.headers['idempotency-key'])}`;
      const asked = (keys.get(key) ?? 0) + 1;
      keys.set(key, asked);
      // Every tenth shopper first meets a cut connection, and has to repeat the same key.
      if (cutsFirst && asked === 1 && id.endsWith('0')) {
        inFlight.now -= 1;
        return void response.destroy();
      }
      if (free === 0) return reply(response, 410, { code: 'sold_out' });
      free -= 1;
      return reply(response, 201, { entryId: id, state: 'granted', purchaseToken: id });
    }
    if (request.url === '/v1/orders') return reply(response, 202, { orderId: id, state: 'queued' });
    if (request.method === 'GET') return reply(response, 200, { state: 'awaiting_payment', unitPrice: 5 });
    return reply(response, 200, { orderId: id, state: 'paid' });
  };

  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), 'crowd-'));
    entriesAtMs = [];
    inFlight = { now: 0, most: 0 };
    keys.clear();
    server = createServer((request, response) => {
      inFlight.now += 1;
      inFlight.most = Math.max(inFlight.most, inFlight.now);
      request.resume().on('end', () => setTimeout(answer, 1, request, response));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  afterEach(async () => {
    await new Promise((resolve) => server.close(resolve));
    rmSync(folder, { recursive: true });
  });

  const crowdOf = (shoppers: number, perSecond: number) => {
    const figures = new Figures();
    const log = new ClientLog(join(folder, 'crowd.jsonl'));
    const shares = { abandon: 0, decline: 0 };
    const sale = { saleId: 's1', skuId: 'k1' };
    const accessToken = (shopperId: string) => shopperId;
    const crowd = new Crowd({
      origin,
      ...sale,
      shoppers,
      perSecond,
      seed: 3,
      ...shares,
      accessToken,
      figures,
      log,
    });
    const finish = async () => {
      await crowd.stop();
      await log.close();
      return readFileSync(log.path, 'utf8')
        .trimEnd()
        .split('\n')
        .map((line) => JSON.parse(line) as Exchange);
    };
    return { crowd, figures, finish };
  };
  interface Exchange {
    op: string;
    http: number;
    code: string;
    key: string;
    shopperId: string;
    sentMs: number;
    receivedMs: number;
    purchaseToken?: string;
    unitPrice?: number;
  }

  it('arrives at its rate, buys, and goes home, over a bounded number of connections', async () => {
    free = 1_000;
    cutsFirst = true;
    const { crowd, figures, finish } = crowdOf(400, 400);
    crowd.start();
    await crowd.done;
    const log = await finish();
    const seconds = ((entriesAtMs.at(-1) ?? 0) - (entriesAtMs[0] ?? 0)) / 1_000;
    expect(seconds).toBeGreaterThan(0.7);
    expect(figures).toMatchObject({
      arrived: 400,
      granted: 400,
      ordered: 400,
      written: 400,
      paid: 400,
      waiting: 0,
    });
    expect(figures.refused).toEqual({});
    expect(free).toBe(600);
    expect(inFlight.most).toBeLessThanOrEqual(272);
    expect(log).toHaveLength(figures.requests);
    expect(figures.unanswered).toBe(40);
    expect(log.filter(({ http }) => http === 0).map(({ op, code }) => `${op} ${code}`)).toEqual(
      Array.from({ length: 40 }, () => 'entry cut'),
    );
    const granted = log.filter(({ op, http }) => op === 'entry' && http === 201);
    expect(granted.every(({ purchaseToken, key }) => purchaseToken !== undefined && key === 'visit-1')).toBe(
      true,
    );
    expect(log.every(({ sentMs, receivedMs }) => sentMs <= receivedMs)).toBe(true);
    expect(log.find(({ op }) => op === 'order-status')?.unitPrice).toBe(5);
  });

  it('keeps asking at a bounded rate while sold out, and goes home when the doors close', async () => {
    free = 10;
    cutsFirst = false;
    const { crowd, figures, finish } = crowdOf(3_000, 30_000);
    crowd.start();
    await new Promise((resolve) => setTimeout(resolve, 4_500));
    const askedAgain = entriesAtMs.length - 3_000;
    crowd.closeDoors();
    await crowd.done;
    const log = await finish();
    expect(askedAgain).toBeGreaterThan(500);
    expect(askedAgain).toBeLessThan(2_000);
    expect(figures).toMatchObject({ arrived: 3_000, granted: 10, paid: 10, waiting: 0, left: 3_000 });
    expect(figures.refused).toEqual({ sold_out: 2_990 });
    // A key that was refused for good is never used again.
    const refusedKeys = log
      .filter(({ http }) => http === 410)
      .map(({ shopperId, key }) => `${shopperId}/${key}`);
    expect(new Set(refusedKeys).size).toBe(refusedKeys.length);
  });
});
