import { hostname } from 'node:os';
import { DEAD_LETTER_TOPIC_CONFIG, ORDERS_TOPIC_CONFIG, StockClient } from '@flash-sale/contracts';
import { Database, migrate } from '@flash-sale/database';
import { BatchConsumer, KafkaAdmin, SupervisedProducer } from '@flash-sale/kafka';
import { meter, runMain, startService } from '@flash-sale/service';
import { EffectAnnouncer } from './announce-effects.js';
import { DeadLetterTopic } from './dead-letters.js';
import { readWriterEnv } from './env.js';
import { OrderWriter } from './writer.js';

const env = readWriterEnv();

await runMain('order-writer', env.LOG_LEVEL, async (log) => {
  const kafka = { brokers: env.KAFKA_BROKERS, clientId: 'order-writer', log };
  await migrate(env.MYSQL_URL);
  const admin = new KafkaAdmin(kafka);
  const partitions = env.ORDERS_PARTITIONS;
  const topicsAreThere = admin.startEnsuring([
    { topic: env.ORDERS_TOPIC, partitions, config: ORDERS_TOPIC_CONFIG },
    { topic: env.ORDERS_DLQ_TOPIC, partitions: 1, config: DEAD_LETTER_TOPIC_CONFIG },
  ]);

  const database = new Database({
    url: env.MYSQL_URL,
    poolSize: 4,
    queryTimeoutMs: env.MYSQL_QUERY_TIMEOUT_MS,
  });
  // A dead letter may be as large as a request may be, so each has one of its own.
  const producer = new SupervisedProducer({ ...kafka, maxBatch: 1, maxInFlight: 4 });
  producer.start();
  const stock = new StockClient(env.INVENTORY_URL);
  const announcer = new EffectAnnouncer(stock, log);
  const writer = new OrderWriter({
    database,
    deadLetters: new DeadLetterTopic(producer, env.ORDERS_DLQ_TOPIC),
    keys: env.PURCHASE_TOKEN_KEYS,
    announce: announcer.announce,
    log,
  });
  const consumer = new BatchConsumer({
    ...kafka,
    topic: env.ORDERS_TOPIC,
    groupId: env.ORDERS_GROUP,
    // A container that is started again keeps its host's name; processes of one host differ by the port. With any port (0)
    // nobody could tell them apart.
    ...(env.OPS_PORT > 0 && { instance: `${hostname()}:${env.OPS_PORT}` }),
    handle: (chunk) => writer.handle(chunk),
    maxChunk: 500,
    // All partitions at once: their chunks meet in one transaction.
    concurrency: partitions,
    gatherMs: 50,
  });
  consumer.start();
  measureLag(consumer);

  await startService({
    log,
    ops: { port: env.OPS_PORT },
    health: {
      live: { consumer: () => consumer.isHealthy() },
      ready: { topics: topicsAreThere, consumer: () => consumer.isHealthy() },
    },
    drain: {
      waitMs: 0,
      stop: [{ name: 'consumer', run: () => consumer.stop() }],
      flush: [
        { name: 'effects', run: () => announcer.drain() },
        { name: 'dead letters', run: () => producer.close() },
      ],
      close: [
        { name: 'inventory', run: () => stock.close() },
        { name: 'database', run: () => database.close() },
        { name: 'kafka admin', run: () => admin.close() },
      ],
    },
  });
});

function measureLag(consumer: BatchConsumer): void {
  const of = meter();
  const age = of.createObservableGauge('orders.lag.age', {
    unit: 's',
    description: 'Age of the oldest order not written yet, over the partitions this process has',
  });
  const records = of.createObservableGauge('orders.lag.records', {
    description: 'Orders not written yet, over the partitions this process has',
  });
  const resting = of.createObservableGauge('orders.resting_partitions', {
    description: 'Partitions that wait after a failure before they are tried again',
  });
  of.addBatchObservableCallback(
    (result) => {
      const figures = consumer.figures();
      result.observe(age, figures.oldestAgeMs / 1_000);
      result.observe(records, figures.lagRecords);
      result.observe(resting, figures.restingPartitions);
    },
    [age, records, resting],
  );
}
