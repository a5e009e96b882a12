import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import type { RedisClient } from '@flash-sale/redis';
import { meter, type Log } from '@flash-sale/service';
import { z } from 'zod';

/** What shoppers can do without: `eventStreams` fall back to polling, `productDetails` to a copy a few seconds old. */
export const SWITCHES = ['eventStreams', 'productDetails'] as const;
export type Switch = (typeof SWITCHES)[number];

/** `automatic`: each gateway degrades by itself while it is under pressure. The others hold on all gateways. */
export const DegradationMode = z.enum(['automatic', 'normal', 'degraded']);
export const DegradationModes = z.strictObject({
  eventStreams: DegradationMode,
  productDetails: DegradationMode,
});
export type DegradationModes = z.infer<typeof DegradationModes>;

const ALL_AUTOMATIC: DegradationModes = { eventStreams: 'automatic', productDetails: 'automatic' };

/** In Redis, for all gateways. Should Redis lose it, everything is automatic again. */
const MODES_KEY = 'fs:degradation';
/** How soon a gateway notices what another was told, and looks at its own state. */
const LOOK_EVERY_MS = 500;
const PRESSED_BEFORE_MS = 2_000;
/** Much longer than the other way round: streams that come back together are a burst of their own. */
const CALM_BEFORE_MS = 15_000;
/** A loop whose median turn takes this long serves nobody well. */
const SLOW_LOOP_MS = 120;

/** A state that changes only after the opposite was seen for a while without a break. */
export class Hysteresis {
  private on = false;
  private otherSinceMs: number | undefined;

  constructor(
    private readonly onAfterMs: number,
    private readonly offAfterMs: number,
  ) {}

  get isOn(): boolean {
    return this.on;
  }

  note(seen: boolean, nowMs: number): void {
    if (seen === this.on) {
      this.otherSinceMs = undefined;
      return;
    }
    this.otherSinceMs ??= nowMs;
    if (nowMs - this.otherSinceMs < (this.on ? this.offAfterMs : this.onAfterMs)) return;
    this.on = seen;
    this.otherSinceMs = undefined;
  }
}

export interface DegradationOptions {
  readonly redis: RedisClient;
  /** How many new entries this gateway has refused for want of room since its start. */
  readonly refusals: () => number;
  readonly log: Log;
}

/** What this gateway does without at the moment, by operators' word or by its own pressure. */
export class Degradation {
  private known = ALL_AUTOMATIC;
  private readonly pressure = new Hysteresis(PRESSED_BEFORE_MS, CALM_BEFORE_MS);
  private readonly loopDelay = monitorEventLoopDelay({ resolution: 20 });
  private readonly stop = new AbortController();
  private refusalsSeen = 0;
  private looking: Promise<void> | undefined;

  constructor(private readonly options: DegradationOptions) {
    meter()
      .createObservableGauge('degraded', { description: '1 while this gateway does without something' })
      .addCallback((result) => {
        for (const name of SWITCHES) result.observe(this.isDegraded(name) ? 1 : 0, { switch: name });
      });
  }

  start(): void {
    this.loopDelay.enable();
    this.looking = this.lookForEver();
  }

  async close(): Promise<void> {
    this.stop.abort();
    this.loopDelay.disable();
    await this.looking;
  }

  isDegraded(name: Switch): boolean {
    const mode = this.known[name];
    return mode === 'automatic' ? this.pressure.isOn : mode === 'degraded';
  }

  /** What operators last said, as all gateways will know it. Rejects while Redis does not answer. */
  async read(): Promise<DegradationModes> {
    const text = await this.options.redis.get(MODES_KEY);
    return text === null ? ALL_AUTOMATIC : DegradationModes.parse(JSON.parse(text));
  }

  /** Holds here at once and on the other gateways within a second. Rejects while Redis does not answer. */
  async write(modes: DegradationModes): Promise<void> {
    await this.options.redis.set(MODES_KEY, JSON.stringify(modes));
    this.known = modes;
  }

  private async lookForEver(): Promise<void> {
    const { signal } = this.stop;
    while (!signal.aborted) {
      const before = SWITCHES.map((name) => this.isDegraded(name));
      this.pressure.note(this.isPressed(), performance.now());
      // What cannot be read stays as it was last known; the sales feed says that Redis is away.
      this.known = await this.read().catch(() => this.known);
      const after = SWITCHES.map((name) => this.isDegraded(name));
      if (before.some((was, index) => was !== after[index])) this.logChange();
      await delay(LOOK_EVERY_MS, undefined, { signal }).catch(() => {});
    }
  }

  private isPressed(): boolean {
    const refusals = this.options.refusals();
    const hasRefused = refusals > this.refusalsSeen;
    this.refusalsSeen = refusals;
    const loopMs = this.loopDelay.percentile(50) / 1e6;
    this.loopDelay.reset();
    return hasRefused || loopMs > SLOW_LOOP_MS;
  }

  private logChange(): void {
    const degraded = SWITCHES.filter((name) => this.isDegraded(name));
    this.options.log.warn(
      { degraded, modes: this.known, isUnderPressure: this.pressure.isOn },
      degraded.length === 0 ? 'nothing is degraded any more' : 'some conveniences are switched off',
    );
  }
}
