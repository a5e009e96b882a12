import { Database, migrate } from '@flash-sale/database';
import { KafkaAdmin } from '@flash-sale/kafka';
import { RedisWatch, connectRedis, subscribe } from '@flash-sale/redis';
import { runMain, startService } from '@flash-sale/service';
import { readInventoryEnv } from './env.js';
import { InventoryModule } from './inventory.module.js';
import { FEED_CHANNEL, openInventory } from './inventory.js';

const env = readInventoryEnv();

await runMain('inventory', env.LOG_LEVEL, async (log) => {
  const address = { url: env.REDIS_URL, clusterNodes: env.REDIS_CLUSTER_NODES };
  const redis = await connectRedis({
    ...address,
    name: 'inventory',
    commandTimeoutMs: env.REDIS_COMMAND_TIMEOUT_MS,
    log,
  });
  const database = new Database({ url: env.MYSQL_URL, poolSize: env.MYSQL_POOL_SIZE });
  const kafka = new KafkaAdmin({ brokers: env.KAFKA_BROKERS, clientId: 'inventory', log });
  const servers = new RedisWatch(redis, { log, onChange: () => inventory.onServerChange() });
  const inventory = openInventory({
    redis,
    incarnationOf: (key) => {
      const { status, incarnation } = servers.serverOf(key);
      return status === 'serving' ? incarnation : undefined;
    },
    database,
    kafka,
    ordersTopic: env.ORDERS_TOPIC,
    ordersGroup: env.ORDERS_GROUP,
    queuedMs: env.QUEUED_MS,
    acknowledgedMs: env.ACKNOWLEDGED_MS,
    graceMs: env.SWEEP_GRACE_MS,
    leaseMs: env.SWEEP_LEASE_MS,
    sweepIntervalMs: env.SWEEP_INTERVAL_MS,
    effectAgeMs: env.EFFECT_AGE_MS,
    watchIntervalMs: env.WATCH_INTERVAL_MS,
    reconcileIntervalMs: env.RECONCILE_INTERVAL_MS,
    rebuildLeaseMs: env.REBUILD_LEASE_MS,
    log,
  });
  try {
    await migrate(env.MYSQL_URL);
    await inventory.book.refresh();
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message || String(cause) : String(cause);
    throw new Error(
      `the sales cannot be read from MySQL (${reason}); start it, or set MYSQL_URL to where it is`,
      { cause },
    );
  }
  const feed = subscribe({
    ...address,
    name: 'inventory-feed',
    channels: [FEED_CHANNEL],
    onMessage: (_, message) => inventory.onFeedMessage(message),
    onSubscribed: () => {
      inventory.book.refresh().catch((error: unknown) => log.warn({ err: error }, 'sales could not be read'));
    },
    log,
  });
  // Grants need no Kafka, so its absence is no reason not to start; but nothing can expire until it is there.
  kafka.logBounds(env.ORDERS_TOPIC).catch((error: unknown) => {
    log.warn({ err: error }, `topic ${env.ORDERS_TOPIC} cannot be read yet; until it can, no hold expires`);
  });
  await servers.start();
  inventory.start();
  await startService({
    log,
    ops: { port: env.OPS_PORT },
    grpc: { module: InventoryModule.with(inventory), host: env.GRPC_HOST, port: env.GRPC_PORT },
    health: {
      ready: {
        // Read once; while a store is away later, what needs it is answered with `unavailable`, and the rest goes on.
        sales: () => inventory.watch.isReady,
      },
    },
    drain: {
      waitMs: env.DRAIN_WAIT_MS,
      stop: [{ name: 'sweeping and watching', run: () => inventory.stop() }],
      close: [
        { name: 'redis watch', run: () => servers.stop() },
        { name: 'feed', run: () => feed.close() },
        { name: 'redis', run: () => redis.quit() },
        { name: 'mysql', run: () => database.close() },
        { name: 'kafka', run: () => kafka.close() },
      ],
    },
  });
});
