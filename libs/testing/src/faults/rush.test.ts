import { createServer, type RequestListener, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, it } from '@jest/globals';
import { RushThread, type RushAnswer, type RushPlan } from './rush.js';

const started: { server: Server; rush: RushThread }[] = [];
afterEach(async () => {
  for (const { server, rush } of started.splice(0)) {
    await rush.terminate();
    server.closeAllConnections();
    server.close();
  }
});

/** A rush to a server of the test's own; resolves with what everybody was answered. */
async function rushTo(listener: RequestListener, people: number, changes: Partial<RushPlan> = {}) {
  const server = createServer(listener).listen(0, '127.0.0.1');
  await new Promise((listening) => server.once('listening', listening));
  const answers: RushAnswer[] = [];
  const plan = {
    shopUrl: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    path: '/v1/sales/s1/entries',
    idempotencyKey: 'k1',
    body: '{"quantity":1}',
    perSecond: 200,
    deadlineMs: 10_000,
    rushers: Array.from({ length: people }, (_, index) => ({
      id: `r-${index}`,
      authorization: `Bearer t${index}`,
    })),
    ...changes,
  };
  const rush = new RushThread(plan, (some) => answers.push(...some));
  started.push({ server, rush });
  rush.start();
  const giveUpAtMs = performance.now() + 20_000;
  while (answers.length < people && performance.now() < giveUpAtMs)
    await new Promise((resolve) => setTimeout(resolve, 10));
  rush.stop();
  return { answers, end: await rush.ended };
}

describe('RushThread', () => {
  it('sends everybody once, as they are, and gives what each was answered', async () => {
    const seen: string[] = [];
    const { answers, end } = await rushTo((request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        const { authorization, 'idempotency-key': key } = request.headers;
        seen.push(
          `${request.method} ${request.url} ${authorization} ${String(key)} ${Buffer.concat(chunks).toString()}`,
        );
        const body = JSON.stringify({ code: 'unavailable', title: 'Später' });
        response.writeHead(503, {
          'content-type': 'application/problem+json',
          'retry-after': '3',
          'content-length': Buffer.byteLength(body),
        });
        response.end(body);
      });
    }, 50);
    expect(new Set(seen).size).toBe(50);
    expect(seen).toContain('POST /v1/sales/s1/entries Bearer t7 k1 {"quantity":1}');
    expect(new Set(answers.map(({ rusher }) => rusher.id)).size).toBe(50);
    for (const { http, retryAfter, contentType, text } of answers) {
      expect({ http, retryAfter, contentType }).toEqual({
        http: 503,
        retryAfter: '3',
        contentType: 'application/problem+json',
      });
      expect(JSON.parse(text)).toEqual({ code: 'unavailable', title: 'Später' });
    }
    expect(end.turnedAway).toBe(0);
  });

  it('lets people come by an open law: who waits keeps nobody else', async () => {
    // The first is answered when the last has come.
    const waiting: (() => void)[] = [];
    const { answers } = await rushTo((request, response) => {
      request.resume();
      waiting.push(() => response.writeHead(201, { 'content-length': 2 }).end('{}'));
      if (waiting.length === 100) for (const answer of waiting) answer();
    }, 100);
    expect(answers.map(({ http }) => http)).toEqual(Array(100).fill(201));
    const dueMs = answers.map((answer) => answer.dueMs).toSorted((a, b) => a - b);
    expect((dueMs.at(-1) ?? 0) - (dueMs[0] ?? 0)).toBeCloseTo((99 * 1_000) / 200, 0);
    for (const answer of answers) expect(answer.sentMs).toBeGreaterThanOrEqual(answer.dueMs);
  });

  it('says so when a connection is cut, and when nobody answers in time', async () => {
    let asked = 0;
    const { answers } = await rushTo(
      (request, response) => {
        asked += 1;
        if (asked === 1) request.socket.destroy();
        else if (asked > 2) response.writeHead(204, { 'content-length': 0 }).end();
      },
      10,
      { deadlineMs: 500 },
    );
    const outcomes = answers.map(({ http, text }) => `${http} ${text}`).toSorted();
    expect(outcomes).toEqual(['0 cut', '0 timeout', ...Array<string>(8).fill('204 ')]);
  });

  it('opens a connection anew where one was closed while it was idle', async () => {
    // Ten at once, then one after another, then ten at once again: nine connections wait for longer than the deadline.
    let asked = 0;
    const waiting: (() => void)[] = [];
    const { answers } = await rushTo(
      (request, response) => {
        request.resume();
        asked += 1;
        waiting.push(() => response.writeHead(204, { 'content-length': 0 }).end());
        const together = asked <= 10 || asked > 190 ? 10 : 1;
        if (waiting.length === together) for (const answer of waiting.splice(0)) answer();
      },
      200,
      { deadlineMs: 300 },
    );
    expect(answers.map(({ http }) => http)).toEqual(Array(200).fill(204));
  });
});
