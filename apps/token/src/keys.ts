import type { SaleId } from '@flash-sale/domain';

/**
 * Every key of the line, and where it is spelled. All keys of one sale share the hash tag `{S}`, so a script finds them
 * in one slot.
 *
 * - `fs:line:{S}:gate` hash: `bornMs` (since when there is this line), `seq` (arrivals ever), `admitted` (let through ever) and
 *   `admittedTo` (the last one's number), `credit` and `atMs` (the token bucket by Redis TIME), `stalledUntilMs` and
 *   `soldOutUntilMs` (what Stock said last about the sale, for a moment)
 * - `fs:line:{S}:places` sorted set: tail of each waiting entry, scored by its number of arrival
 * - `fs:line:{S}:entries` hash: tail → `W|shopper|quantity|number` (waiting), `A|shopper|quantity` (admitted: from here on
 *   Stock knows), `E|shopper|quantity|state|reason` (ended in the line) or `@|tail` (another name of that entry)
 * - `fs:line:{S}:shoppers` hash: shopper → tail of the live entry
 * - `fs:line:{S}:challenge:<signature>` string: the attempt that used up a solved challenge
 */
export interface LineKeys {
  readonly gate: string;
  readonly places: string;
  readonly entries: string;
  readonly shoppers: string;
}

export function lineKeys(saleId: SaleId): LineKeys {
  const prefix = `fs:line:{${saleId}}`;
  return {
    gate: `${prefix}:gate`,
    places: `${prefix}:places`,
    entries: `${prefix}:entries`,
    shoppers: `${prefix}:shoppers`,
  };
}

/** @param signature of the challenge, hexadecimal: it tells challenges apart and cannot be made up */
export function usedChallengeKey(saleId: SaleId, signature: string): string {
  return `fs:line:{${saleId}}:challenge:${signature}`;
}
