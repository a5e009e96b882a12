import { describe, expect, it } from '@jest/globals';
import { arrivalTimesMs, diceOf, intentionsOf, type Intention } from './seeded.js';

describe('a seed', () => {
  const crowdOf = (seed: number) => ({
    arrivals: [...arrivalTimesMs(500, 100, diceOf(seed, 'arrivals'))],
    intentions: intentionsOf(500, { abandon: 0.1, decline: 0.1 }, diceOf(seed, 'intentions')),
  });

  it('makes the same crowd each time, and another seed another one', () => {
    expect(crowdOf(7)).toEqual(crowdOf(7));
    expect(crowdOf(8).arrivals).not.toEqual(crowdOf(7).arrivals);
    expect(crowdOf(8).intentions).not.toEqual(crowdOf(7).intentions);
  });

  it('lets the crowd arrive in order and at the asked rate', () => {
    const times = arrivalTimesMs(20_000, 1_500, diceOf(1, 'arrivals'));
    expect(times.every((time, index) => index === 0 || time >= (times[index - 1] ?? 0))).toBe(true);
    expect((times.at(-1) ?? 0) / 1_000).toBeCloseTo(20_000 / 1_500, 0);
  });

  it('keeps the shares, and everybody buys when nobody abandons', () => {
    const shares = intentionsOf(20_000, { abandon: 0.1, decline: 0.2 }, diceOf(3, 'intentions'));
    const share = (intention: Intention) =>
      shares.filter((each) => each === intention).length / shares.length;
    expect(share('leave_after_grant')).toBeCloseTo(0.05, 2);
    expect(share('leave_after_order')).toBeCloseTo(0.05, 2);
    expect(share('pay_with_declined_card')).toBeCloseTo(0.2, 2);
    const loyal = intentionsOf(1_000, { abandon: 0, decline: 0 }, diceOf(3, 'intentions'));
    expect(new Set(loyal)).toEqual(new Set(['buy']));
  });
});
