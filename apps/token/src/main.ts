import { Module } from '@nestjs/common';
import { StockClient } from '@flash-sale/contracts';
import { connectRedis } from '@flash-sale/redis';
import { runMain, startService } from '@flash-sale/service';
import { readTokenEnv } from './env.js';
import { derivedSecret } from './issue-token.js';
import { LineController } from './line.controller.js';
import { Line } from './line.js';
import { ProofOfWork } from './proof-of-work.js';

@Module({})
class TokenModule {}

const env = readTokenEnv();

await runMain('token', env.LOG_LEVEL, async (log) => {
  const redis = await connectRedis({
    url: env.REDIS_URL,
    clusterNodes: env.REDIS_CLUSTER_NODES,
    name: 'token',
    log,
  });
  const stock = new StockClient(env.INVENTORY_URL, { coalesce: env.COALESCE });
  const keys = env.PURCHASE_TOKEN_KEYS;
  const proofOfWork = new ProofOfWork(redis, {
    secret: derivedSecret(keys[0].secret, 'challenge'),
    cost: env.CHALLENGE_COST,
    maxTries: env.CHALLENGE_MAX_TRIES,
    lifetimeMs: env.CHALLENGE_LIFETIME_MS,
    now: Date.now,
  });
  const line = new Line({ redis, stock, keys, proofOfWork, stockTimeoutMs: env.STOCK_TIMEOUT_MS });

  await startService({
    log,
    ops: { port: env.OPS_PORT },
    grpc: {
      module: {
        module: TokenModule,
        controllers: [LineController],
        providers: [
          { provide: Line, useValue: line },
          { provide: ProofOfWork, useValue: proofOfWork },
        ],
      },
      host: env.GRPC_HOST,
      port: env.GRPC_PORT,
    },
    drain: {
      waitMs: env.DRAIN_WAIT_MS,
      close: [
        { name: 'inventory', run: () => stock.close() },
        { name: 'redis', run: () => redis.disconnect() },
      ],
    },
  });
});
