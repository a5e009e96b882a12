import { randomInt } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { BLOCKLIST_FEED, type BlocklistChange, type SaleSnapshot } from '@flash-sale/contracts';
import { ShopperId } from '@flash-sale/domain';
import { LoneGateway, accessToken } from './fixtures/lone-gateway.js';

/**
 * A gateway with nobody behind it, so whatever is answered otherwise than `unavailable` was answered from memory. It has
 * Redis' database 8 to itself.
 */
let world: LoneGateway;
let sale: SaleSnapshot;
let version = randomInt(1e9, 1e12);

beforeAll(async () => {
  const address = process.env['REDIS_URL'];
  if (!address)
    throw new Error('REDIS_URL is not set: run this test by `npm test`, or start a stack and name it');
  world = await LoneGateway.start({ REDIS_URL: new URL('/8', address).href });
  sale = await world.publish();
});
afterAll(async () => {
  await world.redis.del(BLOCKLIST_FEED.list);
  await world.unpublish(sale);
  await world.stop();
});

/** Changes the list in Redis as inventory does. @param loses the message, as a connection that is cut would */
async function change(shopperId: string, blocked: boolean, loses = false): Promise<void> {
  const before = version;
  version += 1;
  if (blocked) await world.redis.hset(BLOCKLIST_FEED.list, shopperId, '1');
  else await world.redis.hdel(BLOCKLIST_FEED.list, shopperId);
  await world.redis.hset(BLOCKLIST_FEED.list, BLOCKLIST_FEED.version, version);
  const told: BlocklistChange = {
    before,
    version,
    change: { shopperId: ShopperId.parse(shopperId), blocked },
  };
  if (!loses) await world.redis.publish(BLOCKLIST_FEED.channel, JSON.stringify(told));
}
async function call(shopperId: string, method: string, path: string, body?: object): Promise<string> {
  const response = await fetch(`${world.url}/v1/${path}`, {
    method,
    headers: {
      authorization: `Bearer ${accessToken(shopperId)}`,
      'idempotency-key': 'k',
      ...(body && { 'content-type': 'application/json' }),
    },
    ...(body && { body: JSON.stringify(body) }),
  });
  return `${response.status} ${((await response.json()) as { code: string }).code}`;
}
const enter = (shopperId: string) => call(shopperId, 'POST', `sales/${sale.saleId}/entries`, { quantity: 1 });
const until = async (answer: string, shopperId: string, withinMs: number) => {
  const giveUpAt = performance.now() + withinMs;
  while ((await enter(shopperId)) !== answer) {
    if (performance.now() > giveUpAt) throw new Error(`${shopperId} never met ${answer}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
};

describe('a blocked shopper', () => {
  it('counts as free where the list was never known', async () => {
    expect(await enter('alice')).toBe('503 unavailable');
  });

  it('is refused from memory as soon as gateways are told, and let in again', async () => {
    await change('alice', true);
    await until('403 blocked', 'alice', 1_500);
    expect(await enter('bob')).toBe('503 unavailable');
    const startedMs = performance.now();
    for (let i = 0; i < 10; i += 1) {
      await change('alice', i % 2 === 1);
      await until(i % 2 === 1 ? '403 blocked' : '503 unavailable', 'alice', 900);
    }
    // By the reads alone, one a second, it would have taken ten.
    expect(performance.now() - startedMs).toBeLessThan(5_000);
  });

  it('is known within a second and a half where the message was lost', async () => {
    await change('carol', true, true);
    await change('dave', true, true);
    await until('403 blocked', 'carol', 1_500);
    expect(await enter('dave')).toBe('403 blocked');
    // The next message builds upon a list that was read, not told.
    await change('carol', false);
    await until('503 unavailable', 'carol', 900);
    expect(await enter('dave')).toBe('403 blocked');
  });

  it('stays blocked while Redis has lost the list', async () => {
    await change('erin', true);
    await until('403 blocked', 'erin', 1_500);
    await world.redis.del(BLOCKLIST_FEED.list);
    await new Promise((resolve) => setTimeout(resolve, 1_200));
    expect(await enter('erin')).toBe('403 blocked');
    await world.redis.publish(BLOCKLIST_FEED.channel, 'not a change');
    // What is told then is the whole list.
    version += 1;
    await world.redis.hset(BLOCKLIST_FEED.list, BLOCKLIST_FEED.version, version, 'frank', '1');
    await world.redis.publish(BLOCKLIST_FEED.channel, JSON.stringify({ before: 0, version }));
    await until('403 blocked', 'frank', 1_500);
    expect(await enter('erin')).toBe('503 unavailable');
  });

  it('is told so by a sale that refuses everybody, also when who asks was known before', async () => {
    const later = await world.publish({ opensAtMs: Date.now() + 3_600_000 });
    const token = accessToken('heidi');
    const headers = {
      authorization: `Bearer ${token}`,
      'content-type': 'application/json',
      'idempotency-key': 'k1',
    };
    const enterLater = async () => {
      const url = `${world.url}/v1/sales/${later.saleId}/entries`;
      const answer = await fetch(url, { method: 'POST', headers, body: '{"quantity":1}' });
      return ((await answer.json()) as { code: string }).code;
    };
    expect([await enterLater(), await enterLater()]).toEqual(['sale_not_open', 'sale_not_open']);
    await change('heidi', true);
    await until('403 blocked', 'heidi', 1_500);
    expect([await enterLater(), await enterLater()]).toEqual(['blocked', 'blocked']);
    await world.unpublish(later);
  });

  it('begins nothing: no entry, no look at the head of a line, no challenge; and may still ask for what is theirs', async () => {
    await change('grace', true);
    await until('403 blocked', 'grace', 1_500);
    const line = await world.publish({ line: { mode: 'fifo', admitPerSecond: 1, overbook: 0 } });
    const entryOf = ({ saleId }: SaleSnapshot) => `entries/${saleId}-${'A'.repeat(22)}`;
    expect(await call('grace', 'POST', `sales/${line.saleId}/entries`, { quantity: 1 })).toBe('403 blocked');
    expect(await call('grace', 'POST', `sales/${line.saleId}/challenge`)).toBe('403 blocked');
    expect(await call('grace', 'GET', entryOf(line))).toBe('403 blocked');
    expect(await call('grace', 'GET', entryOf(sale))).toBe('503 unavailable');
    expect(await call('grace', 'DELETE', entryOf(line))).toBe('503 unavailable');
    expect(await call('grace', 'GET', 'orders')).toBe('503 unavailable');
    const delivery = { name: 'G', phone: '123456', address: 'A street' };
    const order = (purchaseToken: string) => call('grace', 'POST', 'orders', { purchaseToken, delivery });
    expect(await order('v1.k.bm90IGEgdG9rZW4.x')).toBe('403 blocked');
    await world.unpublish(line);
  });
});

describe('calls about the blocklist', () => {
  it.each([
    { method: 'GET', role: 'operator', answer: '503 unavailable' },
    { method: 'PUT', body: '{"reason":"resells"}', role: 'operator', answer: '503 unavailable' },
    { method: 'DELETE', body: '{"reason":"a mistake"}', role: 'operator', answer: '503 unavailable' },
    { method: 'PUT', role: 'operator', answer: '422 invalid' },
    { method: 'DELETE', body: '{"reason":" "}', role: 'operator', answer: '422 invalid' },
    { method: 'PUT', body: '{"reason":"resells"}', role: 'shopper', answer: '403 forbidden' },
    { method: 'GET', role: 'shopper', answer: '403 forbidden' },
  ])('$method by $role with $body: $answer', async ({ method, body, role, answer }) => {
    const response = await fetch(`${world.operatorUrl}/v1/operator/blocklist/alice`, {
      method,
      headers: {
        authorization: `Bearer ${accessToken('olga', { role })}`,
        ...(body && { 'content-type': 'application/json' }),
      },
      ...(body && { body }),
    });
    const { code } = (await response.json()) as { code: string };
    expect(`${response.status} ${code}`).toBe(answer);
  });
});
