import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import type { SaleSnapshot } from '@flash-sale/contracts';
import { LoneGateway, accessToken } from './fixtures/lone-gateway.js';

/** A gateway that lets in one entry a second, with nobody behind it: those that are let in end as `unavailable` too. */
let world: LoneGateway;
let sale: SaleSnapshot;

beforeAll(async () => {
  world = await LoneGateway.start({ MAX_ENTRIES_PER_SECOND: '1' });
  sale = await world.publish();
});

afterAll(async () => {
  await world.unpublish(sale);
  await world.stop();
});

interface Read {
  readonly status: number;
  readonly head: string;
  readonly body: string;
}

const entry = (body = '{"quantity":1}', headers: readonly string[] = []) =>
  [
    `POST /v1/sales/${sale.saleId}/entries HTTP/1.1`,
    'host: gateway',
    'content-type: application/json',
    'idempotency-key: k1',
    `content-length: ${Buffer.byteLength(body)}`,
    ...headers,
    '',
    body,
  ].join('\r\n');
const timeAndEnd = 'GET /v1/time HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n';

/** Sends requests on one connection, all at once, and gives their answers in order. */
async function exchange(...requests: readonly string[]): Promise<Read[]> {
  const text = await world.raw(requests.join(''));
  const answers: Read[] = [];
  for (let from = 0; from < text.length;) {
    const headEnd = text.indexOf('\r\n\r\n', from) + 4;
    const head = text.slice(from, headEnd);
    const end = headEnd + Number(/\r\ncontent-length: (\d+)/i.exec(head)?.[1]);
    answers.push({ status: Number(head.slice(9, 12)), head, body: text.slice(headEnd, end) });
    from = end;
  }
  return answers;
}

/** Of somebody who is known, and so takes the room for the next second. */
const alices = () => entry('{"quantity":1}', [`authorization: Bearer ${accessToken('alice')}`]);

describe('a new entry at a gateway with room for one', () => {
  // Comes first: the others leave no room behind.
  it('leaves its room to others when it turns out to be nobody', async () => {
    for (let turn = 0; turn < 20; turn += 1) {
      const [answer] = await exchange(entry(), timeAndEnd);
      expect(answer?.status).toBe(401);
    }
  });

  it('is refused before anybody asks who it is, and its connection serves the next request', async () => {
    const strangers = Array.from({ length: 50 }, () => entry());
    const answers = await exchange(alices(), ...strangers, timeAndEnd);
    expect(answers.map(({ status }) => status)).toEqual([...Array<number>(51).fill(503), 200]);
  });

  it('gets a problem document with its request id and a time to come again', async () => {
    const mine = entry('{"quantity":1}', ['x-request-id: my-id-1']);
    const [, refused] = await exchange(alices(), mine, timeAndEnd);
    expect(JSON.parse(refused?.body ?? '')).toEqual({
      type: 'urn:flash-sale:problem:unavailable',
      title: 'Not available at the moment.',
      status: 503,
      code: 'unavailable',
      requestId: 'my-id-1',
    });
    expect(refused?.head.toLowerCase().split('\r\n')).toEqual(
      expect.arrayContaining([
        'content-type: application/problem+json; charset=utf-8',
        'cache-control: no-store',
        'x-content-type-options: nosniff',
        'referrer-policy: no-referrer',
        'x-request-id: my-id-1',
        expect.stringMatching(/^retry-after: [1-5]$/),
      ]),
    );
  });

  it('is told that its body is too large before it is told that there is no room', async () => {
    const [, large] = await exchange(alices(), entry(`"${'x'.repeat(100_000)}"`));
    expect(large?.status).toBe(413);
  });

  it('finds the same door however its address is spelled', async () => {
    const spelled = alices().replace('/entries', '/entr%69es');
    const answers = await exchange(alices(), spelled, timeAndEnd);
    expect(answers.map(({ status }) => status)).toEqual([503, 503, 200]);
  });

  it('is told by a sale that is not open yet what it is told where there is room', async () => {
    const later = await world.publish({ opensAtMs: Date.now() + 3_600_000 });
    const there = alices().replace(sale.saleId, later.saleId);
    const answers = await exchange(alices(), there, there, there, timeAndEnd);
    const codes = answers.slice(1, 4).map(({ body }) => (JSON.parse(body) as { code: string }).code);
    expect(codes).toEqual(['sale_not_open', 'sale_not_open', 'sale_not_open']);
    await world.unpublish(later);
  });
});

describe('a new entry that memory refuses', () => {
  const token = accessToken('bob');
  const bobs = (saleId: string, headers: readonly string[] = []) =>
    entry('{"quantity":1}', [`authorization: Bearer ${token}`, 'x-request-id: my-id-2', ...headers]).replace(
      sale.saleId,
      saleId,
    );
  const withoutDate = (head: string | undefined) =>
    (head ?? '')
      .toLowerCase()
      .split('\r\n')
      .filter((line) => !/^(date|connection|keep-alive):/.test(line))
      .sort();

  it('gets the same answer whether who asks was known before or not, and is asked nothing else', async () => {
    const later = await world.publish({ opensAtMs: Date.now() + 3_600_000 });
    const [first] = await exchange(bobs(later.saleId), timeAndEnd);
    const [second, third] = await exchange(
      bobs(later.saleId),
      // The sale's answer does not depend on what was wanted of it.
      entry('{"quantity":', [`authorization: Bearer ${token}`]).replace(sale.saleId, later.saleId),
      timeAndEnd,
    );
    expect([first?.status, second?.status, third?.status]).toEqual([409, 409, 409]);
    expect(second?.body).toBe(first?.body);
    expect(withoutDate(second?.head)).toEqual(withoutDate(first?.head));
    await world.unpublish(later);
  });

  it('is looked at more closely where it may get another answer', async () => {
    const later = await world.publish({ opensAtMs: Date.now() + 3_600_000 });
    const sold = await world.publish({ soldOut: true, filterBits: 1_024, filterVersion: 1 });
    await exchange(bobs(later.saleId), timeAndEnd);
    const answers = await exchange(
      bobs(later.saleId),
      bobs(later.saleId).replace('idempotency-key: k1', 'idempotency-key: k/1'),
      bobs(later.saleId).replace('application/json', 'text/plain'),
      bobs(later.saleId).replace(token, `${token}x`),
      // Its filter is not here, so anybody may be a holder, whom nobody here can look up.
      bobs(sold.saleId),
      timeAndEnd,
    );
    expect(answers.map(({ status }) => status)).toEqual([409, 400, 415, 401, 503, 200]);
    await world.unpublish(later);
    await world.unpublish(sold);
  });
});
