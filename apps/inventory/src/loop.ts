/**
 * Work that is done again and again for as long as the process lives: one run at a time, the next one an interval after
 * the last has ended, or at once after a {@link nudge}. A failing run is reported and the next one tries again.
 */
export class Loop {
  private readonly stopping = new AbortController();
  private wake: (() => void) | undefined;
  private nudged = false;
  private running: Promise<void> | undefined;

  constructor(
    private readonly options: {
      readonly intervalMs: number;
      readonly run: (signal: AbortSignal) => Promise<void>;
      readonly onError: (error: unknown) => void;
    },
  ) {}

  start(): void {
    this.running ??= this.turn();
  }

  /** Runs as soon as possible; nudges during a run lead to one more. */
  nudge(): void {
    this.nudged = true;
    this.wake?.();
  }

  /** Resolves when the run under way has ended; there will be no other. */
  async stop(): Promise<void> {
    this.stopping.abort();
    this.wake?.();
    await this.running;
  }

  private async turn(): Promise<void> {
    const { signal } = this.stopping;
    while (!signal.aborted) {
      this.nudged = false;
      try {
        await this.options.run(signal);
      } catch (error) {
        if (!signal.aborted) this.options.onError(error);
      }
      if (!signal.aborted && !this.nudged) await this.rest();
    }
  }

  private rest(): Promise<void> {
    return new Promise((resolve) => {
      const finish = () => {
        clearTimeout(timer);
        this.wake = undefined;
        resolve();
      };
      const timer = setTimeout(finish, this.options.intervalMs);
      this.wake = finish;
    });
  }
}
