import type { Sale, ShopperSlice, Slice } from './evidence.js';

/** The data that shows a breach: what to look up in which store. */
export type Witness = Readonly<Record<string, string | number | boolean | null>>;

export interface Breach {
  readonly witness: Witness;
  /** One sentence: what is, and what should be. */
  readonly message: string;
}

/**
 * One invariant at work on one sale. It is shown every slice once, in any order, and adds up for itself what it has to know of
 * all of them; it judges, reads nothing and never throws for a breach.
 */
export interface Check {
  readonly slice?: (slice: Slice) => void;
  /** After the last slice of attempts. */
  readonly shoppers?: (slice: ShopperSlice) => void;
  /** After everything. */
  readonly finish?: () => void;
}

/** An invariant: what must hold of every sale, and the program that looks. */
export interface Invariant {
  readonly id: string;
  /** What it says, in a few words for the report. */
  readonly says: string;
  readonly begin: (sale: Sale, found: Findings) => Check;
}

/** A check that looks at each slice on its own. */
export const bySlice =
  (look: (slice: Slice, found: Findings) => void): Invariant['begin'] =>
  (_sale, found) => ({ slice: (slice) => look(slice, found) });

/** The same for what only a crowd's log can tell. */
export const byLog =
  (look: (slice: Slice, found: Findings) => void): Invariant['begin'] =>
  (sale, found) => {
    if (!sale.log) found.cannot(NEEDS_LOG);
    return { slice: (slice) => look(slice, found) };
  };

/** Said of what only the crowd's log could tell. */
export const NEEDS_LOG = 'needs the crowd’s log: --log FILE';

/** Witnesses kept per invariant; the rest is counted. */
const MAX_SHOWN = 5;

/** What one invariant found: how much it looked at, how many breaches, and the first of them. */
export class Findings {
  lookedAt = 0;
  count = 0;
  readonly shown: Breach[] = [];
  private readonly missing = new Set<string>();

  /** Notes that rows were looked at. An invariant that looked at nothing proves nothing, and the report says so. */
  look(rows = 1): void {
    this.lookedAt += rows;
  }

  /** Notes what could not be looked at, and what to do about it. */
  cannot(why: string): void {
    this.missing.add(why);
  }

  breach(witness: Witness, message: string): void {
    this.count += 1;
    if (this.shown.length < MAX_SHOWN) this.shown.push({ witness, message });
  }

  /** Why nothing, or not everything, was checked; empty where everything was. */
  get unchecked(): string {
    if (this.missing.size > 0) return [...this.missing].join('; ');
    return this.lookedAt === 0 ? 'the sale has nothing to look at' : '';
  }
}
