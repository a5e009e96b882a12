import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import { Fifo, Pacer } from './pacing.js';

describe('a pacer', () => {
  it('lets nothing out before it is due, nothing over the rate, and loses nothing', () => {
    const dueTimes = fc.array(fc.nat(2_000), { maxLength: 200 });
    fc.assert(
      fc.property(dueTimes, fc.integer({ min: 1, max: 500 }), (due, perSecond) => {
        const pacer = new Pacer<number>(perSecond, 3);
        for (const dueMs of due) pacer.add(dueMs, dueMs);
        let taken = 0;
        for (let now = 0; now <= 4_000; now += 20) {
          const items = pacer.take(now);
          taken += items.length;
          expect(items.every((dueMs) => dueMs <= now)).toBe(true);
          expect(items).toEqual(items.toSorted((one, other) => one - other));
          expect(taken).toBeLessThanOrEqual(3 + (now * perSecond) / 1_000);
        }
        expect(taken + pacer.clear().length).toBe(due.length);
        expect(pacer.size).toBe(0);
      }),
    );
  });

  it('uses the rate while there is work', () => {
    const pacer = new Pacer<number>(600);
    for (let item = 0; item < 10_000; item += 1) pacer.add(0, item);
    let taken = 0;
    for (let now = 0; now <= 10_000; now += 5) taken += pacer.take(now).length;
    expect(taken).toBeGreaterThan(5_900);
    expect(taken).toBeLessThan(6_100);
  });
});

describe('a fifo', () => {
  it('gives back in order, through any mixture of pushes and shifts', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(40), { maxLength: 300 }), (sizes) => {
        const fifo = new Fifo<number>();
        let pushed = 0;
        let shifted = 0;
        for (const [turn, size] of sizes.entries()) {
          if (turn % 2 === 0) for (let i = 0; i < size; i += 1) fifo.push(pushed++);
          else for (let i = 0; i < size && fifo.size > 0; i += 1) expect(fifo.shift()).toBe(shifted++);
          expect(fifo.size).toBe(pushed - shifted);
        }
      }),
    );
  });
});
