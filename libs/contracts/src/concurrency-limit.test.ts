import { describe, expect, it } from '@jest/globals';
import { ConcurrencyLimit, type ConcurrencyLimitOptions } from './concurrency-limit.js';

/*
 * How: in simulated time, a step a millisecond, callers arrive evenly at a server that works first come, first served. It
 * drops what nobody waits for any more, as ours do.
 */
interface Server {
  /** Pieces of work that it ends in a second, however much is under way. */
  readonly perSecond: number;
  /** The least that one takes, ms. */
  readonly ms: number;
}

interface Second {
  refused: number;
  /** Answered before the caller gave up. */
  useful: number;
  tooLate: number;
  limit: number;
}

const CALLERS_WAIT_MS = 1_500;

interface Phase {
  /** Callers a second. */
  readonly arrivals: number;
  readonly server: Server;
  readonly stopped?: boolean;
  readonly worksForNobody?: boolean;
}

class Simulation {
  private line: { readonly arrivedMs: number; isGone: boolean }[] = [];
  private nowMs = 0;
  private due = 0;
  private capacity = 0;

  constructor(private readonly limit: ConcurrencyLimit) {}

  run(seconds: number, phase: Phase): Second[] {
    return Array.from({ length: seconds }, () => {
      const second: Second = { refused: 0, useful: 0, tooLate: 0, limit: 0 };
      for (let step = 0; step < 1_000; step += 1) this.step(phase, second);
      second.limit = this.limit.current;
      return second;
    });
  }

  private step({ arrivals, server, stopped, worksForNobody }: Phase, second: Second): void {
    this.nowMs += 1;
    for (this.due += arrivals / 1_000; this.due >= 1; this.due -= 1) {
      if (this.limit.enter(1) === 1) this.line.push({ arrivedMs: this.nowMs, isGone: false });
      else second.refused += 1;
    }
    for (const one of this.line) {
      if (one.isGone || this.nowMs - one.arrivedMs < CALLERS_WAIT_MS) continue;
      one.isGone = true;
      this.limit.leave(1, CALLERS_WAIT_MS, this.nowMs, false);
      second.tooLate += 1;
    }
    if (!worksForNobody) this.line = this.line.filter(({ isGone }) => !isGone);
    if (stopped) return;
    const perStep = server.perSecond / 1_000;
    this.capacity = Math.min(this.capacity + perStep, 1 + perStep);
    for (
      let next = this.line[0];
      next && this.nowMs - next.arrivedMs >= server.ms && this.capacity >= 1;
      next = this.line[0]
    ) {
      this.capacity -= 1;
      this.line.shift();
      if (next.isGone) continue;
      this.limit.leave(1, this.nowMs - next.arrivedMs, this.nowMs);
      second.useful += 1;
    }
  }
}

const sum = (seconds: readonly Second[], of: keyof Second) =>
  seconds.reduce((total, second) => total + second[of], 0);

const OPTIONS: ConcurrencyLimitOptions = { goodMs: 150, badMs: 750 };
const SMALL: Server = { perSecond: 200, ms: 5 };

describe('ConcurrencyLimit', () => {
  it('keeps nine tenths of the useful answers through a step to ten times the capacity, from the first second on', () => {
    const simulation = new Simulation(new ConcurrencyLimit(OPTIONS));
    simulation.run(5, { arrivals: 180, server: SMALL });
    const overload = simulation.run(10, { arrivals: 2_000, server: SMALL });
    expect(overload[0]?.useful).toBeGreaterThanOrEqual(0.9 * 200);
    expect(sum(overload, 'useful')).toBeGreaterThanOrEqual(0.9 * 200 * 10);
    expect(sum(overload.slice(2), 'tooLate')).toBe(0);
  });

  it('is what keeps them: without a limit the same step leaves almost nothing useful', () => {
    const none = new ConcurrencyLimit({ goodMs: 1e9, badMs: 1e9, initial: 1e6, max: 1e6 });
    const overload = new Simulation(none).run(10, { arrivals: 2_000, server: SMALL, worksForNobody: true });
    expect(sum(overload.slice(3), 'useful')).toBeLessThan(0.1 * 200 * 7);
  });

  it('settles where work takes about the latency that is still good, and stays there', () => {
    const simulation = new Simulation(new ConcurrencyLimit(OPTIONS));
    const overload = simulation.run(60, { arrivals: 2_000, server: SMALL });
    for (const second of overload.slice(2)) {
      expect(second.limit).toBeLessThanOrEqual(200 * 0.15 * 3);
      expect(second.tooLate).toBe(0);
      expect(second.useful).toBeGreaterThanOrEqual(0.9 * 200);
    }
  });

  it('refuses nobody while the server keeps up, whatever the rate', () => {
    const simulation = new Simulation(new ConcurrencyLimit(OPTIONS));
    const fast: Server = { perSecond: 20_000, ms: 20 };
    simulation.run(3, { arrivals: 50, server: fast });
    expect(sum(simulation.run(10, { arrivals: 15_000, server: fast }), 'refused')).toBe(0);
  });

  it('serves everybody again soon after the overload is over', () => {
    const simulation = new Simulation(new ConcurrencyLimit(OPTIONS));
    simulation.run(10, { arrivals: 2_000, server: SMALL });
    const after = simulation.run(10, { arrivals: 180, server: SMALL });
    expect(sum(after.slice(1), 'refused')).toBe(0);
  });

  it('learns that a dependency has become slower for everybody, and lets through what it can do', () => {
    const simulation = new Simulation(new ConcurrencyLimit(OPTIONS));
    simulation.run(5, { arrivals: 1_000, server: { perSecond: 5_000, ms: 5 } });
    const after = simulation.run(30, { arrivals: 1_000, server: { perSecond: 5_000, ms: 320 } });
    expect(sum(after.slice(20), 'useful')).toBeGreaterThanOrEqual(0.95 * 1_000 * 10);
  });

  it('is not frightened by one pause of a process that has little to do', () => {
    const limit = new ConcurrencyLimit(OPTIONS);
    const simulation = new Simulation(limit);
    const server: Server = { perSecond: 5_000, ms: 5 };
    simulation.run(3, { arrivals: 100, server });
    const before = limit.current;
    simulation.run(1, { arrivals: 100, server, stopped: true });
    simulation.run(1, { arrivals: 100, server });
    expect(limit.current).toBe(before);
    expect(sum(simulation.run(2, { arrivals: 4_000, server }), 'refused')).toBe(0);
  });

  it('lets a minimum in however bad things are, and so learns that they are well again', () => {
    const limit = new ConcurrencyLimit({ ...OPTIONS, min: 4 });
    const simulation = new Simulation(limit);
    simulation.run(10, { arrivals: 500, server: SMALL, stopped: true });
    expect(limit.current).toBe(4);
    const after = simulation.run(10, { arrivals: 180, server: SMALL });
    expect(sum(after.slice(5), 'refused')).toBe(0);
  });

  it('keeps what is beyond a share for work that matters more', () => {
    const limit = new ConcurrencyLimit({ ...OPTIONS, initial: 10, min: 10 });
    expect(limit.enter(20, 0.5)).toBe(5);
    expect(limit.isFull(0.5)).toBe(true);
    expect(limit.enter(20)).toBe(5);
    expect(limit.enter(1)).toBe(0);
    limit.forget(10);
    expect(limit.underWay).toBe(0);
  });
});
