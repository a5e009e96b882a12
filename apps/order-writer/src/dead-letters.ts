import {
  DEAD_LETTER_HEADERS,
  MAX_ORDER_EVENT_BYTES,
  ORDER_HEADERS,
  decodeOrderEvent,
  type Delivery,
} from '@flash-sale/contracts';
import {
  AttemptId,
  verifyPurchaseToken,
  type PurchaseTokenClaims,
  type SigningKeys,
} from '@flash-sale/domain';
import type { ConsumedMessage, SupervisedProducer } from '@flash-sale/kafka';

/** A record as it lies in the topic of orders. */
export interface SourceRecord extends ConsumedMessage {
  readonly topic: string;
  readonly partition: number;
}

/** A record whose token is genuine: it must be decided, however late it is. */
export interface QueuedRecord {
  readonly source: SourceRecord;
  readonly claims: PurchaseTokenClaims;
  readonly delivery: Delivery;
  readonly deliveryHash: string;
  /** The shopper's request, for the logs. */
  readonly requestId: string | null;
  readonly traceparent: string | undefined;
}

/** Why a record can never be decided. `poison`: the database refuses what is in it. */
export type DeadCause =
  | 'empty'
  | 'not_json'
  | 'unknown_version'
  | 'wrong_shape'
  | 'too_large'
  | 'bad_signature'
  | 'wrong_key'
  | 'unknown_sale'
  | 'poison';

export interface DeadRecord {
  readonly source: SourceRecord;
  readonly cause: DeadCause;
  /** The version that the record claims to have; empty where it claims none. At most 16 characters of ASCII. */
  readonly schema: string;
}

const REQUEST_ID = /^[A-Za-z0-9_-]{1,64}$/;

/**
 * Reads one record. Only a valid signature lets it become a row, and only under the key it was signed for; everything
 * else is a dead letter with a named cause. The token's expiry is not looked at: Kafka's order is a promise.
 */
export function readRecord(source: SourceRecord, keys: SigningKeys): QueuedRecord | DeadRecord {
  if (source.value && source.value.length > MAX_ORDER_EVENT_BYTES) {
    return { source, cause: 'too_large', schema: '' };
  }
  const decoded = decodeOrderEvent(source.value);
  if (decoded.outcome === 'dead') {
    return { source, cause: decoded.cause, schema: decoded.schema.replaceAll(/[^A-Za-z0-9._-]/g, '?') };
  }
  const { event } = decoded;
  const claims = verifyPurchaseToken(event.token, keys);
  if (!claims) return { source, cause: 'bad_signature', schema: String(event.v) };
  if (claims.attemptId !== source.key) return { source, cause: 'wrong_key', schema: String(event.v) };
  const requestId = source.headers['request-id'];
  return {
    source,
    claims,
    delivery: event.delivery,
    deliveryHash: event.deliveryHash,
    requestId: requestId !== undefined && REQUEST_ID.test(requestId) ? requestId : null,
    traceparent: source.headers['traceparent'],
  };
}

export function isDead(record: QueuedRecord | DeadRecord): record is DeadRecord {
  return 'cause' in record;
}

/** The headers that an order is produced with; others are nothing to a replay. */
const REPLAYED_HEADERS: readonly string[] = Object.values(ORDER_HEADERS);
const MAX_HEADER_LENGTH = 200;

/**
 * What producing the record once more takes; null where no replay could ever be decided: without the key of an attempt,
 * without a value, or with one that is too large to be read.
 */
export function replayOf({ key, value, headers }: SourceRecord): {
  readonly value: Buffer;
  readonly headers: Readonly<Record<string, string>>;
} | null {
  if (!value?.length || value.length > MAX_ORDER_EVENT_BYTES || !AttemptId.safeParse(key).success)
    return null;
  const kept = Object.entries(headers).filter(
    ([name, text]) => REPLAYED_HEADERS.includes(name) && text.length <= MAX_HEADER_LENGTH,
  );
  return { value, headers: Object.fromEntries(kept) };
}

const TOPIC = /^[A-Za-z0-9._-]{1,100}$/;
const PARTITION = /^\d{1,9}$/;
const OFFSET = /^\d{1,18}$/;

/** The dead letter that this record replays, by the attempt and the place of its first record; null for any other record. */
export function replayedLetter({ key, headers }: SourceRecord): {
  readonly orderId: AttemptId;
  readonly topic: string;
  readonly partition: number;
  readonly offset: string;
} | null {
  const { data: orderId } = AttemptId.safeParse(key);
  const topic = headers[DEAD_LETTER_HEADERS.topic] ?? '';
  const partition = headers[DEAD_LETTER_HEADERS.partition] ?? '';
  const offset = headers[DEAD_LETTER_HEADERS.offset] ?? '';
  if (!orderId || !TOPIC.test(topic) || !PARTITION.test(partition) || !OFFSET.test(offset)) return null;
  return { orderId, topic, partition: Number(partition), offset };
}

/** The topic that keeps what could not be decided, with its cause and origin. */
export class DeadLetterTopic {
  /** @param producer sends one message per request, because a dead letter may be as large as a request may be */
  constructor(
    private readonly producer: SupervisedProducer,
    private readonly topic: string,
  ) {}

  /**
   * Resolves when all replicas have them. The same record may be sent more than once: its origin tells which it is.
   *
   * @throws SendFailed when Kafka did not acknowledge; the chunk must then be tried again
   */
  async send(records: readonly DeadRecord[]): Promise<void> {
    await this.producer.send(
      this.topic,
      records.map(({ source, cause, schema }) => ({
        key: source.key ?? '',
        value: source.value ?? '',
        headers: {
          ...source.headers,
          [DEAD_LETTER_HEADERS.topic]: source.topic,
          [DEAD_LETTER_HEADERS.partition]: String(source.partition),
          [DEAD_LETTER_HEADERS.offset]: String(source.offset),
          [DEAD_LETTER_HEADERS.cause]: cause,
          [DEAD_LETTER_HEADERS.schema]: schema,
        },
      })),
    );
  }
}
