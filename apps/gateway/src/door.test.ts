import { describe, expect, it } from '@jest/globals';
import { Door } from './door.js';

/** A door whose clock, and what is behind it, are variables. */
function doorAt(entriesPerSecond: number) {
  const state = { nowMs: 0, isFull: false };
  const door = new Door({
    behind: [{ isFull: () => false }, { isFull: () => state.isFull }],
    entriesPerSecond,
    now: () => state.nowMs,
  });
  return { state, door };
}

describe('Door', () => {
  it('lets in the entries of each second and a tenth of them at one moment', () => {
    const { state, door } = doorAt(200);
    let passed = 0;
    for (; state.nowMs < 10_000; state.nowMs += 1) {
      // Ten times as many as may come.
      for (let caller = 0; caller < 2; caller += 1) passed += door.pass({}) ? 1 : 0;
    }
    expect(passed).toBeGreaterThanOrEqual(2_000);
    expect(passed).toBeLessThanOrEqual(2_000 + 20);
    expect(door.refused).toBe(20_000 - passed);
  });

  it('saves up no more than that over a quiet time', () => {
    const { state, door } = doorAt(200);
    state.nowMs = 3_600_000;
    expect(Array.from({ length: 100 }, () => door.pass({})).filter(Boolean)).toHaveLength(20);
  });

  it('is shut while one of the services behind is full, and open as soon as they are not', () => {
    const { state, door } = doorAt(0);
    state.isFull = true;
    expect(door.enter({})).toBe(false);
    state.isFull = false;
    expect(door.enter({})).toBe(true);
    expect(door.refused).toBe(1);
  });

  it('is shut for those too who did not come through it, while a service behind is full', () => {
    for (const entriesPerSecond of [0, 200]) {
      const { state, door } = doorAt(entriesPerSecond);
      const insider = {};
      expect(door.enter(insider)).toBe(true);
      state.isFull = true;
      expect(door.pass({})).toBe(false);
      state.isFull = false;
      expect(door.pass({})).toBe(true);
      expect(door.pass(insider)).toBe(true);
    }
  });

  it('lets in no more at one moment than there is room for, before any of them has passed', () => {
    const { door } = doorAt(200);
    const arrivals = Array.from({ length: 100 }, () => ({}));
    const inside = arrivals.filter((arrival) => door.enter(arrival));
    expect(inside).toHaveLength(20);
    // Who is inside passes for nothing more; nobody else does.
    expect(inside.filter((arrival) => door.pass(arrival))).toHaveLength(20);
    expect(door.pass({})).toBe(false);
    for (const arrival of inside) door.leave(arrival);
    expect(door.enter({})).toBe(false);
  });

  it('gives the room of those who did not get as far as the line to others', () => {
    const { door } = doorAt(200);
    for (let caller = 0; caller < 1_000; caller += 1) {
      const arrival = {};
      expect(door.enter(arrival)).toBe(true);
      door.leave(arrival);
      door.leave(arrival);
    }
    expect(Array.from({ length: 100 }, () => door.enter({})).filter(Boolean)).toHaveLength(20);
  });

  it('keeps no room for those who stand in it without going on', () => {
    const { state, door } = doorAt(200);
    const idlers = Array.from({ length: 20 }, () => ({}));
    for (const idler of idlers) door.enter(idler);
    expect(door.enter({})).toBe(false);
    // Others use what comes in, so that only the idlers' room is left.
    for (; state.nowMs < 499; state.nowMs += 1) door.pass({});
    state.nowMs += 1;
    const others = Array.from({ length: 20 }, () => ({}));
    expect(others.map((other) => door.enter(other))).not.toContain(false);
    expect(idlers.map((idler) => door.pass(idler))).not.toContain(true);
  });

  it('asks those whom it refused to come again at different times', () => {
    const { door } = doorAt(1);
    const asked = new Set(Array.from({ length: 200 }, () => door.retryAfterSeconds()));
    expect(asked.size).toBeGreaterThan(2);
    expect(Math.min(...asked)).toBeGreaterThanOrEqual(1);
  });
});
