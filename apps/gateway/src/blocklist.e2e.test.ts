import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { connectRedis } from '@flash-sale/redis';
import { DELIVERY, World, until, type Answer, type Caller } from '@flash-sale/testing';

/** Two gateways, on Redis' database 9: nobody else's inventory tells them who is blocked. */
describe('the blocklist', () => {
  let world: World;
  const redisUrl = new URL('/9', process.env['REDIS_URL']).href;
  beforeAll(async () => {
    world = await World.start({ env: { REDIS_URL: redisUrl }, instances: { gateway: 2 } });
  }, 120_000);
  afterAll(() => world?.stop(), 60_000);

  const codeOf = ({ status, body }: Answer) => [status, body['code']];
  const enterAt = async (gateway: { readonly shopUrl: string }, shopper: string, saleId: string) => {
    const answer = await fetch(`${gateway.shopUrl}/v1/sales/${saleId}/entries`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${world.accessToken(shopper)}`,
        'content-type': 'application/json',
        'idempotency-key': 'k',
      },
      body: '{"quantity":1}',
    });
    return answer.status;
  };
  const everywhere = (shopper: string, saleId: string, status: number) =>
    until(`${shopper} to be answered ${status} by both gateways`, 5_000, async () => {
      const answers = await Promise.all(world.gateways.map((gateway) => enterAt(gateway, shopper, saleId)));
      return answers.every((each) => each === status);
    });
  const change = (method: 'PUT' | 'DELETE', shopper: Caller, status: number) =>
    world.operator().expect(status, method, `/v1/operator/blocklist/${shopper.id}`, { reason: 'a test' });

  it('refuses at every gateway, leaves what was ordered to its owner, and is taken back', async () => {
    const saleId = await world.openSale({ allotment: 20, holdSeconds: 60, paySeconds: 60 });
    const [alice, bob] = [world.shopper('block-alice'), world.shopper('block-bob')];
    const ordered = (await alice.persist(() => alice.enter(saleId, 'k'))).body;
    const placed = await alice.persist(() => alice.order(ordered['purchaseToken']));
    const held = (await bob.persist(() => bob.enter(saleId, 'k'))).body;

    const blocked = await change('PUT', alice, 200);
    expect(blocked).toMatchObject({ shopperId: alice.id, reason: 'a test', operator: 'operator-1' });
    expect(await change('PUT', alice, 200)).toEqual(blocked);
    await change('PUT', bob, 200);
    for (const shopper of [alice, bob]) await everywhere(shopper.id, saleId, 403);

    // The first answer to her order may have been lost.
    const again = await alice.persist(() => alice.order(ordered['purchaseToken']));
    expect([again.status, again.body['orderId']]).toEqual([202, placed.body['orderId']]);
    const other = await alice.order(ordered['purchaseToken'], { ...DELIVERY, name: 'Somebody Else' });
    expect(codeOf(other)).toEqual([422, 'idempotency_key_reused']);
    const orderId = String(placed.body['orderId']);
    await alice.orderIn(orderId, ['awaiting_payment']);
    await alice.persist(() => alice.pay(orderId, 'p'));
    await alice.orderIn(orderId, ['paid']);

    // He has ordered nothing, and gives back what he holds.
    expect(codeOf(await bob.persist(() => bob.order(held['purchaseToken'])))).toEqual([403, 'blocked']);
    await bob.expect(204, 'DELETE', `/v1/entries/${String(held['entryId'])}`);

    const { entries } = await world.operator().expect(200, 'GET', '/v1/operator/audit-log');
    const records = (entries as Record<string, string>[]).filter(({ operation }) => operation === 'block');
    expect(records).toHaveLength(2);
    expect(records[0]).toMatchObject({ operator: 'operator-1', before: 'free', after: 'blocked' });

    await change('DELETE', bob, 204);
    expect(codeOf(await world.operator().call('GET', `/v1/operator/blocklist/${bob.id}`))).toEqual([
      404,
      'not_found',
    ]);
    await until('bob to be let in again', 5_000, async () =>
      [200, 201].includes((await bob.enter(saleId, 'k2')).status),
    );
  });

  it('is told again after Redis has lost it', async () => {
    const carol = world.shopper('block-carol');
    await change('PUT', carol, 200);
    const redis = await connectRedis({ url: redisUrl, name: 'blocklist-e2e' });
    try {
      await redis.del('fs:blocklist');
      await until('the list to be there again', 10_000, async () =>
        Boolean(await redis.hexists('fs:blocklist', carol.id)),
      );
    } finally {
      redis.disconnect();
    }
    const saleId = await world.openSale();
    await everywhere(carol.id, saleId, 403);
  });
});
