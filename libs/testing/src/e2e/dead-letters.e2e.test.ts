import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { SupervisedProducer } from '@flash-sale/kafka';
import { until } from '../waiting.js';
import { World } from '../world.js';

/**
 * Records that nobody can decide, from the topic to the operator and back to the shopper: a later version of the record with
 * an honest token, as a deployment that was rolled back leaves it, and plain garbage.
 */
describe('dead letters', () => {
  let world: World;
  let producer: SupervisedProducer;
  beforeAll(async () => {
    world = await World.start();
    const brokers = (world.environment['KAFKA_BROKERS'] ?? '').split(',');
    producer = new SupervisedProducer({ brokers, clientId: 'dead-letters-test' });
    await producer.connect();
  }, 120_000);
  afterAll(async () => {
    await producer?.close();
    await world?.stop();
  }, 60_000);

  type Letter = Readonly<Record<string, unknown>>;
  const lettersIn = async (state: string): Promise<readonly Letter[]> => {
    const page = await world.operator().expect(200, 'GET', `/v1/operator/dead-letters?state=${state}`);
    return page['deadLetters'] as readonly Letter[];
  };

  it('are listed, replayed and dropped by operators, and each order ends with an honest reason', async () => {
    const operator = world.operator();
    const saleId = await world.openSale({ allotment: 2, buckets: 2, holdSeconds: 60, paySeconds: 60 });
    const [alice, bob, carol] = [world.shopper('alice'), world.shopper('bob'), world.shopper('carol')];
    const entryOf = async (shopper: typeof alice) =>
      (await shopper.persist(() => shopper.enter(saleId, 'k'))).body;
    const aliceEntry = await entryOf(alice);
    const bobEntry = await entryOf(bob);
    const bobOrder = await bob.persist(() => bob.order(bobEntry['purchaseToken']));
    expect(bobOrder.status).toBe(202);
    await bob.orderIn(String(bobEntry['entryId']), ['awaiting_payment']);
    await producer.send(world.ordersTopic, [
      ...[aliceEntry, bobEntry].map(({ entryId, purchaseToken }) => ({
        key: String(entryId),
        value: JSON.stringify({ v: 2, token: purchaseToken, parcel: { to: 'somebody' } }),
      })),
      { key: 'nobody', value: 'not json' },
    ]);
    await until('three dead letters', 20_000, async () => (await lettersIn('pending')).length === 3);

    const ofAlice = (await lettersIn('pending')).find(({ orderId }) => orderId === aliceEntry['entryId']);
    expect(ofAlice).toMatchObject({
      topic: world.ordersTopic,
      cause: 'unknown_version',
      schemaVersion: '2',
      replayable: true,
      orderState: null,
    });
    const path = `/v1/operator/dead-letters/${String(ofAlice?.['deadLetterId'])}`;
    await operator.expect(200, 'POST', `${path}/replay`);
    // Nothing has changed, so the replay is a dead letter too; its predecessor is done with.
    await until('the replay to be read', 20_000, async () => (await lettersIn('replayed')).length === 1);
    expect(await operator.expect(200, 'POST', `${path}/replay`)).toMatchObject({ state: 'replayed' });
    const pending = await lettersIn('pending');
    expect(pending.length).toBe(3);
    expect(new Set(pending.map(({ orderId }) => orderId))).toEqual(
      new Set([aliceEntry['entryId'], bobEntry['entryId'], null]),
    );

    const reason = 'rolled back; the shopper was told';
    for (const { deadLetterId } of pending) {
      const dropped = await operator.expect(
        200,
        'DELETE',
        `/v1/operator/dead-letters/${String(deadLetterId)}`,
        {
          reason,
        },
      );
      expect(dropped).toMatchObject({ state: 'dropped' });
    }
    expect(await alice.orderIn(String(aliceEntry['entryId']), ['rejected'])).toMatchObject({
      reason: 'poison',
    });
    // A second record of an order that stands changes nothing about it.
    await bob.persist(() => bob.pay(String(bobEntry['entryId']), 'pay'));
    await bob.orderIn(String(bobEntry['entryId']), ['paid']);
    await until("alice's unit to be on sale again", 20_000, async () => {
      const entry = await carol.enter(saleId, `again-${Date.now()}`);
      return (
        entry.status === 201 &&
        (await carol.persist(() => carol.order(entry.body['purchaseToken']))).status === 202
      );
    });

    const log = await operator.expect(200, 'GET', '/v1/operator/audit-log');
    const entries = log['entries'] as readonly Letter[];
    const done = Object.groupBy(entries, ({ operation }) => String(operation));
    expect([done['dead-letter-replay']?.length, done['dead-letter-drop']?.length]).toEqual([1, 3]);
    expect(done['dead-letter-drop']?.every(({ detail }) => String(detail).includes(reason))).toBe(true);
    const ofSale = await operator.expect(200, 'GET', `/v1/operator/audit-log?saleId=${saleId}`);
    expect((ofSale['entries'] as readonly Letter[]).at(-1)).toMatchObject({
      operation: 'create',
      operator: 'operator-1',
      after: 'draft',
    });

    const { exitCode, printed } = await world.audit(saleId);
    expect({ exitCode, printed: exitCode === 0 ? '' : printed }).toEqual({ exitCode: 0, printed: '' });
  }, 120_000);
});
