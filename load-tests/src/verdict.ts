import { z } from 'zod';
import { DROPPED_SHARE } from './plan.js';

/** What k6 hands to `handleSummary`, as far as it is looked at. */
export const Summary = z.looseObject({
  metrics: z.record(
    z.string(),
    z.looseObject({
      values: z.record(z.string(), z.number()),
      thresholds: z.record(z.string(), z.looseObject({ ok: z.boolean() })).optional(),
    }),
  ),
});
export type Summary = z.infer<typeof Summary>;

/** The auditor's verdict as far as it is told here. */
export const Audit = z.looseObject({
  allotment: z.number(),
  sold: z.number(),
  oversold: z.number(),
  undersold: z.number(),
  accepted: z.number(),
  rejectedAfterAccept: z.number(),
  lost: z.number(),
  duplicates: z.number(),
  invariants: z.looseObject({ checked: z.number(), broken: z.array(z.unknown()) }),
});
export type Audit = z.infer<typeof Audit>;

export interface Evidence {
  /** Arrivals that the plan asked for. */
  readonly asked: number;
  readonly thresholds: Readonly<Record<string, readonly string[]>>;
  /** `undefined` where k6 ended without one. */
  readonly summary: Summary | undefined;
  /** What the auditor found, or in words why there is nothing. */
  readonly audit: Audit | string;
}

export interface Verdict {
  /** INVALID: the load was not real, so nothing is known about the suite. */
  readonly result: 'PASS' | 'FAIL' | 'INVALID';
  /** One sentence for each thing that is wrong; of an INVALID run also what would have failed. */
  readonly reasons: readonly string[];
}

/**
 * First whether the load was real, then whether the suite stood it. A run that was not audited proves nothing about stock
 * and is INVALID; one that breaks an invariant fails whatever else is the matter with it.
 */
export function judge(evidence: Evidence): Verdict {
  const invalid = faultsOfLoad(evidence);
  const invariants = brokenInvariants(evidence.audit);
  const broken = [...brokenThresholds(evidence), ...invariants];
  const reasons = [...invalid, ...broken];
  if (invalid.length > 0) return { result: invariants.length > 0 ? 'FAIL' : 'INVALID', reasons };
  return { result: broken.length > 0 ? 'FAIL' : 'PASS', reasons };
}

function faultsOfLoad({ asked, summary, audit }: Evidence): string[] {
  if (!summary) return ['k6 gave no summary, so it did not come to its end'];
  const dropped = countOf(summary, 'dropped_iterations');
  const came = countOf(summary, 'iterations');
  // Rounding to whole arrivals in each stage is no fault of a short run.
  const tolerance = Math.max(2, asked * DROPPED_SHARE);
  const faults: string[] = [];
  if (dropped > tolerance) {
    faults.push(
      `the generator left out ${dropped} of ${asked} arrivals: it was too small, or visits took longer than planned`,
    );
  }
  if (Math.abs(came - asked) > tolerance) faults.push(`${asked} arrivals were asked for, ${came} came`);
  if (typeof audit === 'string') faults.push(`there was no audit: ${audit}`);
  else if (audit.invariants.checked === 0) faults.push('the auditor checked nothing');
  return faults;
}

function brokenThresholds({ summary, thresholds }: Evidence): string[] {
  if (!summary) return [];
  return Object.entries(thresholds).flatMap(([metric, expressions]) => {
    const found = summary.metrics[metric];
    if (!found) {
      // A metric that never got a sample is not in the summary: its witness tells whether anybody looked.
      return expressions
        .filter((expression) => expression.startsWith('count>'))
        .map((expression) => `${metric} should be ${expression}, but nothing was counted`);
    }
    return expressions
      .filter((expression) => found.thresholds?.[expression]?.ok !== true)
      .map((expression) => `${metric} should be ${expression}, but is ${valueFor(expression, found.values)}`);
  });
}

function brokenInvariants(audit: Audit | string): string[] {
  if (typeof audit === 'string') return [];
  const { oversold, undersold, lost, duplicates, rejectedAfterAccept, invariants } = audit;
  const counts = { oversold, undersold, lost, duplicates, rejectedAfterAccept };
  return [
    ...Object.entries(counts).flatMap(([name, count]) => (count === 0 ? [] : [`${name}: ${count}`])),
    ...invariants.broken.map(
      (each) => `the auditor: ${typeof each === 'string' ? each : JSON.stringify(each)}`,
    ),
  ];
}

/** Of a counter; 0 where nothing was ever counted. */
export function countOf(summary: Summary, metric: string): number {
  return summary.metrics[metric]?.values['count'] ?? 0;
}

function valueFor(expression: string, values: Readonly<Record<string, number>>): string {
  const name = /^(\w+(?:\([\d.]+\))?)/.exec(expression)?.[1] ?? '';
  const value = values[name];
  return value === undefined ? 'unknown' : String(Math.round(value * 1_000) / 1_000);
}
