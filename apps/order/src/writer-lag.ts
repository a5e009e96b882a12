import { setTimeout as delay } from 'node:timers/promises';
import { Coalescer } from '@flash-sale/contracts';
import { hasPassed, partitionOf, type KafkaAdmin, type Offsets } from '@flash-sale/kafka';
import { meter, type Log } from '@flash-sale/service';

export interface WriterLagOptions {
  readonly admin: Pick<KafkaAdmin, 'logBounds' | 'committedOffsets'>;
  readonly topic: string;
  readonly group: string;
  /** Records; above it no order is taken. */
  readonly maxLag: number;
  readonly log: Log;
  readonly pollEveryMs?: number;
  /** A lag that could not be read for this long is not known. */
  readonly staleAfterMs?: number;
}

/** Where the log and its reader stood at one moment. */
interface Snapshot {
  readonly ends: Offsets;
  readonly lows: Offsets;
  readonly committed: Offsets;
}

const LOOK_AGAIN_MS = 30;
const READ_WITHIN_MS = 5_000;

/** How far the order-writer is behind the topic of orders, from its group's committed offsets. */
export class WriterLag {
  private readonly snapshots: Coalescer<null, Snapshot>;
  private readonly pollEveryMs: number;
  private readonly staleAfterMs: number;
  private known: { readonly records: number; readonly atMs: number } | undefined;
  private readonly stopping = new AbortController();
  private polling: Promise<void> = Promise.resolve();

  constructor(private readonly options: WriterLagOptions) {
    this.pollEveryMs = options.pollEveryMs ?? 1_000;
    this.staleAfterMs = options.staleAfterMs ?? 10_000;
    // Whoever asks while a reading is under way gets the next one, which is sure to begin after the question.
    this.snapshots = new Coalescer(
      async (asked) => {
        const snapshot = await this.read();
        return asked.map(() => snapshot);
      },
      { name: 'orders lag', maxInFlight: 1, maxBatch: 20_000 },
    );
    meter()
      .createObservableGauge('orders.writer.lag', { description: 'Orders in Kafka that are not written yet' })
      .addCallback((result) => {
        if (this.known) result.observe(this.known.records);
      });
  }

  start(): void {
    this.polling = this.poll();
  }

  async stop(): Promise<void> {
    this.stopping.abort();
    await this.polling;
  }

  /** Whether the lag could be read at all since the start. */
  wasKnown(): boolean {
    return this.known !== undefined;
  }

  /** Whether the lag has been read lately. */
  private isKnown(): boolean {
    return this.known !== undefined && performance.now() - this.known.atMs < this.staleAfterMs;
  }

  /** Whether orders may be taken: the writer is near enough, and it is known that it is. */
  isWithinBound(): boolean {
    return this.isKnown() && this.known !== undefined && this.known.records <= this.options.maxLag;
  }

  /**
   * Waits until the writer has passed every record of this order that was acknowledged before the call. After that a row
   * that is not there will not come either.
   *
   * @param deadlineMs on the `performance.now()` scale
   * @returns false if that was not so by the deadline, or Kafka did not say
   */
  async hasWritten(orderId: string, deadlineMs: number): Promise<boolean> {
    try {
      const { ends, lows, committed } = await this.snapshot();
      const partition = partitionOf(orderId, ends.size);
      const end: Offsets = new Map([[partition, ends.get(partition) ?? 0n]]);
      let seen = committed;
      while (!hasPassed(seen, end, lows)) {
        if (performance.now() + LOOK_AGAIN_MS >= deadlineMs) return false;
        await delay(LOOK_AGAIN_MS);
        seen = (await this.snapshot()).committed;
      }
      return performance.now() < deadlineMs;
    } catch (error) {
      this.options.log.warn({ err: error }, 'the offsets of the topic of orders could not be read');
      return false;
    }
  }

  private snapshot(): Promise<Snapshot> {
    return this.snapshots.call(null, performance.now() + READ_WITHIN_MS);
  }

  private async read(): Promise<Snapshot> {
    const { admin, topic, group } = this.options;
    const { ends, lows } = await admin.logBounds(topic);
    return { ends, lows, committed: await admin.committedOffsets(group, topic) };
  }

  private async poll(): Promise<void> {
    const { signal } = this.stopping;
    while (!signal.aborted) {
      try {
        this.known = { records: lagOf(await this.snapshot()), atMs: performance.now() };
      } catch (error) {
        this.options.log.warn({ err: error }, 'the lag of the order-writer could not be read');
      }
      await delay(this.pollEveryMs, undefined, { signal }).catch(() => undefined);
    }
  }
}

function lagOf({ ends, lows, committed }: Snapshot): number {
  let lag = 0n;
  for (const [partition, end] of ends) {
    const low = lows.get(partition) ?? 0n;
    const position = committed.get(partition) ?? low;
    const from = position > low ? position : low;
    if (end > from) lag += end - from;
  }
  return Number(lag);
}
