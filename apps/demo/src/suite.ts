import { randomBytes } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import type { Identity } from './identity.js';
import type { DemoOptions } from './options.js';
import { findFreePorts, type ServiceSpec } from './launch.js';

/** Addresses of the three servers, as the stack hands them out. */
export interface Servers {
  readonly redisUrl: string;
  readonly kafkaBrokers: string;
  /** Without a database name. */
  readonly mysqlUrl: string;
}

/** Everything of one run that has a name or a secret. Fresh for each run, so that runs neither meet nor inherit anything. */
export interface Suite {
  readonly services: readonly ServiceSpec[];
  /** Where the stores are and what is this run's in them: the services' variables, and the auditor's. */
  readonly stores: Readonly<Record<string, string>>;
  /** Names of what stays on the servers. */
  readonly database: string;
  readonly topics: readonly string[];
  readonly identity: Identity;
  /** Where shoppers call: the edge where there is one, else the gateway. */
  readonly shopOrigin: string;
  /** The variables of the edge (deploy/edge/start.sh), and where it takes calls by TLS; absent where there is none. */
  readonly edge?: { readonly variables: Readonly<Record<string, string>>; readonly secureOrigin: string };
  readonly operatorOrigin: string;
  /** Where each process answers /metrics, /healthz and /readyz. */
  readonly opsOrigins: Readonly<Record<string, string>>;
}

const HOST = '127.0.0.1';
const WEB_ROOT = fileURLToPath(new URL('../../web/dist', import.meta.url));
/** How long a produce may begin after its hold was queued. Shorter than in production, as is everything that waits for it. */
const ENQUEUE_WINDOW_MS = 2_000;
/** Must outlast the window, the acknowledgement (1.5 s) and a margin of one second. */
const SWEEP_GRACE_MS = 4_600;

/**
 * Decides names, ports, secrets and settings of a run's five services, and of the edge where one is wanted.
 *
 * @param run part of every name; letters, digits and `-`
 */
export async function planSuite(
  run: string,
  servers: Servers,
  { port: preferredPort, edge: hasEdge }: Pick<DemoOptions, 'port' | 'edge'>,
): Promise<Suite> {
  const [shop, operators, inventory, token, order, behindEdge, secure, edgeOps, ...ops] = await findFreePorts(
    13,
    preferredPort,
  );
  const gateway = hasEdge ? behindEdge : shop;
  const port = (value: number | undefined): number => {
    if (value === undefined) throw new Error('fewer ports were found than asked for');
    return value;
  };
  const at = (value: number | undefined) => `${HOST}:${port(value)}`;
  const database = `flash_sale_demo_${run.replaceAll('-', '_')}`;
  const mysql = new URL(servers.mysqlUrl);
  mysql.pathname = `/${database}`;
  const topic = (name: string) => `demo.${run}.${name}`;
  const identity: Identity = {
    secret: randomBytes(32),
    issuer: 'https://identity.demo.invalid',
    audience: 'flash-sale',
  };

  const redis = { REDIS_URL: servers.redisUrl };
  const tokens = { PURCHASE_TOKEN_KEYS: `demo:${randomBytes(32).toString('base64')}` };
  const kafka = {
    KAFKA_BROKERS: servers.kafkaBrokers,
    ORDERS_TOPIC: topic('orders.v1'),
    ORDERS_DLQ_TOPIC: topic('orders.dlq'),
    ORDERS_GROUP: `demo.${run}.order-writer`,
  };
  const rows = { MYSQL_URL: mysql.href };
  const inventoryUrl = { INVENTORY_URL: at(inventory) };
  const grpc = (value: number | undefined) => ({ GRPC_HOST: HOST, GRPC_PORT: String(port(value)) });
  const timing = { ENQUEUE_WINDOW_MS: String(ENQUEUE_WINDOW_MS), SWEEP_GRACE_MS: String(SWEEP_GRACE_MS) };
  const webhook = { PAYMENT_WEBHOOK_SECRET: randomBytes(32).toString('base64url') };

  const env: Readonly<Record<string, Readonly<Record<string, string>>>> = {
    inventory: { ...redis, ...kafka, ...rows, ...timing, ...grpc(inventory) },
    token: { ...redis, ...tokens, ...inventoryUrl, ...grpc(token) },
    order: {
      ...kafka,
      ...rows,
      ...tokens,
      ...timing,
      ...inventoryUrl,
      ...webhook,
      ...grpc(order),
      // As many as the crowd pays at once, so that nobody is turned away for want of a connection.
      MYSQL_POOL_SIZE: '40',
      PAYMENT_WEBHOOK_URL: `http://${at(gateway)}/v1/payments/webhook`,
    },
    'order-writer': { ...kafka, ...rows, ...tokens, ...inventoryUrl },
    gateway: {
      ...redis,
      ...inventoryUrl,
      ...webhook,
      TOKEN_URL: at(token),
      ORDER_URL: at(order),
      PORT: String(port(gateway)),
      OPERATOR_PORT: String(port(operators)),
      JWT_ALGORITHM: 'HS256',
      JWT_HS256_SECRET: identity.secret.toString('base64'),
      JWT_ISSUER: identity.issuer,
      JWT_AUDIENCE: identity.audience,
      DEV_LOGIN: 'true',
      HOST,
      WEB_ROOT,
      // The whole crowd calls from one address; each shopper's own limit stays.
      RATE_LIMIT_PER_ADDRESS_PER_SECOND: '0',
      // Whoever is right in front of it, and nobody else, says who calls.
      TRUSTED_PROXY_HOPS: hasEdge ? '1' : '0',
    },
  };
  const names = Object.keys(env);
  const opsOrigins = Object.fromEntries(names.map((name, index) => [name, `http://${at(ops[index])}`]));
  const edge = {
    secureOrigin: `https://${at(secure)}`,
    variables: {
      GATEWAYS: at(gateway),
      GATEWAY_FEEDS: at(ops[names.indexOf('gateway')]),
      HOST,
      PORT: String(port(shop)),
      TLS_PORT: String(port(secure)),
      TLS_CERTIFICATE: 'self-signed',
      OPS_PORT: String(port(edgeOps)),
      WEB_ROOT,
      // Where root starts it. The page and the logs of a checkout may be nobody else's, and HOST is this machine only.
      EDGE_USER: 'root',
      // As at the gateway: the crowd is one address.
      RATE_LIMIT_PER_ADDRESS_PER_SECOND: '0',
      CONNECTIONS_PER_ADDRESS: '0',
    },
  };
  return {
    services: names.map((name, index) => ({ name, opsPort: port(ops[index]), env: env[name] ?? {} })),
    stores: { ...redis, ...kafka, ...rows, ...tokens },
    database,
    topics: [kafka.ORDERS_TOPIC, kafka.ORDERS_DLQ_TOPIC],
    identity,
    shopOrigin: `http://${at(shop)}`,
    ...(hasEdge ? { edge } : {}),
    operatorOrigin: `http://${at(operators)}`,
    opsOrigins: hasEdge ? { ...opsOrigins, edge: `http://${at(edgeOps)}` } : opsOrigins,
  };
}
