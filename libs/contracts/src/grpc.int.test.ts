// Real servers behind proxies that stop passing bytes on while their connections stay open.
import { once } from 'node:events';
import net, { type AddressInfo } from 'node:net';
import { Server, ServerCredentials, loadPackageDefinition, type ServiceDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { afterEach, describe, expect, test } from '@jest/globals';
import { CallFailed, GRPC_PACKAGE, GrpcChannel, LOADER_OPTIONS, PROTO_FILES } from './grpc.js';

const leftOver: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of leftOver.splice(0).toReversed()) await close();
});

/** A service `Sales` that answers each report when `work` is done, and says how often it was asked. */
async function startServer(work: () => Promise<unknown> = async () => {}) {
  const definition = loadPackageDefinition(loadSync(PROTO_FILES, LOADER_OPTIONS));
  const services = definition[GRPC_PACKAGE] as unknown as Record<string, { service: ServiceDefinition }>;
  const server = new Server();
  const state = { asked: 0 };
  const service = services['Sales']?.service;
  if (!service) throw new Error('there is no service Sales');
  server.addService(service, {
    report: (_call: unknown, answer: (error: Error | null, reply?: object) => void) => {
      state.asked += 1;
      work().then(
        () => answer(null, {}),
        (error: Error) => answer(error),
      );
    },
  });
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    );
  });
  leftOver.push(() => server.forceShutdown());
  return { port, state };
}

/** Passes bytes on until those that are connected are silenced: they stay open and nothing comes through. */
async function openProxy(port: number) {
  const silent = new Set<net.Socket>();
  const sockets = new Set<net.Socket>();
  const proxy = net
    .createServer((near) => {
      const far = net.connect(port, '127.0.0.1');
      for (const [from, to] of [
        [near, far],
        [far, near],
      ] as const) {
        sockets.add(from);
        from.on('error', () => {});
        from.on('close', () => to.destroy());
        from.on('data', (bytes) => silent.has(near) || to.write(bytes));
      }
    })
    .listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  leftOver.push(() => {
    proxy.close();
    for (const socket of sockets) socket.destroy();
  });
  return {
    address: `127.0.0.1:${(proxy.address() as AddressInfo).port}`,
    silenceExisting: () => sockets.forEach((socket) => silent.add(socket)),
  };
}

function openChannel(...proxies: readonly { readonly address: string }[]): GrpcChannel {
  const channel = new GrpcChannel('Sales', proxies.map(({ address }) => address).join(','));
  leftOver.push(() => channel.close());
  return channel;
}

const ask = (channel: GrpcChannel, withinMs = 500) =>
  channel.call('Report', { saleId: 'any' }, performance.now() + withinMs);

const report = (channel: GrpcChannel, withinMs?: number) =>
  ask(channel, withinMs).then(
    () => 'answered',
    (error: unknown) => (error instanceof CallFailed ? error.grpcStatus : 'not sent'),
  );

async function until(what: string, holds: () => Promise<boolean>, withinMs = 25_000): Promise<void> {
  const deadline = performance.now() + withinMs;
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`still not: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

describe('GrpcChannel', () => {
  test('connects anew when its connection goes silent', async () => {
    const server = await startServer();
    const proxy = await openProxy(server.port);
    const channel = openChannel(proxy);
    await until('answered', async () => (await report(channel)) === 'answered');
    proxy.silenceExisting();
    expect(await report(channel)).not.toBe('answered');
    await until('answered again', async () => (await report(channel)) === 'answered');
  });

  test('leaves two silent connections, one behind the other, at the same time', async () => {
    const far = await startServer();
    const behind = await openProxy(far.port);
    const onward = openChannel(behind);
    const near = await startServer(() => ask(onward, 1_500));
    const before = await openProxy(near.port);
    const channel = openChannel(before);
    await until('answered', async () => (await report(channel)) === 'answered');
    before.silenceExisting();
    behind.silenceExisting();
    // Nobody uses the second before the first has been left; found by calls alone, their silences would add up.
    await until('answered again', async () => (await report(channel, 1_500)) === 'answered', 4_500);
  });

  test('leaves a silent instance to itself though the other still answers', async () => {
    const [first, second] = [await startServer(), await startServer()];
    const [silent, well] = [await openProxy(first.port), await openProxy(second.port)];
    const channel = openChannel(silent, well);
    await until('both are asked', async () => {
      await report(channel);
      return first.state.asked > 0 && second.state.asked > 0;
    });
    silent.silenceExisting();
    let inARow = 0;
    await until('twenty answers in a row', async () => {
      inARow = (await report(channel)) === 'answered' ? inARow + 1 : 0;
      return inARow === 20;
    });
    const before = first.state.asked;
    await until('the first is asked again, on a fresh connection', async () => {
      await report(channel);
      return first.state.asked > before;
    });
  });
});
