/** How one arrival ended. `unknown`: no answer, or none that says whether it was acted upon. `shed`: told to slow down. */
export const OUTCOMES = [
  'accepted',
  'sold_out',
  'limit',
  'not_started',
  'token_bad',
  'shed',
  'unknown',
  'error',
] as const;
export type Outcome = (typeof OUTCOMES)[number];

/** A stretch of time over which the arrival rate goes from where it was to `target`, in a straight line. */
export interface Stage {
  /** Arrivals per {@link Plan.timeUnit}. */
  readonly target: number;
  /** Seconds; 0 is a jump. */
  readonly seconds: number;
}

/** Everything that k6 needs to know of one run; handed to the scenario as JSON. */
export interface Plan {
  readonly baseUrl: string;
  readonly saleId: string;
  readonly skuId: string;
  /** Part of every shopper's name, so that two runs never meet. */
  readonly run: string;
  readonly startRate: number;
  readonly timeUnit: string;
  readonly stages: readonly { readonly target: number; readonly duration: string }[];
  /** Also the most that there may be: k6 adds further ones so slowly that it drops arrivals meanwhile. */
  readonly vus: number;
  readonly thresholds: Readonly<Record<string, readonly string[]>>;
  readonly summaryFile: string;
  readonly limits: {
    /** Tries of one request that has no clear answer. */
    readonly tries: number;
    /** How long one shopper waits for a place in the line to become a grant, ms. */
    readonly lineMs: number;
    /** How long one shopper asks for the verdict on an accepted order, ms. */
    readonly verdictMs: number;
    /** Of one request, as k6 spells it. */
    readonly requestTimeout: string;
  };
}

export interface SpikeSettings {
  /** 1 is the whole profile; 0.1 fits a machine of two cores that also runs the services. */
  readonly scale: number;
  /** Arrivals per second before the opening, at scale 1. */
  readonly baselinePerSecond: number;
  /** The longest time that all but one in a hundred arrivals take from the first request to the last, seconds. */
  readonly iterationSeconds: number;
}

/** The opening multiplies arrivals by this, from one moment to the next. */
const OPENING_FACTOR = 300;
/** More VUs than the average needs, because arrivals that take long come together. */
const VU_MARGIN = 1.5;
/** Rates below one per second are whole numbers in ten of them. */
const UNIT_SECONDS = 10;
/** Share of the planned arrivals that the generator may fail to send before the run says nothing about the suite. */
export const DROPPED_SHARE = 0.01;

/** What a shopper should wait at most, from the first ask to the 202, and from the 202 to the verdict: p99, ms. */
export const OBJECTIVE_MS = 2_000;
/** Where the load and the suite share a machine, times say less than elsewhere: only far beyond the objective they fail. */
const FAILS_BEYOND_MS = 3 * OBJECTIVE_MS;

/** The opening: quiet, then within an instant three hundred times as many, then decay and recovery. */
export function spikeStages({ scale, baselinePerSecond }: SpikeSettings): Stage[] {
  const base = Math.max(1, Math.round(baselinePerSecond * scale * UNIT_SECONDS));
  const peak = Math.max(base, Math.round(baselinePerSecond * scale * UNIT_SECONDS * OPENING_FACTOR));
  return [
    { target: base, seconds: 10 },
    { target: peak, seconds: 0 },
    { target: peak, seconds: 15 },
    { target: base, seconds: 5 },
    { target: base, seconds: 10 },
  ];
}

/** Arrivals that the stages ask for altogether, beginning at the first stage's rate. */
export function arrivalsOf(stages: readonly Stage[]): number {
  let rate = stages[0]?.target ?? 0;
  let arrivals = 0;
  for (const { target, seconds } of stages) {
    arrivals += (((rate + target) / 2) * seconds) / UNIT_SECONDS;
    rate = target;
  }
  return Math.round(arrivals);
}

/** What the stages ask for in each second from the start on. */
export function arrivalsBySecond(stages: readonly Stage[]): number[] {
  const bySecond: number[] = [];
  let rate = stages[0]?.target ?? 0;
  for (const { target, seconds } of stages) {
    for (let second = 0; second < seconds; second += 1) {
      const middle = rate + ((target - rate) * (second + 0.5)) / seconds;
      bySecond.push(middle / UNIT_SECONDS);
    }
    rate = target;
  }
  return bySecond;
}

/** Enough VUs for the highest rate when arrivals take as long as the slowest hundredth does. */
export function vusFor(stages: readonly Stage[], iterationSeconds: number): number {
  const peakPerSecond = Math.max(...stages.map(({ target }) => target)) / UNIT_SECONDS;
  return Math.ceil(peakPerSecond * iterationSeconds * VU_MARGIN);
}

export interface SpikeTarget {
  readonly baseUrl: string;
  readonly saleId: string;
  readonly skuId: string;
  readonly run: string;
  readonly units: number;
  readonly summaryFile: string;
}

/** The whole spike as k6 is to run it. */
export function planSpike(settings: SpikeSettings, target: SpikeTarget): Plan {
  const { units, ...rest } = target;
  const stages = spikeStages(settings);
  const arrivals = arrivalsOf(stages);
  return {
    ...rest,
    startRate: stages[0]?.target ?? 1,
    timeUnit: `${UNIT_SECONDS}s`,
    stages: stages.map(({ target: rate, seconds }) => ({ target: rate, duration: `${seconds}s` })),
    vus: vusFor(stages, settings.iterationSeconds),
    thresholds: spikeThresholds(arrivals, units),
    limits: { tries: 5, lineMs: 20_000, verdictMs: 10_000, requestTimeout: '10s' },
  };
}

/**
 * What must hold. k6 passes a threshold on a metric that never got a sample, so beside each one that a silent run would
 * pass stands a witness, a lower bound that only a run which really looked can reach (see {@link WITNESSES}).
 */
export function spikeThresholds(arrivals: number, units: number): Record<string, string[]> {
  const sent = Math.floor(arrivals * (1 - DROPPED_SHARE));
  // With fewer units than arrivals everything is sold and somebody is told so; with more, nobody may be refused.
  const scarce = units < sent;
  return {
    attempts: [`count>=${sent}`],
    'attempts{outcome:accepted}': [`count>=${Math.floor(Math.min(units, sent) * 0.99)}`],
    ...(scarce
      ? { 'attempts{outcome:sold_out}': ['count>0'] }
      : { 'attempts{outcome:sold_out}': ['count==0'] }),
    'attempts{outcome:error}': ['count==0'],
    'attempts{outcome:unknown}': ['count==0'],
    protocol_error: ['count==0'],
    retry_after_missing: ['count==0'],
    verdict_flips: ['count==0'],
    verdicts: ['count>0'],
    paid: ['count>0'],
    time_to_202: [`p(99)<${FAILS_BEYOND_MS}`],
    time_to_verdict: [`p(99)<${FAILS_BEYOND_MS}`],
    http_reqs: ['count>0'],
    http_req_failed: ['rate<0.001'],
    dropped_iterations: [`count<=${Math.floor(arrivals * DROPPED_SHARE)}`],
  };
}

/** For each metric whose thresholds a run without samples would pass, the metric whose lower bound shows that it looked. */
export const WITNESSES: Readonly<Record<string, string>> = {
  'attempts{outcome:sold_out}': 'attempts',
  'attempts{outcome:error}': 'attempts',
  'attempts{outcome:unknown}': 'attempts',
  protocol_error: 'http_reqs',
  retry_after_missing: 'http_reqs',
  verdict_flips: 'verdicts',
  time_to_202: 'attempts{outcome:accepted}',
  time_to_verdict: 'verdicts',
  http_req_failed: 'http_reqs',
  dropped_iterations: 'attempts',
};

/** What is wrong with a set of thresholds: those that nobody would notice if nothing was measured. */
export function unwitnessed(thresholds: Readonly<Record<string, readonly string[]>>): string[] {
  const isLowerBound = (metric: string) =>
    (thresholds[metric] ?? []).some((expression) => /^count>=?[1-9]|^count>0$/.test(expression));
  return Object.keys(thresholds)
    .filter((metric) => !isLowerBound(metric))
    .filter((metric) => {
      const witness = WITNESSES[metric];
      return witness === undefined || !isLowerBound(witness);
    });
}
