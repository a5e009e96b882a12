import type { Assumptions } from './assumptions.js';
import { PROCESSES, type Measured, type Operation, type Process } from './measured.js';

/** One figure of a plan and where it comes from. */
export interface Line {
  readonly group: 'crowd' | 'edge' | 'services' | 'Redis' | 'Kafka' | 'MySQL' | 'network';
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  readonly from: string;
}

/** Something of which more cannot simply be added. */
export interface Limit {
  readonly name: string;
  readonly wanted: number;
  readonly most: number;
  readonly unit: string;
  /** Of the most, how much is wanted. */
  readonly share: number;
  /** Whether all of it may be used: it is planned to fit. */
  readonly mayBeFull: boolean;
  /** What may be done about it. */
  readonly remedy: string;
}

export interface Plan {
  readonly lines: readonly Line[];
  /** The nearest first. */
  readonly limits: readonly Limit[];
  readonly bottleneck: string;
  readonly warnings: readonly string[];
}

/**
 * The rows of a paid order in MySQL, and bytes of each row and of its entries in secondary indexes. Estimated from the columns,
 * with ids of sales of 16 characters, of shoppers of 36, and a delivery of 150 bytes; InnoDB adds 23 bytes to a row.
 */
export const ORDER_TABLES = [
  { table: 'orders', rows: 1, rowBytes: 480, indexBytes: 250 },
  { table: 'quota', rows: 1, rowBytes: 80, indexBytes: 0 },
  { table: 'order_event', rows: 2, rowBytes: 115, indexBytes: 0 },
  { table: 'ledger', rows: 2, rowBytes: 145, indexBytes: 85 },
  { table: 'effect', rows: 1, rowBytes: 135, indexBytes: 155 },
  { table: 'payment', rows: 1, rowBytes: 260, indexBytes: 175 },
  { table: 'webhook_event', rows: 1, rowBytes: 100, indexBytes: 0 },
] as const;
/** Ids are hashes, so rows come in no order, and pages that were split are this full. */
export const PAGE_FILL = 0.69;

const SERVICES = ['gateway', 'token', 'inventory', 'order', 'order-writer'] as const satisfies Process[];
/** Of `libs/domain`, of the chart and of the line. */
const MOST_BUCKETS = 1_024;
const USUAL_BUCKETS = 8;
const USUAL_PARTITIONS = 12;
const MOST_ADMITTED_PER_SECOND = 100_000;
const POLL_SECONDS = { least: 0.5, most: 10, ofWait: 0.25 };
/** So that hash slots, which follow from a hash, spread over masters about evenly. */
const BUCKETS_PER_MASTER = 4;
const LEAST_NODES = 2;
const USUAL_RUSH_SECONDS = 60;
/** Shares of a crowd are multiplied and divided; less than this is nobody. */
const ROUNDING = 1e-9;
const SECONDS_PER_DAY = 86_400;
const GIB = 2 ** 30;

const up = Math.ceil;
const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);

/** What comes and what is done about it, at the peak; rates a second. */
export interface Rates {
  readonly orders: number;
  readonly people: number;
  readonly rushSeconds: number;
  readonly entryRequests: number;
  readonly refusedAtEdge: number;
  readonly refusedAtGateway: number;
  readonly entries: number;
  readonly newcomers: number;
  readonly ordersPerSecond: number;
  /** People in the line when the last of the rush has come, and how long that one waits, s. */
  readonly waiting: number;
  readonly waitSeconds: number;
  /** Until everything is sold; for ever where too few are let in, s. */
  readonly sellingSeconds: number;
  readonly pollSeconds: number;
  readonly polls: number;
  readonly statusPolls: number;
  readonly rowOrdersPerSecond: number;
}

export function ratesOf(given: Assumptions, measured: Measured): Rates {
  const { units, quantity, tries } = given;
  const orders = up(units / quantity);
  const buyers = given['buyers-per-unit'];
  const known = given.people ?? (buyers === undefined ? undefined : up(buyers * units));
  const asked = known === undefined || given.qps === undefined ? undefined : (known * tries) / given.qps;
  const rushSeconds = given['rush-seconds'] ?? asked ?? USUAL_RUSH_SECONDS;
  const entryRequests = given.qps ?? ((known ?? 0) * tries) / rushSeconds;
  const people = known ?? (entryRequests * rushSeconds) / tries;

  const atEdge = given['refused-at-edge'];
  const atGateway = given['refused-at-gateway'];
  // Not `1 − … − …`, which may leave less than nothing.
  const entries = entryRequests * Math.max(0, 1 - (atEdge + atGateway));
  // Who is refused tries again; who was let in does not come again as somebody else.
  const newcomers = Math.min(entries, people / rushSeconds);

  const rowOrdersPerSecond =
    given['row-orders-per-second'] ?? measured.writerOrdersPerSecond * given['core-speed'];
  // As they come, then; nobody orders who does not come.
  const wanted = given['orders-per-second'] ?? rowOrdersPerSecond * given['use-share'];
  const ordersPerSecond = Math.min(wanted, newcomers);
  const areEnough = newcomers * rushSeconds >= orders * (1 - ROUNDING);
  const sellingSeconds = areEnough ? orders / ordersPerSecond : Infinity;
  // Nobody waits any more for what is gone.
  const waiting = (newcomers - ordersPerSecond) * Math.min(rushSeconds, sellingSeconds);
  const waitSeconds = waiting === 0 ? 0 : waiting / ordersPerSecond;
  const { least, most, ofWait } = POLL_SECONDS;
  const pollSeconds = given['poll-seconds'] ?? Math.min(most, Math.max(least, waitSeconds * ofWait));
  return {
    orders,
    people,
    rushSeconds,
    entryRequests,
    refusedAtEdge: entryRequests * atEdge,
    refusedAtGateway: entryRequests * atGateway,
    entries,
    newcomers,
    ordersPerSecond,
    waiting,
    waitSeconds,
    sellingSeconds,
    pollSeconds,
    polls: waiting / pollSeconds,
    statusPolls: ordersPerSecond * given['status-polls'],
    rowOrdersPerSecond,
  };
}

/** Cores of each process at the peak, were each used wholly. */
export function coresOf(
  rates: Rates,
  given: Assumptions,
  { micros }: Measured,
): Readonly<Record<Process, number>> {
  const first = given['first-call-share'];
  const perSecond: readonly (readonly [Operation, number])[] = [
    ['refused at the edge', rates.refusedAtEdge],
    ['refused sold_out, first call', rates.refusedAtGateway * first],
    ['refused sold_out', rates.refusedAtGateway * (1 - first)],
    ['entry to purchase token, first call', rates.entries * first],
    ['entry to purchase token', rates.entries * (1 - first)],
    ['poll of a waiting entry', rates.polls + rates.statusPolls],
    ['order to 202', rates.ordersPerSecond],
    ['queued to decided', rates.ordersPerSecond],
    ['payment', rates.ordersPerSecond],
  ];
  const used = PROCESSES.map((process) => [
    process,
    sum(perSecond.map(([operation, times]) => times * micros[operation][process])) /
      (1e6 * given['core-speed']),
  ]);
  return Object.fromEntries(used) as Record<Process, number>;
}

/** Turns an expected crowd into what it takes to serve it. Nothing is measured here. */
export function planFor(given: Assumptions, measured: Measured): Plan {
  const rates = ratesOf(given, measured);
  const cores = coresOf(rates, given, measured);
  const services = servicesFor(rates, cores, given, measured);
  const redis = redisFor(rates, cores, given, measured);
  const kafka = kafkaFor(rates, cores, services.writers, given);
  const mysql = mysqlFor(rates, cores, given);
  const limits = limitsOf(rates, cores, given, measured, {
    writers: services.writers,
    masters: redis.masters,
    partitions: kafka.partitions,
  });
  const lines = [
    ...crowdLines(rates, given),
    ...edgeLines(rates, cores, given),
    ...services.lines,
    ...redis.lines,
    ...kafka.lines,
    ...mysql,
    ...networkLines(rates, given),
  ];
  const nearest = limits.find(({ mayBeFull, share }) => !mayBeFull || share > 1);
  const used = nearest ? `${nearest.name}, of which ${short(100 * nearest.share)} % is wanted. ` : '';
  const bottleneck = `${used}${largestTier(cores)}`;
  return { lines, limits, bottleneck, warnings: warningsOf(rates, limits, given, measured) };
}

function crowdLines(rates: Rates, given: Assumptions): Line[] {
  const line = lineOf('crowd');
  const shareLeft = 'those who are refused nowhere, and are granted or wait';
  return [
    line('people', rates.people, 'people', 'given, or units × buyers per unit, or qps × rush ÷ tries'),
    line('rush', rates.rushSeconds, 's', 'given, or people × tries ÷ qps'),
    line('requests to enter', rates.entryRequests, 'a second', 'people × tries ÷ rush'),
    line('refused at the edge', rates.refusedAtEdge, 'a second', `× ${given['refused-at-edge']}`),
    line('refused at the gateway', rates.refusedAtGateway, 'a second', `× ${given['refused-at-gateway']}`),
    line('entries', rates.entries, 'a second', shareLeft),
    line(
      'orders',
      rates.ordersPerSecond,
      'a second',
      given['orders-per-second'] === undefined
        ? 'as they come, or what the row of the stock decides at the share of use'
        : 'as wanted, at most as they come',
    ),
    line(
      'waiting, at most',
      rates.waiting,
      'people',
      '(entries, of whom each comes once, − orders) × rush, or until all is sold',
    ),
    line('the last one waits', rates.waitSeconds, 's', 'waiting ÷ orders a second'),
    line(
      'polls of who waits',
      rates.polls,
      'a second',
      `waiting ÷ ${short(rates.pollSeconds)} s; event streams are not counted`,
    ),
    line('polls of orders', rates.statusPolls, 'a second', `orders × ${given['status-polls']}`),
    line(
      'all sold after',
      rates.sellingSeconds,
      's',
      'orders ÷ orders a second, if enough people are let in',
    ),
  ];
}

const letIn = (rates: Rates) => rates.newcomers * rates.rushSeconds;

/** Requests a second that reach an edge, and of them those that go on to a gateway. */
function requestsOf(rates: Rates): { readonly all: number; readonly passed: number } {
  const orders = 2 * rates.ordersPerSecond; // The order and its payment.
  const all = rates.entryRequests + rates.polls + rates.statusPolls + orders;
  return { all, passed: all - rates.refusedAtEdge };
}

function edgeLines(rates: Rates, used: Readonly<Record<Process, number>>, given: Assumptions): Line[] {
  const line = lineOf('edge');
  const { all, passed } = requestsOf(rates);
  // Who tries again after a connection has been closed opens another one.
  const perPerson = rates.rushSeconds / given.tries > given['keep-alive-seconds'] ? given.tries : 1;
  const opened = (rates.people * perPerson) / rates.rushSeconds;
  const cores = used.edge + (opened * given['tls-micros'] + passed * given['edge-pass-micros']) / 1e6;
  const connections = Math.min(rates.people, opened * given['keep-alive-seconds'] + rates.waiting);
  const gbit = gbitOf(all, Math.max(given['request-bytes'], given['response-bytes']));
  const use = given['use-share'];
  const needs = {
    cores: cores / (given['edge-cores'] * use),
    connections: connections / given['edge-connections'],
    network: gbit / (given['edge-gbit'] * use),
  };
  const [reason] = Object.entries(needs).toSorted(([, a], [, b]) => b - a)[0] ?? [''];
  return [
    line(
      'cores used',
      cores,
      'cores',
      `refusals as measured; ${short(opened)} connections opened a second × ${given['tls-micros']} µs and ${given['edge-pass-micros']} µs a request passed on: assumed`,
    ),
    line('connections', connections, 'open', 'opened a second × keep-alive + waiting, at most all people'),
    line(
      'nodes',
      Math.max(LEAST_NODES, up(Math.max(...Object.values(needs)))),
      'nodes',
      `by ${reason}, of ${given['edge-cores']} cores, ${short(given['edge-connections'])} connections, ${given['edge-gbit']} Gbit/s`,
    ),
  ];
}

function servicesFor(
  rates: Rates,
  cores: Readonly<Record<Process, number>>,
  given: Assumptions,
  measured: Measured,
): { readonly lines: Line[]; readonly writers: number } {
  const line = lineOf('services');
  const perPod = given['pod-cores'] * given['use-share'];
  const perWriter = measured.writerOrdersPerSecond * given['core-speed'] * given['use-share'];
  const podsOf = (service: (typeof SERVICES)[number]) => {
    const byRate = service === 'order-writer' ? rates.ordersPerSecond / perWriter : 0;
    return Math.max(given['least-pods'], up(Math.max(cores[service] / perPod, byRate)));
  };
  const lines = SERVICES.map((service) => {
    const rule = service === 'order-writer' ? ` or orders ÷ ${short(perWriter)} of one writer` : '';
    return line(
      service,
      podsOf(service),
      'pods',
      `${short(cores[service])} cores ÷ (${given['pod-cores']} × ${given['use-share']})${rule}, at least ${given['least-pods']}`,
    );
  });
  return { lines, writers: podsOf('order-writer') };
}

function redisFor(
  rates: Rates,
  cores: Readonly<Record<Process, number>>,
  given: Assumptions,
  { redisBytesPerOrder }: Measured,
): { readonly lines: Line[]; readonly masters: number } {
  const line = lineOf('Redis');
  const use = given['use-share'];
  const perWaiting = given['waiting-bytes'] ?? redisBytesPerOrder;
  const gib = (rates.orders * redisBytesPerOrder + rates.waiting * perWaiting) / GIB;
  const byCores = up(cores.redis / use);
  const byMemory = up(gib / (given['redis-gib'] * use));
  const masters = Math.max(1, byCores, byMemory);
  const buckets = Math.min(
    MOST_BUCKETS,
    given.units,
    Math.max(USUAL_BUCKETS, masters === 1 ? 0 : masters * BUCKETS_PER_MASTER),
  );
  const copies = 1 + given['redis-replicas'];
  return {
    masters,
    lines: [
      line(
        'masters',
        masters,
        'masters',
        `${byCores} for ${short(cores.redis)} cores of a thread each, ${byMemory} for memory of ${given['redis-gib']} GiB; ${use} of each is used`,
      ),
      line('nodes', masters * copies, 'nodes', `× (1 + ${given['redis-replicas']})`),
      line(
        'data',
        gib,
        'GiB',
        `orders × ${short(redisBytesPerOrder)} bytes, waiting × ${short(perWaiting)}; a refusal leaves nothing`,
      ),
      line(
        'buckets of the sale',
        buckets,
        'buckets',
        `${USUAL_BUCKETS}, or ${BUCKETS_PER_MASTER} a master, at most ${MOST_BUCKETS}`,
      ),
    ],
  };
}

function kafkaFor(
  rates: Rates,
  cores: Readonly<Record<Process, number>>,
  writers: number,
  given: Assumptions,
): { readonly lines: Line[]; readonly partitions: number } {
  const line = lineOf('Kafka');
  const copies = given['kafka-replicas'];
  const use = given['use-share'];
  const keptOrders = Math.min(
    rates.orders,
    rates.ordersPerSecond * Math.min(given['kafka-days'] * SECONDS_PER_DAY, given['sale-seconds']),
  );
  const partitions = given.partitions ?? Math.max(USUAL_PARTITIONS, writers);
  const brokers = Math.max(copies, up((cores.kafka * copies) / (given['kafka-cores'] * use)));
  return {
    partitions,
    lines: [
      line('partitions of the orders', partitions, 'partitions', 'given, or 12, or one for each writer'),
      line(
        'brokers',
        brokers,
        'brokers',
        `one a copy, or ${short(cores.kafka)} cores × ${copies} ÷ (${given['kafka-cores']} × ${use}); a copy costs what the first does`,
      ),
      line(
        'disk of all brokers',
        (keptOrders * given['record-bytes'] * copies) / GIB,
        'GiB',
        `orders of ${given['kafka-days']} days × ${given['record-bytes']} bytes × ${copies}`,
      ),
    ],
  };
}

/** Bytes of a paid order on MySQL's disk, and rows. */
export function orderInMysql(): { readonly bytes: number; readonly rows: number; readonly rowBytes: number } {
  const rowBytes = sum(ORDER_TABLES.map((one) => one.rows * one.rowBytes));
  const indexBytes = sum(ORDER_TABLES.map((one) => one.rows * one.indexBytes));
  return {
    bytes: Math.round((rowBytes + indexBytes) / PAGE_FILL),
    rows: sum(ORDER_TABLES.map(({ rows }) => rows)),
    rowBytes,
  };
}

function mysqlFor(rates: Rates, cores: Readonly<Record<Process, number>>, given: Assumptions): Line[] {
  const line = lineOf('MySQL');
  const order = orderInMysql();
  const orderBytes = given['order-bytes'] ?? order.bytes;
  const gib = (rates.orders * orderBytes) / GIB;
  const use = given['use-share'];
  return [
    line(
      'cores of the primary',
      up(cores.mysql / use),
      'cores',
      `${short(cores.mysql)} used, ${use} of what is there`,
    ),
    line('rows written', rates.ordersPerSecond * order.rows, 'a second', `orders × ${order.rows} rows`),
    line('rows of the sale', rates.orders * order.rows, 'rows', 'the same, for all orders'),
    line('data and indexes', gib, 'GiB', `orders × ${short(orderBytes)} bytes; nothing is ever deleted`),
    line(
      'binary log of the sale',
      (rates.orders * order.rowBytes) / GIB,
      'GiB',
      `orders × ${short(order.rowBytes)} bytes of rows`,
    ),
    line(
      'disk of all copies',
      gib * (1 + given['mysql-replicas']),
      'GiB',
      `data × (1 + ${given['mysql-replicas']})`,
    ),
  ];
}

function networkLines(rates: Rates, given: Assumptions): Line[] {
  const line = lineOf('network');
  const { all, passed } = requestsOf(rates);
  const { rowBytes } = orderInMysql();
  const copies = given['kafka-replicas'];
  const orders = rates.ordersPerSecond;
  return [
    line('from shoppers', gbitOf(all, given['request-bytes']), 'Gbit/s', `${short(all)} requests a second`),
    line('to shoppers', gbitOf(all, given['response-bytes']), 'Gbit/s', 'as many answers'),
    line(
      'edge to gateways',
      gbitOf(passed, given['request-bytes']),
      'Gbit/s',
      `${short(passed)} requests a second`,
    ),
    line(
      'Kafka',
      gbitOf(orders, given['record-bytes'] * (copies + 1)),
      'Gbit/s',
      `orders × record × (${copies} copies + 1 reader)`,
    ),
    line(
      'MySQL',
      gbitOf(orders, rowBytes * (1 + given['mysql-replicas'])),
      'Gbit/s',
      `orders × ${short(rowBytes)} bytes × (1 + ${given['mysql-replicas']} replicas)`,
    ),
  ];
}

function limitsOf(
  rates: Rates,
  cores: Readonly<Record<Process, number>>,
  given: Assumptions,
  { micros }: Measured,
  fleet: { readonly writers: number; readonly masters: number; readonly partitions: number },
): Limit[] {
  const first = given['first-call-share'];
  const perEntry =
    first * micros['entry to purchase token, first call'].redis +
    (1 - first) * micros['entry to purchase token'].redis;
  const lineMicros = rates.entries * perEntry + rates.polls * micros['poll of a waiting entry'].redis;
  const limits: Omit<Limit, 'share'>[] = [
    {
      name: 'the one row of the stock (sale_stock)',
      wanted: rates.ordersPerSecond,
      most: rates.rowOrdersPerSecond,
      unit: 'orders a second',
      mayBeFull: false,
      remedy: 'more writers do not help; split the stock over several sales, or sell for longer',
    },
    {
      name: 'CPU of the MySQL primary',
      wanted: cores.mysql,
      most: given['mysql-cores'],
      unit: 'cores',
      mayBeFull: false,
      remedy: 'a larger primary, or sales on several databases',
    },
    {
      name: 'partitions for the writers',
      wanted: fleet.writers,
      most: fleet.partitions,
      unit: 'writers',
      mayBeFull: true,
      remedy: 'more partitions: a writer without one does nothing',
    },
    {
      name: 'buckets for the Redis masters',
      wanted: fleet.masters,
      most: Math.min(MOST_BUCKETS, given.units),
      unit: 'masters',
      mayBeFull: true,
      remedy: 'a bucket is on one master; split the stock over several sales',
    },
  ];
  if (rates.waiting > 0)
    limits.push(
      {
        name: 'the line, which is in one slot of Redis',
        wanted: lineMicros / (1e6 * given['core-speed']),
        most: 1,
        unit: 'cores of one master',
        mayBeFull: false,
        remedy: 'let fewer wait: refuse more at the edge, or split the stock over several sales',
      },
      {
        name: 'admission from the line',
        wanted: rates.ordersPerSecond,
        most: MOST_ADMITTED_PER_SECOND,
        unit: 'a second',
        mayBeFull: false,
        remedy: 'split the stock over several sales',
      },
    );
  return limits
    .map((limit) => ({ ...limit, share: limit.wanted / limit.most }))
    .toSorted((a, b) => b.share - a.share);
}

function largestTier(cores: Readonly<Record<Process, number>>): string {
  const behind = Object.entries(cores).filter(([process]) => process !== 'edge');
  const all = sum(behind.map(([, used]) => used));
  const [name, used] = behind.toSorted(([, a], [, b]) => b - a)[0] ?? ['nothing', 0];
  return `Most cores behind the edge are used by ${name}: ${short(used)} of ${short(all)}.`;
}

function warningsOf(
  rates: Rates,
  limits: readonly Limit[],
  given: Assumptions,
  measured: Measured,
): string[] {
  const use = given['use-share'];
  const warnings: string[] = [];
  for (const { name, wanted, most, unit, share, mayBeFull, remedy } of limits) {
    const amount = `${short(wanted)} of at most ${short(most)} ${unit}`;
    if (share > 1) warnings.push(`Cannot be: ${name}, ${amount}. ${capital(remedy)}.`);
    else if (share > use + 1e-9 && !mayBeFull)
      warnings.push(`${capital(name)} is used beyond ${use}: ${amount}. ${capital(remedy)}.`);
  }
  if (rates.ordersPerSecond === 0)
    warnings.push('Nobody is let in, so nothing is sold: too many are refused.');
  const takes = rates.sellingSeconds;
  if (rates.ordersPerSecond > 0 && !Number.isFinite(takes))
    warnings.push(
      `Fewer people come and are let in (${short(letIn(rates))}) than there are orders to fill (${short(rates.orders)}).`,
    );
  else if (takes > given['sale-seconds'] && Number.isFinite(takes))
    warnings.push(
      `The sale ends after ${short(given['sale-seconds'])} s with ${short(rates.ordersPerSecond * given['sale-seconds'])} of ${short(rates.orders)} orders; all of them take ${short(takes)} s.`,
    );
  if (given['row-orders-per-second'] === undefined)
    warnings.push(
      'What the row of the stock bears with several writers is not measured; it is taken to be what one writer drains. --row-orders-per-second says otherwise.',
    );
  if (sum(Object.values(measured.micros.payment)) === 0)
    warnings.push(
      "What a payment costs is not measured and left out, save at the edge. --micros 'payment/order=…', …/gateway and …/mysql add it.",
    );
  if (measured.isRough) warnings.push('The benchmark was a short run: its figures are rough.');
  return warnings;
}

const lineOf =
  (group: Line['group']) =>
  (name: string, value: number, unit: string, from: string): Line => ({ group, name, value, unit, from });

/** Payload only. */
const gbitOf = (perSecond: number, bytes: number) => (perSecond * bytes * 8) / 1e9;

const capital = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);

/** Digits as many as mean something. */
export function short(value: number): string {
  if (!Number.isFinite(value)) return 'never';
  if (Math.abs(value) >= 100) return Math.round(value).toLocaleString('en-US');
  return value.toLocaleString('en-US', { maximumSignificantDigits: 3 });
}
