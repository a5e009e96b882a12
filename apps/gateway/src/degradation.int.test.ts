import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import type { SaleSnapshot } from '@flash-sale/contracts';
import { Degradation, Hysteresis } from './degradation.js';
import { LoneGateway, accessToken } from './fixtures/lone-gateway.js';
import { createLog } from '@flash-sale/service';

/** Two real gateways on one real Redis (a database of this test's own), with nobody behind them. */
let one: LoneGateway;
let other: LoneGateway;
let sale: SaleSnapshot;

beforeAll(async () => {
  const REDIS_URL = new URL('/6', process.env['REDIS_URL']).href;
  one = await LoneGateway.start({ REDIS_URL });
  other = await LoneGateway.start({ REDIS_URL });
  await one.redis.del('fs:degradation');
  sale = await one.publish();
});
afterAll(async () => {
  await one.redis.del('fs:degradation');
  await one.unpublish(sale);
  await Promise.all([one.stop(), other.stop()]);
});

async function operate(body?: object, role: object = { role: 'operator' }, gateway = one) {
  const response = await fetch(`${gateway.operatorUrl}/v1/operator/degradation`, {
    method: body ? 'PUT' : 'GET',
    headers: {
      authorization: `Bearer ${accessToken('olga', { ...role })}`,
      'content-type': 'application/json',
    },
    ...(body && { body: JSON.stringify(body) }),
  });
  return { status: response.status, json: (await response.json()) as Record<string, unknown> };
}

async function until<Value>(look: () => Promise<Value>, isIt: (value: Value) => boolean): Promise<Value> {
  const giveUpAtMs = performance.now() + 15_000;
  for (;;) {
    const value = await look();
    if (isIt(value)) return value;
    if (performance.now() > giveUpAtMs) throw new Error(`it never came to be: ${JSON.stringify(value)}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const details = (gateway: LoneGateway) => fetch(`${gateway.url}/v1/sales/${sale.saleId}`);
const isCopy = (response: Response) => response.headers.has('age');

describe('the switches', () => {
  it('of one gateway hold on all, until they are taken back', async () => {
    expect((await operate()).json).toMatchObject({ productDetails: { mode: 'automatic', degraded: false } });
    const changed = await operate({ productDetails: 'degraded' });
    // Nobody keeps the operator log here; a switch for bad days works all the same, and says so.
    expect([changed.status, changed.json]).toMatchObject([
      200,
      { productDetails: { mode: 'degraded', degraded: true }, recorded: false },
    ]);
    const copy = await until(() => details(other), isCopy);
    expect(copy.headers.get('cache-control')).toBe('public, max-age=5, stale-while-revalidate=30');
    expect(await copy.json()).toMatchObject({ saleId: sale.saleId, phase: 'open' });
    expect((await operate(undefined, undefined, other)).json).toMatchObject({
      eventStreams: { mode: 'automatic' },
      productDetails: { mode: 'degraded', degraded: true },
    });
    await operate({ productDetails: 'normal' });
    await until(
      () => details(other),
      (response) => !isCopy(response),
    );
  });

  it('serve the copy of some seconds ago while details are degraded, and what is true otherwise', async () => {
    const version = { version: sale.version + 1, title: 'Another title' };
    await operate({ productDetails: 'degraded' });
    const before = (await (await details(one)).json()) as { title: string };
    await one.redis.publish('fs:sales:changes', JSON.stringify({ ...sale, ...version }));
    await one.redis.hset('fs:sales', sale.saleId, JSON.stringify({ ...sale, ...version }));
    expect(await (await details(one)).json()).toMatchObject({ title: before.title });
    await operate({ productDetails: 'normal' });
    const now = await until(
      async () => (await (await details(one)).json()) as { title: string },
      ({ title }) => title === version.title,
    );
    expect(now.title).not.toBe(before.title);
    await operate({ productDetails: 'automatic' });
  });

  it('tell who asks for a stream to poll instead, without asking any service', async () => {
    await operate({ eventStreams: 'degraded' });
    const refused = await fetch(`${one.url}/v1/entries/${sale.saleId}-${'a'.repeat(22)}/events`, {
      headers: { authorization: `Bearer ${accessToken('alice')}` },
    });
    expect(refused.status).toBe(503);
    expect(Number(refused.headers.get('retry-after'))).toBeGreaterThanOrEqual(1);
    expect(await refused.json()).toMatchObject({
      code: 'unavailable',
      detail: 'No event stream can be served now. Ask for the state itself every 2000 ms instead.',
    });
    await operate({ eventStreams: 'automatic' });
  });

  it.each([
    [{}, 422],
    [{ eventStreams: 'off' }, 422],
    [{ avatars: 'degraded' }, 422],
  ])('refuse %j', async (body, status) => {
    expect((await operate(body)).status).toBe(status);
  });

  it('are for operators only', async () => {
    expect((await operate({ eventStreams: 'degraded' }, {})).status).toBe(403);
  });

  it('are turned by a gateway itself while it has to refuse people, where operators said nothing else', async () => {
    let refusals = 0;
    const degradation = new Degradation({
      redis: one.redis,
      refusals: () => (refusals += 1),
      log: createLog('test', 'silent'),
    });
    degradation.start();
    try {
      await until(
        async () => degradation.isDegraded('eventStreams') && degradation.isDegraded('productDetails'),
        (isDegraded) => isDegraded,
      );
      await degradation.write({ eventStreams: 'normal', productDetails: 'automatic' });
      expect(degradation.isDegraded('eventStreams')).toBe(false);
      expect(degradation.isDegraded('productDetails')).toBe(true);
    } finally {
      await degradation.write({ eventStreams: 'automatic', productDetails: 'automatic' });
      await degradation.close();
    }
  });
});

describe('Hysteresis', () => {
  const noted = (steps: readonly (readonly [boolean, number])[]) => {
    const state = new Hysteresis(2_000, 15_000);
    return steps.map(([seen, nowMs]) => {
      state.note(seen, nowMs);
      return state.isOn;
    });
  };

  it('turns on after pressure without a break, off only after a long calm', () => {
    expect(
      noted([
        [true, 0],
        [true, 1_999],
        [true, 2_000],
        [false, 3_000],
        [false, 17_999],
        [false, 18_000],
      ]),
    ).toEqual([false, false, true, true, true, false]);
  });

  it('is not moved by what comes and goes', () => {
    expect(
      noted([
        [true, 0],
        [false, 1_500],
        [true, 2_000],
        [true, 3_900],
        [true, 4_000],
        [false, 5_000],
        [true, 19_000],
        [false, 20_500],
        [false, 35_000],
      ]),
    ).toEqual([false, false, false, false, true, true, true, true, true]);
  });
});
