import { CONNECTIONS, atOnce, type Bench, type Sample } from './bench.js';
import type { Load } from './generator.js';
import { REQUESTS_OF_A_PURCHASE, introduce, purchasing } from './operations.js';
import type { OwnServers } from './servers.js';
import { changePercent, median, spreadOf, type Spread } from './statistics.js';
import { HELLO, Suite } from './suite.js';

/** What a purchase costs with little and with much of something. */
export interface Growth {
  readonly dimension: string;
  readonly from: number;
  readonly to: number;
  /** CPU time per purchase, in the cost of a request to a bare server that is kept busy: the same for both ends. */
  readonly unitsFrom: Spread;
  readonly unitsTo: Spread;
  readonly changePercent: number;
}

/** The cost per operation may grow by this at most. */
export const MOST_GROWTH_PERCENT = 15;

type Pace = Pick<Load, 'connections' | 'pace' | 'greeting'>;

/** One end of a dimension: how a purchase is made there. */
interface End {
  readonly value: number;
  readonly suite: Suite;
  readonly pace: Pace;
  readonly sale: Readonly<Record<string, unknown>>;
  /** Purchases of one measurement. */
  readonly purchases: number;
}

interface Dimension {
  readonly name: string;
  readonly ends: readonly [End, End];
}

const FEW_UNITS = 1_000;
/** Of a sale of 1,000: nearly everything is sold, and no unit has to be looked for in another bucket. */
const PURCHASES_OF_FEW = 800;
const FEW_CONNECTIONS = 10;
const MANY_CONNECTIONS = 10_000;
const MANY_PROCESSES = 4;

/**
 * Measures each dimension at both of its ends in turn, at a constant number of calls in flight per process. A purchase passes all
 * services and servers, so nothing that grows can hide.
 */
export async function measureGrowth(
  bench: Bench,
  plain: Suite,
  servers: OwnServers,
  repetitions: number,
): Promise<Growth[]> {
  const found: Growth[] = [];
  // Side by side with the plain suite, so that both ends are measured in turn; who is not asked costs next to nothing.
  const many = await Suite.start(servers, { processes: MANY_PROCESSES });
  try {
    const ends = [
      endOf(bench, plain, 1, atOnce(CONNECTIONS)),
      endOf(bench, many, MANY_PROCESSES, atOnce(CONNECTIONS * MANY_PROCESSES)),
    ] as const;
    found.push(await measureDimension(bench, { name: 'processes of each service', ends }, repetitions));
  } finally {
    await many.stop();
  }
  const clustered = await Suite.start(await servers.withRedisCluster());
  try {
    const ends = [
      endOf(bench, plain, 1, atOnce(CONNECTIONS)),
      endOf(bench, clustered, 3, atOnce(CONNECTIONS)),
    ] as const;
    found.push(await measureDimension(bench, { name: 'Redis masters', ends }, repetitions));
  } finally {
    await clustered.stop();
  }
  // Last, because they leave many sales behind, and inventory looks after each of them.
  const withinOne: Growth[] = [];
  for (const dimension of withOneSuite(bench, plain)) {
    withinOne.push(await measureDimension(bench, dimension, repetitions));
  }
  return [...withinOne, ...found];
}

function withOneSuite(bench: Bench, suite: Suite): Dimension[] {
  const usual = atOnce(CONNECTIONS);
  const few = (connections: number): Pace => ({
    connections,
    greeting: HELLO,
    pace: { kind: 'closed', inFlight: FEW_CONNECTIONS },
  });
  const ofSale = (value: number, sale: Readonly<Record<string, unknown>>) => ({
    ...endOf(bench, suite, value, usual),
    sale,
  });
  const ofUnits = (allotment: number) => ({
    ...ofSale(allotment, { allotment, buckets: 1 }),
    purchases: PURCHASES_OF_FEW,
  });
  return [
    { name: 'units of the sale', ends: [ofUnits(FEW_UNITS), ofUnits(1_000_000)] },
    { name: 'buckets', ends: [ofSale(1, { buckets: 1 }), ofSale(64, { buckets: 64 })] },
    {
      name: 'open connections',
      ends: [
        endOf(bench, suite, FEW_CONNECTIONS, few(FEW_CONNECTIONS)),
        endOf(bench, suite, MANY_CONNECTIONS, few(MANY_CONNECTIONS)),
      ],
    },
  ];
}

function endOf(bench: Bench, suite: Suite, value: number, pace: Pace): End {
  return { value, suite, pace, sale: {}, purchases: bench.size.requests };
}

async function measureDimension(
  bench: Bench,
  { name, ends }: Dimension,
  repetitions: number,
): Promise<Growth> {
  const units: [number[], number[]] = [[], []];
  for (let repetition = 0; repetition <= repetitions; repetition += 1) {
    // The first of all only warms up.
    bench.warmingUp = repetition === 0;
    for (const index of [0, 1] as const) {
      const sample = await purchaseAt(bench, `purchase, ${name}: ${ends[index].value}`, ends[index]);
      if (!bench.warmingUp) units[index].push(sample.busyUnits);
    }
  }
  return {
    dimension: name,
    from: ends[0].value,
    to: ends[1].value,
    unitsFrom: spreadOf(units[0]),
    unitsTo: spreadOf(units[1]),
    changePercent: changePercent(median(units[0]), median(units[1])),
  };
}

async function purchaseAt(bench: Bench, name: string, end: End): Promise<Sample> {
  const { suite, pace, sale, purchases } = end;
  const shoppers = suite.newShoppers(purchases);
  await introduce(bench, suite, shoppers);
  const saleId = Object.keys(sale).length === 0 ? await suite.plentiful() : await suite.openSale(sale);
  return bench.measure({
    name,
    groups: suite.groups,
    load: { ...purchasing(suite, saleId, shoppers), ...pace },
    operations: shoppers.length,
    requestsEach: REQUESTS_OF_A_PURCHASE,
    settle: () => suite.settled(),
  });
}
