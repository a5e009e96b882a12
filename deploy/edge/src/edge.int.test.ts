import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { connect as connectHttp2 } from 'node:http2';
import {
  connect as connectTcp,
  createServer as createTcpServer,
  type AddressInfo,
  type Socket,
} from 'node:net';
import { join, resolve } from 'node:path';
import { connect as connectTls } from 'node:tls';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { problemOf, type ProblemCode } from '@flash-sale/contracts';
import { ShopperId, mayHold } from '@flash-sale/domain';
import { until } from '@flash-sale/testing';
import { StandInGateway, TestEdge, accessToken } from './fixtures/stand-in-gateway.js';

/**
 * A real nginx, with the configuration and the Lua that are shipped, in front of a gateway that the tests play. Times are
 * waited for, never measured.
 */
const ROOT = resolve(import.meta.dirname, '../../..');
const WITHIN_MS = 10_000;

let gateway: StandInGateway;
let edge: TestEdge;
const started: { stop(): Promise<void> }[] = [];

beforeAll(async () => {
  gateway = await StandInGateway.start();
  edge = await TestEdge.start({
    GATEWAYS: gateway.address,
    GATEWAY_FEEDS: gateway.feedAddress,
    RATE_LIMIT_PER_SHOPPER_PER_SECOND: '0',
    WEB_ROOT: join(ROOT, 'apps/web/dist'),
    TLS_CERTIFICATE: 'self-signed',
  });
});
afterAll(async () => {
  // Where there is no nginx there is no edge.
  await edge?.stop();
  await gateway?.stop();
});
beforeEach(() => {
  gateway.refusals = [];
  gateway.passed.length = 0;
});
afterEach(async () => {
  for (const one of started.splice(0).toReversed()) await one.stop();
});

const nameOfSale = () => `sale-${randomBytes(4).toString('hex')}`;
const shopper = (name = randomBytes(6).toString('hex')) => ShopperId.parse(name);
async function track<T extends { stop(): Promise<void> }>(starting: Promise<T>): Promise<T> {
  const one = await starting;
  started.push(one);
  return one;
}
/** Until the edge has heard of a sale, by somebody whom it is certain to refuse. */
const untilRefused = (saleId: string, by = edge) =>
  until(`${saleId} to be refused`, WITHIN_MS, async () => !(await by.passes(saleId, 'a-stranger')));
const untilPassed = (saleId: string, by = edge) =>
  until(`${saleId} to be passed on`, WITHIN_MS, () => by.passes(saleId, 'a-stranger'));
/** Until the edge has asked for everything once more. */
async function untilAskedAgain(): Promise<void> {
  const before = gateway.asked;
  await until('the edge to ask again', WITHIN_MS, async () => gateway.asked > before + 2);
}

/** Brotli is a module that nginx may be without. */
function hasBrotli(): boolean {
  return readFileSync(join(edge.folder, 'generated/main.conf'), 'utf8').includes('brotli');
}

describe('a sale that the gateways say is sold out', () => {
  it('is refused to strangers, in the words of the contracts', async () => {
    const saleId = nameOfSale();
    gateway.sellOut(saleId, []);
    await untilRefused(saleId);
    gateway.passed.length = 0;
    const answer = await edge.enter(saleId, shopper(), { headers: { 'x-request-id': 'r-1' } });
    expect(answer.status).toBe(410);
    expect(Object.fromEntries(answer.headers)).toMatchObject({
      'content-type': 'application/problem+json; charset=utf-8',
      'cache-control': 'no-store',
      'x-content-type-options': 'nosniff',
      'referrer-policy': 'no-referrer',
      'x-request-id': 'r-1',
    });
    const { title } = problemOf('sold_out');
    expect(await answer.json()).toEqual({
      type: 'urn:flash-sale:problem:sold_out',
      title,
      status: 410,
      code: 'sold_out',
      requestId: 'r-1',
    });
    expect(gateway.passed).toEqual([]);
    expect(await edge.metrics()).toMatch(/edge_answers_total\{code="sold_out"\} [1-9]/);
  });

  it('is open to whoever may hold units, by the very filter of the gateways', async () => {
    // The widest filter that a bucket may have, and a number of buckets that is no power of two.
    for (const [buckets, bits] of [
      [4, 1024],
      [3, 2 ** 24],
    ] as const) {
      const saleId = nameOfSale();
      const holders = Array.from({ length: 300 }, () => shopper());
      const refusal = gateway.sellOut(saleId, holders, buckets, bits);
      await untilRefused(saleId);
      const filter = gateway.filters.get(`${saleId}/${refusal.holders?.version}`) ?? Buffer.alloc(0);
      for (const one of [...holders.slice(0, 30), ...Array.from({ length: 60 }, () => shopper())]) {
        expect(await edge.passes(saleId, one)).toBe(mayHold(filter, one, buckets, bits));
      }
    }
  });

  it('is open again when they say so, and who was granted meanwhile is known when it is sold out anew', async () => {
    const saleId = nameOfSale();
    const late = shopper();
    gateway.sellOut(saleId, []);
    await untilRefused(saleId);
    expect(await edge.passes(saleId, late)).toBe(false);
    gateway.refusals = [];
    await untilPassed(saleId);
    gateway.sellOut(saleId, [late]);
    await untilRefused(saleId);
    expect(await edge.passes(saleId, late)).toBe(true);
  });

  it('is not refused while its filter cannot be had', async () => {
    const saleId = nameOfSale();
    const { holders } = gateway.sellOut(saleId, []);
    gateway.filters.delete(`${saleId}/${holders?.version}`);
    await untilAskedAgain();
    expect(await edge.passes(saleId, shopper())).toBe(true);
  });

  it.each([
    ['shows a ticket', { 'x-entry-ticket': 't' }],
    ['has no key', { 'idempotency-key': '' }],
    ['has a key that no client of ours makes', { 'idempotency-key': 'a b' }],
    ['sends something else', { 'content-type': 'text/plain' }],
    ['sends it packed', { 'content-encoding': 'gzip' }],
    ['names nobody', { authorization: 'Bearer abc' }],
    ['has a token that is none', { authorization: 'Bearer a.b.c' }],
    ['names somebody who cannot be', { authorization: `Bearer ${accessToken('a b')}` }],
  ])('leaves it to a gateway to answer a request that %s', async (_, headers) => {
    const saleId = nameOfSale();
    gateway.sellOut(saleId, []);
    await untilRefused(saleId);
    expect(await edge.passes(saleId, 'a-stranger', headers)).toBe(true);
  });

  it('can be read, and everything else about it asked', async () => {
    const saleId = nameOfSale();
    gateway.sellOut(saleId, []);
    await untilRefused(saleId);
    for (const [method, path] of [
      ['GET', `/v1/sales/${saleId}`],
      ['POST', `/v1/sales/${saleId}/challenge`],
      ['POST', `/v1/sales/${saleId}/entries?x=1`],
      ['POST', `//v1/sales/${saleId}/entries`],
      ['GET', `/v1/entries/${saleId}-x`],
      ['DELETE', `/v1/entries/${saleId}-x`],
    ] as const) {
      const answer = await fetch(`${edge.url}${path}`, {
        method,
        headers: { authorization: `Bearer ${accessToken('a-stranger')}` },
      });
      expect([path, answer.status]).toEqual([path, 200]);
      expect(gateway.passed.at(-1)?.url).toBe(path);
    }
  });

  it('is refused without its body being taken for the next request', async () => {
    const saleId = nameOfSale();
    gateway.sellOut(saleId, []);
    await untilRefused(saleId);
    const entry = [
      `POST /v1/sales/${saleId}/entries HTTP/1.1`,
      'host: x',
      `authorization: Bearer ${accessToken('a-stranger')}`,
      'content-type: application/json',
      'idempotency-key: k',
      'content-length: 14',
      '',
      '{"quantity":1}',
    ].join('\r\n');
    const answers = await edge.raw(entry + entry + entry);
    expect(answers.match(/HTTP\/1\.1 410 /g)).toHaveLength(3);
    expect(answers.match(/HTTP\/1\.1 /g)).toHaveLength(3);
  });
});

describe('a sale that is not open yet', () => {
  it('is refused to everybody, and by nobody once its time has come', async () => {
    const saleId = nameOfSale();
    gateway.refusals = [{ saleId, code: 'sale_not_open', forMs: 60_000 }];
    await untilRefused(saleId);
    const answer = await edge.enter(saleId, shopper());
    expect(await answer.json()).toMatchObject({ status: 409, code: 'sale_not_open' });
    // Said once, when there was time left, and over before anybody says anything else.
    gateway.refusals = [{ saleId, code: 'sale_not_open', forMs: 1 }];
    await untilPassed(saleId);
  });
});

describe('the feed', () => {
  it('is not believed any more when it falls silent, nor when it is gone', async () => {
    const saleId = nameOfSale();
    gateway.sellOut(saleId, []);
    await untilRefused(saleId);
    gateway.isSilent = true;
    try {
      await untilPassed(saleId);
    } finally {
      gateway.isSilent = false;
    }
    await untilRefused(saleId);
  });

  it('comes from the next gateway when one does not answer', async () => {
    const [mute, other] = [await track(StandInGateway.start()), await track(StandInGateway.start())];
    mute.isSilent = true;
    const saleId = nameOfSale();
    other.sellOut(saleId, []);
    const lone = await track(
      TestEdge.start({
        GATEWAYS: gateway.address,
        GATEWAY_FEEDS: `${mute.feedAddress},127.0.0.1:9,${other.feedAddress}`,
      }),
    );
    await untilRefused(saleId, lone);
    await other.stop();
    mute.sellOut(saleId, []);
    mute.isSilent = false;
    await untilRefused(saleId, lone);
  });

  it('is replaced as a whole, so that nothing of what was said before stays', async () => {
    const sales = [nameOfSale(), nameOfSale()];
    for (const saleId of sales) gateway.sellOut(saleId, []);
    for (const saleId of sales) await untilRefused(saleId);
    gateway.refusals = gateway.refusals.slice(1);
    await untilPassed(sales[0] ?? '');
    expect(await edge.passes(sales[1] ?? '', shopper())).toBe(false);
  });

  it('is not asked again and again for a filter that is too large to keep', async () => {
    const [saleId, other] = [nameOfSale(), nameOfSale()];
    const { holders } = gateway.sellOut(saleId, [], 9, 2 ** 24);
    gateway.sellOut(other, []);
    await untilRefused(other);
    for (let i = 0; i < 3; i += 1) await untilAskedAgain();
    expect(await edge.passes(saleId, shopper())).toBe(true);
    const name = `${saleId}/${holders?.version}`;
    expect(gateway.filtersAsked.filter((one) => one === name)).toHaveLength(1);
  });

  it('is kept of the newest sales where there is no room for all', async () => {
    // Two of their filters fit, three do not.
    const sales = [nameOfSale(), nameOfSale(), nameOfSale()] as const;
    for (const saleId of sales.slice(0, 2)) {
      gateway.sellOut(saleId, [], 7, 2 ** 24);
      await untilRefused(saleId);
    }
    gateway.filtersAsked.length = 0;
    gateway.sellOut(sales[2], [], 7, 2 ** 24);
    await untilRefused(sales[2]);
    for (let i = 0; i < 3; i += 1) await untilAskedAgain();
    expect(await Promise.all(sales.map((saleId) => edge.passes(saleId, shopper())))).toEqual([
      true,
      false,
      false,
    ]);
    // Of the older ones, one is asked for in vain, and then none.
    const older = [nameOfSale(), nameOfSale()];
    const newer = gateway.refusals;
    gateway.refusals = [...older.map((saleId) => gateway.sellOut(saleId, [], 7, 2 ** 24)), ...newer];
    for (let i = 0; i < 3; i += 1) await untilAskedAgain();
    expect(gateway.filtersAsked.filter((name) => !older.some((saleId) => name.startsWith(saleId)))).toEqual([
      `${sales[2]}/${newer[2]?.holders?.version}`,
    ]);
    expect(gateway.filtersAsked).toHaveLength(2);
  });

  it('has no defect that nginx would have had to note', () => {
    expect(edge.output).not.toMatch(/stack traceback|runtime error|defect|could not be judged|global/);
  });
});

describe('rates', () => {
  const limited = (variables: Readonly<Record<string, string>>) =>
    track(TestEdge.start({ GATEWAYS: gateway.address, ...variables }));
  const ask = async (one: TestEdge, headers: Record<string, string>) => {
    const answer = await fetch(`${one.url}/v1/time`, { headers });
    await answer.arrayBuffer();
    return answer;
  };
  const bearer = (token: string) => ({ authorization: `Bearer ${token}` });

  it('are of tokens: a second’s worth at once, then none until one has come back', async () => {
    const one = await limited({ RATE_LIMIT_PER_SHOPPER_PER_SECOND: '4' });
    const token = accessToken('eager');
    const statuses = [];
    for (let i = 0; i < 30; i += 1) statuses.push((await ask(one, bearer(token))).status);
    expect(statuses.slice(0, 4)).toEqual([200, 200, 200, 200]);
    expect(statuses).toContain(429);
    await until(
      'a token to come back',
      WITHIN_MS,
      async () => (await ask(one, bearer(token))).status === 200,
    );
  });

  it('say when to come again, as the contracts do', async () => {
    const one = await limited({ RATE_LIMIT_PER_SHOPPER_PER_SECOND: '1' });
    const token = accessToken('eager');
    let answer = await ask(one, bearer(token));
    for (let i = 0; i < 20 && answer.status !== 429; i += 1) answer = await ask(one, bearer(token));
    expect(answer.status).toBe(429);
    expect(answer.headers.get('retry-after')).toMatch(/^[1-9]\d*$/);
    expect(answer.headers.get('content-type')).toContain('application/problem+json');
  });

  it('of a shopper cannot be used up by somebody who only knows the name', async () => {
    const one = await limited({ RATE_LIMIT_PER_SHOPPER_PER_SECOND: '2' });
    for (let i = 0; i < 20; i += 1) await ask(one, bearer(accessToken('victim', `guess ${i}`)));
    expect((await ask(one, bearer(accessToken('victim')))).status).toBe(200);
  });

  it('of an address hold for all of its shoppers, and other addresses have their own', async () => {
    const one = await limited({ RATE_LIMIT_PER_ADDRESS_PER_SECOND: '3', TRUSTED_BALANCERS: '127.0.0.0/8' });
    const from = (address: string) =>
      ask(one, { 'x-forwarded-for': address, ...bearer(accessToken(randomBytes(4).toString('hex'))) });
    const statuses = [];
    for (let i = 0; i < 30; i += 1) statuses.push((await from('192.0.2.1')).status);
    expect(statuses).toContain(429);
    expect((await from('192.0.2.2')).status).toBe(200);
  });

  it('of connections under way end what is beyond them', async () => {
    const one = await limited({ CONNECTIONS_PER_ADDRESS: '3' });
    // Their headers are complete, their bodies never come. One of four is beyond the limit; then the others are within it.
    const begun = 'POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n';
    const sockets = Array.from({ length: 4 }, () => connectTcp(one.port, '127.0.0.1'));
    try {
      const answers: string[] = [];
      for (const socket of sockets) {
        socket.on('error', () => {}).on('data', (chunk) => answers.push(chunk.toString('latin1')));
        socket.write(begun);
      }
      await until('the fourth to be refused', WITHIN_MS, async () => answers.length > 0);
      expect(answers.join('')).toMatch(/^HTTP\/1\.1 429 /);
      expect((await ask(one, {})).status).toBe(429);
    } finally {
      for (const socket of sockets) socket.destroy();
    }
    await until('the others to be forgotten', WITHIN_MS, async () => (await ask(one, {})).status === 200);
  });
});

describe('who calls, as gateways are told', () => {
  const told = async (one: TestEdge, forwardedFor: string) => {
    const claims = { 'x-forwarded-for': forwardedFor, 'x-real-ip': '6.6.6.6', forwarded: 'for=6.6.6.6' };
    await fetch(`${one.url}/v1/time`, {
      headers: { ...claims, 'x-user-id': 'admin', 'x-forwarded-user': 'admin' },
    });
    return gateway.passed.at(-1)?.headers ?? {};
  };

  it('is the connection’s own address, whatever it claims', async () => {
    const headers = await told(edge, '6.6.6.6, 127.0.0.1');
    expect(headers['x-forwarded-for']).toBe('127.0.0.1');
    expect(
      Object.keys(headers).filter((name) =>
        /real-ip|^forwarded$|x-user-id|forwarded-(user|host|proto)/.test(name),
      ),
    ).toEqual([]);
    expect(JSON.stringify(headers)).not.toContain('6.6.6.6');
  });

  it('is the last address before our balancers, where one of those calls', async () => {
    const one = await track(
      TestEdge.start({ GATEWAYS: gateway.address, TRUSTED_BALANCERS: '127.0.0.1,10.0.0.0/8' }),
    );
    expect((await told(one, '6.6.6.6, 192.0.2.7, 10.1.2.3'))['x-forwarded-for']).toBe('192.0.2.7');
  });
});

describe('without a gateway', () => {
  it('calls meet a problem, people a page, and both come again by themselves', async () => {
    const alone = await track(
      TestEdge.start({
        GATEWAYS: '127.0.0.1:9',
        GATEWAY_FEEDS: '127.0.0.1:9',
        WEB_ROOT: join(ROOT, 'apps/web/dist'),
      }),
    );
    const call = await alone.enter(nameOfSale(), shopper());
    expect(call.status).toBe(503);
    expect(call.headers.get('retry-after')).toBe('1');
    expect(call.headers.get('content-type')).toBe('application/problem+json; charset=utf-8');
    expect(await call.json()).toMatchObject({ code: 'unavailable', title: problemOf('unavailable').title });
    for (const path of ['/', '/?sale=noon', '/docs']) {
      const answer = await fetch(alone.url + path, { headers: { accept: 'text/html,*/*;q=0.8' } });
      expect([path, answer.status]).toEqual([path, 503]);
      expect(answer.headers.get('retry-after')).toMatch(/^[3-8]$/);
      expect(answer.headers.get('content-type')).toBe('text/html; charset=utf-8');
      expect(await answer.text()).toMatch(/<meta http-equiv="refresh" content="[3-8]" \/>[^]*Very busy/);
    }
    // What has a name for ever needs nobody.
    const [script = ''] = readdirSync(join(ROOT, 'apps/web/dist/assets')).filter((name) =>
      name.endsWith('.js'),
    );
    expect((await fetch(`${alone.url}/assets/${script}`)).status).toBe(200);
  });

  it('another one takes what the first could not be given', async () => {
    const one = await track(TestEdge.start({ GATEWAYS: `127.0.0.1:9,${gateway.address}` }));
    for (let i = 0; i < 10; i += 1) expect(await one.passes(nameOfSale(), shopper())).toBe(true);
  });
});

describe('a gateway that falls silent', () => {
  it('costs a caller no more than its longest call, and ends no stream of events', async () => {
    const mute = createTcpServer((socket) => socket.on('error', () => {}));
    await new Promise<void>((listening) => mute.listen(0, '127.0.0.1', listening));
    const { port } = mute.address() as AddressInfo;
    const one = await track(
      TestEdge.start({ GATEWAYS: `127.0.0.1:${port},${gateway.address}`, WORKERS: '1' }),
    );
    const sockets = new Set<Socket>();
    mute.on('connection', (socket) => sockets.add(socket));
    try {
      const signal = AbortSignal.timeout(25_000);
      const read = async () => (await fetch(`${one.url}/v1/time`, { signal })).status;
      const entry = async () => {
        const answer = await one.enter(nameOfSale(), shopper());
        return answer.status === 200 ? 'taken' : ((await answer.json()) as { code: string }).code;
      };
      const stream = async () => (await fetch(`${edge.url}/v1/entries/e/events`, { signal })).text();
      const four = <T>(ask: () => Promise<T>) => Promise.all(Array.from({ length: 4 }, ask));
      const [reads, entries, events] = await Promise.all([four(read), four(entry), stream()]);
      expect(sockets.size).toBeGreaterThan(0);
      // What may be repeated was given to the other one.
      expect(reads).toEqual([200, 200, 200, 200]);
      for (const answer of entries) expect(['taken', 'unavailable']).toContain(answer);
      // Its caller repeats it, with the same key.
      const urls = gateway.passed.map(({ url }) => url).filter((url) => url.endsWith('/entries'));
      expect(urls).toHaveLength(entries.filter((answer) => answer === 'taken').length);
      expect(events).toContain('data: last');
    } finally {
      for (const socket of sockets) socket.destroy();
      mute.close();
    }
  });
});

describe('the page', () => {
  const files = () => readdirSync(join(ROOT, 'apps/web/dist/assets'));

  it('is served by nginx, asked for each time, and its parts never again', async () => {
    await untilAskedAgain();
    const page = await fetch(`${edge.url}/?sale=noon`);
    expect(await page.text()).toBe(readFileSync(join(ROOT, 'apps/web/dist/index.html'), 'utf8'));
    expect(page.headers.get('cache-control')).toBe('no-cache');
    expect(page.headers.get('content-security-policy')).toContain("default-src 'self'");
    const script = files().find((name) => name.endsWith('.js')) ?? '';
    const part = await fetch(`${edge.url}/assets/${script}`);
    expect(part.headers.get('cache-control')).toBe('public, max-age=31536000, immutable');
    expect(part.headers.get('content-type')).toBe('text/javascript');
    expect(gateway.passed).toEqual([]);
  });

  it.each(['br', 'gzip'])('is sent as it was packed beforehand, as %s where nginx can', async (encoding) => {
    const isPacked = encoding === 'gzip' || hasBrotli();
    const extension = isPacked ? (encoding === 'br' ? '.br' : '.gz') : '';
    for (const path of ['/', `/assets/${files().find((name) => name.endsWith('.js')) ?? ''}`]) {
      const answer = await fetch(edge.url + path, { headers: { 'accept-encoding': encoding } });
      expect(answer.headers.get('content-encoding')).toBe(isPacked ? encoding : null);
      const file = `apps/web/dist${path === '/' ? '/index.html' : path}${extension}`;
      expect(answer.headers.get('content-length')).toBe(String(readFileSync(join(ROOT, file)).length));
    }
  });

  it('has no other parts', async () => {
    const answer = await fetch(`${edge.url}/assets/nothing-here.js`);
    expect(await answer.json()).toMatchObject({ status: 404, code: 'not_found' });
    expect(answer.headers.get('cache-control')).toBe('no-store');
  });
});

describe('what nginx itself refuses', () => {
  it('what is passed on is packed as it is sent', async () => {
    for (const encoding of ['br', 'gzip']) {
      const answer = await fetch(`${edge.url}/v1/sales`, { headers: { 'accept-encoding': encoding } });
      expect(answer.headers.get('content-encoding')).toBe(
        encoding === 'gzip' || hasBrotli() ? encoding : null,
      );
      expect(await answer.json()).toMatchObject({ passed: true });
    }
  });

  it.each<[string, ProblemCode, string]>([
    [
      'a body that is too large',
      'too_large',
      'POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n',
    ],
    [
      'headers that are too large',
      'headers_too_large',
      `GET / HTTP/1.1\r\nhost: x\r\na: ${'b'.repeat(40_000)}\r\n\r\n`,
    ],
    ['an address that is too long', 'malformed', `GET /${'b'.repeat(40_000)} HTTP/1.1\r\nhost: x\r\n\r\n`],
    [
      'two lengths',
      'malformed',
      'POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n',
    ],
    [
      'a length and chunks',
      'malformed',
      'POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n',
    ],
    ['a method for a file', 'method_not_allowed', 'POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n'],
  ])('%s is a problem like any other', async (_, code, text) => {
    const answer = await edge.raw(text);
    expect(answer).toContain(`HTTP/1.1 ${problemOf(code).status} `);
    expect(answer).toMatch(/content-type: application\/problem\+json/i);
    expect(answer).toContain(`"code":"${code}"`);
    expect(answer).not.toMatch(/nginx\/|<html/);
  });
});

describe('TLS', () => {
  const at = () => ({ host: '127.0.0.1', port: edge.tlsPort, rejectUnauthorized: false });

  it('is 1.3 and nothing older', async () => {
    const outcome = (version: 'TLSv1.2' | 'TLSv1.3') =>
      new Promise((resolve) => {
        const socket = connectTls({ ...at(), minVersion: version, maxVersion: version }, () => {
          resolve(socket.getProtocol());
          socket.destroy();
        });
        socket.on('error', () => resolve('refused'));
      });
    expect(await outcome('TLSv1.3')).toBe('TLSv1.3');
    expect(await outcome('TLSv1.2')).toBe('refused');
  });

  it('carries HTTP/2, with the same refusals and the page that stands in for gateways', async () => {
    const saleId = nameOfSale();
    gateway.sellOut(saleId, []);
    await untilRefused(saleId);
    const session = connectHttp2(`https://127.0.0.1:${edge.tlsPort}`, { rejectUnauthorized: false });
    const ask = (headers: Record<string, string>, body = '') =>
      new Promise<{ status: number; headers: Record<string, unknown>; text: string }>((resolve, reject) => {
        const stream = session.request(headers, { endStream: body === '' });
        let status = 0;
        let answered: Record<string, unknown> = {};
        let text = '';
        stream.on('response', (got) => {
          status = got[':status'] ?? 0;
          answered = { ...got };
        });
        stream.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
        stream.on('end', () => resolve({ status, headers: answered, text }));
        stream.on('error', reject);
        if (body !== '') stream.end(body);
      });
    try {
      const entry = {
        ':method': 'POST',
        ':path': `/v1/sales/${saleId}/entries`,
        'content-type': 'application/json',
        'idempotency-key': 'k',
      };
      const as = (name: string) => ({ authorization: `Bearer ${accessToken(name)}` });
      const answers = await Promise.all(
        Array.from({ length: 20 }, () => ask({ ...entry, ...as('a-stranger') }, '{"quantity":1}')),
      );
      for (const { status, text } of answers) {
        expect(status).toBe(410);
        expect(JSON.parse(text)).toMatchObject({ code: 'sold_out' });
      }
      const passed = await ask({ ...entry, ...as('a-stranger'), 'x-entry-ticket': 't' }, '{"quantity":1}');
      expect(passed.status).toBe(200);
      const page = await ask({ ':path': '/' });
      expect(page.status).toBe(200);
      expect(page.headers['strict-transport-security']).toContain('max-age=');
    } finally {
      session.close();
    }
  });
});
