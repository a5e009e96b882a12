import { createHmac } from 'node:crypto';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import type { SaleSnapshot } from '@flash-sale/contracts';
import { LoneGateway, WEBHOOK_SECRET, accessToken } from './fixtures/lone-gateway.js';

/**
 * What a stranger or an attacker may send, against a real gateway and a real Redis. Nobody is behind the gateway: an
 * honest request ends as `unavailable`, so whatever ends otherwise was refused by the gateway itself.
 */
let world: LoneGateway;
let sale: SaleSnapshot;

beforeAll(async () => {
  world = await LoneGateway.start();
  sale = await world.publish();
});

afterAll(async () => {
  await world.unpublish(sale);
  await world.stop();
});

interface Sent {
  readonly method?: string;
  readonly body?: string | Buffer;
  readonly headers?: Record<string, string>;
}

async function send(path: string, { method, body, headers = {} }: Sent = {}, base = world.url) {
  const response = await fetch(`${base}${path}`, {
    method: method ?? (body === undefined ? 'GET' : 'POST'),
    headers: {
      authorization: `Bearer ${accessToken('alice')}`,
      ...(body === undefined ? {} : { 'content-type': 'application/json', 'idempotency-key': 'k1' }),
      ...headers,
    },
    ...(body === undefined ? {} : { body }),
    redirect: 'manual',
  });
  const text = await response.text();
  const json = text.startsWith('{') ? (JSON.parse(text) as Record<string, unknown>) : {};
  return { status: response.status, headers: response.headers, text, json, code: json['code'] };
}

/** Every refusal looks alike, whoever made it. */
function expectProblem(answer: Awaited<ReturnType<typeof send>>, status: number, code: string) {
  expect([answer.status, answer.code]).toEqual([status, code]);
  expect(answer.headers.get('content-type')).toMatch(/^application\/problem\+json/);
  expect(answer.headers.get('x-content-type-options')).toBe('nosniff');
  expect(answer.headers.get('x-request-id')).toBe(answer.json['requestId']);
  expect(answer.json).toMatchObject({ status, type: `urn:flash-sale:problem:${code}` });
  if (status === 429 || status === 503)
    expect(Number(answer.headers.get('retry-after'))).toBeGreaterThanOrEqual(1);
  expect(answer.text).not.toMatch(/node_modules|\.ts:|\.js:|ECONN|127\.0\.0\.1|FST_|Error:/);
}

const enter = (body: string | Buffer, headers: Record<string, string> = {}) =>
  send(`/v1/sales/${sale.saleId}/entries`, { body, headers });

describe('a body', () => {
  it('that is right gets as far as the services behind', async () => {
    expectProblem(await enter('{"quantity":1}'), 503, 'unavailable');
    expectProblem(
      await enter('{"quantity":1}', { 'content-type': 'application/json; charset=utf-8' }),
      503,
      'unavailable',
    );
  });

  it.each([
    '-1',
    '0',
    '1.5',
    '"2"',
    '1e9',
    '9007199254740992',
    'true',
    '[1]',
    'null',
    '{}',
    '"\'; DROP TABLE"',
  ])('with quantity %s is refused without coercion', async (quantity) => {
    expectProblem(await enter(`{"quantity":${quantity}}`), 422, 'invalid');
  });

  it.each([
    ['no quantity', '{}'],
    ['a price', '{"quantity":1,"price":1}'],
    ['another shopper', '{"quantity":1,"shopperId":"bob"}'],
    ['isAdmin', '{"quantity":1,"isAdmin":true}'],
    ['a constructor', '{"quantity":1,"constructor":{"prototype":{"isAdmin":true}}}'],
    ['__proto__', '{"quantity":1,"__proto__":{"isAdmin":true}}'],
    ['a list', '[{"quantity":1}]'],
    ['a number', '1'],
    ['null', 'null'],
  ])('with %s is invalid', async (_, body) => {
    expectProblem(await enter(body), 422, 'invalid');
    expect(({} as Record<string, unknown>)['isAdmin']).toBeUndefined();
  });

  it.each([
    ['a key twice', '{"quantity":1,"quantity":2}'],
    ['1,000 levels', `${'{"a":'.repeat(1_000)}1${'}'.repeat(1_000)}`],
    ['half a surrogate pair', '{"quantity":1,"challenge":"\\ud800"}'],
    ['a byte order mark', '\u{feff}{"quantity":1}'],
    ['no JSON', 'quantity=1'],
    ['NaN', '{"quantity":NaN}'],
  ])('with %s is malformed', async (_, body) => {
    expectProblem(await enter(body), 400, 'malformed');
    expect(Object.prototype).not.toHaveProperty('isAdmin');
  });

  it('that is not UTF-8 is malformed', async () => {
    expectProblem(await enter(Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])), 400, 'malformed');
  });

  it('of 65 kB is too large, and so is a smaller one that no call of ours could have', async () => {
    expectProblem(await enter(`{"quantity":1,"challenge":"${'x'.repeat(65_000)}"}`), 413, 'too_large');
    expectProblem(await enter(`{"quantity":1,"challenge":"${'x'.repeat(17_000)}"}`), 413, 'too_large');
  });

  it.each([
    'text/plain',
    'application/x-www-form-urlencoded',
    'multipart/form-data; boundary=x',
    'application/json; charset=utf-7',
    'application/json; charset=utf-16',
    'application/jsonx',
    'application/ld+json',
    'application/json, text/plain',
  ])('of type %s is not taken', async (type) => {
    expectProblem(await enter('{"quantity":1}', { 'content-type': type }), 415, 'unsupported_media_type');
  });

  it('without a type is not taken', async () => {
    const body = '{"quantity":1}';
    const answer = await world.raw(
      `POST /v1/sales/${sale.saleId}/entries HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${accessToken('a')}\r\n` +
        `Idempotency-Key: k\r\nConnection: close\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    );
    expect(answer).toMatch(/^HTTP\/1.1 415 /);
  });

  it('that is compressed is not taken, so nothing can swell', async () => {
    const bomb = gzipSync(Buffer.alloc(1_000_000, ' '));
    expectProblem(await enter(bomb, { 'content-encoding': 'gzip' }), 415, 'unsupported_media_type');
  });
});

describe('an address', () => {
  it.each([
    '..%2f..%2fetc',
    '%00',
    'ключ',
    '%EF%BC%8Eadmin',
    "'%20OR%201=1",
    'x%7D%7By',
    '%7B%7D',
    '"]]..redis.call("FLUSHALL")',
    'a'.repeat(65),
  ])('with the id %s is malformed', async (id) => {
    const path = encodeURI(decodeURI(id));
    expectProblem(await send(`/v1/sales/${path}`), 400, 'malformed');
    expectProblem(await send(`/v1/entries/${path}`), 400, 'malformed');
    expectProblem(await send(`/v1/orders/${path}`), 400, 'malformed');
  });

  it('with an id of 10 kB is malformed', async () => {
    expectProblem(await send(`/v1/orders/${'a'.repeat(10_000)}`), 400, 'malformed');
  });

  it('that cannot be decoded is malformed', async () => {
    expectProblem(await send('/v1/sales/%zz'), 400, 'malformed');
    expectProblem(await send('/v1/sales/%c0%ae'), 400, 'malformed');
  });

  it('with a parameter twice, or with a token in it, is malformed', async () => {
    expectProblem(await send('/v1/sales?sku=a&sku=b'), 400, 'malformed');
    expectProblem(await send(`/v1/orders?access_token=${accessToken('alice')}`), 400, 'malformed');
    expectProblem(await send('/v1/orders?purchaseToken=v1.x'), 400, 'malformed');
  });

  it('with a parameter that is not known is invalid, and with a wrong cursor malformed', async () => {
    expectProblem(await send('/v1/orders?limit=1000000'), 422, 'invalid');
    expectProblem(await send("/v1/orders?cursor='%20OR%201=1"), 400, 'malformed');
  });

  it('that nobody knows is not found, for a well-formed id too', async () => {
    expectProblem(await send('/v1/nothing'), 404, 'not_found');
    expectProblem(await send('/v1/sales/unknown'), 404, 'not_found');
    expectProblem(await send(`/v1/sales/${'a'.repeat(60)}`), 404, 'not_found');
    expectProblem(await send('/v1/entries/unknown'), 404, 'not_found');
    expectProblem(await send('/v1/orders/unknown'), 404, 'not_found');
  });

  it('does not take methods that it has no call for, whatever an override says', async () => {
    const put = await send('/v1/sales', { method: 'PUT' });
    expectProblem(put, 405, 'method_not_allowed');
    expect(put.headers.get('allow')).toBe('GET, HEAD');
    expectProblem(await send('/v1/sales', { method: 'OPTIONS' }), 405, 'method_not_allowed');
    expectProblem(
      await send('/v1/time', { body: '{}', headers: { 'x-http-method-override': 'GET' } }),
      405,
      'method_not_allowed',
    );
    expect(await world.raw('TRACE /v1/sales HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')).toMatch(
      /^HTTP\/1.1 405 /,
    );
  });
});

describe('HTTP itself', () => {
  const head = 'POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n';
  it.each([
    [
      'both Content-Length and Transfer-Encoding',
      `${head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`,
    ],
    ['two lengths', `${head}Content-Length: 5\r\nContent-Length: 6\r\n\r\n{"a":`],
    ['a masked Transfer-Encoding', `${head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n`],
    ['a bare line feed', 'GET /v1/time HTTP/1.1\nHost: x\n\n'],
    ['a folded header', 'GET /v1/time HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c: d\r\n\r\n'],
    ['a line break in a value', 'GET /v1/time HTTP/1.1\r\nHost: x\r\nX-A: b\rX-B: c\r\n\r\n'],
    ['no HTTP', 'hello\r\n\r\n'],
  ])('with %s is refused and the connection closed', async (_, text) => {
    const answer = await world.raw(text);
    expect(answer).toMatch(/^HTTP\/1\.1 400 /);
    expect(answer).toMatch(/connection: close/i);
    expect(answer).toContain('"code":"malformed"');
  });

  it('with 100 kB of headers is refused', async () => {
    const answer = await world.raw(`GET /v1/time HTTP/1.1\r\nHost: x\r\nX-A: ${'a'.repeat(100_000)}\r\n\r\n`);
    expect(answer).toMatch(/^HTTP\/1\.1 431 /);
    expect(answer).toContain('"code":"headers_too_large"');
  });

  it('whose headers come drop by drop is cut off after five seconds', async () => {
    const startedMs = performance.now();
    await world.raw('GET /v1/time HTTP/1.1\r\nHost: x\r\nX-A: ', 9_000);
    expect(performance.now() - startedMs).toBeLessThan(8_000);
  });

  it('from another origin gets no permission', async () => {
    const answer = await send('/v1/sales', { headers: { origin: 'https://evil.example' } });
    expect(answer.status).toBe(200);
    expect([...answer.headers.keys()].filter((name) => name.startsWith('access-control'))).toEqual([]);
  });

  it('keeps a harmless request id and replaces any other', async () => {
    expect(
      (await send('/v1/time', { headers: { 'x-request-id': 'my-request-1' } })).headers.get('x-request-id'),
    ).toBe('my-request-1');
    const made = (await send('/v1/time', { headers: { 'x-request-id': 'x"} evil' } })).headers.get(
      'x-request-id',
    );
    expect(made).toMatch(/^[0-9a-f-]{36}$/);
  });
});

describe('who calls', () => {
  const anonymous = { authorization: '' };
  it('is known from the bearer token alone', async () => {
    expectProblem(await send('/v1/orders', { headers: anonymous }), 401, 'unauthenticated');
    expectProblem(
      await send('/v1/orders', {
        headers: { ...anonymous, 'x-user-id': 'alice', 'x-forwarded-user': 'alice' },
      }),
      401,
      'unauthenticated',
    );
    expectProblem(
      await send('/v1/orders', { headers: { ...anonymous, cookie: `access_token=${accessToken('alice')}` } }),
      401,
      'unauthenticated',
    );
    expectProblem(
      await send('/v1/orders', { headers: { authorization: `Basic ${btoa('alice:x')}` } }),
      401,
      'unauthenticated',
    );
    expectProblem(
      await send('/v1/orders', { headers: { authorization: 'Bearer v1.k1.abc.def' } }),
      401,
      'unauthenticated',
    );
    expect((await send('/v1/orders', { headers: anonymous })).headers.get('www-authenticate')).toBe('Bearer');
  });

  it('is asked before what is sent is looked at', async () => {
    expectProblem(await enter('{"quantity":"x"}', { authorization: 'Bearer x.y.z' }), 401, 'unauthenticated');
  });

  it('gets sessions for any name only where that is switched on', async () => {
    const session = await send('/v1/sessions', { body: '{"shopperId":"carol"}', headers: anonymous });
    expect(session.status).toBe(201);
    const own = { authorization: `Bearer ${String(session.json['accessToken'])}` };
    expectProblem(await send('/v1/orders', { headers: own }), 503, 'unavailable');
    const strict = await LoneGateway.start({ DEV_LOGIN: 'false' });
    try {
      expectProblem(
        await send('/v1/sessions', { body: '{"shopperId":"carol"}' }, strict.url),
        404,
        'not_found',
      );
    } finally {
      await strict.stop();
    }
  });

  it("must be an operator on the operators' port, which shoppers' calls are not on", async () => {
    const operator = { authorization: `Bearer ${accessToken('olga', { role: 'operator' })}` };
    expectProblem(
      await send('/v1/operator/sales', { headers: anonymous }, world.operatorUrl),
      401,
      'unauthenticated',
    );
    expectProblem(await send('/v1/operator/sales', {}, world.operatorUrl), 403, 'forbidden');
    expectProblem(
      await send('/v1/operator/sales', { headers: operator }, world.operatorUrl),
      503,
      'unavailable',
    );
    expectProblem(await send('/v1/operator/sales', { headers: operator }), 404, 'not_found');
    expectProblem(await send('/v1/sales', {}, world.operatorUrl), 404, 'not_found');
  });

  it("may not make operators' calls without a body that is right", async () => {
    const operator = { authorization: `Bearer ${accessToken('olga', { role: 'operator' })}` };
    const create = (body: object) =>
      send('/v1/operator/sales', { body: JSON.stringify(body), headers: operator }, world.operatorUrl);
    const good = {
      title: 'x',
      skuId: 's',
      allotment: 1,
      unitPrice: 1,
      currency: 'CNY',
      limitPerShopper: 1,
      opensAt: '2026-11-11T12:00:00.000Z',
      closesAt: '2026-11-11T13:00:00.000Z',
    };
    expectProblem(await create(good), 503, 'unavailable');
    expectProblem(await create({ ...good, closesAt: good.opensAt }), 422, 'invalid');
    expectProblem(await create({ ...good, saleId: 'a'.repeat(41) }), 422, 'invalid');
    expectProblem(await create({ ...good, phase: 'open' }), 422, 'invalid');
    expectProblem(await create({ ...good, line: { mode: 'lifo' } }), 422, 'invalid');
    expectProblem(
      await send(
        '/v1/operator/sales/x/pause',
        { body: '{"force":true}', headers: operator },
        world.operatorUrl,
      ),
      422,
      'invalid',
    );
  });
});

describe('an Idempotency-Key', () => {
  it.each([
    ['missing', ''],
    ['of 300 characters', 'k'.repeat(300)],
    ['with a space', 'a b'],
    ['with a slash', 'a/b'],
    ['given twice', 'a, b'],
  ])('that is %s is malformed', async (_, key) => {
    expectProblem(await enter('{"quantity":1}', { 'idempotency-key': key }), 400, 'malformed');
    expectProblem(
      await send('/v1/orders/x/payment', {
        body: '{"method":"test-card","card":"4242424242424242"}',
        headers: { 'idempotency-key': key },
      }),
      400,
      'malformed',
    );
  });
});

describe('an order', () => {
  const delivery = { name: 'Li', phone: '+86 138 0000 0000', address: 'Road 1' };
  const place = (body: object) => send('/v1/orders', { body: JSON.stringify(body) });

  it('that nobody answers for is unknown, not refused', async () => {
    expectProblem(await place({ purchaseToken: 'v1.x', delivery }), 503, 'enqueue_unknown');
  });

  it.each([
    ['no delivery', { purchaseToken: 'x' }],
    ['a token that is an object', { purchaseToken: { id: 1 }, delivery }],
    ['a name that is an object', { purchaseToken: 'x', delivery: { ...delivery, name: { id: 1 } } }],
    ['a name of 101 characters', { purchaseToken: 'x', delivery: { ...delivery, name: 'x'.repeat(101) } }],
    ['a phone that is none', { purchaseToken: 'x', delivery: { ...delivery, phone: 'call me' } }],
    ['a token of 2 kB', { purchaseToken: 'x'.repeat(2_000), delivery }],
    ['a status', { purchaseToken: 'x', delivery, status: 'paid' }],
    ['a price inside', { purchaseToken: 'x', delivery: { ...delivery, price: 0 } }],
  ])('with %s is invalid', async (_, body) => {
    expectProblem(await place(body), 422, 'invalid');
  });

  it('names the fields that are wrong and repeats nothing of them', async () => {
    const answer = await place({ purchaseToken: 'x', delivery: { ...delivery, phone: 'my secret phone' } });
    expect(answer.json['errors']).toEqual([{ field: 'delivery.phone', message: expect.any(String) }]);
    expect(answer.text).not.toContain('secret');
  });
});

describe("the payment provider's events", () => {
  const body = '{"eventId":"e1","paymentId":"p1","result":"captured"}';
  const now = () => Math.floor(Date.now() / 1_000);
  const sign = (timestamp: number | string, text = body, secret = WEBHOOK_SECRET) =>
    createHmac('sha256', secret).update(`${timestamp}.${text}`).digest('hex');
  const deliver = (timestamp: number | string, signature: string, text = body) =>
    send('/v1/payments/webhook', {
      body: text,
      headers: {
        authorization: '',
        'x-payment-timestamp': String(timestamp),
        'x-payment-signature': signature,
      },
    });

  it('are taken when the signature over time and body is right', async () => {
    const timestamp = now();
    expectProblem(await deliver(timestamp, sign(timestamp)), 503, 'unavailable');
  });

  it('are refused otherwise', async () => {
    const timestamp = now();
    const changed = body.replace('captured', 'declined');
    expectProblem(await deliver(timestamp, sign(timestamp), changed), 401, 'unauthenticated');
    expectProblem(await deliver(timestamp, sign(timestamp), `${body} `), 401, 'unauthenticated');
    expectProblem(await deliver(timestamp, sign(timestamp, body, 'another secret')), 401, 'unauthenticated');
    expectProblem(await deliver(timestamp + 1, sign(timestamp)), 401, 'unauthenticated');
    expectProblem(await deliver(timestamp - 400, sign(timestamp - 400)), 401, 'unauthenticated');
    expectProblem(await deliver(timestamp + 400, sign(timestamp + 400)), 401, 'unauthenticated');
    expectProblem(await deliver('1e9', sign('1e9')), 401, 'unauthenticated');
    expectProblem(await deliver(timestamp, ''), 401, 'unauthenticated');
    expectProblem(await send('/v1/payments/webhook', { body }), 401, 'unauthenticated');
  });

  it('that are signed and wrong are invalid', async () => {
    const timestamp = now();
    const wrong = '{"eventId":"e1","paymentId":"p1","result":"free"}';
    expectProblem(await deliver(timestamp, sign(timestamp, wrong), wrong), 422, 'invalid');
  });
});

describe('rates', () => {
  it("beyond a shopper's limit are refused with a time to come again; others go on", async () => {
    const limited = await LoneGateway.start({ RATE_LIMIT_PER_SHOPPER_PER_SECOND: '5' });
    try {
      const storm = await Promise.all(Array.from({ length: 30 }, () => send('/v1/orders', {}, limited.url)));
      const refused = storm.filter((answer) => answer.status === 429);
      expect(refused.length).toBeGreaterThanOrEqual(20);
      for (const answer of refused) expectProblem(answer, 429, 'rate_limited');
      const bob = { authorization: `Bearer ${accessToken('bob')}` };
      expectProblem(await send('/v1/orders', { headers: bob }, limited.url), 503, 'unavailable');
    } finally {
      await limited.stop();
    }
  });

  it('of an address do not follow a forged X-Forwarded-For', async () => {
    const limited = await LoneGateway.start({ RATE_LIMIT_PER_ADDRESS_PER_SECOND: '5' });
    try {
      const storm = await Promise.all(
        Array.from({ length: 30 }, (_, i) =>
          send('/v1/time', { headers: { 'x-forwarded-for': `10.0.0.${i}` } }, limited.url),
        ),
      );
      expect(storm.filter((answer) => answer.status === 429).length).toBeGreaterThanOrEqual(20);
    } finally {
      await limited.stop();
    }
  });

  it('of an address behind a trusted proxy are its own', async () => {
    const limited = await LoneGateway.start({
      RATE_LIMIT_PER_ADDRESS_PER_SECOND: '5',
      TRUSTED_PROXY_HOPS: '1',
    });
    try {
      const storm = await Promise.all(
        Array.from({ length: 30 }, (_, i) =>
          send('/v1/time', { headers: { 'x-forwarded-for': `1.2.3.4, 10.0.0.${i}` } }, limited.url),
        ),
      );
      expect(storm.filter((answer) => answer.status === 429)).toEqual([]);
    } finally {
      await limited.stop();
    }
  });
});
