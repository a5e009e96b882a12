import { ORDERS_TOPIC_CONFIG, StockClient } from '@flash-sale/contracts';
import { Database, migrate } from '@flash-sale/database';
import { KafkaAdmin, SupervisedProducer } from '@flash-sale/kafka';
import { runMain, startService } from '@flash-sale/service';
import { DeadLetters } from './dead-letters.js';
import { OrderEnder } from './end-orders.js';
import { readOrderEnv } from './env.js';
import { Gate, QueuedDatabase } from './load.js';
import { OperatorLog } from './operator-log.js';
import { OperatorParts } from './operators.controller.js';
import { OrdersModule } from './orders.controller.js';
import { TestPaymentProvider } from './payment-provider.js';
import { Payments } from './payments.js';
import { OrderPlacer } from './place-orders.js';
import { OrderReader } from './read-orders.js';
import { Sweep } from './repeat.js';
import { WriterLag } from './writer-lag.js';

const env = readOrderEnv();

/** Payments at once; most of a payment's time is the provider's. */
const MAX_PAYMENTS = 128;
/** Cancellations and the provider's events at once: they never wait for payments. */
const MAX_ENDINGS = 16;
const MAX_LISTS = 4;
/** Of each kind; more are refused at once. */
const MAX_WAITING = 256;
/** Connections that lists and operators may use at once; the others are for who orders, pays, cancels and looks. */
const ASIDE_CONNECTIONS = 2;
const MAX_OPERATOR_CALLS = 4;
const MAX_WAITING_OPERATOR_CALLS = 16;

await runMain('order', env.LOG_LEVEL, async (log) => {
  const kafka = { brokers: env.KAFKA_BROKERS, clientId: 'order', log };
  const topic = env.ORDERS_TOPIC;
  await migrate(env.MYSQL_URL);
  // Its own connection, with a short time-out: the lag must be known again soon after Kafka is back.
  const admin = new KafkaAdmin({ ...kafka, requestTimeoutMs: 3_000 });
  // Reading and paying need no Kafka, so neither the topic nor a broker is waited for.
  admin.startEnsuring([{ topic, partitions: env.ORDERS_PARTITIONS, config: ORDERS_TOPIC_CONFIG }]);
  const producer = new SupervisedProducer(kafka);
  producer.start();
  const pool = new Database({ url: env.MYSQL_URL, poolSize: env.MYSQL_POOL_SIZE });
  const asideConnections = Math.min(ASIDE_CONNECTIONS, env.MYSQL_POOL_SIZE - 1);
  const database = new QueuedDatabase(pool, env.MYSQL_POOL_SIZE - asideConnections);
  const aside = new QueuedDatabase(pool, asideConnections);
  const stock = new StockClient(env.INVENTORY_URL, { coalesce: env.COALESCE });

  const lag = new WriterLag({ admin, topic, group: env.ORDERS_GROUP, maxLag: env.MAX_WRITER_LAG, log });
  const reader = new OrderReader({ database, lists: aside, stock, lag });
  const placer = new OrderPlacer({
    keys: env.PURCHASE_TOKEN_KEYS,
    stock,
    reader,
    lag,
    producer,
    topic,
    enqueueWindowMs: env.ENQUEUE_WINDOW_MS,
    ackWindowMs: env.ACK_WINDOW_MS,
    log,
  });
  const ender = new OrderEnder({ database, stock, reader, log });
  const { PAYMENT_WEBHOOK_URL: url, PAYMENT_WEBHOOK_SECRET: secret } = env;
  const provider = new TestPaymentProvider({
    database,
    lateMs: env.TEST_PROVIDER_LATE_MS,
    webhook: url !== undefined && secret !== undefined ? { url, secret } : undefined,
    log,
  });
  const payments = new Payments({
    database,
    provider,
    reader,
    keys: env.PURCHASE_TOKEN_KEYS,
    callTimeoutMs: env.PAYMENT_CALL_TIMEOUT_MS,
    askAfterMs: env.PAYMENT_ASK_AFTER_MS,
    log,
  });

  const gates = {
    payments: new Gate(MAX_PAYMENTS, MAX_WAITING),
    endings: new Gate(MAX_ENDINGS, MAX_WAITING),
    lists: new Gate(MAX_LISTS, MAX_WAITING),
  };
  const operators = new OperatorParts(
    new DeadLetters({ database: aside, producer, topic, keys: env.PURCHASE_TOKEN_KEYS, log }),
    new OperatorLog(aside),
    new Gate(MAX_OPERATOR_CALLS, MAX_WAITING_OPERATOR_CALLS),
  );
  const steps = {
    'unpaid orders': () => ender.endUnpaid(),
    'pending payments': () => payments.askAboutPending(),
    refunds: () => payments.refundDue(),
    'late payment results': () => provider.reportDue(),
  };
  const sweeps = Object.entries(steps).map(
    ([name, step]) => new Sweep({ name, everyMs: env.SWEEP_EVERY_MS, step, log }),
  );
  lag.start();
  for (const sweep of sweeps) sweep.start();

  await startService({
    log,
    ops: { port: env.OPS_PORT },
    grpc: {
      module: OrdersModule.with({ placer, reader, ender, payments, gates, operators, log }),
      host: env.GRPC_HOST,
      port: env.GRPC_PORT,
    },
    health: {
      ready: {
        // Kafka away is no reason to take reads and payments away too; but once it must have been seen.
        lag: () => lag.wasKnown(),
      },
    },
    drain: {
      waitMs: env.DRAIN_WAIT_MS,
      stop: sweeps.map((sweep, index) => ({ name: `sweep ${index + 1}`, run: () => sweep.stop() })),
      flush: [
        { name: 'producer', run: () => producer.close() },
        { name: 'offsets', run: () => placer.drain() },
      ],
      close: [
        { name: 'lag', run: () => lag.stop() },
        { name: 'kafka admin', run: () => admin.close() },
        { name: 'inventory', run: () => stock.close() },
        { name: 'database', run: () => pool.close() },
      ],
    },
  });
});
