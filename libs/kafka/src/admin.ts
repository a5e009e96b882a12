import { setTimeout as delay } from 'node:timers/promises';
import type { Admin } from 'kafkajs';
import { silentLog, type AdapterLog } from './adapter-log.js';
import { discard, openKafka, type KafkaHandle, type KafkaOptions } from './connection.js';

export interface TopicSpec {
  readonly topic: string;
  readonly partitions: number;
  /** −1: the cluster's default. */
  readonly replicationFactor?: number;
  /** Topic settings, e.g. `{ 'message.timestamp.type': 'LogAppendTime' }`. */
  readonly config?: Readonly<Record<string, string>>;
}

/** Offsets by partition. */
export type Offsets = ReadonlyMap<number, bigint>;

/** The bounds of a topic's log. */
export interface LogBounds {
  /** The first offset that is still kept, by partition. */
  readonly lows: Offsets;
  /** The offset that the next record will get, by partition. */
  readonly ends: Offsets;
}

const MAKE_TOPIC_WITHIN_MS = 30_000;
/** A connection that has answered before answers at once, or never again. */
const READ_WITHIN_MS = 3_000;
const CONNECT_AND_READ_WITHIN_MS = 6_000;
const TRY_AGAIN_AFTER_MS = 500;

interface Connection {
  readonly handle: KafkaHandle;
  readonly admin: Admin;
  readonly connected: Promise<void>;
}

/**
 * Makes topics and reads offsets. Connects when first used; after a failed call the connection is thrown away, since it may
 * be one that will never answer again, and what was only read is read once more on a fresh one.
 */
export class KafkaAdmin {
  private current: Connection | undefined;
  private readonly closing = new AbortController();
  private readonly log: AdapterLog;

  constructor(private readonly options: KafkaOptions) {
    this.log = options.log ?? silentLog;
  }

  /**
   * Makes the topics as soon as Kafka can be reached, in the background, until {@link close}.
   *
   * @returns tells whether they are there
   */
  startEnsuring(specs: readonly TopicSpec[]): () => boolean {
    let done = false;
    const { signal } = this.closing;
    const ensure = async () => {
      while (!signal.aborted) {
        try {
          for (const spec of specs) await this.ensureTopic(spec);
          done = true;
          return;
        } catch (error) {
          this.log.warn({ reason: String(error) }, 'the topics could not be made yet; trying again');
        }
        await delay(TRY_AGAIN_AFTER_MS, undefined, { signal }).catch(() => undefined);
      }
    };
    void ensure();
    return () => done;
  }

  /**
   * Makes the topic if it is missing; an existing one stays as it is. Safe to call from several processes at once.
   *
   * @returns whether it was made now, and how many partitions it has
   */
  async ensureTopic(spec: TopicSpec): Promise<{ readonly created: boolean; readonly partitions: number }> {
    return this.call('making a topic', MAKE_TOPIC_WITHIN_MS, async (admin) => {
      const created = await admin.createTopics({
        // kafkajs' own wait fails where a broker has not heard of the topic yet; partitionsOf waits for that too.
        waitForLeaders: false,
        timeout: 15_000,
        topics: [
          {
            topic: spec.topic,
            numPartitions: spec.partitions,
            replicationFactor: spec.replicationFactor ?? -1,
            configEntries: Object.entries(spec.config ?? {}).map(([name, value]) => ({ name, value })),
          },
        ],
      });
      return { created, partitions: await partitionsOf(admin, spec.topic) };
    });
  }

  /** Deletes a topic and all its records; a missing one is no error. */
  async deleteTopic(topic: string): Promise<void> {
    await this.call('deleting a topic', MAKE_TOPIC_WITHIN_MS, async (admin) => {
      const topics = await admin.listTopics();
      if (topics.includes(topic)) await admin.deleteTopics({ topics: [topic], timeout: 10_000 });
    });
  }

  /** Where the topic's log starts and ends now. */
  async logBounds(topic: string): Promise<LogBounds> {
    return this.read(`reading the offsets of ${topic}`, async (admin) => {
      const offsets = await admin.fetchTopicOffsets(topic);
      return {
        lows: new Map(offsets.map(({ partition, low }) => [partition, BigInt(low)])),
        ends: new Map(offsets.map(({ partition, high }) => [partition, BigInt(high)])),
      };
    });
  }

  /** The offset that the next record of each partition will get. */
  async endOffsets(topic: string): Promise<Offsets> {
    return (await this.logBounds(topic)).ends;
  }

  /** What the group has committed: the next offset it wants, by partition. A partition without a commit is missing. */
  async committedOffsets(group: string, topic: string): Promise<Offsets> {
    return this.read(`reading the offsets of group ${group}`, async (admin) => {
      const [found] = await onceSettled(20, () => admin.fetchOffsets({ groupId: group, topics: [topic] }));
      const committed = new Map<number, bigint>();
      for (const { partition, offset } of found?.partitions ?? []) {
        if (BigInt(offset) >= 0n) committed.set(partition, BigInt(offset));
      }
      return committed;
    });
  }

  /**
   * Moves what a group has committed, so that it reads from there once more: after a database has lost commits, or to show
   * that a second delivery changes nothing. The group must have no members.
   */
  async rewind(group: string, topic: string, offsets: Offsets): Promise<void> {
    await this.call(`moving the offsets of group ${group}`, CONNECT_AND_READ_WITHIN_MS, (admin) =>
      admin.setOffsets({
        groupId: group,
        topic,
        partitions: [...offsets].map(([partition, offset]) => ({ partition, offset: String(offset) })),
      }),
    );
  }

  async close(): Promise<void> {
    this.closing.abort();
    const current = this.current;
    this.current = undefined;
    if (current) await this.discard(current);
  }

  /** Once more on a fresh connection if the one at hand, which may have died since it was used last, is not answered. */
  private async read<Result>(what: string, use: (admin: Admin) => Promise<Result>): Promise<Result> {
    if (this.current) {
      try {
        return await this.call(what, READ_WITHIN_MS, use);
      } catch (error) {
        if (this.closing.signal.aborted || kafkaErrorType(error) !== '') throw error;
      }
    }
    return this.call(what, CONNECT_AND_READ_WITHIN_MS, use);
  }

  private async call<Result>(
    what: string,
    withinMs: number,
    use: (admin: Admin) => Promise<Result>,
  ): Promise<Result> {
    const current = (this.current ??= this.connect());
    let timer: NodeJS.Timeout | undefined;
    const tooLate = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`no answer within ${withinMs} ms`)), withinMs);
    });
    try {
      return await Promise.race([current.connected.then(() => use(current.admin)), tooLate]);
    } catch (cause) {
      if (this.current === current) {
        this.current = undefined;
        void this.discard(current);
      }
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new Error(`${what} at Kafka ${this.options.brokers.join(', ')} failed: ${reason}`, { cause });
    } finally {
      clearTimeout(timer);
    }
  }

  private connect(): Connection {
    // Making a topic takes longer than a produce may.
    const handle = openKafka({ ...this.options, requestTimeoutMs: this.options.requestTimeoutMs ?? 10_000 });
    const admin = handle.kafka.admin();
    const connected = admin.connect();
    // Whoever uses it hears of it; nobody may be there any more.
    connected.catch(() => handle.destroy());
    return { handle, admin, connected };
  }

  private discard({ handle, admin }: Connection): Promise<void> {
    return discard(handle, () => admin.disconnect(), 1_000);
  }
}

const NOT_YET = new Set([
  'UNKNOWN_TOPIC_OR_PARTITION',
  'LEADER_NOT_AVAILABLE',
  'NOT_LEADER_FOR_PARTITION',
  // A broker that has just started, or has just made the topic of the groups' offsets.
  'GROUP_COORDINATOR_NOT_AVAILABLE',
  'NOT_COORDINATOR_FOR_GROUP',
  'GROUP_LOAD_IN_PROGRESS',
]);
const ASK_AGAIN_AFTER_MS = 100;

/**
 * How many partitions a topic has. A broker learns of a topic that has just been made a moment after the controller says
 * that it exists, and that it leads its partitions a moment later still; only when each has answered may somebody produce.
 */
async function partitionsOf(admin: Admin, topic: string): Promise<number> {
  return (await onceSettled(100, () => admin.fetchTopicOffsets(topic))).length;
}

/** Asks again, so many times at most, while the brokers are still agreeing on who is in charge. For reads only. */
async function onceSettled<Result>(tries: number, ask: () => Promise<Result>): Promise<Result> {
  for (let tried = 1; ; tried += 1) {
    try {
      return await ask();
    } catch (error) {
      if (!NOT_YET.has(kafkaErrorType(error)) || tried === tries) throw error;
      await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_AFTER_MS));
    }
  }
}

/** The protocol's name of an error; kafkajs wraps it where it retried. */
function kafkaErrorType(error: unknown): string {
  const { type, cause } = error as { type?: unknown; cause?: unknown };
  return typeof type === 'string' ? type : cause ? kafkaErrorType(cause) : '';
}

/**
 * Whether a group has read everything before `ends`. A partition without a commit counts as read when there is nothing left
 * in it to read: its log starts where it was to be read up to, or later.
 */
export function hasPassed(committed: Offsets, ends: Offsets, lows: Offsets): boolean {
  return [...ends].every(([partition, end]) => {
    const low = lows.get(partition) ?? 0n;
    const position = committed.get(partition) ?? low;
    return (position > low ? position : low) >= end;
  });
}
