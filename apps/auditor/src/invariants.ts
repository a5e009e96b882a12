import { ATTEMPT_INVARIANTS } from './check-attempts.js';
import { ORDER_INVARIANTS } from './check-orders.js';
import { STOCK_INVARIANTS } from './check-stock.js';
import { SUPPLY_INVARIANTS } from './check-supply.js';
import type { Evidence } from './evidence.js';
import { Findings, type Invariant } from './findings.js';

const number = ({ id }: Invariant) => Number(id.slice(1));

/** Everything that is checked of a sale, in the order of the invariants' numbers. */
export const INVARIANTS: readonly Invariant[] = [
  ...STOCK_INVARIANTS,
  ...SUPPLY_INVARIANTS,
  ...ATTEMPT_INVARIANTS,
  ...ORDER_INVARIANTS,
].sort((a, b) => number(a) - number(b));

export interface Judgement {
  readonly invariant: Invariant;
  readonly found: Findings;
}

/** Judges the evidence by every invariant. Those that hold only of a sale at rest are judged in any case. */
export function judge(evidence: Evidence): Judgement[] {
  return INVARIANTS.map((invariant) => {
    const found = new Findings();
    invariant.check(evidence, found);
    return { invariant, found };
  });
}
