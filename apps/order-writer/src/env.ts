import { z } from 'zod';
import {
  serviceAddressVariable,
  chassisVariables,
  intVariable,
  kafkaVariables,
  msVariable,
  mysqlVariables,
  purchaseTokenVariables,
  readEnv,
} from '@flash-sale/service';

const topic = z.string().regex(/^[A-Za-z0-9._-]{1,100}$/, 'must be 1 to 100 characters of A-Z a-z 0-9 . _ -');

/** The order-writer's variables; units are in their names. */
export const writerVariables = {
  ...chassisVariables,
  ...kafkaVariables,
  ...mysqlVariables,
  ...purchaseTokenVariables,
  INVENTORY_URL: serviceAddressVariable.meta({ example: 'inventory:9000' }),
  ORDERS_TOPIC: topic.default('orders.v1'),
  ORDERS_DLQ_TOPIC: topic.default('orders.dlq'),
  /** Used only where the topics are not there yet. */
  ORDERS_PARTITIONS: intVariable({ min: 1, max: 1_000 }).default(12),
  ORDERS_GROUP: topic.default('order-writer'),
  /** A statement without an answer for this long fails and is tried again. */
  MYSQL_QUERY_TIMEOUT_MS: msVariable.default(5_000),
} as const;

/** The process's variables; ends the process when they are not right. */
export const readWriterEnv = () => readEnv(writerVariables);
