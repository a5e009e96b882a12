import { Cluster, Redis } from 'ioredis';
import { UsageError, type StoreAddresses } from './env.js';
import {
  ACCOUNT_FIELDS,
  type AccountField,
  type BucketEvidence,
  type RedisAttempt,
  type RedisEvidence,
  type RedisShopper,
} from './evidence.js';
import { bucketKeys } from './grammar.js';

/**
 * Account and transfers of one bucket at one moment. Only so can "nothing appears or disappears" be asked of a bucket that
 * is being used. The flag makes Redis refuse the script if it ever tried to write.
 */
const BUCKET_SNAPSHOT = `#!lua flags=no-writes
-- KEYS[1] account, KEYS[2] transfers; replies with both hashes as flat lists
return { redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]) }
`;

const SCAN_COUNT = 1_000;
const COMMAND_TIMEOUT_MS = 10_000;
/** Buckets read at the same time. */
const CONCURRENT_BUCKETS = 8;

const CONNECTION = {
  connectionName: 'auditor',
  lazyConnect: true,
  connectTimeout: 3_000,
  commandTimeout: COMMAND_TIMEOUT_MS,
  maxRetriesPerRequest: 1,
  // Redis 7.0 does not know CLIENT SETINFO.
  disableClientInfo: true,
  protocol: 2,
} as const;

/** Reads the sale's buckets; never writes. */
export class RedisReader {
  private readonly client: Redis | Cluster;
  private readonly where: string;
  private lastError = '';

  constructor({ redis }: Pick<StoreAddresses, 'redis'>) {
    if ('url' in redis) {
      this.where = hostOf(redis.url);
      this.client = new Redis(redis.url, {
        ...CONNECTION,
        retryStrategy: (times) => (times < 3 ? 200 : null),
      });
    } else {
      this.where = redis.clusterNodes.map(hostOf).join(', ');
      this.client = openCluster(redis.clusterNodes);
    }
    // Without a listener ioredis prints every failed attempt.
    this.client.on('error', (error: Error) => {
      this.lastError = error.message;
    });
  }

  /** @throws UsageError where Redis does not answer */
  async connect(): Promise<void> {
    try {
      await this.client.connect();
      await this.client.ping();
    } catch (error) {
      const reason = this.lastError || (error instanceof Error ? error.message : String(error));
      throw new UsageError(
        `Redis does not answer at ${this.where} (${reason}); start it, or set REDIS_URL or REDIS_CLUSTER_NODES to where it is.`,
      );
    }
  }

  /** Units held or queued at this moment: what has to be 0 before the sale is at rest. */
  async unresolvedUnits(saleId: string, bucketCount: number): Promise<number> {
    const units = await this.eachBucket(bucketCount, async (bucket) => {
      const counts = await this.client.hmget(bucketKeys(saleId, bucket).account, 'held', 'queued');
      return counts.reduce((sum, count) => sum + (Number(count) || 0), 0);
    });
    return units.reduce((sum, count) => sum + count, 0);
  }

  /** Everything the buckets hold. */
  async read(saleId: string, bucketCount: number): Promise<RedisEvidence> {
    const attempts = new Map<string, RedisAttempt>();
    const shoppers: RedisShopper[] = [];
    const buckets = await this.eachBucket(bucketCount, async (bucket) => {
      const keys = bucketKeys(saleId, bucket);
      const snapshot = decodeBucket(
        bucket,
        await this.client.eval(BUCKET_SNAPSHOT, 2, keys.account, keys.transfers),
      );
      await this.scan(keys.attempts, (tail, packed) => {
        const attempt = decodeAttempt(`${saleId}-${tail}`, bucket, packed);
        if (attempt) attempts.set(attempt.attemptId, attempt);
      });
      await this.scan(keys.shoppers, (shopperId, packed) => {
        shoppers.push({ shopperId, bucket, used: integer(packed.split('|')[0]) });
      });
      return snapshot;
    });
    return { buckets, attempts, shoppers };
  }

  close(): void {
    this.client.disconnect();
  }

  private async scan(key: string, see: (field: string, value: string) => void): Promise<void> {
    let cursor = '0';
    do {
      const [next, page] = await this.client.hscan(key, cursor, 'COUNT', SCAN_COUNT);
      for (let i = 0; i + 1 < page.length; i += 2) see(page[i] ?? '', page[i + 1] ?? '');
      cursor = next;
    } while (cursor !== '0');
  }

  private async eachBucket<T>(bucketCount: number, read: (bucket: number) => Promise<T>): Promise<T[]> {
    const results: T[] = [];
    for (let first = 0; first < bucketCount; first += CONCURRENT_BUCKETS) {
      const size = Math.min(CONCURRENT_BUCKETS, bucketCount - first);
      results.push(...(await Promise.all(Array.from({ length: size }, (_, i) => read(first + i)))));
    }
    return results;
  }
}

function openCluster(nodes: readonly string[]): Cluster {
  const urls = nodes.map((node) => new URL(node.includes('://') ? node : `redis://${node}`));
  const [first] = urls;
  return new Cluster(
    urls.map((url) => ({ host: url.hostname, port: Number(url.port || 6379) })),
    {
      lazyConnect: true,
      clusterRetryStrategy: (times) => (times < 3 ? 200 : null),
      redisOptions: {
        ...CONNECTION,
        ...(first?.username && { username: decodeURIComponent(first.username) }),
        ...(first?.password && { password: decodeURIComponent(first.password) }),
        ...(first?.protocol === 'rediss:' && { tls: {} }),
      },
    },
  );
}

function decodeBucket(bucket: number, reply: unknown): BucketEvidence {
  const [account, transfers] = reply as [string[], string[]];
  const fields = pairs(account);
  return {
    bucket,
    present: fields.size > 0,
    account: Object.fromEntries(ACCOUNT_FIELDS.map((field) => [field, integer(fields.get(field))])) as Record<
      AccountField,
      number
    >,
    transfers: new Map(
      [...pairs(transfers)].map(([id, packed]) => {
        const [kind = '', units] = packed.split('|');
        return [id, { kind, units: integer(units) }];
      }),
    ),
  };
}

/** `state|shopper|quantity|…`, or `null` for an alias `@|tail`. */
function decodeAttempt(attemptId: string, bucket: number, packed: string): RedisAttempt | null {
  const [state = '', shopperId = '', quantity] = packed.split('|');
  return state === '@' ? null : { attemptId, bucket, state, shopperId, quantity: integer(quantity) };
}

function pairs(flat: readonly string[]): Map<string, string> {
  const map = new Map<string, string>();
  for (let i = 0; i + 1 < flat.length; i += 2) map.set(flat[i] ?? '', flat[i + 1] ?? '');
  return map;
}

/** An integer as Redis keeps it, `NaN` for anything else (an empty string would otherwise count as 0). */
function integer(text: string | undefined): number {
  return text !== undefined && /^-?\d{1,15}$/.test(text) ? Number(text) : NaN;
}

/** Host and port without user and password. */
function hostOf(node: string): string {
  const text = node.includes('://') ? node : `redis://${node}`;
  return URL.canParse(text) ? new URL(text).host : node;
}
