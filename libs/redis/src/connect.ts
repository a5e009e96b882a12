import { Cluster, Redis, type RedisOptions } from 'ioredis';
import { silentLog, type AdapterLog } from './adapter-log.js';
import { redisFailureOf } from './failure.js';

/** A single server (or whichever is the primary behind its address), or a cluster. The two have the same commands. */
export type RedisClient = Redis | Cluster;

/** Where Redis is: exactly one of `url` and `clusterNodes`. */
export interface RedisAddress {
  /** `redis://[user:password@]host:port[/db]`, or `rediss://` for TLS. */
  readonly url?: string | undefined;
  /** Some masters of a cluster, each as `host:port` or as an URL; the others are discovered from them. */
  readonly clusterNodes?: readonly string[] | undefined;
}

export interface RedisConnectOptions extends RedisAddress {
  /** Shows in `CLIENT LIST`, e.g. `inventory`. */
  readonly name: string;
  /** A command without an answer for this long rejects; it may have been carried out all the same. */
  readonly commandTimeoutMs?: number;
  /** How long the first connection may take before {@link connectRedis} gives up. */
  readonly readyWithinMs?: number;
  readonly log?: AdapterLog;
}

const RECONNECT_MAX_MS = 500;
/** A socket that swallowed a command and said nothing for this long is thrown away, and a new one made. */
const SOCKET_SILENCE_MS = 2_000;

/**
 * The settings that every connection shares. ioredis is made for convenience: by default it queues what it cannot send and
 * sends again what was not answered. Stock must not be taken by a request that its caller gave up long ago, so all of that
 * is off: a command is written once, at once, or it rejects.
 */
export function connectionOptions(name: string, commandTimeoutMs: number) {
  return {
    ...nodeOptions(name, commandTimeoutMs),
    // By default commands wait while there is no connection and run after recovery, when nobody waits for them.
    enableOfflineQueue: false,
    retryStrategy: reconnectDelayMs,
  } satisfies RedisOptions;
}

const reconnectDelayMs = (times: number) => Math.min(50 * times, RECONNECT_MAX_MS);

function nodeOptions(name: string, commandTimeoutMs: number) {
  return {
    connectionName: name,
    // Redis 7.0 does not know CLIENT SETINFO.
    disableClientInfo: true,
    // RESP3 changes the shapes of replies; every decoder of ours is written for RESP2.
    protocol: 2,
    // By default a DECR whose reply was lost is sent again after reconnecting and counts twice.
    autoResendUnfulfilledCommands: false,
    // Rejects what was not answered as soon as the connection closes, not only when there is a new one.
    maxRetriesPerRequest: 0,
    // There is no default; a silent server would hang its callers for ever.
    commandTimeout: commandTimeoutMs,
    socketTimeout: Math.max(SOCKET_SILENCE_MS, 2 * commandTimeoutMs),
    connectTimeout: 2_000,
    keepAlive: 10_000,
    noDelay: true,
    // After a failover the old primary is a replica. 1 reconnects; 2 would also send the command again.
    reconnectOnError: (error: Error) => (redisFailureOf(error) === 'read_only' ? (1 as const) : false),
    // While it loads its data a server is asked again each half second, not after the time that it estimates.
    maxLoadingRetryTime: RECONNECT_MAX_MS,
  } satisfies RedisOptions;
}

/**
 * Opens a client and waits until it can be used. Afterwards it reconnects by itself for ever; meanwhile commands reject at
 * once.
 *
 * @throws when nothing answers within `readyWithinMs`; the message says which address was tried
 */
export async function connectRedis(options: RedisConnectOptions): Promise<RedisClient> {
  const client = openClient(options);
  watch(client, options.name, options.log ?? silentLog);
  const withinMs = options.readyWithinMs ?? 30_000;
  try {
    await ready(client, withinMs);
  } catch (cause) {
    client.disconnect();
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new Error(
      `no usable Redis at ${describeAddress(options)} within ${withinMs} ms (${reason}); ` +
        'start it, or set REDIS_URL or REDIS_CLUSTER_NODES to where it is',
      { cause },
    );
  }
  return client;
}

/** The server's clock in milliseconds since 1970. On a cluster: the clock of one of the nodes. */
export async function redisTimeMs(client: RedisClient): Promise<number> {
  const [seconds, microseconds] = await client.time();
  return Number(seconds) * 1_000 + Math.floor(Number(microseconds) / 1_000);
}

/** `host:port` of each node, without user and password, for messages. */
export function describeAddress(address: RedisAddress): string {
  return nodesOf(address)
    .map((node) => node.host)
    .join(', ');
}

/** The nodes of an address as URLs; checks that exactly one kind of address is given. */
export function nodesOf({ url, clusterNodes }: RedisAddress): URL[] {
  const nodes = clusterNodes ?? [];
  if ((url === undefined) === (nodes.length === 0)) {
    throw new Error(
      'give the address of one Redis (REDIS_URL) or of the nodes of a cluster (REDIS_CLUSTER_NODES)',
    );
  }
  return (url === undefined ? nodes : [url]).map((node) => {
    const text = node.includes('://') ? node : `redis://${node}`;
    if (!URL.canParse(text)) throw new Error(`"${node}" is no address of a Redis; write redis://host:port`);
    return new URL(text);
  });
}

function openClient(options: RedisConnectOptions): RedisClient {
  const commandTimeoutMs = options.commandTimeoutMs ?? 250;
  const nodes = nodesOf(options);
  const first = nodes[0];
  if (options.url !== undefined) {
    const client = new Redis(options.url, connectionOptions(options.name, commandTimeoutMs));
    writeTogether(client);
    return client;
  }
  const cluster = new Cluster(
    nodes.map((node) => ({ host: node.hostname, port: Number(node.port || 6379) })),
    {
      redisOptions: {
        ...nodeOptions(options.name, commandTimeoutMs),
        // A cluster's node always has an offline queue until it is connected, so that has to be soon.
        connectTimeout: 1_000,
        ...(first?.username && { username: decodeURIComponent(first.username) }),
        ...(first?.password && { password: decodeURIComponent(first.password) }),
        ...(first?.protocol === 'rediss:' && { tls: {} }),
      },
      // Of the cluster as a whole: in redisOptions it would be ignored.
      enableOfflineQueue: false,
      // Auto-pipelining picks wrong slots for EVALSHA, and MOVED repeats whole pipelines.
      enableAutoPipelining: false,
      // More than 0 would send a command again whose connection closed before the answer came.
      retryDelayOnFailover: 0,
      // These repeat only what no node carried out, but also after its caller has given up.
      retryDelayOnClusterDown: 0,
      maxRedirections: 4,
      clusterRetryStrategy: reconnectDelayMs,
      slotsRefreshInterval: 5_000,
    },
  );
  // ioredis connects to a node when the first command for it comes, and without a queue rejects all that come meanwhile.
  const prepare = (node: Redis) => {
    writeTogether(node);
    if (node.status === 'wait') node.connect().catch(() => {});
  };
  cluster.on('+node', prepare);
  for (const node of cluster.nodes()) prepare(node);
  return cluster;
}

/**
 * Lets the commands of one step leave in one system call, which costs more than most commands do, here and at the server. Each
 * stays a command of its own, with its own answer, and none waits: the socket is written to as soon as the step has ended.
 */
function writeTogether(node: Redis): void {
  node.on('connect', () => {
    const { stream } = node;
    const write = stream.write.bind(stream) as (...args: unknown[]) => boolean;
    let isHeld = false;
    stream.write = (...args: unknown[]) => {
      if (!isHeld) {
        isHeld = true;
        stream.cork();
        process.nextTick(() => {
          isHeld = false;
          stream.uncork();
        });
      }
      return write(...args);
    };
  });
}

async function ready(client: RedisClient, withinMs: number): Promise<void> {
  const deadlineMs = performance.now() + withinMs;
  await becomesReady(client, withinMs);
  if (client instanceof Redis) return;
  for (const node of client.nodes('master')) await becomesReady(node, deadlineMs - performance.now());
}

function becomesReady(client: RedisClient, withinMs: number): Promise<void> {
  if (client.status === 'ready') return Promise.resolve();
  return new Promise((resolve, reject) => {
    let lastError: Error | undefined;
    const onError = (error: Error) => {
      lastError = error;
    };
    const finish = (settle: () => void) => {
      clearTimeout(timer);
      client.off('ready', onReady);
      client.off('error', onError);
      settle();
    };
    const onReady = () => finish(resolve);
    const timer = setTimeout(
      () => finish(() => reject(lastError ?? new Error('it does not answer'))),
      withinMs,
    );
    client.on('error', onError);
    client.on('ready', onReady);
  });
}

/** Says once when the connection is lost and once when it is back, however often it is tried in between. */
function watch(client: RedisClient, name: string, log: AdapterLog): void {
  let lost = false;
  const reportLost = (reason: string) => {
    if (lost) return;
    lost = true;
    log.warn({ redis: name, reason }, 'Redis is not reachable; its commands fail until it is back');
  };
  // Without a listener ioredis prints every failed attempt on the console.
  client.on('error', (error: Error) => reportLost(error.message));
  client.on('reconnecting', () => reportLost('the connection closed'));
  if (client instanceof Cluster) watchNodes(client, name, log);
  client.on('ready', () => {
    if (lost) log.info({ redis: name }, 'Redis is reachable again');
    lost = false;
  });
}

/** The same for each node of a cluster, which ioredis drops and adds again with each try. */
function watchNodes(cluster: Cluster, name: string, log: AdapterLog): void {
  const lost = new Set<string>();
  cluster.on('-node', ({ options: { host, port } }: Redis) => {
    const node = `${host}:${port}`;
    if (cluster.status !== 'ready' || lost.has(node)) return;
    lost.add(node);
    log.warn({ redis: name, node }, 'a node of the Redis Cluster is not reachable');
  });
  cluster.on('+node', (added: Redis) => {
    added.once('ready', () => {
      const node = `${added.options.host}:${added.options.port}`;
      if (lost.delete(node))
        log.info({ redis: name, node }, 'a node of the Redis Cluster is reachable again');
    });
  });
}
