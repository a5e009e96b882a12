import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { Caller, World, until } from '@flash-sale/testing';
import { TestEdge } from './fixtures/stand-in-gateway.js';

/** The whole suite behind a real nginx: what gateways tell the edge, and what both together answer. */
const OFFERED = 3;
const WITHIN_MS = 20_000;

let world: World;
let edge: TestEdge;

beforeAll(async () => {
  world = await World.start({
    instances: { gateway: 2 },
    env: { TRUSTED_PROXY_HOPS: '1', RATE_LIMIT_PER_ADDRESS_PER_SECOND: '0' },
  });
  const authorities = (urls: readonly string[]) => urls.map((url) => new URL(url).host).join(',');
  edge = await TestEdge.start({
    GATEWAYS: authorities(world.gateways.map(({ shopUrl }) => shopUrl)),
    GATEWAY_FEEDS: authorities(world.gateways.map(({ readyUrl }) => readyUrl)),
  });
}, 120_000);
afterAll(async () => {
  await edge?.stop();
  await world?.stop();
}, 60_000);

const shopper = (id: string) => new Caller(edge.url, world.accessToken(id), id, null);
/** How many entries the edge itself refused with a code. */
async function refusedAtEdge(code: string): Promise<number> {
  return Number(new RegExp(`\\{code="${code}"\\} (\\d+)`).exec(await edge.metrics())?.[1] ?? 0);
}
/** Asks as ever new strangers until it is the edge that refuses. */
async function untilRefusedAtEdge(saleId: string, code: string): Promise<void> {
  const before = await refusedAtEdge(code);
  let asked = 0;
  await until(`the edge to say ${code}`, WITHIN_MS, async () => {
    asked += 1;
    await shopper(`stranger-${asked}`).enter(saleId, 'k');
    return (await refusedAtEdge(code)) > before;
  });
}

describe('the suite behind the edge', () => {
  it('sells, refuses strangers at the edge once all is sold, and still answers those who hold units', async () => {
    const saleId = await world.openSale({ allotment: OFFERED });
    const first = shopper('buyer-0');
    const others = Array.from({ length: OFFERED - 1 }, (_, index) => shopper(`buyer-${index + 1}`));
    const entry = await first.expect(
      201,
      'POST',
      `/v1/sales/${saleId}/entries`,
      { quantity: 1 },
      { 'idempotency-key': 'k' },
    );
    for (const buyer of others) expect((await buyer.buy(saleId))['state']).toBe('paid');
    await untilRefusedAtEdge(saleId, 'sold_out');

    const refused = await shopper('one-more').enter(saleId, 'k');
    expect(refused).toMatchObject({ status: 410, body: { code: 'sold_out' } });
    // The answer may have been lost on the way: asked again, it is the same, though everything is sold.
    const again = await first.enter(saleId, 'k');
    expect(again).toMatchObject({ body: { entryId: entry['entryId'], state: 'granted' } });
    // Within the moment of a double click it is the first answer itself.
    expect([200, 201]).toContain(again.status);
    expect(again.body['purchaseToken']).toBeTruthy();

    // A stream is passed on as it comes: what is asked for here is its first event, long before it ends.
    const stream = await fetch(`${edge.url}/v1/entries/${String(entry['entryId'])}/events`, {
      headers: { authorization: `Bearer ${world.accessToken('buyer-0')}` },
    });
    const reader = stream.body!.getReader();
    expect(Buffer.from((await reader.read()).value!).toString()).toContain('"granted"');
    await reader.cancel();

    // A unit that comes back can be had by whoever was refused before.
    const left = await first.call('DELETE', `/v1/entries/${String(entry['entryId'])}`);
    expect(left.status).toBe(204);
    await until('a stranger to be granted', WITHIN_MS, async () => {
      const answer = await shopper('one-more').enter(saleId, 'k2');
      return answer.status === 201;
    });
  }, 90_000);

  it('refuses before the opening at the edge, and nobody after it', async () => {
    const opensAtMs = Date.now() + 6_000;
    const saleId = await world.openSale({ opensAt: new Date(opensAtMs).toISOString() });
    await untilRefusedAtEdge(saleId, 'sale_not_open');
    let refusedAtMs = 0;
    await until('the sale to open', WITHIN_MS, async () => {
      // The clock of Redis is this machine's own here.
      const askedAtMs = Date.now();
      const answer = await shopper(`early-${askedAtMs}`).enter(saleId, 'k');
      if (answer.body['code'] === 'sale_not_open') refusedAtMs = askedAtMs;
      return answer.status === 201;
    });
    expect(refusedAtMs).toBeLessThan(opensAtMs);
  }, 60_000);

  it('loses a gateway, and then all of them, and gets them back', async () => {
    const sold = await world.openSale({ allotment: 1 });
    await shopper('the-one').buy(sold);
    await untilRefusedAtEdge(sold, 'sold_out');
    await world.kill('gateway', 0);
    // From the other one.
    await untilRefusedAtEdge(sold, 'sold_out');
    expect((await shopper('anyone').call('GET', `/v1/sales/${sold}`)).status).toBe(200);
    await world.kill('gateway', 1);
    await until('the edge to be alone', WITHIN_MS, async () => {
      const answer = await shopper('anyone').enter(sold, 'k');
      return (
        answer.status === 503 &&
        answer.headers.get('retry-after') === '1' &&
        answer.body['code'] === 'unavailable'
      );
    });
    const page = await fetch(`${edge.url}/docs`, { headers: { accept: 'text/html' } });
    expect([page.status, await page.text()]).toEqual([503, expect.stringContaining('Very busy')]);
    await world.startService('gateway', 1);
    await untilRefusedAtEdge(sold, 'sold_out');
    // nginx itself tries a gateway that was gone again after a second.
    await until('calls to be passed on', WITHIN_MS, async () => {
      return (await shopper('the-one').call('GET', `/v1/sales/${sold}`)).status === 200;
    });
  }, 120_000);
});
