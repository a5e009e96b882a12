/** One number that the calculator is given or assumes. */
interface Setting {
  /** Absent: it has to be given, or follows from others as `meaning` says. */
  readonly assumed?: number;
  readonly min: number;
  readonly max: number;
  readonly isWhole?: true;
  readonly unit: string;
  readonly meaning: string;
}

const MANY = 1e12;
const count = { min: 1, max: MANY, isWhole: true } as const;
const rate = { min: 0.001, max: 1e9 } as const;
const share = { min: 0, max: 1, unit: 'share' } as const;
const bytes = { min: 1, max: 1e7, isWhole: true, unit: 'bytes' } as const;
const cores = { min: 0.1, max: 4_096, unit: 'cores' } as const;
const replicas = { min: 0, max: 100, isWhole: true, unit: 'replicas' } as const;

/**
 * Everything that is not measured, in the order in which it is told. A name is that of the option, too. Whatever is said to be
 * assumed is no more than that: somebody's experience, or a default of the chart or of a service.
 */
export const SETTINGS = {
  units: { min: 1, max: 100_000_000, isWhole: true, unit: 'units', meaning: 'to sell; a sale takes no more' },
  quantity: { assumed: 1, min: 1, max: 1_000, unit: 'units', meaning: 'in an order, on average' },
  people: { ...count, unit: 'people', meaning: 'who come; or say --buyers-per-unit, or --qps' },
  'buyers-per-unit': { min: 0.001, max: 1e9, unit: 'people', meaning: 'who come for each unit' },
  qps: { ...rate, unit: 'a second', meaning: 'requests to enter, at the peak' },
  'rush-seconds': {
    min: 0.01,
    max: 1e6,
    unit: 's',
    meaning: 'in which they all come, evenly; 60, unless it follows from --qps and the people',
  },
  tries: { assumed: 1, min: 1, max: 1_000, unit: 'requests', meaning: 'to enter, by each of the people' },
  'refused-at-edge': { ...share, assumed: 0, meaning: 'of requests to enter; they are tried again' },
  'refused-at-gateway': { ...share, assumed: 0, meaning: 'of requests to enter, from memory' },
  'first-call-share': {
    ...share,
    assumed: 1,
    meaning: 'of requests to enter that are the first of their shopper at this gateway, which verifies them',
  },
  'orders-per-second': {
    ...rate,
    unit: 'a second',
    meaning: 'wanted; as they come, or what the row of the stock decides at the share of use',
  },
  'status-polls': { assumed: 2, min: 0, max: 1_000, unit: 'requests', meaning: 'after an order' },
  'poll-seconds': {
    min: 0.1,
    max: 3_600,
    unit: 's',
    meaning: 'between polls of somebody who waits; a quarter of the wait, 0.5 to 10, as the line says',
  },
  'sale-seconds': { assumed: 3_600, min: 1, max: 1e8, unit: 's', meaning: 'from the opening to the end' },

  'request-bytes': { ...bytes, assumed: 1_000, meaning: 'on the wire, with headers and access token' },
  'response-bytes': { ...bytes, assumed: 700, meaning: 'on the wire, with headers' },
  'record-bytes': { ...bytes, assumed: 700, meaning: 'of an order in Kafka: purchase token and delivery' },
  'order-bytes': { ...bytes, meaning: 'in MySQL with its indexes; estimated from the columns, see below' },
  'waiting-bytes': { ...bytes, meaning: 'in Redis for somebody who waits; as for an order' },

  'core-speed': { assumed: 1, min: 0.01, max: 100, unit: '×', meaning: 'of a core, with that measured on' },
  'use-share': {
    assumed: 0.6,
    min: 0.05,
    max: 1,
    unit: 'share',
    meaning: 'of each resource that is used at the peak; latencies are measured at 0.6',
  },
  'pod-cores': { assumed: 1, min: 0.1, max: 2, unit: 'cores', meaning: 'that a pod of a service can use' },
  'least-pods': { ...count, assumed: 2, max: 100, unit: 'pods', meaning: 'of each service' },

  'edge-cores': { ...cores, assumed: 4, meaning: 'of an edge node, or of whatever else ends TLS' },
  'edge-pass-micros': { assumed: 30, min: 0, max: 1e5, unit: 'µs', meaning: 'for a request passed on' },
  'tls-micros': {
    assumed: 500,
    min: 0,
    max: 1e6,
    unit: 'µs',
    meaning: 'for a TLS handshake, one for each connection',
  },
  'keep-alive-seconds': {
    assumed: 65,
    min: 0,
    max: 3_600,
    unit: 's',
    meaning: 'for which an idle connection stays open',
  },
  'edge-connections': { ...count, assumed: 50_000, unit: 'connections', meaning: 'of an edge node' },
  'edge-gbit': { assumed: 10, min: 0.01, max: 1_000, unit: 'Gbit/s', meaning: 'of an edge node, each way' },

  'redis-gib': { assumed: 8, min: 0.1, max: 1_000, unit: 'GiB', meaning: 'of memory of a master' },
  'redis-replicas': { ...replicas, assumed: 1, meaning: 'of each master' },
  'redis-bytes-per-order': { ...bytes, meaning: 'kept by Redis; measured' },

  'writer-orders-per-second': { ...rate, unit: 'orders/s', meaning: 'drained by one writer; measured' },
  'row-orders-per-second': {
    ...rate,
    unit: 'orders/s',
    meaning:
      'that the one row of the stock decides with any number of writers; as one writer, until it is measured',
  },
  partitions: { ...count, max: 10_000, unit: 'partitions', meaning: 'of the orders; 12, or the writers' },
  'kafka-replicas': { assumed: 3, min: 1, max: 9, isWhole: true, unit: 'copies', meaning: 'of each record' },
  'kafka-cores': { ...cores, assumed: 4, meaning: 'of a broker' },
  'kafka-days': { assumed: 7, min: 0.0001, max: 3_650, unit: 'days', meaning: 'for which records are kept' },

  'mysql-cores': { ...cores, assumed: 16, meaning: 'of the primary; orders are decided there only' },
  'mysql-replicas': { ...replicas, assumed: 2, meaning: 'of the primary' },
} as const satisfies Record<string, Setting>;

export type SettingName = keyof typeof SETTINGS;
type Assumed = {
  [Name in SettingName]: (typeof SETTINGS)[Name] extends { readonly assumed: number } ? Name : never;
}[SettingName];

/** A number for each setting: what was given, else what is assumed, else none. Their relations are those of {@link faultsOf}. */
export type Assumptions = { readonly [Name in Assumed]: number } & {
  readonly [Name in Exclude<SettingName, Assumed>]?: number;
} & { readonly units: number };

export const SETTING_NAMES = Object.keys(SETTINGS) as SettingName[];
export const settingOf = (name: SettingName): Setting => SETTINGS[name];

export type Given = { readonly [Name in SettingName]?: number };

/** @returns every fault, or what is assumed where nothing is given */
export function assume(given: Given): Assumptions | { readonly faults: readonly string[] } {
  const faults = [...SETTING_NAMES.flatMap((name) => rangeFault(name, given[name])), ...faultsOf(given)];
  if (faults.length > 0) return { faults };
  const assumed = SETTING_NAMES.map((name) => [name, given[name] ?? settingOf(name).assumed]);
  return Object.fromEntries(assumed.filter(([, value]) => value !== undefined)) as Assumptions;
}

function rangeFault(name: SettingName, value: number | undefined): string[] {
  if (value === undefined) return [];
  const { min, max, isWhole } = settingOf(name);
  if (value >= min && value <= max && (!isWhole || Number.isInteger(value))) return [];
  return [`--${name} must be a ${isWhole ? 'whole ' : ''}number from ${min} to ${max}`];
}

function faultsOf(given: Given): string[] {
  const faults: string[] = [];
  const crowd = ['people', 'buyers-per-unit'] as const;
  if (given.units === undefined) faults.push('--units is missing: how many are there to sell?');
  if (crowd.every((name) => given[name] !== undefined))
    faults.push('--people and --buyers-per-unit say the same; give one of them');
  const hasPeople = crowd.some((name) => given[name] !== undefined);
  if (!hasPeople && given.qps === undefined)
    faults.push('nobody comes: give --people, --buyers-per-unit or --qps');
  if (hasPeople && given.qps !== undefined && given['rush-seconds'] !== undefined)
    faults.push('of --qps, --rush-seconds and the people one follows from the other two; leave one out');
  if ((given['refused-at-edge'] ?? 0) + (given['refused-at-gateway'] ?? 0) > 1)
    faults.push('--refused-at-edge and --refused-at-gateway are more than everybody');
  return faults;
}
