/** What a shopper means to do, decided before the first request and by the seed alone. */
export type Intention = 'buy' | 'leave_after_grant' | 'leave_after_order' | 'pay_with_declined_card';

/** Numbers in [0, 1). */
export type Dice = () => number;

/**
 * A small pseudo-random generator (sfc32, from the public domain PractRand suite): 128 bits of state, so that streams
 * for different purposes do not run into each other. Not for secrets.
 */
export function diceOf(seed: number, purpose: string): Dice {
  let a = 0x9e3779b9 ^ seed;
  let b = 0x243f6a88;
  let c = 0xb7e15162;
  for (const character of purpose) c = (Math.imul(c, 31) + character.charCodeAt(0)) | 0;
  let counter = 1;
  const next = (): number => {
    const sum = (((a + b) | 0) + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (c << 21) | (c >>> 11);
    c = (c + sum) | 0;
    return (sum >>> 0) / 2 ** 32;
  };
  // The first rounds still resemble the seed.
  for (let round = 0; round < 15; round += 1) next();
  return next;
}

/**
 * When each shopper arrives, in ms after the opening: a Poisson process, as strangers who do not know of each other
 * make it, so some moments are crowded and others are not. Sorted.
 */
export function arrivalTimesMs(shoppers: number, perSecond: number, dice: Dice): Float64Array {
  const times = new Float64Array(shoppers);
  let at = 0;
  for (let shopper = 0; shopper < shoppers; shopper += 1) {
    at += (-Math.log(1 - dice()) / perSecond) * 1_000;
    times[shopper] = at;
  }
  return times;
}

/** Each shopper's intention, in order of arrival. Of those who abandon, half leave after the grant, half after the order. */
export function intentionsOf(
  shoppers: number,
  shares: { readonly abandon: number; readonly decline: number },
  dice: Dice,
): Intention[] {
  return Array.from({ length: shoppers }, () => {
    const roll = dice();
    if (roll < shares.abandon / 2) return 'leave_after_grant';
    if (roll < shares.abandon) return 'leave_after_order';
    return roll < shares.abandon + shares.decline ? 'pay_with_declined_card' : 'buy';
  });
}
