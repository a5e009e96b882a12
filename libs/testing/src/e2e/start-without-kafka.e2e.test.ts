// Kafka is away when services start: behind an address that refuses connections until the test opens it.
import { once } from 'node:events';
import net, { type AddressInfo } from 'node:net';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { World, until } from '../index.js';

const [brokerHost = '', brokerPort = ''] =
  (process.env['KAFKA_BROKERS'] ?? '').split(',')[0]?.split(':') ?? [];
let isOpen = false;
const sockets = new Set<net.Socket>();
const broker = net.createServer((near) => {
  if (!isOpen) return void near.destroy();
  const far = net.connect(Number(brokerPort), brokerHost);
  for (const [from, to] of [
    [near, far],
    [far, near],
  ] as const) {
    sockets.add(from);
    from.on('error', () => {});
    from.on('close', () => to.destroy());
    from.pipe(to);
  }
});
let world: World;

beforeAll(async () => {
  broker.listen(0, '127.0.0.1');
  await once(broker, 'listening');
  const { port } = broker.address() as AddressInfo;
  world = await World.start({ services: [], env: { KAFKA_BROKERS: `127.0.0.1:${port}` } });
}, 60_000);
afterAll(async () => {
  await world.stop();
  broker.close();
  for (const socket of sockets) socket.destroy();
}, 60_000);

test.each(['order', 'order-writer'] as const)(
  '%s starts without Kafka, says that it is not ready, and is when Kafka is there',
  async (name) => {
    isOpen = false;
    const started = world.startService(name);
    const ended = started.then(
      () => 'ready',
      (error: unknown) => String(error),
    );
    const isAlive = async () => (await world.metric(name, 'build_info').catch(() => 0)) > 0;
    await until(`${name} to be alive`, 60_000, isAlive);
    expect(await world.isReady(name)).toBe(false);
    expect(await isAlive()).toBe(true);
    isOpen = true;
    expect(await ended).toBe('ready');
  },
  120_000,
);
