import { randomBytes } from 'node:crypto';
import { Kafka, logLevel, type Admin, type IHeaders, type KafkaMessage } from 'kafkajs';
import { UsageError, type StoreAddresses } from './env.js';
import type { DeadLetterRecord, KafkaFigures, PartitionEvidence, RecordPosition } from './evidence.js';
import {
  DEAD_LETTER_HEADERS,
  isAttemptOf,
  readJson,
  readToken,
  type SeenToken,
  type TokenKeys,
} from './grammar.js';
import type { Spill } from './spill.js';

/** Reading is given up when nothing comes for this long although the end was not reached. */
const SILENCE_MS = 20_000;

/**
 * Reads the order topic and its dead letters. Nothing is produced or committed: the records are read by a consumer group
 * with a random name that never commits and is deleted afterwards.
 */
export class KafkaReader {
  private readonly kafka: Kafka;
  private readonly admin: Admin;

  constructor(private readonly addresses: StoreAddresses) {
    this.kafka = new Kafka({
      clientId: 'auditor',
      brokers: [...addresses.kafkaBrokers],
      connectionTimeout: 3_000,
      requestTimeout: 10_000,
      logLevel: logLevel.NOTHING,
      retry: { initialRetryTime: 200, maxRetryTime: 1_000, retries: 4 },
    });
    this.admin = this.kafka.admin();
  }

  /** @throws UsageError where no broker answers or a topic is not there */
  async connect(): Promise<void> {
    const { kafkaBrokers, ordersTopic, deadLetterTopic } = this.addresses;
    let topics: string[];
    try {
      await this.admin.connect();
      topics = await this.admin.listTopics();
    } catch (error) {
      throw new UsageError(
        `Kafka does not answer at ${kafkaBrokers.join(', ')} (${reasonOf(error)}); ` +
          'start it, or set KAFKA_BROKERS to where it is.',
      );
    }
    for (const [variable, topic] of [
      ['ORDERS_TOPIC', ordersTopic],
      ['ORDERS_DLQ_TOPIC', deadLetterTopic],
    ] as const) {
      if (topics.includes(topic)) continue;
      throw new UsageError(
        `Kafka at ${kafkaBrokers.join(', ')} has no topic "${topic}"; set ${variable} to the one the sale used.`,
      );
    }
  }

  /** Where the order topic begins and ends, and how far the writer's group has committed. */
  async partitions(): Promise<PartitionEvidence[]> {
    const { ordersTopic, ordersGroup } = this.addresses;
    const [group] = await this.admin.fetchOffsets({ groupId: ordersGroup, topics: [ordersTopic] });
    const committed = new Map(group?.partitions.map((p) => [p.partition, Number(p.offset)]));
    const ends = await this.admin.fetchTopicOffsets(ordersTopic);
    return ends
      .map(({ partition, low, high }) => {
        const offset = committed.get(partition) ?? -1;
        return {
          partition,
          low: Number(low),
          high: Number(high),
          committed: offset < 0 ? null : offset,
        };
      })
      .sort((a, b) => a.partition - b.partition);
  }

  /**
   * Reads what both topics hold of one sale, up to their ends at this moment; records of orders are put aside.
   *
   * @param sinceMs nothing of the sale is older: reading begins there, however long the topic keeps what others sold
   * @param partitions as they were before the rows were read: the committed offsets must be older than the rows
   */
  async read(
    {
      saleId,
      sinceMs,
      partitions,
    }: { saleId: string; sinceMs: number; partitions: readonly PartitionEvidence[] },
    spill: Spill,
  ): Promise<KafkaFigures> {
    const { ordersTopic, deadLetterTopic, tokenKeys } = this.addresses;
    const deadLetters: DeadLetterRecord[] = [];
    let recordCount = 0;
    await this.dump([ordersTopic, deadLetterTopic], sinceMs, (topic, partition, message) => {
      if (topic === deadLetterTopic) {
        const letter = deadLetterOf(saleId, message);
        if (letter) deadLetters.push(letter);
        return;
      }
      const record = recordOf(saleId, partition, message, tokenKeys);
      if (!record) return;
      recordCount += 1;
      spill.put('record', spill.slices.of(record.key), record);
    });
    // How many different keys there are is known when the last slice was looked at.
    return { partitions, recordCount, deadLetters };
  }

  async close(): Promise<void> {
    await this.admin.disconnect();
  }

  private async dump(topics: string[], sinceMs: number, see: See): Promise<void> {
    const stretches = new Map<string, Stretch>();
    for (const topic of topics) {
      const since = await this.admin.fetchTopicOffsetsByTimestamp(topic, sinceMs);
      const offsets = new Map(since.map(({ partition, offset }) => [partition, offset]));
      for (const { partition, low, high } of await this.admin.fetchTopicOffsets(topic)) {
        const next = Math.max(Number(low), Number(offsets.get(partition) ?? low));
        const isLater = next > Number(low);
        if (Number(high) > next)
          stretches.set(`${topic}/${partition}`, { topic, partition, next, end: Number(high), isLater });
      }
    }
    if (stretches.size === 0) return;
    const groupId = `audit-${randomBytes(8).toString('hex')}`;
    try {
      await this.consume(stretches, { topics, groupId, see });
    } finally {
      // An empty group disappears by itself after some days; where deleting is not allowed, that has to do.
      await this.admin.deleteGroups([groupId]).catch(() => undefined);
    }
  }

  private async consume(
    missing: Map<string, Stretch>,
    { topics, groupId, see }: { topics: string[]; groupId: string; see: See },
  ): Promise<void> {
    const consumer = this.kafka.consumer({
      groupId,
      allowAutoTopicCreation: false,
      maxWaitTimeInMs: 100,
      retry: { retries: 4, restartOnFailure: () => Promise.resolve(false) },
    });
    let stopWatching = () => {};
    try {
      await consumer.connect();
      await consumer.subscribe({ topics, fromBeginning: true });
      await new Promise<void>((resolve, reject) => {
        const silence = setTimeout(
          () => reject(new Error(`no record came for ${SILENCE_MS} ms; missing up to ${describe(missing)}`)),
          SILENCE_MS,
        );
        stopWatching = () => clearTimeout(silence);
        consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error));
        const run = consumer.run({
          autoCommit: false,
          partitionsConsumedConcurrently: 4,
          eachBatch: ({ batch }) => {
            const { topic, partition, messages } = batch;
            silence.refresh();
            const stretch = missing.get(`${topic}/${partition}`);
            if (!stretch) return Promise.resolve();
            for (const message of messages) {
              const offset = Number(message.offset);
              // Before the consumer was moved to the start it may be shown what lies before, and some records twice.
              if (offset < stretch.next || offset >= stretch.end) continue;
              see(topic, partition, message);
              stretch.next = offset + 1;
            }
            if (Number(batch.lastOffset()) + 1 >= stretch.end) missing.delete(`${topic}/${partition}`);
            if (missing.size === 0) resolve();
            return Promise.resolve();
          },
        });
        run.catch(reject);
        for (const { topic, partition, next, isLater } of missing.values()) {
          if (isLater) consumer.seek({ topic, partition, offset: String(next) });
        }
      });
    } catch (error) {
      throw new UsageError(
        `Kafka at ${this.addresses.kafkaBrokers.join(', ')} could not be read (${reasonOf(error)}); run the audit again.`,
      );
    } finally {
      stopWatching();
      await consumer.disconnect();
    }
  }
}

/** The part of a partition that is to be read. */
interface Stretch {
  readonly topic: string;
  readonly partition: number;
  next: number;
  readonly end: number;
  /** It begins after the oldest record that is kept. */
  readonly isLater: boolean;
}

type See = (topic: string, partition: number, message: KafkaMessage) => void;

/** A record of the order topic as it is put aside. */
export interface OrderRecord {
  readonly key: string;
  readonly at: RecordPosition;
  readonly token: SeenToken | null;
}

/** `null` for a record of another sale. */
function recordOf(
  saleId: string,
  partition: number,
  message: KafkaMessage,
  keys: TokenKeys | null,
): OrderRecord | null {
  const key = message.key?.toString('utf8') ?? '';
  const value = readJson(message.value?.toString('utf8') ?? '');
  const token = typeof value?.['token'] === 'string' ? readToken(value['token'], keys) : null;
  // A record under a foreign key is this sale's where its token says so; the invariants will ask why.
  const ofToken = token?.claims ? isAttemptOf(saleId, token.claims.attemptId) : false;
  if (!isAttemptOf(saleId, key) && !ofToken) return null;
  const { offset, timestamp } = message;
  return { key, at: { partition, offset: Number(offset), timestampMs: Number(timestamp) }, token };
}

/** `null` for a dead letter that is surely of another sale. */
function deadLetterOf(saleId: string, { key, headers }: KafkaMessage): DeadLetterRecord | null {
  const text = key?.toString('utf8') ?? '';
  const ofAnother = /^[A-Za-z0-9_-]{24,64}$/.test(text) && !isAttemptOf(saleId, text);
  if (ofAnother) return null;
  const of = (name: keyof typeof DEAD_LETTER_HEADERS) => header(headers, DEAD_LETTER_HEADERS[name]);
  return {
    key: text,
    origin: `${of('topic') ?? ''}/${of('partition') ?? ''}/${of('offset') ?? ''}`,
    cause: of('cause'),
    schema: of('schema'),
  };
}

function header(headers: IHeaders | undefined, name: string): string | null {
  const value = headers?.[name];
  return (Array.isArray(value) ? value.at(-1) : value)?.toString() ?? null;
}

function describe(missing: ReadonlyMap<string, Stretch>): string {
  return [...missing].map(([partition, { end }]) => `${partition} offset ${end}`).join(', ');
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
