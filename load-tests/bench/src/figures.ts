import { CONNECTIONS, atOnce, type Bench } from './bench.js';
import { purchasing } from './operations.js';
import type { OwnServers } from './servers.js';
import { HELLO, type Suite } from './suite.js';

/** Data that Redis keeps for each unit that was sold, bytes: everything that came with the sale, over its units. */
export async function redisBytesPerUnit(bench: Bench, suite: Suite, servers: OwnServers): Promise<number> {
  const shoppers = suite.newShoppers(bench.size.requests);
  const before = await servers.redisDataBytes();
  // A tenth is left, so that no unit has to be looked for in another bucket.
  const saleId = await suite.openSale({ allotment: Math.ceil(shoppers.length / 0.9) });
  await bench.send('purchases', { ...purchasing(suite, saleId, shoppers), ...atOnce(CONNECTIONS) });
  await suite.settled();
  return ((await servers.redisDataBytes()) - before) / shoppers.length;
}

/** Memory of a gateway that was started for it, while so many shoppers have a connection open that they have used, MiB. */
export async function gatewayMiBWith(
  bench: Bench,
  suite: Suite,
  connections: number,
): Promise<{ readonly now: number; readonly peak: number }> {
  const saleId = await suite.soldOut();
  await suite.restartGateways();
  const calls = suite.newShoppers(connections).map((shopper) => suite.enters(saleId, shopper));
  const { now, peak } = await bench.memoryWhileOpen(suite, {
    origins: suite.origins,
    calls,
    expected: [410],
    connections,
    greeting: HELLO,
    pace: { kind: 'closed', inFlight: CONNECTIONS },
  });
  return { now: now['gateway'] ?? Number.NaN, peak: peak['gateway'] ?? Number.NaN };
}
