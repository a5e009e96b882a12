import { ORDERS_TOPIC_CONFIG, StockClient } from '@flash-sale/contracts';
import { Database, migrate } from '@flash-sale/database';
import { KafkaAdmin, SupervisedProducer } from '@flash-sale/kafka';
import { runMain, startService } from '@flash-sale/service';
import { OrderEnder } from './end-orders.js';
import { readOrderEnv } from './env.js';
import { Gate, QueuedDatabase } from './load.js';
import { OrdersModule } from './orders.controller.js';
import { TestPaymentProvider } from './payment-provider.js';
import { Payments } from './payments.js';
import { OrderPlacer } from './place-orders.js';
import { OrderReader } from './read-orders.js';
import { Sweep } from './repeat.js';
import { WriterLag } from './writer-lag.js';

const env = readOrderEnv();

/** Payments, cancellations and lists at once; most of a payment's time is the provider's. */
const MAX_CALLS = 128;
/** More are refused at once; these are worked off within seconds. */
const MAX_WAITING_CALLS = 2_000;

await runMain('order', env.LOG_LEVEL, async (log) => {
  const kafka = { brokers: env.KAFKA_BROKERS, clientId: 'order', log };
  const topic = env.ORDERS_TOPIC;
  await migrate(env.MYSQL_URL);
  // Its own connection, with a short time-out: the lag must be known again soon after Kafka is back.
  const admin = new KafkaAdmin({ ...kafka, requestTimeoutMs: 3_000 });
  await admin.ensureTopic({ topic, partitions: env.ORDERS_PARTITIONS, config: ORDERS_TOPIC_CONFIG });
  const producer = new SupervisedProducer(kafka);
  await producer.connect();
  const pool = new Database({ url: env.MYSQL_URL, poolSize: env.MYSQL_POOL_SIZE });
  const database = new QueuedDatabase(pool, env.MYSQL_POOL_SIZE);
  const stock = new StockClient(env.INVENTORY_URL);

  const lag = new WriterLag({ admin, topic, group: env.ORDERS_GROUP, maxLag: env.MAX_WRITER_LAG, log });
  const reader = new OrderReader({ database, stock, lag });
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

  const gate = new Gate(MAX_CALLS, MAX_WAITING_CALLS);
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
      module: OrdersModule.with({ placer, reader, ender, payments, gate, log }),
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
