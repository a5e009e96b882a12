import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { ROOT_CONTEXT, TraceFlags, context, trace, type Span } from '@opentelemetry/api';
import { DatabaseError, type Database } from '@flash-sale/database';
import { decideOrders, type SaleId, type SigningKeys } from '@flash-sale/domain';
import type { Chunk } from '@flash-sale/kafka';
import { contextFrom, meter, runInSpan, type Log } from '@flash-sale/service';
import { findBuried, placeOf } from './dead-letter-rows.js';
import {
  isDead,
  readRecord,
  type DeadLetterTopic,
  type DeadRecord,
  type QueuedRecord,
  type SourceRecord,
} from './dead-letters.js';
import {
  findTerms,
  writeChunk,
  type ChunkToWrite,
  type Effect,
  type SaleTerms,
  type WrittenChunk,
} from './write-chunk.js';

export interface WriterOptions {
  readonly database: Database;
  readonly deadLetters: Pick<DeadLetterTopic, 'send'>;
  readonly keys: SigningKeys;
  /** Told what was decided, right after the commit; must not throw and must not wait. */
  readonly announce: (effects: readonly Effect[]) => void;
  readonly log: Log;
  /** The rule of the decision; another one only to test the guards beneath it. */
  readonly decide?: typeof decideOrders;
  /** Must be new with each call. */
  readonly newBatchId?: () => string;
}

/** Records of one consumer chunk that are not written yet. */
interface Owner {
  remaining: number;
  failed: boolean;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

const MAX_RECORDS = 500;
const MIN_RECORDS = 16;
/** A transaction that takes longer than this holds the stock row too long; the next one gets half as many records. */
const SLOW_MS = 1_000;
const TRIES = 5;
const FIRST_RETRY_MS = 20;
/** Dead letters that wait for the database; beyond these they are sent to Kafka more than once. */
const MAX_REMEMBERED = 10_000;
/** Sales whose terms are known without asking. */
const MAX_KNOWN_SALES = 1_000;

/** What the database answers when a value is at fault, and not the database: null, range, date, text, length, JSON. */
const BAD_VALUE_ERRNOS = new Set([1048, 1264, 1292, 1366, 1406, 1690, 3140, 3988]);

type Part = Pick<ChunkToWrite, 'orders' | 'dead' | 'terms'>;

/**
 * Turns queued orders into rows. Chunks of several partitions that arrive while a transaction runs share the next one, so
 * that the more is waiting the fewer transactions it takes, and a sale's stock row is fought over by processes, never
 * within one. A chunk resolves when each of its records has a row or is a dead letter; then its offset may be committed.
 * It rejects while that cannot be done, and must then be offered again: whatever of it was written is recognised.
 */
export class OrderWriter {
  private readonly waiting: { readonly record: SourceRecord; readonly owner: Owner }[] = [];
  private writing = false;
  private maxRecords = MAX_RECORDS;
  /** Places of dead letters that Kafka has and the database has not: while that is away, Kafka need not get them again. */
  private readonly sent = new Set<string>();
  /** They never change once a sale is made. */
  private readonly knownTerms = new Map<SaleId, SaleTerms>();
  private readonly decide: typeof decideOrders;
  private readonly newBatchId: () => string;
  private readonly metrics = writerMetrics();

  constructor(private readonly options: WriterOptions) {
    this.decide = options.decide ?? decideOrders;
    this.newBatchId = options.newBatchId ?? randomUUID;
  }

  /** For {@link BatchConsumer}: resolves when the offset behind the chunk may be committed. */
  handle(chunk: Pick<Chunk, 'topic' | 'partition' | 'messages'>): Promise<void> {
    const { topic, partition, messages } = chunk;
    if (messages.length === 0) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const owner: Owner = { remaining: messages.length, failed: false, resolve, reject };
      for (const message of messages) {
        this.waiting.push({ record: { ...message, topic, partition }, owner });
      }
      // The trace of the chunk that happens to come first is not that of all others.
      if (!this.writing) void context.with(ROOT_CONTEXT, () => this.writeWaiting());
    });
  }

  /** Never rejects: each failure goes to those whose records were in it. */
  private async writeWaiting(): Promise<void> {
    this.writing = true;
    // Partitions that were fetched together arrive in the same turn.
    await new Promise((resolve) => setImmediate(resolve));
    while (this.waiting.length > 0) {
      const taken = this.waiting.splice(0, this.maxRecords);
      const startedMs = performance.now();
      try {
        await this.write(taken.map(({ record }) => record));
        this.adapt(performance.now() - startedMs, taken.length);
        for (const { owner } of taken) {
          owner.remaining -= 1;
          if (owner.remaining === 0) owner.resolve();
        }
      } catch (error) {
        this.metrics.failures.add(1);
        this.fail(new Set(taken.map(({ owner }) => owner)), error);
      }
    }
    this.writing = false;
  }

  private fail(owners: ReadonlySet<Owner>, error: unknown): void {
    const kept = this.waiting.filter(({ owner }) => !owners.has(owner));
    this.waiting.splice(0, this.waiting.length, ...kept);
    for (const owner of owners) owner.reject(error);
  }

  private adapt(tookMs: number, records: number): void {
    this.metrics.chunkSize.record(records);
    this.metrics.duration.record(tookMs / 1_000);
    if (tookMs > SLOW_MS) this.maxRecords = Math.max(MIN_RECORDS, Math.floor(this.maxRecords / 2));
    else if (tookMs < SLOW_MS / 2) this.maxRecords = Math.min(MAX_RECORDS, this.maxRecords * 2);
  }

  private async write(records: readonly SourceRecord[]): Promise<void> {
    const links = records.map((record) => record.headers['traceparent']);
    await runInSpan('orders.write', { links, attributes: { 'batch.size': records.length } }, async (span) => {
      const part = await this.read(records);
      // Before any row says so: a dead letter without its record would be a loss.
      if (part.dead.length > 0) await this.bury(part.dead);
      await this.writePart(part, span, TRIES);
    });
  }

  private async read(records: readonly SourceRecord[]): Promise<Part> {
    const orders: QueuedRecord[] = [];
    const dead: DeadRecord[] = [];
    for (const source of records) {
      const record = readRecord(source, this.options.keys);
      if (isDead(record)) dead.push(record);
      else orders.push(record);
    }
    const terms = await this.termsOf(new Set(orders.map((order) => order.claims.saleId)));
    const known = orders.filter((order) => terms.has(order.claims.saleId));
    for (const order of orders) {
      if (!terms.has(order.claims.saleId)) {
        dead.push({ source: order.source, cause: 'unknown_sale', schema: '1' });
      }
    }
    return { orders: known, dead, terms };
  }

  private async termsOf(saleIds: ReadonlySet<SaleId>): Promise<ReadonlyMap<SaleId, SaleTerms>> {
    const unknown = [...saleIds].filter((saleId) => !this.knownTerms.has(saleId));
    if (unknown.length > 0) {
      if (this.knownTerms.size > MAX_KNOWN_SALES) this.knownTerms.clear();
      const asked = this.knownTerms.size === 0 ? [...saleIds] : unknown;
      for (const [saleId, terms] of await findTerms(this.options.database, asked))
        this.knownTerms.set(saleId, terms);
    }
    return this.knownTerms;
  }

  /**
   * Tries until it is written, a bounded number of times, each time as a batch of its own. What the database may accept
   * another time goes back to the consumer, which waits and offers it again for ever. What it refuses because of the data is
   * halved until the record at fault is alone. What can be nobody's data (a missing table, a missing right) is never
   * held against a record.
   */
  private async writePart(part: Part, span: Span, tries: number): Promise<void> {
    for (let tried = 1; ; tried += 1) {
      const startedAt = Date.now();
      try {
        const chunk = { ...part, batchId: this.newBatchId() };
        this.finish(part, await writeChunk(this.options.database, chunk, this.decide), startedAt, span);
        return;
      } catch (error) {
        if (tried >= tries || isSystemic(error)) {
          if (isWorthRepeating(error) || isSystemic(error)) throw error;
          const fresh = tries > 1 ? await this.withoutBuried(part) : part;
          if (fresh.orders.length < part.orders.length) await this.writePart(fresh, span, tries);
          else await this.halve(part, error, span);
          return;
        }
        this.options.log.warn(
          { err: error, tried, records: part.orders.length },
          'a chunk of orders was not written; trying again',
        );
        await delay(FIRST_RETRY_MS * 2 ** (tried - 1) * (0.5 + Math.random()));
      }
    }
  }

  /**
   * What an earlier delivery has found to be poison is not looked for again: else a chunk with much of it, cut off each time
   * before its end, would never come to it.
   */
  private async withoutBuried(part: Part): Promise<Part> {
    const buried = await findBuried(
      this.options.database,
      part.orders.map(({ source }) => source),
    );
    return { ...part, orders: part.orders.filter(({ source }) => !buried.has(placeOf(source))) };
  }

  /** One after the other, so that the order of offsets is kept; each half has had its tries as part of the whole. */
  private async halve(part: Part, error: unknown, span: Span): Promise<void> {
    const { orders, dead, terms } = part;
    const [first, ...more] = orders;
    if (!first) throw error;
    if (more.length > 0) {
      const middle = Math.ceil(orders.length / 2);
      await this.writePart({ orders: orders.slice(0, middle), dead, terms }, span, 1);
      await this.writePart({ orders: orders.slice(middle), dead: [], terms }, span, 1);
      return;
    }
    const poison: DeadRecord = { source: first.source, cause: 'poison', schema: '1' };
    this.options.log.error(
      { err: error, orderId: first.claims.attemptId, requestId: first.requestId },
      'an order cannot be written whatever is tried; it becomes a dead letter',
    );
    await this.bury([poison]);
    await this.writePart({ orders: [], dead: [...dead, poison], terms }, span, TRIES);
  }

  private async bury(dead: readonly DeadRecord[]): Promise<void> {
    const unsent = dead.filter(({ source }) => !this.sent.has(placeOf(source)));
    await this.options.deadLetters.send(unsent);
    for (const { source, cause } of unsent) {
      if (this.sent.size < MAX_REMEMBERED) this.sent.add(placeOf(source));
      this.metrics.deadLetters.add(1, { cause });
      this.options.log.error(
        { topic: source.topic, partition: source.partition, offset: String(source.offset), cause },
        'a record is a dead letter',
      );
    }
  }

  private finish(part: Part, written: WrittenChunk, startedAt: number, span: Span): void {
    for (const { source } of part.dead) this.sent.delete(placeOf(source));
    if (written.duplicates > 0) this.metrics.duplicates.add(written.duplicates);
    const tracer = trace.getTracer('flash-sale');
    const counted = new Map<string, { count: number; readonly labels: { state: string; reason: string } }>();
    for (const { claims, traceparent, requestId } of part.orders) {
      const decision = written.decisions.get(claims.attemptId);
      if (decision) {
        const { state } = decision;
        const reason = state === 'rejected' ? decision.reason : '';
        const count = counted.get(state + reason) ?? { count: 0, labels: { state, reason } };
        counted.set(state + reason, count);
        count.count += 1;
        this.options.log.info(
          { orderId: claims.attemptId, requestId, state, ...(reason && { reason }) },
          'order decided',
        );
      }
      if (traceparent === undefined) continue;
      const origin = contextFrom(traceparent);
      const caller = trace.getSpanContext(origin);
      // What is not sampled leaves no span, and making one per record only to drop it would cost.
      if (!caller || (caller.traceFlags & TraceFlags.SAMPLED) === 0) continue;
      const options = {
        startTime: startedAt,
        links: [{ context: span.spanContext() }],
        attributes: { 'order.id': claims.attemptId, 'order.state': decision?.state ?? 'duplicate' },
      };
      tracer.startSpan('order.decide', options, origin).end();
    }
    for (const { count, labels } of counted.values()) this.metrics.written.add(count, labels);
    if (written.effects.length > 0) this.options.announce(written.effects);
  }
}

/** The same work may succeed another time: nothing is wrong with the records. */
function isWorthRepeating(error: unknown): boolean {
  return error instanceof DatabaseError && error.retriable;
}

/** Nothing is wrong with the records, and trying again at once will not help: somebody has to mend the database. */
function isSystemic(error: unknown): boolean {
  if (!(error instanceof DatabaseError) || error.failure !== 'defect') return false;
  const { errno } = error.cause as Error & { errno?: number };
  return errno === undefined || !BAD_VALUE_ERRNOS.has(errno);
}

function writerMetrics() {
  const of = meter();
  return {
    written: of.createCounter('orders.written', { description: 'Orders decided, by state and reason' }),
    duplicates: of.createCounter('orders.duplicates', {
      description: 'Records whose attempt had a row already',
    }),
    deadLetters: of.createCounter('orders.dead_letters', { description: 'Dead letters, by cause' }),
    failures: of.createCounter('orders.write.failures', { description: 'Chunks handed back unwritten' }),
    chunkSize: of.createHistogram('orders.write.chunk_size', { description: 'Records per transaction' }),
    duration: of.createHistogram('orders.write.duration', {
      unit: 's',
      description: 'How long a chunk took, tries included',
    }),
  };
}
