import {
  ROOT_CONTEXT,
  SpanKind,
  SpanStatusCode,
  context,
  trace,
  type Context,
  type Link,
} from '@opentelemetry/api';
import type { ConcurrencyLimit } from './concurrency-limit.js';

/** Nothing was sent: the deadline passed before it could be, or there is too much work already. Trying later is safe. */
export class NotSent extends Error {
  override readonly name = 'NotSent';
}

export interface CoalescerOptions {
  /** Names the batch's span, e.g. `Stock.Grant`. */
  readonly name: string;
  /** Items a batch may have. */
  readonly maxBatch?: number;
  /** Batches under way at once; while they are, arriving items gather into the next. */
  readonly maxInFlight?: number;
  /** Items that may wait; one more is refused at once, which bounds memory when a service is slow. */
  readonly maxWaiting?: number;
  /** Items that may wait or be under way, by how long they take; one more is refused at once. */
  readonly limit?: ConcurrencyLimit;
}

interface Waiting<Item, Result> {
  readonly item: Item;
  readonly deadlineMs: number;
  readonly calledMs: number;
  readonly origin: Context;
  readonly resolve: (result: Result) => void;
  readonly reject: (error: Error) => void;
}

/**
 * Makes requests travel in batches. Calls made in one turn of the event loop wait for `setImmediate` and leave together;
 * a lone call leaves in the same turn, alone, and has waited for nothing. Each item keeps its own outcome, deadline and
 * trace; a batch that fails fails only its own items. Sending is the owner's: one RPC, one Lua call or one produce.
 */
export class Coalescer<Item, Result> {
  private readonly waiting: Waiting<Item, Result>[] = [];
  private inFlight = 0;
  private scheduled = false;
  private readonly maxBatch: number;
  private readonly maxInFlight: number;
  private readonly maxWaiting: number;

  /**
   * @param send gets the items, the latest of their deadlines and each one's (on the monotonic `performance.now()` scale,
   *   ms), and must answer with one result per item, in order
   */
  constructor(
    private readonly send: (
      items: readonly Item[],
      deadlineMs: number,
      deadlinesMs: readonly number[],
    ) => Promise<readonly Result[]>,
    private readonly options: CoalescerOptions,
  ) {
    this.maxBatch = options.maxBatch ?? 256;
    this.maxInFlight = options.maxInFlight ?? 2;
    this.maxWaiting = options.maxWaiting ?? 20_000;
  }

  /**
   * Sends one item with its turn's batch.
   *
   * @param deadlineMs on the `performance.now()` scale; an item not sent by then rejects with {@link NotSent}
   * @param share of the limit that calls of this importance may fill
   */
  call(item: Item, deadlineMs: number, share = 1): Promise<Result> {
    const { name, limit } = this.options;
    if (this.waiting.length >= this.maxWaiting) {
      return Promise.reject(new NotSent(`${name}: ${this.waiting.length} calls are waiting already`));
    }
    if (limit?.enter(1, share) === 0) {
      return Promise.reject(new NotSent(`${name}: ${limit.underWay} calls are under way already`));
    }
    return new Promise<Result>((resolve, reject) => {
      const calledMs = performance.now();
      this.waiting.push({ item, deadlineMs, calledMs, origin: context.active(), resolve, reject });
      this.schedule();
    });
  }

  private schedule(): void {
    if (this.scheduled || this.inFlight >= this.maxInFlight) return;
    this.scheduled = true;
    setImmediate(() => {
      this.scheduled = false;
      while (this.waiting.length > 0 && this.inFlight < this.maxInFlight) void this.flush();
    });
  }

  private async flush(): Promise<void> {
    const now = performance.now();
    const batch: Waiting<Item, Result>[] = [];
    for (const entry of this.waiting.splice(0, this.maxBatch)) {
      if (entry.deadlineMs > now) {
        batch.push(entry);
        continue;
      }
      this.options.limit?.leave(1, now - entry.calledMs, now, false);
      entry.reject(new NotSent(`${this.options.name}: the deadline passed before it could be sent`));
    }
    if (batch.length === 0) return;
    this.inFlight += 1;
    try {
      const results = await this.sendTraced(batch);
      if (results.length !== batch.length) {
        throw new Error(
          `${this.options.name}: ${batch.length} items were sent, ${results.length} results came back`,
        );
      }
      this.leave(batch, true);
      batch.forEach((entry, index) => entry.resolve(results[index] as Result));
    } catch (error) {
      this.leave(batch, false);
      const failure = error instanceof Error ? error : new Error(String(error));
      for (const entry of batch) entry.reject(failure);
    } finally {
      this.inFlight -= 1;
      if (this.waiting.length > 0) this.schedule();
    }
  }

  private leave(batch: readonly Waiting<Item, Result>[], wasAnswered: boolean): void {
    const { limit } = this.options;
    if (!limit) return;
    const now = performance.now();
    for (const { calledMs, deadlineMs } of batch) {
      // What failed early, e.g. for want of a connection, says nothing about how much work is too much.
      if (wasAnswered || deadlineMs <= now) limit.leave(1, now - calledMs, now, wasAnswered);
      else limit.forget(1);
    }
  }

  /** The batch's span is a child of its first item's and linked to all others: each trace leads to the batch. */
  private sendTraced(batch: readonly Waiting<Item, Result>[]): Promise<readonly Result[]> {
    const deadlinesMs = batch.map((entry) => entry.deadlineMs);
    const deadlineMs = Math.max(...deadlinesMs);
    const items = batch.map((entry) => entry.item);
    const links = batch.slice(1).flatMap((entry): Link[] => {
      const origin = trace.getSpanContext(entry.origin);
      return origin ? [{ context: origin }] : [];
    });
    const tracer = trace.getTracer('@flash-sale/contracts');
    const options = { kind: SpanKind.INTERNAL, links, attributes: { 'batch.size': batch.length } };
    return tracer.startActiveSpan(
      `batch ${this.options.name}`,
      options,
      batch[0]?.origin ?? ROOT_CONTEXT,
      async (span) => {
        try {
          return await this.send(items, deadlineMs, deadlinesMs);
        } catch (error) {
          span.setStatus({
            code: SpanStatusCode.ERROR,
            message: error instanceof Error ? error.message : String(error),
          });
          throw error;
        } finally {
          span.end();
        }
      },
    );
  }
}
