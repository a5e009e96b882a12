import { setImmediate as nextTurn, setTimeout as delay } from 'node:timers/promises';
import {
  ROOT_CONTEXT,
  SpanKind,
  SpanStatusCode,
  context,
  propagation,
  trace,
  type Link,
} from '@opentelemetry/api';
import { suppressTracing } from '@opentelemetry/core';
import {
  PartitionAssigners,
  type Broker,
  type Cluster,
  type Consumer,
  type EachBatchPayload,
  type GroupDescription,
  type IHeaders,
  type KafkaMessage,
} from 'kafkajs';
import { silentLog, type AdapterLog } from './adapter-log.js';
import { discard, openKafka, settledWithin, type KafkaHandle, type KafkaOptions } from './connection.js';

export interface ConsumedMessage {
  readonly offset: bigint;
  readonly key: string | null;
  readonly value: Buffer | null;
  /** Repeated headers keep their last value. */
  readonly headers: Readonly<Record<string, string>>;
  /** The record's timestamp, ms since 1970; the broker's clock where the topic uses LogAppendTime. */
  readonly timestampMs: number;
}

/** Some successive records of one partition, handled and committed as a whole. */
export interface Chunk {
  readonly topic: string;
  readonly partition: number;
  readonly messages: readonly ConsumedMessage[];
  /** 1 for the first try of this place in the log, then 2, 3, … */
  readonly attempt: number;
  /** True once the partition is no longer surely ours, or the consumer stops: another may handle the same records. */
  isStale(): boolean;
}

export interface ConsumerOptions extends KafkaOptions {
  readonly topic: string;
  readonly groupId: string;
  /**
   * A name that this member of the group shares with no other and keeps when its process is started again, e.g. its host and
   * port. With it a member that comes back first ends the membership of its earlier life, for which the group would wait
   * until its session times out. It becomes part of the client id. Two that use one name put each other out, once at the start of each.
   */
  readonly instance?: string;
  /**
   * Handles a chunk. When it resolves, the offset behind the chunk is committed at once, with those of other partitions whose
   * chunks were handled in the same turn; when it rejects, the partition rests and the same place is tried again, for ever:
   * nothing is skipped. The same records can come again at any time.
   */
  readonly handle: (chunk: Chunk) => Promise<void>;
  readonly maxChunk?: number;
  /** Partitions handled at the same time. */
  readonly concurrency?: number;
  readonly sessionTimeoutMs?: number;
  readonly heartbeatMs?: number;
  readonly rebalanceTimeoutMs?: number;
  /** How long the broker waits for records before it answers that there are none. */
  readonly maxWaitMs?: number;
  /**
   * So long at least lies between two answers with records; what comes meanwhile is handled together. None by default. The first
   * record after a pause waits for nothing, and whoever is behind takes longer than this for an answer anyway.
   */
  readonly gatherMs?: number;
  /** After this long in one `handle` no more heartbeats are sent, so that the group gives the partition to another. */
  readonly handleLimitMs?: number;
  /** The first and the longest pause before a failed chunk is tried again. */
  readonly retryDelayMs?: { readonly first: number; readonly max: number };
  /**
   * Without a sign of life from Kafka for this long, the kafkajs consumer of a member of the group is replaced. It asks and is
   * answered several times a second, so this may be short.
   */
  readonly replaceAfterSilenceMs?: number;
  /**
   * The same for one that joins. Longer than session and rebalance together: it hears nothing until the others have joined too
   * or are given up.
   */
  readonly joinWithinMs?: number;
}

/** How far behind the consumer is, over the partitions it has now. */
export interface ConsumerFigures {
  readonly assignedPartitions: number;
  /** Records known to be in the log and not handled yet. */
  readonly lagRecords: number;
  /** Age of the oldest record not handled yet; 0 when there is none. */
  readonly oldestAgeMs: number;
  /** Partitions that rest after a failure. */
  readonly restingPartitions: number;
  /** Chunks handled since the start. */
  readonly handledChunks: number;
  readonly handledRecords: number;
  readonly failedChunks: number;
  /** Requests that committed offsets. */
  readonly commits: number;
}

interface PartitionState {
  /** The next offset to be handled. */
  position: bigint;
  highWatermark: bigint;
  /** Timestamp of the oldest record not handled; a lower bound of it where that record was not fetched yet. */
  oldestMs: number;
  failedAttempts: number;
  resting: NodeJS.Timeout | undefined;
}

interface Generation {
  readonly handle: KafkaHandle;
  readonly consumer: Consumer;
  /** What kafkajs knows of the brokers, connected when the consumer is. */
  readonly cluster: Cluster | undefined;
  started: Promise<void>;
  /** When the last answer to a fetch came, on the `performance.now()` scale. */
  fetchedAtMs: number;
  commit: Commit | undefined;
}

/** One request for the offsets, by partition, of all chunks that are handled in one turn of the event loop. */
interface Commit {
  readonly offsets: Map<number, bigint>;
  readonly done: Promise<void>;
}

/** kafkajs can do this with a group's broker, though its types leave it out. */
type GroupCoordinator = Omit<Broker, 'describeGroups'> & {
  describeGroups(request: { groupIds: string[] }): Promise<{ groups: GroupDescription[] }>;
  leaveGroup(request: { groupId: string; memberId: string }): Promise<unknown>;
};

const WATCH_EVERY_MS = 500;
const RESTART_DELAY_MS = { first: 200, max: 1_000 };
/** So long without a sign of life, through many replacements, and only a restart of the process may still help. */
const UNHEALTHY_AFTER_MS = 120_000;

/**
 * Reads a topic as a member of a group, in chunks, each committed right after it was handled. At least once: whoever
 * handles must recognise what it has handled before. kafkajs's consumer can end up dead in a living process; this one
 * replaces it, and says by {@link isHealthy} when that does not help.
 */
export class BatchConsumer {
  private current: Generation | undefined;
  private readonly partitions = new Map<number, PartitionState>();
  private readonly handling = new Set<{ readonly sinceMs: number }>();
  private stopping = false;
  private lastSignOfLifeMs = performance.now();
  /** When the present kafkajs consumer was opened; each gets the same time to show life. */
  private silentSinceMs = 0;
  /** Whether the present kafkajs consumer is a member of the group, as far as it knows. */
  private joined = false;
  private checkedAtMs = 0;
  private restarts = 0;
  /** Whether members that only bear our name were taken out of the group: once, or two of one name would never end it. */
  private namesakesEnded = false;
  /** Under which the group knew this process before; they are taken out as often as it takes. */
  private readonly ownMemberIds = new Set<string>();
  private restartTimer: NodeJS.Timeout | undefined;
  private watch: NodeJS.Timeout | undefined;
  private handledChunks = 0;
  private handledRecords = 0;
  private failedChunks = 0;
  private commits = 0;
  private readonly log: AdapterLog;
  private readonly clientId: string;
  private readonly maxChunk: number;
  private readonly heartbeatMs: number;
  private readonly handleLimitMs: number;
  private readonly retryDelayMs: { readonly first: number; readonly max: number };
  private readonly replaceAfterSilenceMs: number;
  private readonly joinWithinMs: number;
  private readonly sessionTimeoutMs: number;
  private readonly rebalanceTimeoutMs: number;

  constructor(private readonly options: ConsumerOptions) {
    this.log = options.log ?? silentLog;
    const { clientId, instance } = options;
    this.clientId = instance === undefined ? clientId : `${clientId}@${instance}`;
    this.maxChunk = options.maxChunk ?? 500;
    this.heartbeatMs = options.heartbeatMs ?? 1_000;
    this.handleLimitMs = options.handleLimitMs ?? 60_000;
    this.retryDelayMs = options.retryDelayMs ?? { first: 200, max: 5_000 };
    this.replaceAfterSilenceMs = options.replaceAfterSilenceMs ?? 4_000;
    this.joinWithinMs = options.joinWithinMs ?? 20_000;
    // The shortest that brokers allow by default: so long the partitions of a member that died are read by nobody.
    this.sessionTimeoutMs = options.sessionTimeoutMs ?? 6_000;
    this.rebalanceTimeoutMs = options.rebalanceTimeoutMs ?? 10_000;
    if (this.joinWithinMs <= this.sessionTimeoutMs + this.rebalanceTimeoutMs) {
      throw new Error(
        `joinWithinMs (${this.joinWithinMs}) must be longer than sessionTimeoutMs ` +
          `(${this.sessionTimeoutMs}) and rebalanceTimeoutMs (${this.rebalanceTimeoutMs}) together`,
      );
    }
  }

  /** Begins to consume in the background; Kafka may be away, then it begins when Kafka is back. */
  start(): void {
    if (this.watch || this.stopping) return;
    this.lastSignOfLifeMs = performance.now();
    this.checkedAtMs = performance.now();
    this.watch = setInterval(() => this.checkLife(), WATCH_EVERY_MS);
    this.open();
  }

  /** Finishes and commits the chunks under way, waiting so long at most, and leaves the group. */
  async stop(withinMs = 20_000): Promise<void> {
    this.stopping = true;
    clearInterval(this.watch);
    clearTimeout(this.restartTimer);
    for (const state of this.partitions.values()) clearTimeout(state.resting);
    const current = this.current;
    this.current = undefined;
    if (!current) return;
    // A consumer that is stopped while it joins would join all the same and hold partitions that nobody reads.
    await settledWithin(current.started, withinMs);
    await discard(current.handle, () => current.consumer.disconnect(), withinMs);
  }

  /**
   * False when a `handle` hangs beyond its limit, or when for several replacements nothing was heard of Kafka: then the
   * process should be restarted. A chunk that fails again and again is not unhealthy; a restart would not help it.
   */
  isHealthy(): boolean {
    const nowMs = performance.now();
    const hanging = [...this.handling].some(({ sinceMs }) => nowMs - sinceMs > this.handleLimitMs);
    return !hanging && nowMs - this.lastSignOfLifeMs < UNHEALTHY_AFTER_MS;
  }

  figures(): ConsumerFigures {
    let lagRecords = 0n;
    let oldestMs = Number.POSITIVE_INFINITY;
    let restingPartitions = 0;
    for (const state of this.partitions.values()) {
      if (state.resting) restingPartitions += 1;
      if (state.highWatermark <= state.position) continue;
      lagRecords += state.highWatermark - state.position;
      oldestMs = Math.min(oldestMs, state.oldestMs);
    }
    return {
      assignedPartitions: this.partitions.size,
      lagRecords: Number(lagRecords),
      oldestAgeMs: Number.isFinite(oldestMs) ? Math.max(0, Date.now() - oldestMs) : 0,
      restingPartitions,
      handledChunks: this.handledChunks,
      handledRecords: this.handledRecords,
      failedChunks: this.failedChunks,
      commits: this.commits,
    };
  }

  private open(): void {
    const { options } = this;
    const handle = openKafka({ ...options, clientId: this.clientId });
    let cluster: Cluster | undefined;
    const consumer = handle.kafka.consumer({
      groupId: options.groupId,
      // The way kafkajs has of handing out its connections.
      partitionAssigners: [
        (config) => {
          cluster = config.cluster;
          return PartitionAssigners.roundRobin(config);
        },
      ],
      sessionTimeout: this.sessionTimeoutMs,
      rebalanceTimeout: this.rebalanceTimeoutMs,
      heartbeatInterval: this.heartbeatMs,
      maxWaitTimeInMs: options.maxWaitMs ?? 250,
      allowAutoTopicCreation: false,
      // It would repeat a fetch on a silent connection again and again; a crash soon is better, it brings a new one.
      retry: { retries: 2 },
    });
    const generation: Generation = {
      handle,
      consumer,
      cluster,
      started: Promise.resolve(),
      fetchedAtMs: 0,
      commit: undefined,
    };
    this.current = generation;
    this.joined = false;
    this.listen(generation);
    generation.started = this.run(generation);
  }

  private async run(generation: Generation): Promise<void> {
    const { consumer } = generation;
    try {
      await consumer.connect();
      // Without a commit kafkajs would begin at the log's end and skip what is there already.
      await consumer.subscribe({ topic: this.options.topic, fromBeginning: true });
      if (this.options.instance !== undefined && generation.cluster)
        await this.endEarlierLives(generation.cluster);
      // kafkajs's instrumentation makes a span per record of what was fetched; ours are per chunk, see `inSpan`.
      await context.with(suppressTracing(ROOT_CONTEXT), () =>
        consumer.run({
          autoCommit: false,
          eachBatchAutoResolve: false,
          partitionsConsumedConcurrently: this.options.concurrency ?? 1,
          eachBatch: (payload) => this.eachBatch(generation, payload),
        }),
      );
    } catch (error) {
      this.replace(generation, error);
    }
  }

  /**
   * Takes out of the group what is left of us there: at the start all members with our own client id, which a killed process
   * has left behind; later those that we were ourselves, on a connection that we gave up. A group waits for each of them until
   * its session times out, twice where one of them was made its leader meanwhile. Only a help: if it fails, the sessions time out.
   */
  private async endEarlierLives(cluster: Cluster): Promise<void> {
    const { groupId } = this.options;
    try {
      const coordinator = (await cluster.findGroupCoordinator({ groupId })) as GroupCoordinator;
      const { groups } = await coordinator.describeGroups({ groupIds: [groupId] });
      const members = groups.flatMap((group) => group.members);
      const earlier = members.filter(
        ({ clientId, memberId }) =>
          this.ownMemberIds.has(memberId) || (!this.namesakesEnded && clientId === this.clientId),
      );
      this.namesakesEnded = true;
      this.ownMemberIds.clear();
      if (earlier.length === 0) return;
      await Promise.all(earlier.map(({ memberId }) => coordinator.leaveGroup({ groupId, memberId })));
      this.log.info(
        { groupId, earlierLives: earlier.length },
        'took earlier lives out of the consumer group',
      );
    } catch (error) {
      this.log.warn({ groupId, reason: String(error) }, 'earlier lives of this process stay in the group');
    }
  }

  private listen(generation: Generation): void {
    const { consumer } = generation;
    const alive = () => {
      if (this.current === generation) this.lastSignOfLifeMs = performance.now();
    };
    consumer.on(consumer.events.FETCH, () => {
      alive();
      generation.fetchedAtMs = performance.now();
      this.restarts = 0;
    });
    consumer.on(consumer.events.HEARTBEAT, alive);
    consumer.on(consumer.events.REBALANCING, () => {
      alive();
      if (this.current === generation) this.joined = false;
    });
    consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => {
      alive();
      if (this.current !== generation) return;
      this.joined = true;
      this.ownMemberIds.add(payload.memberId);
      const assigned = payload.memberAssignment[this.options.topic] ?? [];
      this.assign(assigned);
      this.log.info({ groupId: this.options.groupId, partitions: assigned }, 'joined the consumer group');
    });
    // After an error it deems final kafkajs stops for good while the process lives on; after others it would restart by
    // itself for ever. Both are taken from it (`restartOnFailure`) and done here.
    consumer.on(consumer.events.CRASH, ({ payload }) => this.replace(generation, payload.error));
  }

  private assign(partitions: readonly number[]): void {
    for (const [partition, state] of this.partitions) {
      if (partitions.includes(partition)) continue;
      clearTimeout(state.resting);
      this.partitions.delete(partition);
    }
    for (const partition of partitions) this.stateOf(partition);
  }

  private stateOf(partition: number): PartitionState {
    const known = this.partitions.get(partition);
    if (known) return known;
    const fresh = { position: 0n, highWatermark: 0n, oldestMs: 0, failedAttempts: 0, resting: undefined };
    this.partitions.set(partition, fresh);
    return fresh;
  }

  private checkLife(): void {
    const nowMs = performance.now();
    const lateByMs = nowMs - this.checkedAtMs - WATCH_EVERY_MS;
    this.checkedAtMs = nowMs;
    // We ourselves were held up; what Kafka said meanwhile is read before the next look.
    if (lateByMs > WATCH_EVERY_MS) return;
    const silentForMs = nowMs - Math.max(this.lastSignOfLifeMs, this.silentSinceMs);
    const limitMs = this.joined ? this.replaceAfterSilenceMs : this.joinWithinMs;
    if (silentForMs < limitMs || this.handling.size > 0) return;
    if (this.current)
      this.replace(this.current, new Error(`no sign of life for ${Math.round(silentForMs)} ms`));
  }

  private replace(generation: Generation, error: unknown): void {
    if (this.stopping || this.current !== generation) return;
    this.current = undefined;
    const delayMs = Math.min(RESTART_DELAY_MS.first * 2 ** Math.min(this.restarts, 10), RESTART_DELAY_MS.max);
    this.restarts += 1;
    this.log.warn(
      { groupId: this.options.groupId, reason: String(error), delayMs },
      'the Kafka consumer failed; a fresh one takes its place',
    );
    void discard(generation.handle, () => generation.consumer.disconnect(), 5_000);
    this.restartTimer = setTimeout(() => {
      this.silentSinceMs = performance.now();
      this.open();
    }, delayMs);
  }

  /**
   * All that kafkajs fetched of one partition, in chunks. Leaves as soon as the partition may not be ours any more: going on
   * without heartbeats through a rebalance is how a group loops for ever.
   */
  private async eachBatch(generation: Generation, payload: EachBatchPayload): Promise<void> {
    const { batch } = payload;
    const state = this.stateOf(batch.partition);
    state.highWatermark = BigInt(batch.highWatermark);
    for (let at = 0; at < batch.messages.length; at += this.maxChunk) {
      if (!payload.isRunning() || payload.isStale() || this.stopping) return;
      const messages = batch.messages.slice(at, at + this.maxChunk).map(consumed);
      const first = messages[0];
      const last = messages.at(-1);
      if (!first || !last) return;
      state.position = first.offset;
      state.oldestMs = first.timestampMs;
      const { handled, leave } = await this.handleWithHeartbeats(payload, messages, state.failedAttempts + 1);
      if (!handled) {
        this.rest(state, payload);
        if (leave) throw leave;
        return;
      }
      state.failedAttempts = 0;
      state.oldestMs = last.timestampMs;
      // Behind the last message there may be records that only kafkajs sees; they are passed with it.
      const isEnd = at + this.maxChunk >= batch.messages.length;
      state.position = (isEnd ? BigInt(batch.lastOffset()) : last.offset) + 1n;
      await this.commit(generation, payload, state.position);
      payload.resolveOffset(String(last.offset));
      if (leave) throw leave;
      await payload.heartbeat();
    }
    // Fetching goes on when all partitions of the answer are here.
    const restMs = (this.options.gatherMs ?? 0) - (performance.now() - generation.fetchedAtMs);
    if (restMs > 0 && !this.stopping) await delay(restMs);
  }

  /** Within its `eachBatch`, so that the partition is still ours: kafkajs joins again only when every batch is left. */
  private commit(generation: Generation, payload: EachBatchPayload, offset: bigint): Promise<void> {
    const { topic, partition } = payload.batch;
    if (!generation.commit) {
      const offsets = new Map<number, bigint>();
      const send = async () => {
        await nextTurn();
        generation.commit = undefined;
        const partitions = [...offsets].map(([one, at]) => ({ partition: one, offset: String(at) }));
        await payload.commitOffsetsIfNecessary({ topics: [{ topic, partitions }] });
        this.commits += 1;
      };
      generation.commit = { offsets, done: send() };
    }
    generation.commit.offsets.set(partition, offset);
    return generation.commit.done;
  }

  private async handleWithHeartbeats(
    payload: EachBatchPayload,
    messages: readonly ConsumedMessage[],
    attempt: number,
  ): Promise<{ handled: boolean; leave: Error | undefined }> {
    const { batch } = payload;
    const entry = { sinceMs: performance.now() };
    let leave: Error | undefined;
    const beat = setInterval(() => {
      if (performance.now() - entry.sinceMs > this.handleLimitMs) clearInterval(beat);
      else {
        payload.heartbeat().catch((error: Error) => {
          leave = error;
        });
      }
    }, this.heartbeatMs);
    this.handling.add(entry);
    try {
      await this.inSpan(batch.topic, batch.partition, messages, () =>
        this.options.handle({
          topic: batch.topic,
          partition: batch.partition,
          messages,
          attempt,
          // During a rebalance the partition stays ours until we join again, so a chunk may be finished and committed.
          isStale: () =>
            !payload.isRunning() || payload.isStale() || (leave !== undefined && !isRebalancing(leave)),
        }),
      );
      this.handledChunks += 1;
      this.handledRecords += messages.length;
      return { handled: true, leave };
    } catch (error) {
      this.failedChunks += 1;
      this.log.error(
        { err: error, partition: batch.partition, offset: String(messages[0]?.offset), attempt },
        'a chunk of records could not be handled; it will be tried again',
      );
      return { handled: false, leave };
    } finally {
      clearInterval(beat);
      this.handling.delete(entry);
      this.lastSignOfLifeMs = performance.now();
    }
  }

  /** The partition is fetched again, from the same place, after a pause in which the others and the heartbeats go on. */
  private rest(state: PartitionState, payload: EachBatchPayload): void {
    const { first, max } = this.retryDelayMs;
    const delayMs = Math.min(first * 2 ** Math.min(state.failedAttempts, 16), max);
    state.failedAttempts += 1;
    const resume = payload.pause();
    clearTimeout(state.resting);
    state.resting = setTimeout(() => {
      state.resting = undefined;
      resume();
    }, delayMs);
  }

  /** One span per chunk, linked to the trace of each record: a batch has many parents, and only links can say so. */
  private inSpan(
    topic: string,
    partition: number,
    messages: readonly ConsumedMessage[],
    fn: () => Promise<void>,
  ): Promise<void> {
    const links = messages.flatMap(({ headers }): Link[] => {
      const origin = trace.getSpanContext(propagation.extract(ROOT_CONTEXT, headers));
      return origin ? [{ context: origin }] : [];
    });
    const attributes = {
      'messaging.system': 'kafka',
      'messaging.destination.partition.id': String(partition),
      'messaging.batch.message_count': messages.length,
    };
    const options = { kind: SpanKind.CONSUMER, links, attributes };
    const tracer = trace.getTracer('@flash-sale/kafka');
    return tracer.startActiveSpan(`process ${topic}`, options, ROOT_CONTEXT, async (span) => {
      try {
        await fn();
      } catch (error) {
        span.setStatus({ code: SpanStatusCode.ERROR, message: String(error) });
        throw error;
      } finally {
        span.end();
      }
    });
  }
}

const REBALANCE_ERRORS = ['REBALANCE_IN_PROGRESS', 'NOT_COORDINATOR_FOR_GROUP'];

function isRebalancing(error: Error): boolean {
  return 'type' in error && typeof error.type === 'string' && REBALANCE_ERRORS.includes(error.type);
}

function consumed(message: KafkaMessage): ConsumedMessage {
  return {
    offset: BigInt(message.offset),
    key: message.key?.toString('utf8') ?? null,
    value: message.value,
    headers: headersOf(message.headers ?? {}),
    timestampMs: Number(message.timestamp),
  };
}

function headersOf(headers: IHeaders): Record<string, string> {
  const flat: Record<string, string> = {};
  for (const [name, value] of Object.entries(headers)) {
    const last = Array.isArray(value) ? value.at(-1) : value;
    if (last !== undefined) flat[name] = last.toString();
  }
  return flat;
}
