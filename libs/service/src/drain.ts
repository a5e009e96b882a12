import type { Log } from './log.js';

/** One thing to be done while stopping. A failing or slow one is logged and does not hold up the others for ever. */
export interface DrainStep {
  /** For the log, e.g. `redis`. */
  readonly name: string;
  readonly run: () => unknown;
}

export interface DrainPlan {
  /** How long requests are still taken after `/readyz` says no, so that every load balancer notices, ms. */
  readonly waitMs: number;
  /** Stops to take requests, and pauses consumers; resolves when what was in flight is finished. Run side by side. */
  readonly stop: readonly DrainStep[];
  /** Sends what is left, e.g. producers. One after another. */
  readonly flush: readonly DrainStep[];
  /** Connections, last of all. One after another. */
  readonly close: readonly DrainStep[];
}

/** How long what is in flight may take. */
const FINISH_WITHIN_MS = 20_000;
const STEP_WITHIN_MS = 5_000;
/** Below the 45 s after which an orchestrator kills the process. */
const EXIT_AT_THE_LATEST_MS = 40_000;

/**
 * Ends a process so that nothing it promised is lost: says that it is not ready, waits until nobody sends it new requests,
 * finishes what it has, sends what is left, closes connections, exits. Whatever hangs, it is over after 40 s; a second
 * signal ends it at once.
 */
export class Drain {
  private running: Promise<void> | undefined;

  constructor(
    private readonly plan: DrainPlan,
    private readonly log: Log,
    private readonly exit: (code: number) => void = (code) => process.exit(code),
  ) {}

  /** True from the moment on at which the process should get no new requests. */
  get isDraining(): boolean {
    return this.running !== undefined;
  }

  /** Drains on SIGTERM, SIGINT, and on any error that nobody handled, after which the process's state is not known. */
  listen(): void {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) {
      process.on(signal, () => {
        if (this.isDraining) {
          this.log.warn({ signal }, 'signalled again: exiting at once');
          this.exit(1);
        } else void this.run(signal, 0);
      });
    }
    for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
      process.on(event, (error: unknown) => {
        this.log.fatal({ err: error }, `${event}: this is a defect; stopping`);
        void this.run(event, 1);
      });
    }
  }

  /** Drains and exits with the code. Called again, returns the drain that is under way. */
  run(reason: string, exitCode: number): Promise<void> {
    this.running ??= this.drain(reason, exitCode);
    return this.running;
  }

  private async drain(reason: string, exitCode: number): Promise<void> {
    const startedMs = performance.now();
    this.log.info({ reason }, 'stopping: not ready any more');
    const limit = setTimeout(() => {
      this.log.error({ afterMs: EXIT_AT_THE_LATEST_MS }, 'stopping took too long: exiting with work undone');
      this.exit(1);
    }, EXIT_AT_THE_LATEST_MS);
    await new Promise((resolve) => setTimeout(resolve, this.plan.waitMs));
    await Promise.all(this.plan.stop.map((step) => this.runStep(step, FINISH_WITHIN_MS)));
    for (const step of this.plan.flush) await this.runStep(step, STEP_WITHIN_MS);
    for (const step of this.plan.close) await this.runStep(step, STEP_WITHIN_MS);
    clearTimeout(limit);
    this.log.info({ reason, tookMs: Math.round(performance.now() - startedMs) }, 'stopped');
    this.exit(exitCode);
  }

  private async runStep(step: DrainStep, withinMs: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    try {
      const tooLate = new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new Error(`not done after ${withinMs} ms`)), withinMs);
      });
      await Promise.race([Promise.resolve().then(() => step.run()), tooLate]);
      this.log.debug({ step: step.name }, 'stopping: step done');
    } catch (error) {
      this.log.warn({ step: step.name, err: error }, 'stopping: a step failed; going on');
    } finally {
      clearTimeout(timer);
    }
  }
}
