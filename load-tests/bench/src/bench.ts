import { setTimeout as sleep } from 'node:timers/promises';
import type { ChildProcess } from 'node:child_process';
import { nextMessage, startChild } from './child.js';
import { LoadGenerator, requestText, type Load, type LoadResult } from './generator.js';
import {
  cpuBetween,
  forgetPeaks,
  memoryMiB,
  readCpu,
  type CpuReading,
  type ProcessGroup,
} from './processes.js';
import type { Suite } from './suite.js';

/** How much is sent. */
export interface Size {
  /** Requests of one measurement of an operation. */
  readonly requests: number;
  /** Of the unit beside it, at most. */
  readonly unitRequests: number;
  /** Requests of one measurement of latencies. */
  readonly latencyRequests: number;
}

/** Of a run whose figures are kept. */
export const WHOLE: Size = { requests: 8_000, unitRequests: 12_000, latencyRequests: 4_000 };

/** One measurement of an operation's cost. */
export interface Sample {
  /** CPU time per operation of all processes, µs, and of each. */
  readonly micros: number;
  readonly byProcess: Readonly<Record<string, number>>;
  /** A bare server's cost of a request at the same rate, measured right after it, µs; and `micros` in it. */
  readonly unitMicros: number;
  readonly units: number;
  /** `micros` in the cost of a request to a bare server that is kept busy, measured right before. */
  readonly busyUnits: number;
  readonly perSecond: number;
  /** Peak of resident memory meanwhile, MiB. */
  readonly peakMiB: Readonly<Record<string, number>>;
}

/** What is measured as a whole: a load, from its begin until everything that it began is done. */
export interface Measurement {
  readonly name: string;
  /** Everything whose CPU time it costs. */
  readonly groups: readonly ProcessGroup[];
  /** Absent where the work is there already and only has to be let go. */
  readonly load?: Load;
  /** How many operations it is. */
  readonly operations: number;
  /** Requests that an operation takes; 1 by default. */
  readonly requestsEach?: number;
  /** False: there is no time to measure the unit, and that of the measurement before is taken. */
  readonly withUnit?: boolean;
  /** Right before the load, when its connections are open. */
  readonly begin?: () => void;
  /** After the load; resolves with when the work was done, on the `performance.now()` scale, ms. What comes later costs too. */
  readonly settle?: () => Promise<number>;
}

export const CONNECTIONS = 64;
/** Of an open load: a call must find one free when it is due. */
const OPEN_CONNECTIONS = 256;
/** Latencies are told of a system that is busy but not full. */
const LATENCY_SHARE = 0.6;
/** More answers than this share that are not as they should be, and something else was measured than was meant. */
const MOST_UNEXPECTED = 0.005;
/** Ten bytes; the answer has twenty. */
const UNIT_BODY = '{"n":1234}';
const REST_MS = 2_000;

/** Measures, with the unit beside each measurement, and keeps what was found by the operation's name. */
export class Bench {
  readonly samples = new Map<string, Sample[]>();
  readonly latenciesMs = new Map<string, number[]>();
  /** Of the bare server that is kept busy. */
  readonly unitMicros: number[] = [];
  /** How late calls of open loads were sent, at worst: 99th percentile, ms. */
  latenessMs = 0;
  /** What is measured now only warms up. */
  warmingUp = true;
  private unitNow: Unit | undefined;

  private constructor(
    readonly size: Size,
    private readonly generator: LoadGenerator,
    private readonly unit: ChildProcess,
    private readonly unitOrigin: string,
    /** Says what is going on, a line at a time. */
    readonly progress: (line: string) => void,
  ) {}

  static async start(size: Size, progress: (line: string) => void): Promise<Bench> {
    const unit = startChild('unit-server');
    const port = await nextMessage<number>(unit);
    return new Bench(size, LoadGenerator.start(), unit, `http://127.0.0.1:${port}`, progress);
  }

  stop(): void {
    this.generator.stop();
    this.unit.kill('SIGKILL');
  }

  /** Measures the cost of an operation. @throws when too many answers are not as they should be */
  async measure(measurement: Measurement): Promise<Sample> {
    const { name, groups, load, operations, requestsEach = 1, begin, settle, withUnit = true } = measurement;
    const busyMicros = withUnit ? await this.measureUnit(this.size.unitRequests, atOnce(CONNECTIONS)) : 0;
    const ready = load && (await this.generator.prepare(load));
    forgetPeaks(groups);
    const before = readCpu(groups);
    const startedMs = performance.now();
    begin?.();
    const result = await ready?.run();
    const doneMs = (await settle?.()) ?? startedMs + (result?.tookMs ?? 0);
    const after = readCpu(groups);
    const peakMiB = memoryMiB(groups, 'peak');
    await ready?.close();
    if (load && result) this.mustBeAsExpected(name, result, load.calls.length);

    const cost = costOf(groups, before, after, operations);
    const perSecond = (1_000 * operations) / (doneMs - startedMs);
    if (withUnit) {
      const sameRate = await this.measureUnitAt(requestsEach * perSecond);
      this.unitNow = { busyMicros, sameRateMicros: sameRate ?? busyMicros };
      if (!this.warmingUp) this.unitMicros.push(busyMicros);
    }
    if (!this.unitNow) throw new Error('the unit was not measured yet');
    const unitMicros = this.unitNow.sameRateMicros;
    const measured: Sample = {
      ...cost,
      unitMicros,
      units: cost.micros / unitMicros,
      busyUnits: cost.micros / this.unitNow.busyMicros,
      perSecond,
      peakMiB,
    };
    this.progress(
      `${this.warmingUp ? 'warm-up: ' : ''}${name}: ${measured.micros.toFixed(0)} µs, ` +
        `${measured.units.toFixed(2)} units of ${unitMicros.toFixed(0)} µs, ${perSecond.toFixed(0)} a second`,
    );
    if (!this.warmingUp) listOf(this.samples, name).push(measured);
    return measured;
  }

  /** Measures latencies at a share of the rate that the operation has just reached. */
  async measureLatency(name: string, { perSecond }: Sample, load: LoadOf): Promise<void> {
    const result = await this.send(name, {
      ...load,
      connections: OPEN_CONNECTIONS,
      pace: { kind: 'open', perSecond: LATENCY_SHARE * perSecond },
    });
    if (this.warmingUp) return;
    listOf(this.latenciesMs, name).push(...result.latenciesMs);
    this.latenessMs = Math.max(this.latenessMs, result.latenessMs);
  }

  /** Sends a load that only prepares something. @throws when too many answers are not as they should be */
  async send(name: string, load: Load): Promise<LoadResult> {
    const ready = await this.generator.prepare(load);
    try {
      const result = await ready.run();
      this.mustBeAsExpected(name, result, load.calls.length);
      return result;
    } finally {
      await ready.close();
    }
  }

  /** Memory of a suite's processes while so many connections are open, each used once, MiB. */
  async memoryWhileOpen(suite: Suite, load: Load): Promise<Record<'now' | 'peak', Record<string, number>>> {
    const ready = await this.generator.prepare(load);
    try {
      this.mustBeAsExpected('open connections', await ready.run(), load.calls.length);
      return { now: memoryMiB(suite.groups, 'now'), peak: memoryMiB(suite.groups, 'peak') };
    } finally {
      await ready.close();
    }
  }

  /** CPU time that a suite uses while nobody asks it anything, µs per second. */
  async measureRest(suite: Suite): Promise<Record<string, number>> {
    const { groups } = suite;
    const before = readCpu(groups);
    const startedMs = performance.now();
    await sleep(REST_MS);
    const after = readCpu(groups);
    const { byProcess } = costOf(groups, before, after, (performance.now() - startedMs) / 1_000);
    return byProcess;
  }

  /** Processes that have just started are slow, and refuse what they cannot do in time; that is what a warm-up is for. */
  private mustBeAsExpected(name: string, { unexpected, example }: LoadResult, calls: number): void {
    if (this.warmingUp || unexpected <= MOST_UNEXPECTED * calls) return;
    throw new Error(`${name}: ${unexpected} of ${calls} answers were not as they should be, e.g. ${example}`);
  }

  /** What a request costs the bare server under loads of several kinds, µs, once it is warm. */
  async measureUnitAlone(): Promise<readonly { readonly load: string; readonly micros: number }[]> {
    const requests = this.size.unitRequests;
    const first = await this.measureUnit(requests, atOnce(CONNECTIONS));
    for (let warmUp = 0; warmUp < 5; warmUp += 1) await this.measureUnit(requests, atOnce(CONNECTIONS));
    const found = [{ load: `the first ${requests}, ${CONNECTIONS} at a time`, micros: first }];
    for (const inFlight of [1, 8, CONNECTIONS]) {
      const micros = await this.measureUnit(requests, atOnce(inFlight));
      found.push({ load: `later ones, ${inFlight} at a time`, micros });
    }
    for (const perSecond of [2_000, 5_000, 10_000, 20_000]) {
      const pace = { connections: CONNECTIONS, pace: { kind: 'open', perSecond } } as const;
      found.push({ load: `${perSecond} a second`, micros: await this.measureUnit(requests, pace) });
    }
    return found;
  }

  /** The bare server's cost at a rate, as far as one process of it gets there; null beyond. */
  private async measureUnitAt(perSecond: number): Promise<number | null> {
    if (perSecond > MOST_PER_SECOND) return null;
    const requests = Math.min(
      this.size.unitRequests,
      Math.max(LEAST_UNIT_REQUESTS, perSecond * UNIT_LASTS_S),
    );
    return this.measureUnit(Math.round(requests), {
      connections: CONNECTIONS,
      pace: { kind: 'open', perSecond },
    });
  }

  /** The cost of one request to the bare server, µs of CPU time. */
  private async measureUnit(requests: number, pace: Pick<Load, 'connections' | 'pace'>): Promise<number> {
    const groups = [{ name: 'unit', pids: this.unit.pid === undefined ? [] : [this.unit.pid] }];
    const call = requestText('POST', '/', { 'content-type': 'application/json' }, UNIT_BODY);
    const calls = Array.from({ length: requests }, () => call);
    const ready = await this.generator.prepare({
      origins: [this.unitOrigin],
      calls,
      expected: [200],
      ...pace,
    });
    const before = readCpu(groups);
    const result = await ready.run();
    const after = readCpu(groups);
    await ready.close();
    this.mustBeAsExpected('the unit', result, requests);
    return costOf(groups, before, after, requests).micros;
  }
}

/** What one request costs a bare server, µs: one that is kept busy, and one that gets as many a second as the operation did. */
interface Unit {
  readonly busyMicros: number;
  readonly sameRateMicros: number;
}

/** More than this and a bare server is kept busy anyhow. */
const MOST_PER_SECOND = 30_000;
const UNIT_LASTS_S = 0.5;
const LEAST_UNIT_REQUESTS = 500;

/** A load without its pace. */
export type LoadOf = Omit<Load, 'connections' | 'pace'>;

/** So many calls always under way, on as many connections. */
export function atOnce(inFlight: number): Pick<Load, 'connections' | 'pace'> {
  return { connections: inFlight, pace: { kind: 'closed', inFlight } };
}

function costOf(
  groups: readonly ProcessGroup[],
  before: CpuReading,
  after: CpuReading,
  operations: number,
): Pick<Sample, 'micros' | 'byProcess'> {
  const used = Object.entries(cpuBetween(groups, before, after));
  const byProcess = Object.fromEntries(used.map(([name, micros]) => [name, micros / operations]));
  return { micros: used.reduce((sum, [, micros]) => sum + micros, 0) / operations, byProcess };
}

function listOf<Value>(lists: Map<string, Value[]>, name: string): Value[] {
  const list = lists.get(name) ?? [];
  lists.set(name, list);
  return list;
}
