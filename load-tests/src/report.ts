import type { Ledger } from './ledger.js';
import { OBJECTIVE_MS, OUTCOMES } from './plan.js';
import { countOf, type Audit, type Summary, type Verdict } from './verdict.js';

export interface Findings {
  readonly verdict: Verdict;
  readonly summary: Summary | undefined;
  readonly audit: Audit | string;
  readonly ledger: Ledger;
  readonly askedBySecond: readonly number[];
}

/** The run in a few lines: what was asked and sent, how visits ended, how long it took, what the auditor says, the verdict. */
export function tell({ verdict, summary, audit, ledger, askedBySecond }: Findings): string[] {
  return [
    '',
    ...(summary ? [ratesOf(ledger, askedBySecond), outcomesOf(summary), ...timesOf(summary)] : []),
    typeof audit === 'string'
      ? 'auditor     no verdict'
      : `auditor     sold ${audit.sold} of ${audit.allotment}, oversold ${audit.oversold}, undersold ${audit.undersold}, ` +
        `lost ${audit.lost}, duplicates ${audit.duplicates}; ${audit.invariants.checked} invariants, ${audit.invariants.broken.length} broken`,
    ...ledger.remarks.map((remark) => `k6 said     ${remark.slice(0, 160)}`),
    ...verdict.reasons.map((reason) => `  ✗ ${reason}`),
    '',
    `${verdict.result}${verdict.result === 'INVALID' ? ': the load was not what was asked for; this says nothing about the suite' : ''}`,
  ];
}

/** The busiest seconds, which are what the run is about: asked and sent. */
function ratesOf({ entriesBySecond }: Ledger, askedBySecond: readonly number[]): string {
  const total = (counts: readonly number[]) => Math.round(counts.reduce((sum, count) => sum + count, 0));
  const peak = (counts: readonly number[]) => Math.round(Math.max(0, ...counts));
  return (
    `arrivals    asked ${total(askedBySecond)}, at most ${peak(askedBySecond)} a second; ` +
    `sent ${total(entriesBySecond)}, at most ${peak(entriesBySecond)} a second`
  );
}

function outcomesOf(summary: Summary): string {
  const counts = OUTCOMES.map(
    (outcome) => [outcome, countOf(summary, `attempts{outcome:${outcome}}`)] as const,
  );
  const shown = counts.filter(([, count]) => count > 0).map(([outcome, count]) => `${outcome} ${count}`);
  return `outcomes    ${shown.join(', ') || 'none'}; paid ${countOf(summary, 'paid')}`;
}

function timesOf(summary: Summary): string[] {
  const rows = {
    'asked → 202': 'time_to_202',
    '202 → verdict': 'time_to_verdict',
    'any request': 'http_req_duration',
  };
  return Object.entries(rows).flatMap(([label, metric]) => {
    const values = summary.metrics[metric]?.values;
    if (!values) return [];
    const ms = (name: string) => `${name} ${Math.round(values[name] ?? 0)}`;
    const isMissed = metric !== 'http_req_duration' && (values['p(99)'] ?? 0) > OBJECTIVE_MS;
    const remark = isMissed ? `, the objective of ${OBJECTIVE_MS} ms for p(99) is missed` : '';
    return [`${label.padEnd(14)}${ms('p(50)')}  ${ms('p(95)')}  ${ms('p(99)')}  ${ms('max')} ms${remark}`];
  });
}
