import { ANSWER_INVARIANTS } from './check-answers.js';
import { ATTEMPT_INVARIANTS } from './check-attempts.js';
import { ORDER_INVARIANTS } from './check-orders.js';
import { PIPELINE_INVARIANTS } from './check-pipeline.js';
import { STOCK_INVARIANTS } from './check-stock.js';
import { SUPPLY_INVARIANTS } from './check-supply.js';
import type { Sale } from './evidence.js';
import { Findings, type Check, type Invariant } from './findings.js';

const number = ({ id }: Invariant) => Number(id.slice(1));

/**
 * Everything that is checked of a sale, in the order of the invariants' numbers: I1 to I29. I30, that the checker itself is
 * tested, is the test beside this program: it breaks each of them and wants to hear its name.
 */
export const INVARIANTS: readonly Invariant[] = [
  ...STOCK_INVARIANTS,
  ...SUPPLY_INVARIANTS,
  ...ATTEMPT_INVARIANTS,
  ...ANSWER_INVARIANTS,
  ...ORDER_INVARIANTS,
  ...PIPELINE_INVARIANTS,
].sort((a, b) => number(a) - number(b));

export interface Judgement {
  readonly invariant: Invariant;
  readonly found: Findings;
}

/** Begins to judge a sale by every invariant. Those that hold only of a sale at rest are judged in any case. */
export function beginToJudge(
  sale: Sale,
  invariants: readonly Invariant[] = INVARIANTS,
): { readonly judgements: readonly Judgement[]; readonly checks: readonly Check[] } {
  const judgements = invariants.map((invariant) => ({ invariant, found: new Findings() }));
  return { judgements, checks: judgements.map(({ invariant, found }) => invariant.begin(sale, found)) };
}
