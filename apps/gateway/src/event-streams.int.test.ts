import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { EventStreams, type Look } from './event-streams.js';

/** Streams over real HTTP connections on this machine; the state behind is a variable. */
let streams: EventStreams;
let server: Server;
let url: string;
let look: () => Promise<Look>;
let looks: number;
let endsAtMs: number;
let defects: unknown[];
let isOff: boolean;

beforeEach(async () => {
  looks = 0;
  endsAtMs = Date.now() + 60_000;
  defects = [];
  isOff = false;
  streams = new EventStreams({
    maxStreams: 8,
    pollEveryMs: 40,
    isOff: () => isOff,
    onDefect: (error) => defects.push(error),
  });
  server = createServer((request, response) => {
    const shopperId = request.headers['x-shopper']?.toString() ?? 'alice';
    if (!streams.hasRoom(shopperId)) {
      response.writeHead(503).end();
      return;
    }
    streams.start(
      response,
      { 'x-request-id': 'r1' },
      {
        event: 'entry',
        shopperId,
        first: { state: 'waiting', position: 3 },
        endsAtMs,
        look: () => {
          looks += 1;
          return look();
        },
      },
    );
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterEach(async () => {
  streams.close();
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

const state = (body: object, isFinal = false): Look => ({ outcome: 'state', body, isFinal });

describe('EventStreams', () => {
  it('tells its readers to poll when streams are switched off, ends, and begins no other', async () => {
    look = async () => state({ state: 'waiting', position: 3 });
    const reader = await fetch(url);
    isOff = true;
    const text = await reader.text();
    expect(text.trim().split('\n').slice(-2)).toEqual(['event: poll', 'data: {"pollAfterMs":2000}']);
    expect((await fetch(url)).status).toBe(503);
    isOff = false;
    expect((await fetch(url)).status).toBe(200);
  });

  it('sends the present state, then each change once, and ends with the last', async () => {
    const script = [
      state({ state: 'waiting', position: 3 }),
      state({ state: 'waiting', position: 1 }),
      { outcome: 'unknown' } as const,
      state({ state: 'waiting', position: 1 }),
      state({ state: 'granted' }),
      state({ state: 'ordered' }, true),
    ];
    look = () => Promise.resolve(script[Math.min(looks - 1, script.length - 1)] ?? { outcome: 'gone' });
    const response = await fetch(url);
    expect(response.headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
    expect(response.headers.get('cache-control')).toContain('no-store');
    expect(response.headers.get('x-request-id')).toBe('r1');
    expect(await response.text()).toBe(
      [
        { state: 'waiting', position: 3 },
        { state: 'waiting', position: 1 },
        { state: 'granted' },
        { state: 'ordered' },
      ]
        .map((body) => `event: entry\ndata: ${JSON.stringify(body)}\n\n`)
        .join(''),
    );
    expect(streams.count).toBe(0);
  });

  it('ends when there is nothing to be watched any more, and when the access token ends', async () => {
    look = () => Promise.resolve({ outcome: 'gone' });
    await (await fetch(url)).text();
    look = () => Promise.resolve(state({ state: 'waiting', position: 3 }));
    endsAtMs = Date.now() + 100;
    await (await fetch(url)).text();
    expect(streams.count).toBe(0);
  });

  it('stops to look when the reader has gone', async () => {
    look = () => Promise.resolve(state({ state: 'waiting', position: 3 }));
    const aborter = new AbortController();
    await fetch(url, { signal: aborter.signal });
    expect(streams.count).toBe(1);
    aborter.abort();
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(streams.count).toBe(0);
    const before = looks;
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(looks).toBe(before);
  });

  it('has room for five streams of one shopper, and for a number in all', async () => {
    look = () => Promise.resolve(state({ state: 'waiting', position: 3 }));
    const open = (shopper: string) => fetch(url, { headers: { 'x-shopper': shopper } });
    const ofAlice = await Promise.all(Array.from({ length: 6 }, () => open('alice')));
    expect(ofAlice.filter(({ status }) => status === 200).length).toBe(5);
    const ofOthers = await Promise.all(Array.from({ length: 4 }, (_, i) => open(`s${i}`)));
    expect(ofOthers.filter(({ status }) => status === 200).length).toBe(3);
  });

  it('does not look at a state again while it is still looking', async () => {
    look = () =>
      new Promise((resolve) => setTimeout(() => resolve(state({ state: 'waiting', position: 2 })), 200));
    const aborter = new AbortController();
    await fetch(url, { signal: aborter.signal });
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(looks).toBeLessThanOrEqual(2);
    aborter.abort();
  });

  it('ends a stream whose state cannot even be looked at, and says so', async () => {
    look = () => Promise.reject(new Error('a defect'));
    await (await fetch(url)).text();
    expect(defects).toEqual([new Error('a defect')]);
  });

  it('ends all streams when it closes', async () => {
    look = () => Promise.resolve(state({ state: 'waiting', position: 3 }));
    const response = await fetch(url);
    streams.close();
    await response.text();
    expect(streams.count).toBe(0);
  });
});
