import { setTimeout as sleep } from 'node:timers/promises';
import { CONNECTIONS, atOnce, type Bench, type LoadOf, type Sample } from './bench.js';
import type { Shopper, Suite } from './suite.js';

/**
 * The operations of the budget. Each is measured on a state of its own, which is prepared outside of the measurement, by as many
 * distinct shoppers as requests. A shopper's first call verifies their access token, later ones find it verified: where that
 * makes a difference, both are measured.
 */

/** What an operation may cost at most, in units; null where the budget says nothing. In the report's order. */
export const BUDGET_UNITS = {
  'refused at the edge': 0.3,
  'refused sold_out': 2,
  'refused sold_out, first call': null,
  'poll of a waiting entry': 2,
  'entry to purchase token': 4,
  'entry to purchase token, first call': null,
  'order to 202': 4,
  'queued to decided': 2.5,
  'whole purchase': 10.5,
  'whole purchase, first call': null,
  'whole purchase, 256 at a time': null,
  'whole purchase, calls not coalesced': null,
} as const satisfies Record<string, number | null>;
export type OperationName = keyof typeof BUDGET_UNITS;

/** Operations that are measured one after the other, because one leaves what the next needs. */
export const PARTS = ['edge', 'refusals', 'polls', 'entries', 'orders', 'purchases', 'uncoalesced'] as const;
export type Part = (typeof PARTS)[number];

/** Measures the operations of one part once. `uncoalesced` is measured on a suite whose calls between services travel alone. */
export async function measurePart(part: Part, bench: Bench, suite: Suite): Promise<void> {
  switch (part) {
    case 'edge':
      return measureEdge(bench, suite);
    case 'refusals':
      return measureRefusals(bench, suite);
    case 'polls':
      return measurePolls(bench, suite);
    case 'entries':
      return measureEntries(bench, suite);
    case 'orders':
      return measureOrders(bench, suite);
    case 'purchases':
      await measurePurchases(bench, suite, 'whole purchase, first call', { areKnown: false });
      await measurePurchases(bench, suite, 'whole purchase', { areKnown: true, withLatency: true });
      return measurePurchases(bench, suite, 'whole purchase, 256 at a time', { areKnown: true, atOnce: 256 });
    case 'uncoalesced':
      return measurePurchases(bench, suite, 'whole purchase, calls not coalesced', { areKnown: true });
  }
}

/** The gateways are counted too: they tell the edge what it may refuse. */
async function measureEdge(bench: Bench, suite: Suite): Promise<void> {
  const edge = await suite.behindEdge();
  const saleId = await suite.soldOut();
  const shoppers = suite.newShoppers(EDGE_FACTOR * bench.size.requests);
  const load = (some: readonly Shopper[]): LoadOf => ({
    origins: [edge.origin],
    calls: some.map((shopper) => suite.enters(saleId, shopper)),
    expected: [410],
  });
  const before = await edge.answeredItself();
  const sample = await bench.measure({
    name: 'refused at the edge' satisfies OperationName,
    groups: [...suite.groups, edge.group],
    load: { ...load(shoppers), ...atOnce(CONNECTIONS) },
    operations: shoppers.length,
  });
  const passedOn = shoppers.length - ((await edge.answeredItself()) - before);
  if (passedOn > MOST_PASSED_ON * shoppers.length)
    throw new Error(`the edge passed ${passedOn} of ${shoppers.length} calls on that it was to refuse`);
  await bench.measureLatency(
    'refused at the edge',
    sample,
    load(suite.newShoppers(EDGE_FACTOR * bench.size.latencyRequests)),
  );
}

/** A refusal there takes so little that as many as of other operations would be over at once. */
const EDGE_FACTOR = 3;
/** Bits that strangers have in common with a holder; they are asked for behind. */
const MOST_PASSED_ON = 0.01;

async function measureRefusals(bench: Bench, suite: Suite): Promise<void> {
  const saleId = await suite.soldOut();
  const { requests, latencyRequests } = bench.size;
  const load = (shoppers: readonly Shopper[]): LoadOf => ({
    origins: suite.origins,
    calls: shoppers.map((shopper) => suite.enters(saleId, shopper)),
    expected: [410],
  });
  const measure = async (name: OperationName, shoppers: readonly Shopper[], more: readonly Shopper[]) => {
    const sample = await bench.measure({
      name,
      groups: suite.groups,
      load: { ...load(shoppers), ...atOnce(CONNECTIONS) },
      operations: shoppers.length,
    });
    await bench.measureLatency(name, sample, load(more));
  };
  const shoppers = suite.newShoppers(requests);
  const more = suite.newShoppers(latencyRequests);
  await measure('refused sold_out, first call', shoppers, more);
  await measure('refused sold_out', shoppers, more);
}

async function measurePolls(bench: Bench, suite: Suite): Promise<void> {
  // One a second is let through, so that nearly everybody waits for as long as this lasts.
  const saleId = await waitingSale(suite);
  const shoppers = suite.newShoppers(bench.size.requests);
  await bench.send('waiting entries', {
    origins: suite.origins,
    calls: shoppers.map((shopper) => suite.enters(saleId, shopper)),
    expected: [201, 202],
    ...atOnce(CONNECTIONS),
  });
  const load = (some: readonly Shopper[]): LoadOf => ({
    origins: suite.origins,
    calls: some.map((shopper) => suite.looks(saleId, shopper)),
    expected: [200],
  });
  const name: OperationName = 'poll of a waiting entry';
  const sample = await bench.measure({
    name,
    groups: suite.groups,
    load: { ...load(shoppers), ...atOnce(CONNECTIONS) },
    operations: shoppers.length,
  });
  await bench.measureLatency(name, sample, load(shoppers.slice(0, bench.size.latencyRequests)));
}

const waitingSales = new WeakMap<Suite, Promise<string>>();

function waitingSale(suite: Suite): Promise<string> {
  const known = waitingSales.get(suite);
  if (known) return known;
  const sale = suite.openSale({ line: { mode: 'fifo', admitPerSecond: 1 } });
  waitingSales.set(suite, sale);
  return sale;
}

async function measureEntries(bench: Bench, suite: Suite): Promise<void> {
  const { requests, latencyRequests } = bench.size;
  const measure = async (name: OperationName, shoppers: readonly Shopper[], more: readonly Shopper[]) => {
    const sample = await bench.measure({
      name,
      groups: suite.groups,
      load: { ...(await entering(suite, shoppers)), ...atOnce(CONNECTIONS) },
      operations: shoppers.length,
    });
    await bench.measureLatency(name, sample, await entering(suite, more));
  };
  const first = () => [suite.newShoppers(requests), suite.newShoppers(latencyRequests)] as const;
  await measure('entry to purchase token, first call', ...first());
  const known = first();
  await introduce(bench, suite, known.flat());
  await measure('entry to purchase token', ...known);
}

/** A backlog that is gone within a second says more of its beginning and its end than of the writer. */
const BACKLOG_FACTOR = 2;

async function measureOrders(bench: Bench, suite: Suite): Promise<void> {
  const { latencyRequests } = bench.size;
  const requests = BACKLOG_FACTOR * bench.size.requests;
  const shoppers = suite.newShoppers(requests + latencyRequests);
  const { kept: tokens } = await bench.send('grants', {
    ...(await entering(suite, shoppers)),
    keep: 'purchaseToken',
    ...atOnce(CONNECTIONS),
  });
  const calls = shoppers.map((shopper, index) => suite.orders(shopper, tokens[index] ?? ''));
  const load = (some: readonly string[]): LoadOf => ({
    origins: suite.origins,
    calls: some,
    expected: [202],
  });
  // What earlier operations have left is not a part of this one.
  await suite.settled();
  let sample: Sample;
  let pausedMs = Number.NaN;
  try {
    sample = await bench.measure({
      name: 'order to 202' satisfies OperationName,
      groups: suite.groups,
      load: { ...load(calls.slice(0, requests)), ...atOnce(CONNECTIONS) },
      operations: requests,
      begin: () => {
        pausedMs = performance.now();
        suite.pauseWriter();
      },
      settle: async () => {
        const doneMs = performance.now();
        // Where orders lie in Kafka is passed on a moment after they were answered.
        await sleep(OFFSETS_TAKE_MS);
        return doneMs;
      },
    });
    await bench.measure({
      name: 'queued to decided' satisfies OperationName,
      groups: suite.groups,
      operations: requests,
      // The writer must not be away for longer than its session lasts.
      withUnit: false,
      begin: () => {
        if (performance.now() - pausedMs > SESSION_MS)
          bench.progress(
            'the writer was away for longer than its session: what follows has its rejoining in it',
          );
        suite.resumeWriter();
      },
      settle: () => suite.settled(),
    });
  } finally {
    suite.resumeWriter();
  }
  // Here the writer works beside it, as it does whenever somebody orders.
  await bench.measureLatency('order to 202', sample, load(calls.slice(requests)));
  await suite.settled();
}

const OFFSETS_TAKE_MS = 100;
/** After this long without a sign of life Kafka's group gives the writer's partitions away. */
const SESSION_MS = 6_000;

async function measurePurchases(
  bench: Bench,
  suite: Suite,
  name: OperationName,
  options: { readonly areKnown: boolean; readonly withLatency?: boolean; readonly atOnce?: number },
): Promise<void> {
  const { areKnown, withLatency = false, atOnce: inFlight = CONNECTIONS } = options;
  const { requests, latencyRequests } = bench.size;
  const shoppers = suite.newShoppers(requests);
  const more = withLatency ? suite.newShoppers(latencyRequests) : [];
  if (areKnown) await introduce(bench, suite, [...shoppers, ...more]);
  const saleId = await suite.plentiful();
  const sample = await bench.measure({
    name,
    groups: suite.groups,
    load: { ...purchasing(suite, saleId, shoppers), ...atOnce(inFlight) },
    operations: shoppers.length,
    requestsEach: REQUESTS_OF_A_PURCHASE,
    settle: () => suite.settled(),
  });
  if (!withLatency) return;
  await bench.measureLatency(name, sample, purchasing(suite, saleId, more));
  await suite.settled();
}

/** Entries that are granted at once. */
async function entering(suite: Suite, shoppers: readonly Shopper[]): Promise<LoadOf> {
  const saleId = await suite.plentiful();
  return {
    origins: suite.origins,
    calls: shoppers.map((shopper) => suite.enters(saleId, shopper)),
    expected: [201],
  };
}

export const REQUESTS_OF_A_PURCHASE = 2;

/** From the entry to the 202, each on one connection. */
export function purchasing(suite: Suite, saleId: string, shoppers: readonly Shopper[]): LoadOf {
  return {
    origins: suite.origins,
    calls: shoppers.map((shopper) => suite.enters(saleId, shopper)),
    followUp: suite.thenOrders(shoppers),
    expected: [201],
  };
}

/** Has every gateway verify the shoppers' access tokens: later calls find them verified, whichever gateway they reach. */
export async function introduce(bench: Bench, suite: Suite, shoppers: readonly Shopper[]): Promise<void> {
  const saleId = await suite.soldOut();
  const calls = shoppers.map((shopper) => suite.enters(saleId, shopper));
  for (const origin of suite.origins) {
    await bench.send('introductions', {
      origins: [origin],
      calls,
      expected: [410],
      ...atOnce(CONNECTIONS),
    });
  }
}
