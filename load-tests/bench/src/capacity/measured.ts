import type { OperationName } from '../operations.js';
import { REDIS_BYTES_PER_UNIT, type Results } from '../report.js';

/** Whose CPU time an operation costs, as a benchmark names them. */
export const PROCESSES = [
  'gateway',
  'token',
  'inventory',
  'order',
  'order-writer',
  'redis',
  'kafka',
  'mysql',
  'edge',
] as const;
export type Process = (typeof PROCESSES)[number];

/**
 * The operations that the calculator needs, and who takes part in each. What others used meanwhile is noise, and a millionfold
 * of noise would be a fleet. Nothing measures a payment yet: it costs nothing until somebody says what.
 */
const TAKING_PART = {
  'refused at the edge': ['edge'],
  'refused sold_out': ['gateway', 'redis'],
  'refused sold_out, first call': ['gateway', 'redis'],
  'poll of a waiting entry': ['gateway', 'token', 'inventory', 'redis'],
  'entry to purchase token': ['gateway', 'token', 'inventory', 'redis'],
  'entry to purchase token, first call': ['gateway', 'token', 'inventory', 'redis'],
  'order to 202': ['gateway', 'order', 'inventory', 'redis', 'kafka'],
  'queued to decided': ['order-writer', 'inventory', 'redis', 'kafka', 'mysql'],
  payment: [],
} as const satisfies Partial<Record<OperationName, readonly Process[]>> & {
  readonly payment: readonly Process[];
};
export type Operation = keyof typeof TAKING_PART;
export const OPERATIONS = Object.keys(TAKING_PART) as Operation[];

/** CPU time of one operation, µs, by process; what the process uses at rest is not a part of it. */
export type Cost = Readonly<Record<Process, number>>;

/** What the calculator takes from measurements. */
export interface Measured {
  /** Where it was measured, in words. */
  readonly source: string;
  readonly micros: Readonly<Record<Operation, Cost>>;
  /** Names of those that were given by the caller instead. */
  readonly overridden: readonly string[];
  readonly writerOrdersPerSecond: number;
  /** Of a sold unit, each in an order of its own. */
  readonly redisBytesPerOrder: number;
  readonly isRough: boolean;
}

/** What nobody has to measure because the caller says it. */
export interface Overrides {
  /** By `operation/process`. */
  readonly micros: ReadonlyMap<string, number>;
  readonly writerOrdersPerSecond?: number | undefined;
  readonly redisBytesPerOrder?: number | undefined;
}

const NAMES = OPERATIONS.flatMap((operation) => PROCESSES.map((process) => `${operation}/${process}`));

/** @returns what is wrong with a name of `--micros`, or null */
export function nameFault(name: string): string | null {
  if (NAMES.includes(name)) return null;
  return `--micros has "${name}", but must be OPERATION/PROCESS=µs, the operation one of: ${OPERATIONS.join('; ')}; the process one of: ${PROCESSES.join(', ')}`;
}

/**
 * @param results of a benchmark; without them everything has to be among the overrides
 * @returns the names of what is missing, where something is
 */
export function measuredFrom(
  results: Results | undefined,
  overrides: Overrides,
): Measured | { readonly missing: readonly string[] } {
  const missing: string[] = [];
  const needed = (name: string, value: number | undefined): number => {
    if (value === undefined || !Number.isFinite(value)) missing.push(name);
    return value ?? Number.NaN;
  };
  const costOf = (operation: Operation): Cost => {
    const found = results && operationOf(results, operation);
    const taking: readonly Process[] = TAKING_PART[operation];
    const entries = PROCESSES.map((process) => {
      const name = `${operation}/${process}`;
      const said = overrides.micros.get(name);
      if (said !== undefined || !taking.includes(process)) return [process, said ?? 0];
      return [process, needed(name, found?.[process])];
    });
    return Object.fromEntries(entries) as Cost;
  };
  const micros = Object.fromEntries(OPERATIONS.map((operation) => [operation, costOf(operation)])) as Record<
    Operation,
    Cost
  >;
  const drained = results?.operations.find(({ name }) => name === ('queued to decided' satisfies Operation));
  const kept = results?.figures.find(({ name }) => name === REDIS_BYTES_PER_UNIT);
  const measured: Measured = {
    source: results ? sourceOf(results) : 'nothing measured, all given by the caller',
    micros,
    overridden: [...overrides.micros.keys()],
    writerOrdersPerSecond: needed(
      '--writer-orders-per-second',
      overrides.writerOrdersPerSecond ?? drained?.perSecond,
    ),
    redisBytesPerOrder: needed('--redis-bytes-per-order', overrides.redisBytesPerOrder ?? kept?.value),
    isRough: results?.isShort ?? false,
  };
  return missing.length > 0 ? { missing } : measured;
}

/** A benchmark's costs have in them what every process used at rest meanwhile, which is not more where more is asked. */
function operationOf(
  { operations, restMicrosPerSecond }: Results,
  operation: string,
): Readonly<Record<string, number>> | undefined {
  const found = operations.find(({ name }) => name === operation);
  if (!found) return undefined;
  const costs = Object.entries(found.byProcess).map(([process, micros]) => [
    process,
    Math.max(0, micros - (restMicrosPerSecond[process] ?? 0) / found.perSecond),
  ]);
  return Object.fromEntries(costs);
}

function sourceOf({ at, commit, machine }: Results): string {
  const { cores, cpu, redis, mysql, node } = machine;
  return `benchmark of ${at.slice(0, 10)}, commit ${commit.slice(0, 12)}, ${cores} cores (${cpu}), Node ${node}, Redis ${redis}, MySQL ${mysql}`;
}

/** What a benchmark's parts say of the whole purchase, and what was measured of it. */
export interface Check {
  readonly cores: number;
  /** CPU time per purchase, µs: the sum of its parts, and measured as a whole. */
  readonly partsMicros: number;
  readonly wholeMicros: number;
  readonly generatorMicros: number;
  /** CPU time used at rest, µs a second. */
  readonly restMicros: number;
  /** Whole purchases a second with everything on one machine. */
  readonly predictedPerSecond: number;
  readonly measuredPerSecond: number;
}

const PARTS_OF_A_PURCHASE = [
  'entry to purchase token',
  'order to 202',
  'queued to decided',
] as const satisfies readonly Operation[];
/** Requests of a purchase. */
const REQUESTS = 2;

/**
 * Predicts the rate of whole purchases on the machine of a benchmark from the costs of their parts, which were measured apart.
 *
 * @param generatorMicros CPU time of the load generator per request, which works on the same cores and which nobody measures
 * @returns null where the benchmark has no whole purchases
 */
export function checkAgainst(results: Results, measured: Measured, generatorMicros: number): Check | null {
  const whole = results.operations.find(({ name }) => name === ('whole purchase' satisfies OperationName));
  if (!whole) return null;
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  const wholeMicros = sum(Object.values(operationOf(results, whole.name) ?? {}));
  const partsMicros = sum(PARTS_OF_A_PURCHASE.flatMap((part) => Object.values(measured.micros[part])));
  const restMicros = sum(Object.values(results.restMicrosPerSecond));
  const { cores } = results.machine;
  return {
    cores,
    partsMicros,
    wholeMicros,
    generatorMicros: REQUESTS * generatorMicros,
    restMicros,
    predictedPerSecond: (cores * 1e6 - restMicros) / (partsMicros + REQUESTS * generatorMicros),
    measuredPerSecond: whole.perSecond,
  };
}
