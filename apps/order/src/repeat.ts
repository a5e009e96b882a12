import { setTimeout as delay } from 'node:timers/promises';
import { DatabaseError, type Statements } from '@flash-sale/database';
import type { Log } from '@flash-sale/service';
import type { OrderDatabase } from './load.js';

const TRIES = 5;
const FIRST_RETRY_MS = 10;

/**
 * Runs a transaction again, from its start, where the database says that it may succeed another time: a deadlock, a lost
 * connection, a COMMIT without an answer. So the work must find out for itself whether it was done before.
 */
export async function transact<Result>(
  database: OrderDatabase,
  work: (statements: Statements) => Promise<Result>,
): Promise<Result> {
  for (let tried = 1; ; tried += 1) {
    try {
      return await database.transaction(work);
    } catch (error) {
      if (tried >= TRIES || !(error instanceof DatabaseError && error.retriable)) throw error;
      await delay(FIRST_RETRY_MS * 2 ** (tried - 1) * (0.5 + Math.random()));
    }
  }
}

export interface SweepOptions {
  readonly name: string;
  readonly everyMs: number;
  /** One bounded step; true where more is waiting, so that the next step follows at once. */
  readonly step: () => Promise<boolean>;
  readonly log: Log;
}

/** Repeats a step in the background, one at a time. A step that fails is logged and comes round again. */
export class Sweep {
  private readonly stopping = new AbortController();
  private running: Promise<void> = Promise.resolve();

  constructor(private readonly options: SweepOptions) {}

  start(): void {
    this.running = this.run();
  }

  /** Resolves when the step under way has ended. */
  async stop(): Promise<void> {
    this.stopping.abort();
    await this.running;
  }

  private async run(): Promise<void> {
    const { name, everyMs, step, log } = this.options;
    const { signal } = this.stopping;
    while (!signal.aborted) {
      let more = false;
      try {
        more = await step();
      } catch (error) {
        log.warn({ err: error, sweep: name }, 'a sweep failed; it is repeated');
      }
      if (!more) await delay(everyMs, undefined, { signal }).catch(() => undefined);
    }
  }
}
