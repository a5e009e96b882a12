import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { DELIVERY, World, until, type Answer, type Caller } from '@flash-sale/testing';
import { solveChallenge, type Challenge } from 'altcha-lib';
import { deriveKey } from 'altcha-lib/algorithms/pbkdf2';
import { z } from 'zod';
import {
  AuditLogAnswer,
  DegradationAnswer,
  GrantedEntry,
  OrderAnswer,
  PlacedOrder,
  ProblemAnswer,
  SaleAnswer,
  SaleReport,
  SalesAnswer,
} from './schemas.js';

/** What somebody may try who has a valid access token, against the five real services. */
let world: World;

beforeAll(async () => {
  world = await World.start({ env: { CHALLENGE_COST: '1', CHALLENGE_MAX_TRIES: '20' } });
}, 60_000);
afterAll(() => world?.stop(), 60_000);

const codeOf = ({ status, body }: Answer) => [status, body['code']];
async function granted(shopper: Caller, saleId: string, key = 'k'): Promise<string> {
  const answer = await shopper.enter(saleId, key);
  expect(answer.status).toBe(201);
  return String(answer.body['purchaseToken']);
}

describe('a purchase token', () => {
  it('is good for its own hold only: not changed, not as an access token, and no access token instead of it', async () => {
    const saleId = await world.openSale();
    const alice = world.shopper('token-alice');
    const token = await granted(alice, saleId);
    const [version, keyId, payload = '', mac = ''] = token.split('.');
    const claims = JSON.parse(Buffer.from(payload, 'base64url').toString()) as Record<string, unknown>;
    const changed = (changes: object) =>
      [
        version,
        keyId,
        Buffer.from(JSON.stringify({ ...claims, ...changes })).toString('base64url'),
        mac,
      ].join('.');
    for (const forged of [
      changed({ q: 100 }),
      changed({ k: 'another-sku' }),
      changed({ a: `another-sale${String(claims['a']).slice(-23)}` }),
      changed({ x: Number(claims['x']) + 3_600_000 }),
      changed({ u: 'token-mallory' }),
      `${token.slice(0, -2)}${token.endsWith('AA') ? 'BB' : 'AA'}`,
      [version, 'k9', payload, mac].join('.'),
      [version, '../../etc/passwd', payload, mac].join('.'),
      ['v2', keyId, payload, mac].join('.'),
      [version, keyId, payload, ''].join('.'),
      world.accessToken('token-alice'),
      'x',
    ]) {
      expect(codeOf(await alice.order(forged))).toEqual([401, 'invalid_token']);
    }
    const asAccess = await fetch(`${world.shopUrl}/v1/orders`, {
      headers: { authorization: `Bearer ${token}` },
    });
    expect(asAccess.status).toBe(401);
    expect(codeOf(await world.shopper('token-mallory').order(token))).toEqual([403, 'forbidden']);
    expect((await alice.order(token)).status).toBe(202);
  });

  it('used at once by many requests makes one order, which all of them name', async () => {
    const saleId = await world.openSale();
    const alice = world.shopper('twice-alice');
    const token = await granted(alice, saleId);
    const answers = await Promise.all(
      Array.from({ length: 20 }, () => alice.persist(() => alice.order(token))),
    );
    expect(new Set(answers.map(({ status, body }) => `${status} ${String(body['orderId'])}`)).size).toBe(1);
    const orderId = String(answers[0]?.body['orderId']);
    await alice.orderIn(orderId, ['awaiting_payment']);
    expect((await alice.call('GET', '/v1/orders')).body['orders']).toHaveLength(1);
    expect(codeOf(await alice.order(token, { ...DELIVERY, name: 'Somebody Else' }))).toEqual([
      422,
      'idempotency_key_reused',
    ]);
  });
});

describe('an entry', () => {
  it('asked for a hundred times at once with one key is one hold, answered alike', async () => {
    const saleId = await world.openSale({ allotment: 50 });
    const alice = world.shopper('storm-alice');
    const answers = await Promise.all(
      Array.from({ length: 100 }, () => alice.persist(() => alice.enter(saleId, 'k'))),
    );
    // Who asks again in the same moment meets the first answer, status and all.
    expect(answers.some(({ status }) => status === 201)).toBe(true);
    expect(answers.every(({ status }) => status === 201 || status === 200)).toBe(true);
    expect(new Set(answers.map(({ body }) => body['purchaseToken'])).size).toBe(1);
    const { redis } = SaleReport.parse(
      await world.operator().expect(200, 'GET', `/v1/operator/sales/${saleId}/report`),
    );
    expect([redis.held, redis.free]).toEqual([1, 49]);
  });

  it('with the same key belongs to each shopper apart', async () => {
    const saleId = await world.openSale();
    const one = await world.shopper('same-1').enter(saleId, 'k');
    const other = await world.shopper('same-2').enter(saleId, 'k');
    expect([one.status, other.status]).toEqual([201, 201]);
    expect(one.body['entryId']).not.toBe(other.body['entryId']);
  });

  it('of more units than one shopper may have is refused', async () => {
    const saleId = await world.openSale({ limitPerShopper: 2 });
    expect(codeOf(await world.shopper('greedy').enter(saleId, 'k', 3))).toEqual([409, 'limit_reached']);
    const waiting = await world.openSale({ limitPerShopper: 2, line: { mode: 'fifo', admitPerSecond: 10 } });
    expect(codeOf(await world.shopper('greedy').enter(waiting, 'k', 3))).toEqual([409, 'limit_reached']);
  });
});

describe('what belongs to somebody else', () => {
  it('looks exactly as what does not exist', async () => {
    const saleId = await world.openSale();
    const alice = world.shopper('owner');
    const mallory = world.shopper('prying');
    const token = await granted(alice, saleId);
    const { orderId } = PlacedOrder.parse((await alice.order(token)).body);
    await alice.orderIn(orderId, ['awaiting_payment']);
    const absent = `${saleId}-${'A'.repeat(22)}`;
    const card = { method: 'test-card', card: '4242424242424242' };
    const withoutId = ({ status, body }: Answer) => [status, { ...body, requestId: '' }];
    for (const [method, path, body] of [
      ['GET', '/v1/orders/ID', undefined],
      ['GET', '/v1/orders/ID/events', undefined],
      ['DELETE', '/v1/orders/ID', undefined],
      ['POST', '/v1/orders/ID/payment', card],
      ['GET', '/v1/entries/ID', undefined],
      ['GET', '/v1/entries/ID/events', undefined],
      ['DELETE', '/v1/entries/ID', undefined],
    ] as const) {
      const key = { 'idempotency-key': 'k' };
      const theirs = await mallory.call(method, path.replace('ID', orderId), body, key);
      const nobodys = await mallory.call(method, path.replace('ID', absent), body, key);
      expect(withoutId(theirs)).toEqual(withoutId(nobodys));
      expect(codeOf(theirs)).toEqual([404, 'not_found']);
    }
    expect((await alice.call('GET', `/v1/orders/${orderId}`)).body['state']).toBe('awaiting_payment');
  });
});

describe('a proof of work', () => {
  const encode = (payload: object) => Buffer.from(JSON.stringify(payload)).toString('base64');
  const enter = (shopper: Caller, saleId: string, key: string, challenge?: string) =>
    shopper.call(
      'POST',
      `/v1/sales/${saleId}/entries`,
      { quantity: 1, ...(challenge === undefined ? {} : { challenge }) },
      { 'idempotency-key': key },
    );
  async function solve(shopper: Caller, saleId: string): Promise<string> {
    const challenge = (await shopper.expect(
      201,
      'POST',
      `/v1/sales/${saleId}/challenge`,
    )) as unknown as Challenge;
    return encode({ challenge, solution: await solveChallenge({ challenge, deriveKey }) });
  }

  it('is asked of everybody once, and never again of a known entry', async () => {
    const saleId = await world.openSale({ challenge: 'proof_of_work' });
    const alice = world.shopper('pow-alice');
    expect((await alice.call('GET', `/v1/sales/${saleId}`)).body['challenge']).toBe('proof_of_work');
    expect(codeOf(await enter(alice, saleId, 'k'))).toEqual([403, 'challenge_required']);
    const solution = await solve(alice, saleId);
    const first = await enter(alice, saleId, 'k', solution);
    expect(first.status).toBe(201);
    expect((await enter(alice, saleId, 'k', solution)).body).toEqual(first.body);
    expect((await enter(alice, saleId, 'k')).body).toEqual(first.body);
  });

  it('cannot be used twice, by another, for another sale, or made up', async () => {
    const saleId = await world.openSale({ challenge: 'proof_of_work', limitPerShopper: 5 });
    const otherSale = await world.openSale({ challenge: 'proof_of_work' });
    const alice = world.shopper('pow-again');
    const solution = await solve(alice, saleId);
    expect(codeOf(await enter(world.shopper('pow-bob'), saleId, 'k', solution))).toEqual([
      401,
      'invalid_token',
    ]);
    expect(codeOf(await enter(alice, otherSale, 'k', solution))).toEqual([401, 'invalid_token']);
    expect(codeOf(await enter(alice, saleId, 'k', encode({ forged: true })))).toEqual([401, 'invalid_token']);
    const { entryId } = (await enter(alice, saleId, 'k', solution)).body;
    await alice.expect(204, 'DELETE', `/v1/entries/${String(entryId)}`);
    await until('the hold to be given up', 15_000, async () => {
      const { body } = await alice.call('GET', `/v1/entries/${String(entryId)}`);
      return body['state'] === 'released';
    });
    expect(codeOf(await enter(alice, saleId, 'k2', solution))).toEqual([409, 'challenge_used']);
    expect((await enter(alice, saleId, 'k2', await solve(alice, saleId))).status).toBe(201);
  });
});

describe('answers', () => {
  it('have the shapes that the document promises', async () => {
    const saleId = await world.openSale();
    const alice = world.shopper('shapes');
    const exact = (schema: z.ZodType, body: unknown) => expect(schema.parse(body)).toEqual(body);
    exact(SaleAnswer, (await alice.call('GET', `/v1/sales/${saleId}`)).body);
    exact(SalesAnswer, (await alice.call('GET', '/v1/sales')).body);
    const entry = await alice.enter(saleId, 'k');
    exact(GrantedEntry, entry.body);
    expect(entry.headers.get('location')).toBe(`/v1/entries/${String(entry.body['entryId'])}`);
    expect(entry.headers.get('cache-control')).toBe('no-store');
    const placed = await alice.order(entry.body['purchaseToken']);
    exact(PlacedOrder, placed.body);
    const orderId = String(placed.body['orderId']);
    exact(OrderAnswer, await alice.orderIn(orderId, ['awaiting_payment']));
    exact(OrderAnswer, (await alice.pay(orderId, 'p')).body);
    exact(ProblemAnswer, (await alice.call('DELETE', `/v1/orders/${orderId}`)).body);
  });

  it('name the operator who changed what is degraded, in the log of operators', async () => {
    const operator = world.operator();
    // What holds already, so that nobody else on these servers notices.
    const answer = await operator.expect(200, 'PUT', '/v1/operator/degradation', {
      productDetails: 'automatic',
    });
    expect(DegradationAnswer.parse(answer)).toMatchObject({ recorded: true });
    const { entries } = AuditLogAnswer.parse(await operator.expect(200, 'GET', '/v1/operator/audit-log'));
    const [entry] = entries.filter(({ operation }) => operation === 'degradation');
    expect(entry).toMatchObject({ operator: 'operator-1', saleId: null });
    expect(JSON.parse(entry?.detail ?? '')).toMatchObject({ after: { productDetails: 'automatic' } });
  });

  it('leave no secret in any log', async () => {
    const saleId = await world.openSale();
    const alice = world.shopper('quiet');
    const token = await granted(alice, saleId);
    const { orderId } = PlacedOrder.parse((await alice.order(token)).body);
    await alice.orderIn(orderId, ['awaiting_payment']);
    await alice.pay(orderId, 'p', '4000000000000002');
    await fetch(`${world.shopUrl}/v1/orders?access_token=${world.accessToken('leaky')}`);
    for (const name of ['gateway', 'token', 'inventory', 'order', 'order-writer'] as const) {
      const log = world.logOf(name);
      for (const secret of [
        token,
        token.split('.')[3] ?? '',
        DELIVERY['phone'] ?? '',
        '4000000000000002',
        'access_token',
        'eyJ',
      ]) {
        expect(log).not.toContain(secret);
      }
    }
  });
});
