import { z } from 'zod';
import type { TokenKeys } from './grammar.js';

const address = (example: string) =>
  z.string({ error: `is not set; say where it is, e.g. ${example}` }).min(1, `is empty; e.g. ${example}`);

const list = (text: string) =>
  text
    .split(',')
    .map((part) => part.trim())
    .filter((part) => part !== '');

const Schema = z
  .object({
    /** One Redis, `redis://host:port/db`; either this or the nodes of a cluster. */
    REDIS_URL: z.string().min(1).optional(),
    /** Some masters of a cluster: `host:port,host:port`. */
    REDIS_CLUSTER_NODES: z.string().min(1).optional(),
    KAFKA_BROKERS: address('127.0.0.1:9092'),
    /** With the database's name. */
    MYSQL_URL: address('mysql://root@127.0.0.1:3306/flash_sale'),
    ORDERS_TOPIC: z.string().min(1).default('orders.v1'),
    ORDERS_DLQ_TOPIC: z.string().min(1).default('orders.dlq'),
    /** The writer's consumer group, whose committed offsets are looked at. */
    ORDERS_GROUP: z.string().min(1).default('order-writer'),
    /** `kid:base64,kid2:base64`; with them the auditor verifies the signature of every recorded token. */
    PURCHASE_TOKEN_KEYS: z.string().optional(),
  })
  .refine((env) => (env.REDIS_URL === undefined) !== (env.REDIS_CLUSTER_NODES === undefined), {
    path: ['REDIS_URL'],
    error: 'set either it or REDIS_CLUSTER_NODES, e.g. redis://127.0.0.1:6379',
  })
  .refine((env) => /^mysql:\/\/[^/]+\/\w+$/.test(env.MYSQL_URL.split('?')[0] ?? ''), {
    path: ['MYSQL_URL'],
    error: 'must be mysql://user:password@host:port/database, with the database’s name',
  });

/** Where the stores are, read from the environment once. */
export interface StoreAddresses {
  readonly redis: { readonly url: string } | { readonly clusterNodes: readonly string[] };
  readonly kafkaBrokers: readonly string[];
  readonly mysqlUrl: string;
  readonly ordersTopic: string;
  readonly deadLetterTopic: string;
  readonly ordersGroup: string;
  readonly tokenKeys: TokenKeys | null;
}

/** Something the caller of the program has to put right: how it was called, or where the stores are. Exit code 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

/** @throws UsageError that names every faulty variable at once */
export function readStoreAddresses(env: NodeJS.ProcessEnv = process.env): StoreAddresses {
  const parsed = Schema.safeParse(env);
  if (!parsed.success) {
    const faults = parsed.error.issues.map((issue) => `  ${issue.path.join('.')}: ${issue.message}`);
    throw new UsageError(`The environment does not say where the stores are:\n${faults.join('\n')}`);
  }
  const values = parsed.data;
  return {
    redis:
      values.REDIS_URL === undefined
        ? { clusterNodes: list(values.REDIS_CLUSTER_NODES ?? '') }
        : { url: values.REDIS_URL },
    kafkaBrokers: list(values.KAFKA_BROKERS),
    mysqlUrl: values.MYSQL_URL,
    ordersTopic: values.ORDERS_TOPIC,
    deadLetterTopic: values.ORDERS_DLQ_TOPIC,
    ordersGroup: values.ORDERS_GROUP,
    tokenKeys: values.PURCHASE_TOKEN_KEYS ? readKeys(values.PURCHASE_TOKEN_KEYS) : null,
  };
}

function readKeys(text: string): TokenKeys {
  const keys = new Map<string, Buffer>();
  for (const part of list(text)) {
    const colon = part.indexOf(':');
    // The key itself must never be printed, not even when it is malformed.
    if (colon < 1) throw new UsageError('PURCHASE_TOKEN_KEYS must be of the form kid:base64,kid2:base64');
    keys.set(part.slice(0, colon), Buffer.from(part.slice(colon + 1), 'base64'));
  }
  return keys;
}
