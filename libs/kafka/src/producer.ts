import { SpanKind, SpanStatusCode, context, propagation, trace, type Span } from '@opentelemetry/api';
import { suppressTracing } from '@opentelemetry/core';
import type { Message, Producer, ProducerBatch, RecordMetadata } from 'kafkajs';
import { silentLog, type AdapterLog } from './adapter-log.js';
import {
  DEFAULT_REQUEST_TIMEOUT_MS,
  discard,
  openKafka,
  settledWithin,
  type KafkaHandle,
  type KafkaOptions,
} from './connection.js';
import { partitionOf } from './partition.js';

export interface OutgoingMessage {
  readonly key: string;
  /** Null is what deletes a key from a compacted topic. */
  readonly value: Buffer | string | null;
  /** `traceparent` is replaced by that of the message's own span, whose parent it becomes. */
  readonly headers?: Readonly<Record<string, string>>;
}

/** A message that all in-sync replicas have. */
export interface SentMessage {
  readonly topic: string;
  readonly partition: number;
  readonly offset: bigint;
  /** When its send began, on the `performance.now()` scale, ms. */
  readonly sentAtMs: number;
  /** When the acknowledgement was handled, the clock read at that moment, on the same scale. */
  readonly settledAtMs: number;
}

/** No acknowledgement. Unless `sentAtMs` is undefined, the message may be in the log all the same, now or later. */
export class SendFailed extends Error {
  override readonly name = 'SendFailed';
  constructor(
    message: string,
    /** When its send began; undefined if it never did. */
    readonly sentAtMs: number | undefined,
    readonly settledAtMs: number,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

export interface ProducerOptions extends KafkaOptions {
  /** Messages of one request. */
  readonly maxBatch?: number;
  /** Requests under way at once; meanwhile messages gather into the next one. */
  readonly maxInFlight?: number;
  /** Messages that may wait for their request; one more is refused at once. */
  readonly maxWaiting?: number;
  /** So many requests failed in a row, and the producer is replaced. */
  readonly replaceAfterFailures?: number;
  /** So long without a success while messages wait, and the producer is replaced. */
  readonly replaceAfterSilenceMs?: number;
}

interface Waiting {
  readonly topic: string;
  readonly message: Message;
  readonly beginBeforeMs: number;
  readonly span: Span;
  readonly resolve: (sent: SentMessage) => void;
  readonly reject: (error: SendFailed) => void;
}

/** One kafkajs producer with what is known of its fitness. */
interface Generation {
  readonly number: number;
  readonly handle: KafkaHandle;
  readonly producer: Producer;
  /** The partition that each message of a request under way was sent to. */
  readonly partitions: WeakMap<Message, number>;
  readonly sends: Set<Promise<void>>;
  failuresInARow: number;
  connected: boolean;
}

const CHECK_EVERY_MS = 100;
const LATE_MS = 500;
const RECONNECT_DELAY_MS = 200;

/**
 * Sends messages with `acks = all`, those of one event-loop turn in one request, and replaces its kafkajs producer when
 * that is stuck. A message is tried once: what to do about a failure is for the caller to know, since a failed send means
 * "unknown", not "no". Never `idempotent`: measured, kafkajs then acknowledges messages that it never wrote.
 */
export class SupervisedProducer {
  private readonly waiting: Waiting[] = [];
  private current: Generation;
  private scheduled = false;
  private closed = false;
  private lastSuccessMs = 0;
  private busySinceMs: number | undefined;
  private supervisedAtMs = performance.now();
  private readonly supervision: NodeJS.Timeout;
  private readonly retiring = new Set<Promise<void>>();
  private readonly log: AdapterLog;
  private readonly maxBatch: number;
  private readonly maxInFlight: number;
  private readonly maxWaiting: number;
  private readonly replaceAfterFailures: number;
  private readonly replaceAfterSilenceMs: number;
  private readonly requestTimeoutMs: number;

  constructor(private readonly options: ProducerOptions) {
    this.log = options.log ?? silentLog;
    this.maxBatch = options.maxBatch ?? 500;
    this.maxInFlight = options.maxInFlight ?? 2;
    this.maxWaiting = options.maxWaiting ?? 20_000;
    this.replaceAfterFailures = options.replaceAfterFailures ?? 5;
    this.replaceAfterSilenceMs = options.replaceAfterSilenceMs ?? 3_000;
    this.requestTimeoutMs = options.requestTimeoutMs ?? DEFAULT_REQUEST_TIMEOUT_MS;
    this.current = this.open(1);
    this.supervision = setInterval(() => this.supervise(), CHECK_EVERY_MS);
    this.supervision.unref();
  }

  /**
   * Connects for the first time.
   *
   * @throws when no broker answers; the message says which addresses were tried
   */
  async connect(): Promise<void> {
    try {
      await this.current.producer.connect();
      this.current.connected = true;
    } catch (cause) {
      throw new Error(
        `no Kafka broker answers at ${this.options.brokers.join(', ')}; start one, or set KAFKA_BROKERS`,
        { cause },
      );
    }
  }

  /**
   * Connects in the background, for as long as that takes: Kafka may be away. Until it is there messages wait, each until its
   * time to begin has passed.
   */
  start(): void {
    void this.connectUntilDone(this.current);
  }

  /** Whether messages are sent now, rather than waiting for a broker. */
  get isConnected(): boolean {
    return this.current.connected;
  }

  /** How many producers there have been; grows with each replacement. */
  get generation(): number {
    return this.current.number;
  }

  /** Requests that were sent and not answered yet, and messages that wait for theirs. */
  get load(): { readonly inFlight: number; readonly waiting: number } {
    return { inFlight: this.current.sends.size, waiting: this.waiting.length };
  }

  /**
   * Sends one message with those of its turn.
   *
   * @param beginBeforeMs on the `performance.now()` scale; a message whose send has not begun by then rejects and is
   *   certain never to be sent
   * @throws SendFailed
   */
  enqueue(
    topic: string,
    message: OutgoingMessage,
    beginBeforeMs = performance.now() + 10_000,
  ): Promise<SentMessage> {
    if (this.closed) return Promise.reject(neverSent('the producer is closed'));
    if (this.waiting.length >= this.maxWaiting) {
      return Promise.reject(neverSent(`${this.waiting.length} messages are waiting to be sent already`));
    }
    const headers = { ...message.headers };
    const parent = headers['traceparent'] ? propagation.extract(context.active(), headers) : context.active();
    const span = trace
      .getTracer('@flash-sale/kafka')
      .startSpan(
        `send ${topic}`,
        { kind: SpanKind.PRODUCER, attributes: { 'messaging.system': 'kafka' } },
        parent,
      );
    propagation.inject(trace.setSpan(parent, span), headers);
    return new Promise<SentMessage>((resolve, reject) => {
      const outgoing = { key: message.key, value: message.value, headers };
      this.waiting.push({ topic, message: outgoing, beginBeforeMs, span, resolve, reject });
      this.busySinceMs ??= performance.now();
      this.schedule();
    });
  }

  /** Sends several messages and waits for all of them; rejects when one fails, others may have been written then. */
  send(
    topic: string,
    messages: readonly OutgoingMessage[],
    beginBeforeMs?: number,
  ): Promise<readonly SentMessage[]> {
    return Promise.all(messages.map((message) => this.enqueue(topic, message, beginBeforeMs)));
  }

  /** Sends what waits, waits for the answers, at most so long, and disconnects. Later messages are refused. */
  async close(withinMs = 5_000): Promise<void> {
    this.closed = true;
    const deadlineMs = performance.now() + withinMs;
    while (performance.now() < deadlineMs && (this.waiting.length > 0 || this.current.sends.size > 0)) {
      this.schedule();
      await settledWithin(Promise.all(this.current.sends), 20);
    }
    clearInterval(this.supervision);
    this.rejectWaiting(() => true, 'the producer was closed before it could be sent');
    this.retire(this.current);
    await settledWithin(Promise.all(this.retiring), this.requestTimeoutMs + 1_000);
  }

  private open(number: number): Generation {
    const handle = openKafka(this.options);
    const partitions = new WeakMap<Message, number>();
    const producer = handle.kafka.producer({
      allowAutoTopicCreation: false,
      idempotent: false,
      // One try: after a failure the caller knows that the outcome is unknown, and when the send began.
      retry: { retries: 0 },
      createPartitioner: () => (args) => {
        const partition = partitionOf(String(args.message.key), args.partitionMetadata.length);
        partitions.set(args.message, partition);
        return partition;
      },
    });
    return { number, handle, producer, partitions, sends: new Set(), failuresInARow: 0, connected: false };
  }

  private schedule(): void {
    if (this.scheduled || !this.current.connected || this.current.sends.size >= this.maxInFlight) return;
    this.scheduled = true;
    setImmediate(() => {
      this.scheduled = false;
      const generation = this.current;
      while (this.waiting.length > 0 && generation.connected && generation.sends.size < this.maxInFlight) {
        const sent = this.sendBatch(generation, this.waiting.splice(0, this.maxBatch)).finally(() => {
          generation.sends.delete(sent);
          if (this.waiting.length > 0) this.schedule();
          else this.noteIdle();
        });
        generation.sends.add(sent);
      }
    });
  }

  /** Never rejects: the outcome goes to each message's own caller, also when its producer was replaced meanwhile. */
  private async sendBatch(generation: Generation, taken: readonly Waiting[]): Promise<void> {
    const sentAtMs = performance.now();
    const batch: Waiting[] = [];
    for (const entry of taken) {
      if (entry.beginBeforeMs > sentAtMs) batch.push(entry);
      else fail(entry, neverSent('its time to begin had passed'));
    }
    if (batch.length === 0) return;
    try {
      const request: ProducerBatch = {
        acks: -1,
        timeout: this.requestTimeoutMs,
        topicMessages: byTopic(batch),
      };
      // kafkajs's instrumentation would overwrite each message's traceparent by the batch's.
      const written = await context.with(suppressTracing(context.active()), () =>
        generation.producer.sendBatch(request),
      );
      const settledAtMs = performance.now();
      generation.failuresInARow = 0;
      this.lastSuccessMs = settledAtMs;
      settle(batch, offsetsOf(batch, generation.partitions, written), { sentAtMs, settledAtMs });
    } catch (cause) {
      generation.failuresInARow += 1;
      const settledAtMs = performance.now();
      const reason = cause instanceof Error ? cause.message : String(cause);
      for (const entry of batch) {
        fail(entry, new SendFailed(`Kafka did not acknowledge: ${reason}`, sentAtMs, settledAtMs, { cause }));
      }
    }
  }

  /**
   * A producer whose connection went silent fails everything for a quarter of an hour, while a fresh one works within
   * milliseconds (both measured); so it is replaced on suspicion.
   */
  private supervise(): void {
    const nowMs = performance.now();
    this.rejectWaiting((entry) => entry.beginBeforeMs <= nowMs, 'its time to begin had passed');
    const lateByMs = nowMs - this.supervisedAtMs - CHECK_EVERY_MS;
    this.supervisedAtMs = nowMs;
    // We ourselves were held up; what Kafka said meanwhile is read before the next look.
    if (lateByMs > LATE_MS) return;
    const { failuresInARow, connected } = this.current;
    if (!connected) return;
    const busySinceMs = this.busySinceMs ?? nowMs;
    const silentForMs = nowMs - Math.max(this.lastSuccessMs, busySinceMs);
    if (failuresInARow < this.replaceAfterFailures && silentForMs < this.replaceAfterSilenceMs) return;
    this.log.warn(
      { failuresInARow, silentForMs: Math.round(silentForMs), generation: this.current.number },
      'the Kafka producer does not get through; it is replaced by a fresh one',
    );
    const stuck = this.current;
    this.current = this.open(stuck.number + 1);
    this.retire(stuck);
    void this.connectUntilDone(this.current);
  }

  private async connectUntilDone(generation: Generation): Promise<void> {
    while (this.current === generation && !this.closed) {
      try {
        await generation.producer.connect();
        // The clock of the silence starts anew, or the fresh producer would be replaced before it could try.
        if (this.busySinceMs !== undefined) this.busySinceMs = performance.now();
        if (this.waiting.length === 0) this.noteIdle();
        generation.connected = true;
        this.schedule();
        return;
      } catch (error) {
        this.log.warn({ reason: String(error) }, 'no Kafka broker answers; trying again');
        await new Promise((resolve) => setTimeout(resolve, RECONNECT_DELAY_MS));
      }
    }
  }

  /** In the background: what was sent may still be answered, and its callers want to know. */
  private retire(generation: Generation): void {
    const done = (async () => {
      await settledWithin(Promise.all(generation.sends), this.requestTimeoutMs + 500);
      await discard(generation.handle, () => generation.producer.disconnect(), this.requestTimeoutMs);
    })().finally(() => this.retiring.delete(done));
    this.retiring.add(done);
  }

  private rejectWaiting(which: (entry: Waiting) => boolean, reason: string): void {
    const due = this.waiting.filter(which);
    if (due.length === 0) return;
    const kept = this.waiting.filter((entry) => !due.includes(entry));
    this.waiting.splice(0, this.waiting.length, ...kept);
    for (const entry of due) fail(entry, neverSent(reason));
    if (kept.length === 0) this.noteIdle();
  }

  /** Nothing is left to be sent. After a failure that does not end a silence: the next message may come any moment. */
  private noteIdle(): void {
    const { sends, failuresInARow } = this.current;
    if (sends.size === 0 && failuresInARow === 0) this.busySinceMs = undefined;
  }
}

function neverSent(reason: string): SendFailed {
  return new SendFailed(`not sent: ${reason}`, undefined, performance.now());
}

function byTopic(batch: readonly Waiting[]): { topic: string; messages: Message[] }[] {
  const topics = new Map<string, Message[]>();
  for (const { topic, message } of batch) {
    const messages = topics.get(topic);
    if (messages) messages.push(message);
    else topics.set(topic, [message]);
  }
  return [...topics].map(([topic, messages]) => ({ topic, messages }));
}

/**
 * A request keeps the order of its messages within a partition, and the broker answers with the offset of the first one.
 */
function offsetsOf(
  batch: readonly Waiting[],
  partitions: WeakMap<Message, number>,
  written: readonly RecordMetadata[],
): readonly { topic: string; partition: number; offset: bigint }[] {
  const next = new Map<string, bigint>();
  for (const { topicName, partition, baseOffset } of written) {
    if (baseOffset !== undefined) next.set(`${topicName} ${partition}`, BigInt(baseOffset));
  }
  return batch.map(({ topic, message }) => {
    const partition = partitions.get(message);
    const offset = next.get(`${topic} ${partition}`);
    if (partition === undefined || offset === undefined) {
      throw new Error(`the broker's answer does not say where a message to ${topic} went`);
    }
    next.set(`${topic} ${partition}`, offset + 1n);
    return { topic, partition, offset };
  });
}

function settle(
  batch: readonly Waiting[],
  places: readonly { topic: string; partition: number; offset: bigint }[],
  times: { sentAtMs: number; settledAtMs: number },
): void {
  batch.forEach((entry, index) => {
    const place = places[index];
    if (!place) return;
    entry.span.setAttributes({
      'messaging.destination.partition.id': String(place.partition),
      'messaging.kafka.offset': Number(place.offset),
    });
    entry.span.end();
    entry.resolve({ ...place, ...times });
  });
}

function fail(entry: Waiting, error: SendFailed): void {
  entry.span.setStatus({ code: SpanStatusCode.ERROR, message: error.message });
  entry.span.end();
  entry.reject(error);
}
