import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Database } from '@flash-sale/database';
import { connectRedis, type RedisClient } from '@flash-sale/redis';
import {
  startPrivateServer,
  startRedisCluster,
  type PrivateServer,
  type RedisCluster,
} from '@flash-sale/stack';
import type { ProcessGroup } from './processes.js';

/** What the services are given. One of the two about Redis is there. */
export interface Addresses {
  readonly redisUrl?: string;
  readonly redisClusterNodes?: readonly string[];
  readonly kafkaBrokers: string;
  /** Ends with `/`. */
  readonly mysqlUrl: string;
}

/** Which servers a suite uses, and their processes. */
export interface Servers {
  readonly addresses: Addresses;
  readonly groups: readonly ProcessGroup[];
}

/**
 * A Redis, a Kafka and a MySQL that nobody else uses: their CPU time and memory are what the suite costs them. They are the
 * programs and settings that everything else here runs on.
 */
export class OwnServers implements Servers {
  private cluster: RedisCluster | undefined;

  private constructor(
    private readonly folder: string,
    private readonly redis: PrivateServer,
    private readonly kafka: PrivateServer,
    private readonly mysql: PrivateServer,
    private readonly client: RedisClient,
  ) {}

  static async start(log: (line: string) => void): Promise<OwnServers> {
    const folder = mkdtempSync(join(tmpdir(), 'flash-sale-bench-'));
    const start = (name: 'redis' | 'kafka' | 'mysql') => startPrivateServer(name, { folder, log });
    const outcomes = await Promise.allSettled([start('redis'), start('kafka'), start('mysql')]);
    const [redis, kafka, mysql] = outcomes;
    if (redis.status === 'fulfilled' && kafka.status === 'fulfilled' && mysql.status === 'fulfilled') {
      const url = `redis://127.0.0.1:${redis.value.port}`;
      const client = await connectRedis({ url, name: 'bench' });
      return new OwnServers(folder, redis.value, kafka.value, mysql.value, client);
    }
    // One that started must not stay behind one that did not.
    for (const one of outcomes) if (one.status === 'fulfilled') one.value.signal('SIGKILL');
    rmSync(folder, { recursive: true, force: true });
    throw outcomes.find((one) => one.status === 'rejected')?.reason;
  }

  get addresses(): Addresses {
    return { redisUrl: `redis://127.0.0.1:${this.redis.port}`, ...this.otherAddresses };
  }

  get groups(): readonly ProcessGroup[] {
    return [{ name: 'redis', pids: [this.redis.pid] }, ...this.otherGroups];
  }

  /** The same Kafka and MySQL with a Redis Cluster of three masters, which is started once and has an append-only file too. */
  async withRedisCluster(): Promise<Servers> {
    const cluster = (this.cluster ??= await startRedisCluster({ masters: 3 }));
    for (const node of cluster.nodes) {
      const client = await connectRedis({ url: node, name: 'bench' });
      await client.call('CONFIG', 'SET', 'appendonly', 'yes');
      client.disconnect();
    }
    const redisClusterNodes = cluster.nodes.map((url) => new URL(url).host);
    return {
      addresses: { redisClusterNodes, ...this.otherAddresses },
      groups: [{ name: 'redis', pids: cluster.pids }, ...this.otherGroups],
    };
  }

  /** What Redis keeps as data, bytes: without what its clients' connections and its append-only file need for a moment. */
  async redisDataBytes(): Promise<number> {
    return Number(/^used_memory_dataset:(\d+)/m.exec(await this.redisInfo('memory'))?.[1] ?? Number.NaN);
  }

  /** Names and versions, for the report. */
  async versions(): Promise<Record<'redis' | 'mysql', string>> {
    const redis = /^redis_version:(\S+)/m.exec(await this.redisInfo('server'))?.[1] ?? 'unknown';
    const database = new Database({ url: `${this.otherAddresses.mysqlUrl}mysql`, poolSize: 1 });
    try {
      const [row] = await database.query('SELECT VERSION() AS version');
      return { redis, mysql: String(row?.['version']) };
    } finally {
      await database.close();
    }
  }

  async stop(): Promise<void> {
    this.client.disconnect();
    await this.cluster?.stop();
    // Nothing in them is worth an orderly end.
    for (const server of [this.redis, this.kafka, this.mysql]) server.signal('SIGKILL');
    await Promise.all([this.redis, this.kafka, this.mysql].map((server) => server.stop()));
    rmSync(this.folder, { recursive: true, force: true });
  }

  private get otherAddresses() {
    return {
      kafkaBrokers: `127.0.0.1:${this.kafka.port}`,
      mysqlUrl: `mysql://root@127.0.0.1:${this.mysql.port}/`,
    };
  }

  private get otherGroups(): readonly ProcessGroup[] {
    return [
      { name: 'kafka', pids: [this.kafka.pid] },
      { name: 'mysql', pids: [this.mysql.pid] },
    ];
  }

  private async redisInfo(section: string): Promise<string> {
    return String(await this.client.call('INFO', section));
  }
}
