import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, it } from '@jest/globals';
import { LoadGenerator, requestHead, requestText, type Load, type LoadResult } from './generator.js';

const started: { stop(): void }[] = [];
afterEach(() => {
  for (const one of started.splice(0)) one.stop();
});

interface Seen {
  readonly line: string;
  readonly body: string;
}
type Answering = (seen: Seen, answer: (status: number, body?: object) => void, server: Server) => void;

/** Sends a load to a server of the test's own; gives what came of it and what the server saw. */
async function sendTo(answering: Answering, load: Partial<Load> & Pick<Load, 'calls'>) {
  const seen: Seen[] = [];
  let connections = 0;
  const server = createServer((request, response) => {
    void bodyOf(request).then((body) => {
      const one = {
        line: `${request.method} ${request.url} ${String(request.headers['authorization'])}`,
        body,
      };
      seen.push(one);
      const answer = (status: number, json: object = {}) => {
        const text = JSON.stringify(json);
        response.writeHead(status, { 'content-length': Buffer.byteLength(text) }).end(text);
      };
      answering(one, answer, server);
    });
  });
  server.on('connection', () => (connections += 1));
  server.listen(0, '127.0.0.1');
  await new Promise((listening) => server.once('listening', listening));
  const generator = LoadGenerator.start();
  started.push(generator, {
    stop: () => {
      server.closeAllConnections();
      server.close();
    },
  });
  const ready = await generator.prepare({
    origins: [`http://127.0.0.1:${(server.address() as AddressInfo).port}`],
    expected: [200],
    connections: 4,
    pace: { kind: 'closed', inFlight: 4 },
    ...load,
  });
  const result: LoadResult = await ready.run();
  await ready.close();
  return { result, seen, connections: () => connections };
}

async function bodyOf(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}

const looks = (count: number) =>
  Array.from({ length: count }, (_, index) =>
    requestText('GET', `/things/${index}`, { authorization: `Bearer t${index}` }),
  );

describe('LoadGenerator', () => {
  it('sends each call once, with so many always under way, over all its connections in turn', async () => {
    let [underWay, most] = [0, 0];
    const { result, seen, connections } = await sendTo(
      (_, answer) => {
        underWay += 1;
        most = Math.max(most, underWay);
        setTimeout(() => {
          underWay -= 1;
          answer(200);
        }, 1);
      },
      { calls: looks(60), connections: 12, pace: { kind: 'closed', inFlight: 3 } },
    );
    expect(new Set(seen.map(({ line }) => line)).size).toBe(60);
    expect(seen.map(({ line }) => line)).toContain('GET /things/7 Bearer t7');
    expect(most).toBe(3);
    expect(connections()).toBe(12);
    expect(result.unexpected).toBe(0);
    expect(result.latenciesMs).toHaveLength(60);
    expect(result.tookMs).toBeGreaterThan(0);
  });

  it('sends a second call with a field of the first answer, and gives back what is to be kept', async () => {
    const shoppers = ['ann', 'bob', 'cy'];
    const { result, seen } = await sendTo(
      ({ line }, answer) =>
        line.startsWith('POST /entries') ? answer(200, { token: `for ${line}` }) : answer(202),
      {
        calls: shoppers.map((id) => requestText('POST', '/entries', { authorization: id }, '{"quantity":1}')),
        keep: 'token',
        followUp: {
          heads: shoppers.map((id) => requestHead('POST', '/orders', { authorization: id })),
          field: 'token',
          bodyBefore: '{"with":"',
          bodyAfter: '"}',
          expected: 202,
        },
      },
    );
    expect(result.unexpected).toBe(0);
    expect(result.kept).toEqual(shoppers.map((id) => `for POST /entries ${id}`));
    const orders = seen.filter(({ line }) => line.startsWith('POST /orders')).map(({ body }) => body);
    expect(orders.toSorted()).toEqual(shoppers.map((id) => `{"with":"for POST /entries ${id}"}`));
  });

  it('counts answers that are not as they should be, and shows one', async () => {
    const { result } = await sendTo(
      ({ line }, answer) => (line.includes('/things/3') ? answer(503, { code: 'unavailable' }) : answer(200)),
      {
        calls: looks(10),
      },
    );
    expect(result.unexpected).toBe(1);
    expect(result.example).toBe('503 {"code":"unavailable"}');
  });

  it('ends where its connections are cut', async () => {
    const { result } = await sendTo((_, __, server) => server.closeAllConnections(), { calls: looks(500) });
    expect(result.unexpected).toBe(500);
  });

  it('counts latency from when a call was due, also of those that had to wait for a connection', async () => {
    // From the first call on nothing is answered for a while; with two connections nearly all have to wait for one.
    let goesOnMs = 0;
    const { result } = await sendTo(
      (_, answer) => {
        goesOnMs ||= performance.now() + 300;
        setTimeout(() => answer(200), Math.max(0, goesOnMs - performance.now()));
      },
      { calls: looks(100), connections: 2, pace: { kind: 'open', perSecond: 1_000 } },
    );
    expect(result.unexpected).toBe(0);
    const waits = [...result.latenciesMs];
    // All were due within 100 ms, so everybody waited until it went on, whenever they were sent.
    expect(waits.filter((ms) => ms > 20).length).toBeGreaterThan(90);
    expect(result.latenessMs).toBeGreaterThan(20);
  });

  it('greets on each connection first where that is wanted', async () => {
    const { result, seen } = await sendTo((_, answer) => answer(200), {
      calls: looks(2),
      connections: 5,
      greeting: requestText('GET', '/hello', {}),
    });
    expect(seen.filter(({ line }) => line.startsWith('GET /hello'))).toHaveLength(5);
    expect(seen).toHaveLength(7);
    expect(result.latenciesMs).toHaveLength(2);
  });
});
