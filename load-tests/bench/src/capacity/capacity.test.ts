import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import type { Sample } from '../bench.js';
import { REDIS_BYTES_PER_UNIT, figureOf, operationOf, type Results } from '../report.js';
import { spreadOf } from '../statistics.js';
import { SETTING_NAMES, assume, type Assumptions, type Given } from './assumptions.js';
import { checkText, documentOf, planText } from './document.js';
import {
  OPERATIONS,
  PROCESSES,
  checkAgainst,
  measuredFrom,
  type Measured,
  type Overrides,
  type Process,
} from './measured.js';
import { coresOf, orderInMysql, planFor, ratesOf, short, type Plan } from './model.js';
import { parseOptions } from './options.js';

/** Round numbers, so that a reader can calculate along: they are nobody's measurements. */
const MICROS: Readonly<Record<string, Partial<Record<Process, number>>>> = {
  'refused at the edge': { edge: 10 },
  'refused sold_out': { gateway: 100 },
  'refused sold_out, first call': { gateway: 200 },
  'poll of a waiting entry': { gateway: 100, token: 20, redis: 10 },
  'entry to purchase token': { gateway: 100, token: 50, inventory: 30, redis: 20 },
  'entry to purchase token, first call': { gateway: 200, token: 50, inventory: 30, redis: 20 },
  'order to 202': { gateway: 100, order: 60, inventory: 20, redis: 10, kafka: 10 },
  'queued to decided': { inventory: 10, 'order-writer': 50, redis: 10, kafka: 10, mysql: 120 },
  'whole purchase': { gateway: 250, 'order-writer': 150, mysql: 200 },
};

const REST_MICROS: Partial<Record<Process, number>> = { gateway: 5_000, kafka: 15_000 };

/** As a benchmark measures it: with what is used at rest in it. */
function sampleOf(costs: Partial<Record<Process, number>>, perSecond: number): Sample {
  const byProcess = Object.fromEntries(
    PROCESSES.map((process) => [process, (costs[process] ?? 0) + (REST_MICROS[process] ?? 0) / perSecond]),
  );
  const micros = Object.values(byProcess).reduce((sum, value) => sum + value, 0);
  return {
    micros,
    unitMicros: 50,
    units: micros / 50,
    busyUnits: micros / 50,
    byProcess,
    perSecond,
    peakMiB: {},
  };
}

const BENCH: Results = {
  at: '2026-01-02T03:04:05.000Z',
  machine: {
    cores: 2,
    cpu: 'Fixture CPU',
    memoryGiB: 8,
    system: 'Linux 6.1',
    node: '24.0.0',
    redis: '7.0.0',
    mysql: '9.0.0',
  },
  commit: '0123456789abcdef',
  isShort: false,
  repetitions: 1,
  unitMicros: 50,
  unitSpread: spreadOf([50]),
  operations: Object.entries(MICROS).map(([name, costs]) => {
    const perSecond = name === 'queued to decided' ? 5_000 : 2_000;
    return operationOf(name, null, [sampleOf(costs, perSecond)], []);
  }),
  figures: [figureOf(REDIS_BYTES_PER_UNIT, 'bytes', [400], { most: 400 })],
  growth: [],
  restMicrosPerSecond: REST_MICROS,
  latenessMs: 1,
};

const NOTHING: Overrides = { micros: new Map() };

function measured(results: Results = BENCH, overrides: Overrides = NOTHING): Measured {
  const found = measuredFrom(results, overrides);
  if ('missing' in found) throw new Error(found.missing.join());
  return found;
}

function assumptions(given: Given): Assumptions {
  const assumed = assume({ units: 1_000, 'rush-seconds': 10, people: 1_000, ...given });
  if ('faults' in assumed) throw new Error(assumed.faults.join());
  return assumed;
}

const faultsOf = (given: Given) => {
  const assumed = assume(given);
  return 'faults' in assumed ? assumed.faults : [];
};
const rates = (given: Given) => ratesOf(assumptions(given), measured());
const plan = (given: Given, by: Measured = measured()) => planFor(assumptions(given), by);
const valueOf = ({ lines }: Plan, name: string) => lines.find((line) => line.name === name)?.value;

describe('the crowd', () => {
  it('comes within the rush', () => {
    expect(rates({ people: 6_000, tries: 2, 'rush-seconds': 60 })).toMatchObject({
      people: 6_000,
      entryRequests: 200,
    });
  });

  it('is as many as come for each unit', () => {
    const assumed = assume({ units: 1_000, 'buyers-per-unit': 20, qps: 100 });
    expect('faults' in assumed ? assumed : ratesOf(assumed, measured())).toMatchObject({
      people: 20_000,
      rushSeconds: 200,
    });
  });

  it('follows from the requests a second, within a minute unless something else is said', () => {
    const assumed = assume({ units: 1_000, qps: 100 });
    expect('faults' in assumed ? assumed : ratesOf(assumed, measured())).toMatchObject({
      people: 6_000,
      rushSeconds: 60,
    });
  });

  it('is refused as is said, and tries again', () => {
    const refused = rates({ people: 10_000, 'refused-at-edge': 0.8, 'refused-at-gateway': 0.1 });
    expect(refused.refusedAtEdge).toBeCloseTo(800);
    expect(refused.refusedAtGateway).toBeCloseTo(100);
    expect(refused.entries).toBeCloseTo(100);
    expect(rates({ 'refused-at-edge': 1 }).entries).toBe(0);
    // 1,000 people a second ask four times each; as many as there are people can be let in.
    const trying = { people: 10_000, tries: 4 };
    expect(rates({ ...trying, 'refused-at-edge': 0.75 }).newcomers).toBeCloseTo(1_000);
    expect(rates({ ...trying, 'refused-at-edge': 0.9 }).newcomers).toBeCloseTo(400);
    expect(rates(trying)).toMatchObject({ entries: 4_000, newcomers: 1_000 });
  });

  it('orders as fast as it comes, if the row of the stock can decide that at the share of use', () => {
    expect(rates({}).ordersPerSecond).toBeCloseTo(100);
    expect(rates({ units: 100_000, people: 100_000 }).ordersPerSecond).toBeCloseTo(0.6 * 5_000);
    expect(
      rates({ units: 100_000, people: 100_000, 'row-orders-per-second': 8_000 }).ordersPerSecond,
    ).toBeCloseTo(4_800);
    // What is wanted is not more than who comes.
    expect(rates({ 'orders-per-second': 1_000 }).ordersPerSecond).toBeCloseTo(100);
  });

  it('waits where more come than are let through, and polls as the line says', () => {
    // 1,000 a second come for 10 s, 500 are let through.
    const line = { units: 10_000, people: 10_000, 'orders-per-second': 500 };
    expect(rates(line)).toMatchObject({ waiting: 5_000, waitSeconds: 10, pollSeconds: 2.5, polls: 2_000 });
    // 9,000 wait 90 s, but poll every 10.
    expect(rates({ ...line, 'orders-per-second': 100 })).toMatchObject({ pollSeconds: 10, polls: 900 });
    expect(rates({ ...line, 'poll-seconds': 5 }).polls).toBe(1_000);
    // All is sold after two seconds, and nobody waits any longer.
    expect(rates({ ...line, units: 1_000 })).toMatchObject({ sellingSeconds: 2, waiting: 1_000 });
    expect(rates({})).toMatchObject({ waiting: 0, polls: 0 });
  });
});

describe('cores', () => {
  it('are the sum of what each operation costs, as often as it comes', () => {
    const given = assumptions({ people: 10_000, 'status-polls': 3, 'refused-at-gateway': 0.9 });
    const cores = coresOf(ratesOf(given, measured()), given, measured());
    // 900 refusals, 100 entries, 300 polls, 100 orders a second.
    expect(cores.gateway).toBeCloseTo((900 * 200 + 100 * 200 + 300 * 100 + 100 * 100) / 1e6);
    expect(cores.mysql).toBeCloseTo((100 * 120) / 1e6);
    expect(cores.redis).toBeCloseTo((100 * 20 + 300 * 10 + 100 * 10 + 100 * 10) / 1e6);
  });

  it('are fewer where shoppers are known, and where cores are faster', () => {
    const known = { 'first-call-share': 0, 'core-speed': 2, 'refused-at-gateway': 0.9 };
    const given = assumptions({ people: 10_000, ...known });
    const cores = coresOf(ratesOf(given, measured()), given, measured());
    expect(cores.gateway).toBeCloseTo((900 * 100 + 100 * 100 + 200 * 100 + 100 * 100) / 2e6);
  });
});

describe('the plan', () => {
  // 10,000 refusals a second, and 1,000 orders.
  const given: Given = {
    units: 1_000_000,
    people: 11_000_000,
    'rush-seconds': 1_000,
    'refused-at-gateway': 10 / 11,
  };

  it('has as many pods as use what each may', () => {
    const found = plan(given);
    expect(valueOf(found, 'entries')).toBeCloseTo(1_000);
    // (10,000 + 1,000) × 200 + 2,000 × 100 + 1,000 × 100 µs = 2.5 cores.
    expect(valueOf(found, 'gateway')).toBe(5);
    expect(valueOf(found, 'token')).toBe(2);
    expect(valueOf(plan({ ...given, 'use-share': 1, 'least-pods': 1 }), 'gateway')).toBe(3);
    // By the rate that one writer reached: 1,000 of 5,000 × 0.6, and 0.05 cores.
    expect(valueOf(plan({ ...given, 'least-pods': 1 }), 'order-writer')).toBe(1);
    const little = { ...given, 'use-share': 0.1, 'least-pods': 1, 'orders-per-second': 1_000 };
    expect(valueOf(plan(little), 'order-writer')).toBe(2);
  });

  it('has Redis masters for the work and for the memory, and buckets for the masters', () => {
    expect(valueOf(plan(given), 'masters')).toBe(1);
    expect(valueOf(plan(given), 'buckets of the sale')).toBe(8);
    // 1,000,000 × 400 bytes are 0.37 GiB; 0.6 of 0.1 GiB may be used.
    const small = plan({ ...given, 'redis-gib': 0.1 });
    expect(valueOf(small, 'data')).toBeCloseTo(0.3725, 3);
    expect(valueOf(small, 'masters')).toBe(7);
    expect(valueOf(small, 'nodes')).toBeDefined();
    expect(valueOf(small, 'buckets of the sale')).toBe(28);
  });

  it('keeps records for as long as is said, and rows for ever', () => {
    expect(valueOf(plan(given), 'disk of all brokers')).toBeCloseTo((1e6 * 700 * 3) / 2 ** 30);
    const oneMinute = { ...given, 'kafka-days': 1 / 1_440 };
    expect(valueOf(plan(oneMinute), 'disk of all brokers')).toBeCloseTo((60_000 * 700 * 3) / 2 ** 30);
    expect(valueOf(plan({ ...given, 'order-bytes': 2_000 }), 'data and indexes')).toBeCloseTo(
      (1e6 * 2_000) / 2 ** 30,
    );
    expect(valueOf(plan(given), 'rows written')).toBeCloseTo(1_000 * orderInMysql().rows);
  });

  it('has network for everything that is asked', () => {
    // 11,000 to enter, 2,000 polls, 1,000 orders and payments each.
    expect(valueOf(plan(given), 'from shoppers')).toBeCloseTo((15_000 * 1_000 * 8) / 1e9);
    const atEdge = plan({ ...given, 'refused-at-gateway': 0, 'refused-at-edge': 10 / 11 });
    expect(valueOf(atEdge, 'edge to gateways')).toBeCloseTo((5_000 * 1_000 * 8) / 1e9);
  });

  it('says of every line where it is from', () => {
    for (const line of plan(given).lines) {
      expect(line.from).not.toBe('');
      expect(Number.isFinite(line.value)).toBe(true);
    }
  });

  it('grows with the crowd, never shrinks', () => {
    const names = ['gateway', 'token', 'inventory', 'order', 'order-writer', 'masters', 'cores used'];
    let before = plan({ people: 100 });
    for (const people of [1_000, 100_000, 1_000_000, 50_000_000]) {
      const now = plan({ people });
      for (const name of names)
        expect(valueOf(now, name) ?? 0).toBeGreaterThanOrEqual(valueOf(before, name) ?? Infinity);
      before = now;
    }
  });
});

describe('what cannot grow', () => {
  it('is told, the nearest first', () => {
    const { limits, bottleneck } = plan({ units: 100_000, people: 100_000, 'orders-per-second': 4_000 });
    expect(limits[0]).toMatchObject({
      name: 'the one row of the stock (sale_stock)',
      share: 0.8,
      wanted: 4_000,
      most: 5_000,
    });
    expect(bottleneck).toContain('the one row of the stock (sale_stock), of which 80 % is wanted');
    expect(limits.map(({ share }) => share)).toEqual(
      limits.map(({ share }) => share).toSorted((a, b) => b - a),
    );
  });

  it('is a warning beyond the share of use, and impossible beyond all of it', () => {
    const asking = (orders: number) =>
      plan({ units: 100_000, people: 100_000, 'orders-per-second': orders }).warnings.join('\n');
    expect(asking(2_000)).not.toContain('the stock (sale_stock)');
    expect(asking(4_000)).toContain('The one row of the stock (sale_stock) is used beyond 0.6');
    expect(asking(6_000)).toContain('Cannot be: the one row of the stock');
    expect(asking(6_000)).toContain('6,000 of at most 5,000 orders a second. More writers do not help');
  });

  it('are partitions, of which each writer needs one', () => {
    const many = { units: 1e6, people: 1e6, 'row-orders-per-second': 1e6, 'orders-per-second': 50_000 };
    const few = plan({ ...many, partitions: 3 });
    expect(valueOf(few, 'order-writer')).toBe(17);
    expect(few.warnings.join('\n')).toContain('Cannot be: partitions for the writers, 17 of at most 3');
    expect(valueOf(plan(many), 'partitions of the orders')).toBe(17);
    expect(plan(many).warnings.join('\n')).not.toContain('partitions');
  });

  it('is the line, which is in one slot', () => {
    const { limits, warnings } = plan({ units: 1e6, people: 1e6 });
    const line = limits.find(({ name }) => name.startsWith('the line'));
    // 100,000 entries × 20 µs, and polls × 10 µs.
    expect(line?.wanted).toBeGreaterThan(2);
    expect(warnings.join('\n')).toContain('Cannot be: the line');
    expect(plan({}).limits.some(({ name }) => name.startsWith('the line'))).toBe(false);
    expect(plan({}).bottleneck).toContain('of which');
  });

  it('is not a partition or a bucket that is planned to fit', () => {
    const tight = plan({ partitions: 2 });
    expect(tight.limits[0]).toMatchObject({ name: 'partitions for the writers', share: 1 });
    expect(tight.bottleneck).toContain('the one row of the stock');
    expect(tight.warnings.join('\n')).not.toContain('partitions');
  });

  it('is the crowd itself', () => {
    const few = plan({ people: 900 });
    expect(few.warnings.join('\n')).toContain('Fewer people come and are let in (900)');
    expect(valueOf(few, 'all sold after')).toBe(Infinity);
  });

  it('is time', () => {
    expect(plan({ units: 1e6, people: 1e6, 'sale-seconds': 60 }).warnings.join('\n')).toContain(
      'The sale ends after 60 s with 180,000 of 1,000,000 orders',
    );
  });

  it('is told of what is not known, too', () => {
    const said = plan({}).warnings.join('\n');
    expect(said).toContain('several writers is not measured');
    expect(said).toContain('payment costs is not measured');
    const micros = new Map([['payment/mysql', 300]]);
    const known = plan({ 'row-orders-per-second': 9_000 }, measured(BENCH, { micros }));
    expect(known.warnings).toEqual([]);
    expect(valueOf(known, 'cores of the primary')).toBe(1);
    expect(plan({}, measured({ ...BENCH, isShort: true })).warnings.join()).toContain('short run');
  });

  it('is everything where nobody is let in', () => {
    const nobody = plan({ 'refused-at-edge': 1 });
    expect(nobody.warnings.join('\n')).toContain('Nobody is let in');
    expect(planText(nobody)).toContain('never s');
  });
});

describe('assumptions', () => {
  it.each([
    [
      {},
      [
        '--units is missing: how many are there to sell?',
        'nobody comes: give --people, --buyers-per-unit or --qps',
      ],
    ],
    [
      { units: 10, people: 1, 'buyers-per-unit': 2 },
      ['--people and --buyers-per-unit say the same; give one of them'],
    ],
    [{ units: 100_000_001, qps: 1 }, ['--units must be a whole number from 1 to 100000000']],
    [{ units: 10, qps: 1, 'use-share': 0 }, ['--use-share must be a number from 0.05 to 1']],
    [{ units: 10, qps: 1, tries: Number.NaN }, ['--tries must be a number from 1 to 1000']],
    [
      { units: 10, qps: 1, 'refused-at-edge': 0.7, 'refused-at-gateway': 0.4 },
      ['--refused-at-edge and --refused-at-gateway are more than everybody'],
    ],
  ] satisfies [Given, string[]][])('%j have faults', (given, faults) => {
    expect(faultsOf(given)).toEqual(faults);
  });

  it('are not given thrice', () => {
    expect(faultsOf({ units: 10, people: 100, qps: 5, 'rush-seconds': 7 })[0]).toContain('leave one out');
  });
});

describe('what is measured', () => {
  it('has nothing in it of what is used at rest', () => {
    const { micros } = measured();
    expect(micros['order to 202'].gateway).toBeCloseTo(100);
    expect(micros['refused sold_out'].kafka).toBeCloseTo(0);
    const busyAtRest = measured({ ...BENCH, restMicrosPerSecond: { kafka: 1e6 } });
    expect(busyAtRest.micros['refused sold_out'].kafka).toBe(0);
  });

  it('is only of those who take part: a millionfold of noise would be a fleet', () => {
    const noisy = BENCH.operations.map((operation) => ({
      ...operation,
      byProcess: { ...operation.byProcess, kafka: 9, mysql: 9 },
    }));
    const { micros } = measured({ ...BENCH, operations: noisy });
    expect(micros['poll of a waiting entry'].mysql).toBe(0);
    expect(micros['order to 202'].mysql).toBe(0);
    expect(micros['queued to decided'].mysql).toBe(9);
  });

  it('may be said instead', () => {
    const { micros, writerOrdersPerSecond, overridden } = measured(BENCH, {
      micros: new Map([['order to 202/gateway', 77]]),
      writerOrdersPerSecond: 9_999,
    });
    expect(micros['order to 202']).toMatchObject({ gateway: 77, order: expect.closeTo(60) });
    expect(writerOrdersPerSecond).toBe(9_999);
    expect(overridden).toEqual(['order to 202/gateway']);
  });

  it('needs no benchmark where everything is said', () => {
    const everything = OPERATIONS.flatMap((operation) =>
      PROCESSES.map((process): [string, number] => [`${operation}/${process}`, 1]),
    );
    const overrides = { writerOrdersPerSecond: 1, redisBytesPerOrder: 1 };
    expect(measuredFrom(undefined, { ...overrides, micros: new Map(everything) })).toMatchObject({
      writerOrdersPerSecond: 1,
    });
    const allButOne = everything.filter(([name]) => name !== 'refused sold_out/gateway');
    expect(measuredFrom(undefined, { ...overrides, micros: new Map(allButOne) })).toEqual({
      missing: ['refused sold_out/gateway'],
    });
  });

  it('is missed by name', () => {
    const partly = { ...BENCH, operations: BENCH.operations.slice(0, 2), figures: [] };
    const found = measuredFrom(partly, NOTHING);
    const { missing } = 'missing' in found ? found : { missing: [] };
    expect(missing).toContain('order to 202/kafka');
    expect(missing).toContain('--redis-bytes-per-order');
    expect(missing).not.toContain('refused sold_out/gateway');
    expect(missing.some((name) => name.startsWith('payment'))).toBe(false);
  });
});

describe('the check', () => {
  it('predicts the whole from its parts', () => {
    // 200 + 200 + 200 µs, and 50 µs of the generator for each of two requests; 20 ms a second at rest.
    const check = checkAgainst(BENCH, measured(), 50);
    expect(check).toMatchObject({
      cores: 2,
      generatorMicros: 100,
      restMicros: 20_000,
      measuredPerSecond: 2_000,
    });
    expect(check?.partsMicros).toBeCloseTo(600);
    expect(check?.wholeMicros).toBeCloseTo(600);
    expect(check?.predictedPerSecond).toBeCloseTo(1_980_000 / 700);
  });

  it('shows both, and how far they lie apart', () => {
    const check = checkAgainst(BENCH, measured(), 50);
    expect(check && checkText(check)).toMatch(/whole purchases a second +\| 2,829 +\| 2,000 +\| \+41\.4 %/);
  });

  it('is not possible without a whole', () => {
    const operations = BENCH.operations.filter(({ name }) => name !== 'whole purchase');
    expect(checkAgainst({ ...BENCH, operations }, measured(), 50)).toBeNull();
  });
});

describe('the command line', () => {
  const runOf = (...args: string[]) => {
    const parsed = parseOptions(args);
    if (parsed.kind !== 'run') throw new Error(JSON.stringify(parsed));
    return parsed.options;
  };
  const faults = (...args: string[]) => {
    const parsed = parseOptions(args);
    return parsed.kind === 'faults' ? parsed.faults : [];
  };

  it('reads a crowd and has a default for the rest', () => {
    expect(runOf('--qps', '1_000_000', '--units=100,000,000')).toMatchObject({
      crowd: { qps: 1e6, units: 1e8, tries: 1, 'use-share': 0.6 },
      isJson: false,
      isCheck: false,
      isWrite: false,
      benchFile: undefined,
    });
  });

  it('reads costs that are said instead of measured', () => {
    const costs = ['--micros', 'order to 202/gateway=80.5', '--micros', 'payment/mysql=9'];
    const { overrides } = runOf('--units=1', '--qps=1', ...costs, '--writer-orders-per-second=7000');
    expect([...overrides.micros]).toEqual([
      ['order to 202/gateway', 80.5],
      ['payment/mysql', 9],
    ]);
    expect(overrides.writerOrdersPerSecond).toBe(7_000);
  });

  it('checks and writes without a crowd', () => {
    expect(runOf('--check', '--generator-micros', '30')).toMatchObject({
      crowd: undefined,
      isCheck: true,
      generatorMicros: 30,
    });
    expect(runOf('--write', '--bench', 'x.json')).toMatchObject({ isWrite: true, benchFile: 'x.json' });
    expect(runOf('--check', '--qps', '1', '--units', '1').crowd).toBeDefined();
  });

  it('tells every fault at once', () => {
    expect(faults()).toHaveLength(2);
    expect(faults('--units', 'many', '--qps', '-1')).toHaveLength(1);
    expect(faults('--units', 'many', '--qps=1e6', '--bench=')).toEqual([
      '--units is "many", but must be a number',
      '--qps is "1e6", but must be a number',
      '--bench is empty, but must be a path',
    ]);
    expect(faults('--units', '1', '--qps', '1', '--micros', 'order/gateway=1')[0]).toContain(
      '"order/gateway"',
    );
    expect(faults('--units', '1', '--qps', '1', '--micros', 'order to 202/gateway')[0]).toContain('--micros');
    expect(faults('--units', '1', '--qps', '1', '--micros', 'order to 202/gateway=x')[0]).toContain('"x"');
    expect(faults('--write', '--units', '1')[0]).toContain('--write');
    expect(faults('--unit', '1')).toHaveLength(1);
    expect(faults('plan')).toHaveLength(1);
  });

  it('helps, with every setting', () => {
    expect(parseOptions(['--help']).kind).toBe('help');
    expect(SETTING_NAMES.length).toBeGreaterThan(30);
  });
});

describe('the command', () => {
  const program = resolve(import.meta.dirname, '../../dist/capacity/main.js');
  let folder: string;
  let bench: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'flash-sale-capacity-'));
    bench = join(folder, 'bench.json');
    writeFileSync(bench, JSON.stringify(BENCH));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  const run = (...args: string[]) => spawnSync(process.execPath, [program, ...args], { encoding: 'utf8' });
  const crowd = ['--units', '1000', '--people', '20000'];

  it('prints a plan, also as JSON, and the check', () => {
    const asText = run(...crowd, '--bench', bench, '--check');
    expect(asText.stderr).toBe('');
    expect(asText.stdout).toContain('What is reached first');
    expect(asText.stdout).toContain('whole purchases a second');
    expect(asText.status).toBe(0);
    const asJson: unknown = JSON.parse(run(...crowd, '--bench', bench, '--json').stdout);
    expect(asJson).toMatchObject({
      assumptions: { units: 1_000, people: 20_000 },
      lines: expect.arrayContaining([expect.objectContaining({ name: 'gateway', unit: 'pods' })]),
      bottleneck: expect.stringContaining('stock'),
    });
  });

  it('says what to do where nothing was measured', () => {
    const missing = run(...crowd, '--bench', join(folder, 'none.json'));
    expect(missing.stderr).toContain('Run "npm run bench"');
    expect(missing.stderr).toMatch(/Missing: refused at the edge\/edge and \d+ more/);
    expect(missing.status).toBe(1);
    expect(run('--check', '--bench', program)).toMatchObject({ status: 1, stdout: '' });
    expect(run('--units', '1').status).toBe(2);
  });
});

it('the document states its examples, measurements and assumptions', () => {
  const args = '--units 1000 --people 20000';
  const parsed = parseOptions(args.split(' '));
  const crowd = parsed.kind === 'run' ? parsed.options.crowd : undefined;
  const example = { title: 'A crowd', args, crowd: crowd! };
  const text = documentOf(measured(), checkAgainst(BENCH, measured(), 50), [example]);
  expect(text).toContain('npm run capacity -- --units 1000 --people 20000');
  expect(text).toContain('Benchmark of 2026-01-02, commit 0123456789ab, 2 cores (Fixture CPU)');
  expect(text).toMatch(/\| whole purchases a second/);
  expect(text).toMatch(/\| order to 202 +\| 100 /);
  for (const name of SETTING_NAMES) expect(text).toContain(`\`--${name}\``);
  expect(text).not.toContain('NaN');
  expect(text).not.toContain('undefined');
});

it.each([
  [0.001234, '0.00123'],
  [0, '0'],
  [12.345, '12.3'],
  [1_234.5, '1,235'],
  [Infinity, 'never'],
])('%d is told as %s', (value, text) => {
  expect(short(value)).toBe(text);
});
