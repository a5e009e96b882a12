/** Numbers in [0, 1). */
export type Dice = () => number;

/**
 * A small pseudo-random generator (mulberry32, public domain), apart for each purpose, so that what one consumer draws does
 * not shift what another gets. Not for secrets.
 */
export function diceOf(seed: number, purpose: string): Dice {
  let state = seed | 0;
  for (const character of purpose)
    state = (Math.imul(state ^ character.charCodeAt(0), 0x01000193) + 0x6d2b79f5) | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
