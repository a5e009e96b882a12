import { z } from 'zod';
import {
  serviceAddressVariable,
  callVariables,
  chassisVariables,
  grpcVariables,
  intVariable,
  kafkaVariables,
  msVariable,
  mysqlVariables,
  purchaseTokenVariables,
  readEnv,
  type Env,
} from '@flash-sale/service';

const topic = z.string().regex(/^[A-Za-z0-9._-]{1,100}$/, 'must be 1 to 100 characters of A-Z a-z 0-9 . _ -');

/** The order service's variables; units are in their names. */
export const orderVariables = {
  ...chassisVariables,
  ...callVariables,
  ...grpcVariables,
  ...kafkaVariables,
  ...mysqlVariables,
  ...purchaseTokenVariables,
  INVENTORY_URL: serviceAddressVariable.meta({ example: 'inventory:9000' }),
  ORDERS_TOPIC: topic.default('orders.v1'),
  /** Used only where the topic is not there yet. */
  ORDERS_PARTITIONS: intVariable({ min: 1, max: 1_000 }).default(12),
  /** The writer's consumer group, whose lag decides whether orders are taken. */
  ORDERS_GROUP: topic.default('order-writer'),
  MYSQL_POOL_SIZE: intVariable({ min: 2, max: 200 }).default(10),
  /** A produce begins at most this long after the hold was queued. Inventory's sweeper waits longer than that. */
  ENQUEUE_WINDOW_MS: msVariable.default(10_000),
  /** An acknowledgement that comes later than this after its send is no promise any more. */
  ACK_WINDOW_MS: msVariable.default(1_500),
  /** Orders are refused while the writer has more records than this before it. */
  MAX_WRITER_LAG: intVariable({ min: 1 }).default(50_000),
  /** How often orders whose time to pay is over, open payments and refunds are looked for. */
  SWEEP_EVERY_MS: msVariable.default(500),
  /** The provider is asked about a payment that has been pending for this long. */
  PAYMENT_ASK_AFTER_MS: msVariable.default(10_000),
  /** How long the provider may take to answer. */
  PAYMENT_CALL_TIMEOUT_MS: msVariable.default(3_000),
  /** The test provider's late cards settle after this long. */
  TEST_PROVIDER_LATE_MS: msVariable.default(2_000),
  /** Where the test provider reports late results; without it the provider must be asked. */
  PAYMENT_WEBHOOK_URL: z
    .url({ protocol: /^https?$/, error: 'must be an http or https URL' })
    .meta({ example: 'http://localhost:8080/v1/payments/webhook' })
    .optional(),
  /** Signs those reports; the gateway has the same. */
  PAYMENT_WEBHOOK_SECRET: z
    .string()
    .min(16, 'must have at least 16 characters')
    .meta({ example: '$(openssl rand -hex 32)', secret: true })
    .optional(),
} as const;

/** What must hold between the variables. */
export function orderRules(env: Env<typeof orderVariables>): readonly string[] {
  return env.PAYMENT_WEBHOOK_URL !== undefined && env.PAYMENT_WEBHOOK_SECRET === undefined
    ? ['PAYMENT_WEBHOOK_SECRET is needed to sign what is sent to PAYMENT_WEBHOOK_URL']
    : [];
}

/** The process's variables; ends the process when they are not right. */
export const readOrderEnv = () => readEnv(orderVariables, orderRules);
