import type { Figures, LatencyHistogram } from './figures.js';
import { group } from './options.js';

/** Where words go; a terminal gets colours and a block that redraws itself, anything else gets plain lines. */
export interface Screen {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

export interface Plan {
  readonly units: number;
  readonly shoppers: number;
}

type Paint = (text: string) => string;

const REDRAW_MS = 200;
const LINE_MS = 1_000;
const BAR_CELLS = 28;

/** Words, colours and the live display, on one stream. */
export class Display {
  readonly live: boolean;
  readonly bold: Paint;
  readonly dim: Paint;
  readonly green: Paint;
  readonly red: Paint;
  readonly #yellow: Paint;
  #blockLines = 0;
  #timer: NodeJS.Timeout | undefined;
  #draw: (() => void) | undefined;

  constructor(
    private readonly screen: Screen,
    colour: boolean,
  ) {
    this.live = screen.isTTY === true;
    const paint =
      (code: number): Paint =>
      (text) =>
        this.live && colour ? `\u001b[${code}m${text}\u001b[0m` : text;
    this.bold = paint(1);
    this.dim = paint(2);
    this.red = paint(31);
    this.green = paint(32);
    this.#yellow = paint(33);
  }

  /** Says something that stays, above the live display if there is one. */
  say(line = ''): void {
    this.screen.write(`${this.#erasure()}${line}\n`);
    if (this.live) this.#draw?.();
  }

  /** Shows the figures until {@link finish}: redrawn in a terminal, else one line a second. */
  follow(figures: Figures, plan: Plan, since = performance.now()): void {
    const elapsed = () => Math.round((performance.now() - since) / 1_000);
    this.#draw = this.live
      ? () => this.#redraw(this.#block(figures, plan, elapsed()))
      : () => void this.screen.write(`${plainLine(figures, elapsed())}\n`);
    this.#timer = setInterval(this.#draw, this.live ? REDRAW_MS : LINE_MS);
  }

  /** Shows the figures a last time and leaves them standing. */
  finish(): void {
    if (this.#timer === undefined) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#draw?.();
    this.#draw = undefined;
    this.#blockLines = 0;
  }

  #redraw(lines: readonly string[]): void {
    // One write, so that the terminal never shows the moment between the old block and the new one.
    this.screen.write(`${this.#erasure()}${lines.join('\n')}\n`);
    this.#blockLines = lines.length;
  }

  #erasure(): string {
    const up = this.#blockLines === 0 ? '' : `\u001b[${this.#blockLines}A\u001b[0J`;
    this.#blockLines = 0;
    return up;
  }

  #block(figures: Figures, plan: Plan, seconds: number): string[] {
    const row = (name: string, value: number, note = '') =>
      ` ${name.padEnd(9)}${group(value).padStart(10)}  ${note}`;
    const bar = (value: number, whole: number, paint: Paint) => {
      const cells = Math.min(BAR_CELLS, Math.floor((value / whole) * BAR_CELLS));
      return paint('█'.repeat(cells)) + this.dim('░'.repeat(BAR_CELLS - cells));
    };
    const refused = refusals(figures);
    return [
      this.dim(` ${clock(seconds)}  ${group(figures.requests)} requests`),
      row('arrived', figures.arrived, bar(figures.arrived, plan.shoppers, this.bold)),
      row('waiting', figures.waiting, this.dim('asking, in the line, or about to ask again')),
      row('granted', figures.granted),
      row('ordered', figures.ordered),
      row('written', figures.written),
      row('paid', figures.paid, bar(figures.paid, Math.min(plan.units, plan.shoppers), this.green)),
      ` refused    ${refused === '' ? this.dim('nobody') : this.#fit(refused, 12, this.#yellow)}`,
      ` entry      ${latencies(figures.entryMs)}`,
      ` order      ${latencies(figures.orderMs)}`,
    ];
  }

  /** A line that wrapped would make the block taller than it is known to be. */
  #fit(text: string, indent: number, paint: Paint): string {
    const room = Math.max(10, (this.screen.columns ?? 80) - indent - 1);
    return paint(text.length > room ? `${text.slice(0, room - 1)}…` : text);
  }
}

function plainLine(figures: Figures, seconds: number): string {
  const { arrived, waiting, granted, ordered, written, paid } = figures;
  const counts = Object.entries({ arrived, waiting, granted, ordered, written, paid });
  return [
    `${String(seconds).padStart(3)} s`,
    ...counts.map(([name, value]) => `${name} ${group(value)}`),
    `refused ${refusals(figures) || 'nobody'}`,
    `entry ${latencies(figures.entryMs)}`,
    `order ${latencies(figures.orderMs)}`,
  ].join('  ');
}

function refusals(figures: Figures): string {
  return Object.entries(figures.refused)
    .map(([reason, people]) => `${reason} ${group(people)}`)
    .join(', ');
}

function latencies(histogram: LatencyHistogram): string {
  const { p50, p95, p99 } = histogram.percentiles();
  return p50 === null ? '-' : `p50 ${spell(p50)} p95 ${spell(p95)} p99 ${spell(p99)} ms`;
}

/** 3.4, 27, 1,204: no more digits than mean something. */
export function spell(ms: number | null): string {
  if (ms === null) return '-';
  return ms < 10 ? ms.toFixed(1) : group(Math.round(ms));
}

function clock(seconds: number): string {
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`;
}
