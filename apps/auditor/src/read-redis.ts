import { Cluster, Redis } from 'ioredis';
import { UsageError, type StoreAddresses } from './env.js';
import {
  ACCOUNT_FIELDS,
  type AccountField,
  type BucketEvidence,
  type RedisAttempt,
  type RedisShopper,
} from './evidence.js';
import { bucketKeys } from './grammar.js';
import type { Spill } from './spill.js';

/**
 * Account and transfers of one bucket at one moment. Only so can "nothing appears or disappears" be asked of a bucket that
 * is being used. The flag makes Redis refuse the script if it ever tried to write.
 */
const BUCKET_SNAPSHOT = `#!lua flags=no-writes
-- KEYS[1] account, KEYS[2] transfers; replies with both hashes as flat lists
return { redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]) }
`;

const LOOKED_AT = ['free', 'held', 'queued', 'sold', 'frozen'] as const;
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

  /** Units at this moment, over all buckets, and how many of them are frozen: what tells whether the sale is at rest. */
  async units(
    saleId: string,
    bucketCount: number,
  ): Promise<Readonly<Record<(typeof LOOKED_AT)[number], number>>> {
    const rows = await this.eachBucket(bucketCount, (bucket) =>
      this.client.hmget(bucketKeys(saleId, bucket).account, ...LOOKED_AT),
    );
    const sum = (index: number) => rows.reduce((total, row) => total + (Number(row[index]) || 0), 0);
    const frozen = rows.filter((row) => Number(row[4]) > 0).length;
    return { free: sum(0), held: sum(1), queued: sum(2), sold: sum(3), frozen };
  }

  /** How many attempts the buckets have a record of, aliases included. */
  async attemptCount(saleId: string, bucketCount: number): Promise<number> {
    const counts = await this.eachBucket(bucketCount, (bucket) =>
      this.client.hlen(bucketKeys(saleId, bucket).attempts),
    );
    return counts.reduce((sum, count) => sum + count, 0);
  }

  /** Reads everything the buckets hold; attempts, deadlines and shoppers are put aside. */
  async read(saleId: string, bucketCount: number, spill: Spill): Promise<BucketEvidence[]> {
    const { slices } = spill;
    return this.eachBucket(bucketCount, async (bucket) => {
      const keys = bucketKeys(saleId, bucket);
      const account = decodeBucket(
        bucket,
        await this.client.eval(BUCKET_SNAPSHOT, 2, keys.account, keys.transfers),
      );
      const dueTransfers = new Set<string>();
      await this.scan((cursor) => this.client.zscan(keys.deadlines, cursor, 'COUNT', SCAN_COUNT), {
        see: (member, score) => {
          if (member.startsWith('t:')) dueTransfers.add(member.slice(2));
          else {
            const attemptId = `${saleId}-${member}`;
            spill.put('due', slices.of(attemptId), [attemptId, Number(score)]);
          }
        },
      });
      await this.scan((cursor) => this.client.hscan(keys.attempts, cursor, 'COUNT', SCAN_COUNT), {
        see: (tail, packed) => {
          const attempt = decodeAttempt(`${saleId}-${tail}`, bucket, packed);
          if (attempt) spill.put('hold', slices.of(attempt.attemptId), attempt);
        },
      });
      await this.scan((cursor) => this.client.hscan(keys.shoppers, cursor, 'COUNT', SCAN_COUNT), {
        see: (shopperId, packed) => {
          const shopper: RedisShopper = { shopperId, bucket, used: integer(packed.split('|')[0]) };
          spill.put('used', slices.ofShopper(shopperId), shopper);
        },
      });
      return { ...account, dueTransfers };
    });
  }

  close(): void {
    this.client.disconnect();
  }

  /** Goes through a collection page by page. What Redis shows twice is seen twice. */
  private async scan(
    page: (cursor: string) => Promise<[cursor: string, elements: string[]]>,
    { see }: { see: (name: string, value: string) => void },
  ): Promise<void> {
    let cursor = '0';
    do {
      const [next, elements] = await page(cursor);
      for (let i = 0; i + 1 < elements.length; i += 2) see(elements[i] ?? '', elements[i + 1] ?? '');
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

function decodeBucket(bucket: number, reply: unknown): Omit<BucketEvidence, 'dueTransfers'> {
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

/** `state|shopper|quantity|deadlineMs|…|grantedAtMs|epoch`, or `null` for an alias `@|tail`. */
function decodeAttempt(attemptId: string, bucket: number, packed: string): RedisAttempt | null {
  const [state = '', shopperId = '', quantity, deadline, , , , , granted] = packed.split('|');
  return state === '@'
    ? null
    : {
        attemptId,
        bucket,
        state,
        shopperId,
        quantity: integer(quantity),
        deadlineMs: integer(deadline),
        grantedAtMs: integer(granted),
      };
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
