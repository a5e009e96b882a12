import {
  chassisVariables,
  grpcVariables,
  intVariable,
  kafkaVariables,
  msVariable,
  mysqlVariables,
  readEnv,
  redisRule,
  redisVariables,
  type Env,
} from '@flash-sale/service';
import { z } from 'zod';

const topicVariable = z
  .string()
  .regex(/^[A-Za-z0-9._-]{1,200}$/, 'must be a name of letters, digits and . _ -')
  .meta({ example: 'orders.v1' });

/** Inventory's variables. Everything with a unit says it in its name. */
export const inventoryVariables = {
  ...chassisVariables,
  ...grpcVariables,
  ...redisVariables,
  ...kafkaVariables,
  ...mysqlVariables,
  /** Where orders are queued, and the group that writes them: the sweeper asks how far it has come. */
  ORDERS_TOPIC: topicVariable.default('orders.v1'),
  ORDERS_GROUP: topicVariable.default('order-writer'),
  MYSQL_POOL_SIZE: intVariable({ min: 2, max: 200 }).default(10),
  /** A Redis command without an answer for this long is given up, as not known. */
  REDIS_COMMAND_TIMEOUT_MS: msVariable.default(250),
  /** How far ahead the deadline of a queued order is set while its produce may be under way. */
  QUEUED_MS: msVariable.default(30_000),
  /** How far ahead once Kafka has acknowledged it. */
  ACKNOWLEDGED_MS: msVariable.default(600_000),
  /** How long after its `queue` an order may still be produced, and how long its acknowledgement may take: order's rule. */
  ENQUEUE_WINDOW_MS: msVariable.default(10_000),
  ACK_WINDOW_MS: msVariable.default(1_500),
  /** How long after a deadline the sweeper leaves an attempt alone: produce window, acknowledgement and clock reading. */
  SWEEP_GRACE_MS: msVariable.default(15_000),
  SWEEP_INTERVAL_MS: intVariable({ min: 20, max: 60_000 }).default(1_000),
  /** How long one sweeper keeps an expiring attempt or a half transfer to itself before another takes it up. */
  SWEEP_LEASE_MS: intVariable({ min: 100, max: 600_000 }).default(5_000),
  /** How old an effect must be before it is applied by others than the one who decided it. */
  EFFECT_AGE_MS: msVariable.default(1_000),
  /** How often sales are read again, "sold out" is doubted and the feed is compared with the truth. */
  WATCH_INTERVAL_MS: intVariable({ min: 20, max: 60_000 }).default(1_000),
  /** How often Redis is compared with MySQL; what two comparisons see alike is corrected. */
  RECONCILE_INTERVAL_MS: intVariable({ min: 20, max: 600_000 }).default(2_000),
  /** How long the one who rebuilds a sale that Redis has lost may be silent before another takes over. */
  REBUILD_LEASE_MS: intVariable({ min: 500, max: 600_000 }).default(5_000),
} as const;

export type InventoryEnv = Env<typeof inventoryVariables>;

/** What must hold between the variables. */
export function inventoryRules(env: InventoryEnv): readonly string[] {
  const neededMs = env.ENQUEUE_WINDOW_MS + env.ACK_WINDOW_MS + 1_000;
  const faults = [...redisRule(env)];
  // A unit must not return while the order that it was held for may still reach Kafka.
  if (env.SWEEP_GRACE_MS < neededMs) {
    faults.push(
      `SWEEP_GRACE_MS is ${env.SWEEP_GRACE_MS}, but must be at least ENQUEUE_WINDOW_MS + ACK_WINDOW_MS + 1000 = ${neededMs}`,
    );
  }
  return faults;
}

/** The process's variables; ends the process when they are not right. */
export function readInventoryEnv(): InventoryEnv {
  return readEnv(inventoryVariables, inventoryRules);
}
