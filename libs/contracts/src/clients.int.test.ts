import { Server, ServerCredentials, loadPackageDefinition, type ServiceDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { afterEach, describe, expect, it } from '@jest/globals';
import { StockClient } from './clients.js';
import { GRPC_PACKAGE, LOADER_OPTIONS, PROTO_FILES } from './grpc.js';

const leftOver: (() => unknown)[] = [];
afterEach(() => {
  for (const close of leftOver.splice(0).toReversed()) close();
});

/** A Stock that grants nothing to anybody, and the sizes of the batches that it was asked with. */
async function startStock() {
  const definition = loadPackageDefinition(loadSync(PROTO_FILES, LOADER_OPTIONS));
  const services = definition[GRPC_PACKAGE] as unknown as Record<string, { service: ServiceDefinition }>;
  const service = services['Stock']?.service;
  if (!service) throw new Error('there is no service Stock');
  const batches: number[] = [];
  const server = new Server();
  server.addService(service, {
    grant: (
      { request }: { request: { items: readonly unknown[] } },
      answer: (error: null, reply: object) => void,
    ) => {
      batches.push(request.items.length);
      answer(null, { results: request.items.map(() => ({ outcome: 'SOLD_OUT', created: false })) });
    },
  });
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    );
  });
  leftOver.push(() => server.forceShutdown());
  return { address: `127.0.0.1:${port}`, batches };
}

async function askTenTimesAtOnce(stock: StockClient) {
  leftOver.push(() => stock.close());
  await stock.ready(10_000);
  const shoppers = Array.from({ length: 10 }, (_, index) => `shopper-${index}`);
  return Promise.all(
    shoppers.map((shopperId) =>
      stock.grant({ attemptId: `s-${shopperId}`, shopperId, quantity: 1, context: undefined }, 10_000),
    ),
  );
}

describe('a client whose calls are made item by item', () => {
  it('sends the calls of one moment together', async () => {
    const { address, batches } = await startStock();
    const results = await askTenTimesAtOnce(new StockClient(address));
    expect(results.map(({ outcome }) => outcome)).toEqual(Array(10).fill('SOLD_OUT'));
    expect(batches).toEqual([10]);
  });

  it('sends each by itself where that is to be measured', async () => {
    const { address, batches } = await startStock();
    const results = await askTenTimesAtOnce(new StockClient(address, { coalesce: false }));
    expect(results).toHaveLength(10);
    expect(batches).toEqual(Array(10).fill(1));
  });
});
