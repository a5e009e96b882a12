import { randomBytes } from 'node:crypto';
import { Kafka, logLevel, type Admin, type IHeaders, type KafkaMessage } from 'kafkajs';
import { UsageError, type StoreAddresses } from './env.js';
import type { KafkaEvidence, PartitionEvidence, RecordedAttempt } from './evidence.js';
import { DEAD_LETTER_HEADERS, isAttemptOf, readJson, readToken, type TokenKeys } from './grammar.js';

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
   * Dumps what both topics hold of one sale, up to their ends at this moment.
   *
   * @param partitions as they were before the rows were read: the committed offsets must be older than the rows
   */
  async read(
    saleId: string,
    partitions: readonly PartitionEvidence[],
    keys: TokenKeys | null,
  ): Promise<KafkaEvidence> {
    const { ordersTopic, deadLetterTopic } = this.addresses;
    const orders = new OrderRecords(saleId, keys);
    const deadLetters = new DeadLetters(saleId, ordersTopic);
    await this.dump([ordersTopic, deadLetterTopic], (topic, partition, message) =>
      topic === ordersTopic ? orders.add(partition, message) : deadLetters.add(message),
    );
    return {
      partitions,
      recorded: orders.recorded,
      recordCount: orders.count,
      deadLetterOrigins: deadLetters.origins,
      deadLetterAttempts: deadLetters.attempts,
    };
  }

  async close(): Promise<void> {
    await this.admin.disconnect();
  }

  private async dump(topics: string[], see: See): Promise<void> {
    const missing = new Map<string, number>();
    for (const topic of topics) {
      for (const { partition, low, high } of await this.admin.fetchTopicOffsets(topic)) {
        if (Number(high) > Number(low)) missing.set(`${topic}/${partition}`, Number(high));
      }
    }
    if (missing.size === 0) return;
    const groupId = `audit-${randomBytes(8).toString('hex')}`;
    try {
      await this.consumeUntil(missing, { topics, groupId, see });
    } finally {
      // An empty group disappears by itself after some days; where deleting is not allowed, that has to do.
      await this.admin.deleteGroups([groupId]).catch(() => undefined);
    }
  }

  private async consumeUntil(
    missing: Map<string, number>,
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
            const end = missing.get(`${topic}/${partition}`);
            if (end === undefined) return Promise.resolve();
            for (const message of messages) if (Number(message.offset) < end) see(topic, partition, message);
            if (Number(batch.lastOffset()) + 1 >= end) missing.delete(`${topic}/${partition}`);
            if (missing.size === 0) resolve();
            return Promise.resolve();
          },
        });
        run.catch(reject);
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

type See = (topic: string, partition: number, message: KafkaMessage) => void;

/** Two retries of one order carry the same token; more different ones than this are a breach already. */
const MAX_TOKENS = 4;

class OrderRecords {
  readonly recorded = new Map<string, RecordedAttempt>();
  count = 0;

  constructor(
    private readonly saleId: string,
    private readonly keys: TokenKeys | null,
  ) {}

  add(partition: number, message: KafkaMessage): void {
    const key = message.key?.toString('utf8') ?? '';
    const value = readJson(message.value?.toString('utf8') ?? '');
    const token = typeof value?.['token'] === 'string' ? readToken(value['token'], this.keys) : null;
    // A record under a foreign key is this sale's where its token says so; the invariants will ask why.
    const ofKey = isAttemptOf(this.saleId, key);
    const ofToken = token?.claims ? isAttemptOf(this.saleId, token.claims.attemptId) : false;
    if (!ofKey && !ofToken) return;
    this.count += 1;
    let attempt = this.recorded.get(key);
    if (!attempt) {
      attempt = { positions: [], tokens: [] };
      this.recorded.set(key, attempt);
    }
    attempt.positions.push({
      partition,
      offset: Number(message.offset),
      timestampMs: Number(message.timestamp),
    });
    if (!token || attempt.tokens.length >= MAX_TOKENS) return;
    if (!attempt.tokens.some(({ hash }) => hash === token.hash)) attempt.tokens.push(token);
  }
}

class DeadLetters {
  readonly origins = new Set<string>();
  readonly attempts = new Set<string>();

  constructor(
    private readonly saleId: string,
    private readonly ordersTopic: string,
  ) {}

  add({ key, headers }: KafkaMessage): void {
    const id = key?.toString('utf8') ?? '';
    if (isAttemptOf(this.saleId, id)) this.attempts.add(id);
    if (header(headers, DEAD_LETTER_HEADERS.topic) !== this.ordersTopic) return;
    const partition = header(headers, DEAD_LETTER_HEADERS.partition);
    this.origins.add(`${partition}/${header(headers, DEAD_LETTER_HEADERS.offset)}`);
  }
}

function header(headers: IHeaders | undefined, name: string): string {
  const value = headers?.[name];
  return (Array.isArray(value) ? value[0] : value)?.toString() ?? '';
}

function describe(missing: ReadonlyMap<string, number>): string {
  return [...missing].map(([partition, end]) => `${partition} offset ${end}`).join(', ');
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
