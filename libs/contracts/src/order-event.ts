import { hash } from 'node:crypto';
import { z } from 'zod';

/**
 * What Kafka remembers of an accepted order: the record of topic `orders.v1`, keyed by the attempt's id. The purchase
 * token inside is the proof: only a record whose token has a valid signature may become a row. A record of an unknown
 * version is a dead letter, never a guess.
 */
export const ORDER_EVENT_VERSION = 1;

/** Kafka header names. */
export const ORDER_HEADERS = {
  traceparent: 'traceparent',
  requestId: 'request-id',
  schema: 'schema',
} as const;

/** The largest record that an honest order can make has some 5 kB; what is larger is not even parsed. */
export const MAX_ORDER_EVENT_BYTES = 16 * 1024;

/**
 * Headers of a record in `orders.dlq`: where it came from and why it could not be handled. A record in the topic of orders
 * that has the first three is a replay: an operator had that dead letter produced once more.
 */
export const DEAD_LETTER_HEADERS = {
  topic: 'dlq-topic',
  partition: 'dlq-partition',
  offset: 'dlq-offset',
  cause: 'dlq-cause',
  schema: 'dlq-schema',
} as const;

/**
 * Settings of the topic of orders, for whoever makes it. The broker's clock stamps the records, and seven days of them are
 * kept, so that the group can be rewound and replayed after a database has lost commits.
 */
export const ORDERS_TOPIC_CONFIG = {
  'message.timestamp.type': 'LogAppendTime',
  'retention.ms': String(7 * 86_400_000),
} as const;

/** Dead letters are kept longer, and are larger than any record of the topic of orders: they carry it with its origin. */
export const DEAD_LETTER_TOPIC_CONFIG = {
  'message.timestamp.type': 'LogAppendTime',
  'retention.ms': String(30 * 86_400_000),
  'max.message.bytes': String(2 * 1024 * 1024),
} as const;

export const Delivery = z.strictObject({
  name: z.string().min(1).max(100),
  phone: z
    .string()
    .regex(/^\+?[0-9][0-9 -]{3,22}[0-9]$/, '5 to 24 digits, spaces and dashes, a leading + allowed'),
  address: z.string().min(1).max(500),
});
export type Delivery = z.infer<typeof Delivery>;

const OrderEventV1 = z.strictObject({
  v: z.literal(ORDER_EVENT_VERSION),
  token: z.string().min(1).max(1024),
  delivery: Delivery,
  deliveryHash: z.string().length(22),
});
export type OrderEvent = z.infer<typeof OrderEventV1>;

export type DecodedOrderEvent =
  | { readonly outcome: 'ok'; readonly event: OrderEvent }
  | {
      readonly outcome: 'dead';
      readonly cause: 'empty' | 'not_json' | 'unknown_version' | 'wrong_shape';
      readonly schema: string;
    };

/** The first 22 base64url characters of SHA-256 over the delivery's fields in a fixed order. */
export function deliveryHashOf(delivery: Delivery): string {
  const canonical = JSON.stringify([delivery.name, delivery.phone, delivery.address]);
  return hash('sha256', canonical, 'base64url').slice(0, 22);
}

export function encodeOrderEvent(event: OrderEvent): Buffer {
  return Buffer.from(JSON.stringify(event));
}

/** Decodes a record's value; every way in which it can be unreadable has a name. Never throws. */
export function decodeOrderEvent(value: Buffer | null): DecodedOrderEvent {
  if (value === null || value.length === 0) return { outcome: 'dead', cause: 'empty', schema: '' };
  let json: unknown;
  try {
    json = JSON.parse(value.toString('utf8'));
  } catch {
    return { outcome: 'dead', cause: 'not_json', schema: '' };
  }
  const schema = versionOf(json);
  if (schema !== String(ORDER_EVENT_VERSION)) return { outcome: 'dead', cause: 'unknown_version', schema };
  const parsed = OrderEventV1.safeParse(json);
  return parsed.success
    ? { outcome: 'ok', event: parsed.data }
    : { outcome: 'dead', cause: 'wrong_shape', schema };
}

/** What it says of itself, whatever it is; empty where that is nothing. */
function versionOf(json: unknown): string {
  if (typeof json !== 'object' || json === null || !('v' in json)) return '';
  const { v } = json;
  return typeof v === 'string' || Number.isFinite(v) ? String(v).slice(0, 16) : '';
}
