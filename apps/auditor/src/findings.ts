import type { Evidence } from './evidence.js';

/** The data that shows a breach: what to look up in which store. */
export type Witness = Readonly<Record<string, string | number | boolean | null>>;

export interface Breach {
  readonly witness: Witness;
  /** One sentence: what is, and what should be. */
  readonly message: string;
}

/** An invariant: what must hold of every sale, and the program that looks. */
export interface Invariant {
  readonly id: string;
  /** What it says, in a few words for the report. */
  readonly says: string;
  /** Looks at the evidence and notes what it finds; it judges, reads nothing and never throws for a breach. */
  readonly check: (evidence: Evidence, found: Findings) => void;
}

/** Witnesses kept per invariant; the rest is counted. */
const MAX_SHOWN = 5;

/** What one invariant found: how much it looked at, how many breaches, and the first of them. */
export class Findings {
  lookedAt = 0;
  count = 0;
  readonly shown: Breach[] = [];

  /** Notes that rows were looked at. An invariant that looked at nothing proves nothing, and the report says so. */
  look(rows = 1): void {
    this.lookedAt += rows;
  }

  breach(witness: Witness, message: string): void {
    this.count += 1;
    if (this.shown.length < MAX_SHOWN) this.shown.push({ witness, message });
  }
}
