import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import type { Figures, Percentiles } from './figures.js';
import { group } from './options.js';
import { spell, type Display } from './progress.js';

const percentile = z.number().nullable();
const AuditedLatency = z.object({ p50: percentile, p95: percentile, p99: percentile });

/** What the auditor says with `--json`, as far as it goes into the verdict. */
export const Audit = z.object({
  allotment: z.number(),
  sold: z.number(),
  oversold: z.number(),
  undersold: z.number(),
  accepted: z.number(),
  rejectedAfterAccept: z.number(),
  lost: z.number(),
  duplicates: z.number(),
  latencyMs: z.object({ acceptedToWritten: AuditedLatency }),
  invariants: z.object({ checked: z.number(), broken: z.array(z.string()) }),
  /** Witnesses, a few of each broken invariant. */
  breaches: z.array(z.looseObject({ invariant: z.string(), message: z.string() })).default([]),
});
export type Audit = z.infer<typeof Audit>;

/** The verdict, with exactly these fields: the auditor's findings, and what only the crowd could measure. */
export interface Verdict {
  readonly allotment: number;
  /** Units sold by MySQL's account. */
  readonly sold: number;
  readonly oversold: number;
  /** Units free at the end although somebody had been told `sold_out`. */
  readonly undersold: number;
  /** Orders answered with 202. */
  readonly accepted: number;
  readonly rejectedAfterAccept: number;
  /** Accepted orders without a live row or an honest reason. */
  readonly lost: number;
  readonly duplicates: number;
  /** People who wanted a unit and left without one, by the last reason they were given. */
  readonly refused: Readonly<Record<string, number>>;
  readonly latencyMs: {
    readonly entry: Percentiles;
    readonly order: Percentiles;
    readonly acceptedToWritten: Percentiles;
  };
  readonly invariants: { readonly checked: number; readonly broken: readonly string[] };
}

export function verdictOf(audit: Audit, figures: Figures): Verdict {
  return {
    allotment: audit.allotment,
    sold: audit.sold,
    oversold: audit.oversold,
    undersold: audit.undersold,
    accepted: audit.accepted,
    rejectedAfterAccept: audit.rejectedAfterAccept,
    lost: audit.lost,
    duplicates: audit.duplicates,
    refused: figures.refused,
    latencyMs: {
      entry: figures.entryMs.percentiles(),
      order: figures.orderMs.percentiles(),
      acceptedToWritten: audit.latencyMs.acceptedToWritten,
    },
    invariants: audit.invariants,
  };
}

/**
 * Whether nothing at all is wrong. A verdict over nothing checked is not clean, and neither is a sale that turned people
 * away, for whatever reason, and had units left.
 */
export function isClean(verdict: Verdict): boolean {
  const { oversold, undersold, lost, duplicates, rejectedAfterAccept, invariants } = verdict;
  const wrong = oversold + undersold + lost + duplicates + rejectedAfterAccept + invariants.broken.length;
  const unitsLeft = verdict.sold < verdict.allotment;
  const turnedAway = Object.keys(verdict.refused).length > 0;
  return wrong === 0 && invariants.checked > 0 && !(unitsLeft && turnedAway);
}

export interface AuditRequest {
  readonly saleId: string;
  readonly clientLog: string;
  /** Where the whole report is kept. */
  readonly reportFile: string;
  /** Where the stores are, and how this run's topics are called. */
  readonly env: NodeJS.ProcessEnv;
  readonly signal: AbortSignal;
}

const AUDIT_TIMEOUT_MS = 120_000;
const AUDITOR = fileURLToPath(new URL('../../auditor/dist/main.js', import.meta.url));

/** Runs the auditor as a program of its own, since it shares nothing with whatever it judges. */
export async function audit(request: AuditRequest): Promise<Audit> {
  const args = [AUDITOR, '--sale', request.saleId, '--log', request.clientLog, '--json'];
  const child = spawn(process.execPath, args, {
    env: request.env,
    stdio: ['ignore', 'pipe', 'pipe'],
    signal: request.signal,
    timeout: AUDIT_TIMEOUT_MS,
  });
  let output = '';
  let complaints = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (complaints += text));
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  writeFileSync(request.reportFile, `${output}${complaints}`, { mode: 0o600 });
  // A broken invariant also makes the exit code non-zero, so it is the last line that tells whether there was an audit.
  const lastLine = output.trimEnd().split('\n').at(-1) ?? '';
  try {
    return Audit.parse(JSON.parse(lastLine));
  } catch (error) {
    const said = `${complaints}${output}`.trim().slice(-2_000);
    throw new Error(`the auditor gave no verdict (exit code ${code}):\n${said}`, { cause: error });
  }
}

/** Tells the verdict to people. */
export function tell(
  verdict: Verdict,
  breaches: Audit['breaches'],
  figures: Figures,
  display: Display,
): void {
  const clean = isClean(verdict);
  const { invariants, latencyMs } = verdict;
  const refused = Object.values(verdict.refused).reduce((sum, people) => sum + people, 0);
  const mark = (wrong: number) => (wrong === 0 ? display.green('✓') : display.red('✗'));
  const { departures } = figures;
  display.say();
  display.say(
    ` ${clean ? display.green(display.bold('CLEAN')) : display.red(display.bold('NOT CLEAN'))}` +
      `  ${group(verdict.sold)} of ${group(verdict.allotment)} units sold; ${group(figures.arrived)} people wanted one`,
  );
  display.say();
  display.say(` ${mark(verdict.oversold)} ${group(verdict.oversold)} oversold`);
  display.say(
    ` ${mark(verdict.undersold)} ${group(verdict.undersold)} left free while somebody was told sold out`,
  );
  display.say(
    ` ${mark(verdict.rejectedAfterAccept + verdict.lost)} ${group(verdict.accepted)} orders accepted: ` +
      `${group(verdict.rejectedAfterAccept)} rejected afterwards, ${group(verdict.lost)} lost`,
  );
  display.say(` ${mark(verdict.duplicates)} ${group(verdict.duplicates)} duplicates`);
  display.say(
    ` ${mark(invariants.broken.length)} ${invariants.checked} invariants checked, ` +
      `${invariants.broken.length === 0 ? 'none' : invariants.broken.length} broken`,
  );
  for (const { invariant, message } of breaches) display.say(display.red(`   ${invariant}: ${message}`));
  display.say();
  display.say(
    ` ${group(departures.paid)} paid, ${group(departures.walked_away)} walked away from a hold or an order, ` +
      `${group(departures.declined)} had a card declined, ${group(refused)} left without a unit` +
      (departures.too_late > 0 ? `, ${group(departures.too_late)} paid too late` : ''),
  );
  for (const [name, { p50, p95, p99 }] of Object.entries({
    'asked → answered ': latencyMs.entry,
    'ordered → 202    ': latencyMs.order,
    '202 → row written': latencyMs.acceptedToWritten,
  })) {
    display.say(display.dim(` ${name}  p50 ${spell(p50)}  p95 ${spell(p95)}  p99 ${spell(p99)} ms`));
  }
}
