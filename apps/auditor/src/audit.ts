import type { StoreAddresses } from './env.js';
import type { Sale } from './evidence.js';
import type { Check } from './findings.js';
import { beginToJudge, INVARIANTS, type Judgement } from './invariants.js';
import { showEvidence, type EvidenceOptions } from './read-stores.js';
import { Tally, type Verdict } from './report.js';

/** What an audit found: the sale as a whole, each invariant's findings, and the verdict on it. */
export interface Audit {
  readonly sale: Sale;
  readonly judgements: readonly Judgement[];
  readonly verdict: Verdict;
}

/**
 * Reads one sale and judges it, slice by slice, in memory that does not grow with it.
 *
 * @param invariants all of them; fewer in a test of the auditor itself
 * @throws UsageError where a store or a file cannot be read
 */
export async function auditSale(
  options: EvidenceOptions,
  addresses: StoreAddresses,
  invariants = INVARIANTS,
): Promise<Audit> {
  const tally = new Tally();
  let sale: Sale | undefined;
  let judgements: readonly Judgement[] = [];
  let checks: readonly Check[] = [];
  await showEvidence(options, addresses, {
    begin: (whole) => {
      sale = whole;
      ({ judgements, checks } = beginToJudge(whole, invariants));
    },
    slice: (slice) => {
      tally.add(slice);
      for (const check of checks) check.slice?.(slice);
    },
    shoppers: (slice) => {
      for (const check of checks) check.shoppers?.(slice);
    },
  });
  if (!sale) throw new Error('a sale was shown without its beginning');
  for (const check of checks) check.finish?.();
  return { sale, judgements, verdict: tally.verdict(sale, judgements) };
}
