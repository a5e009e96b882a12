import { spawn, type ChildProcess } from 'node:child_process';
import { createHmac, randomBytes } from 'node:crypto';
import { appendFileSync, createWriteStream, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { dropTestDatabase, migrate } from '@flash-sale/database';

const ROOT = resolve(import.meta.dirname, '../../..');

export type ServiceName = 'gateway' | 'token' | 'inventory' | 'order' | 'order-writer';

/** In the order of starting: who is asked comes before who asks. */
const SERVICES: readonly ServiceName[] = ['inventory', 'order-writer', 'order', 'token', 'gateway'];

export interface WorldOptions {
  /** Variables that differ from the world's own, for all services. */
  readonly env?: Readonly<Record<string, string>>;
  /** Which services to start; all by default. */
  readonly services?: readonly ServiceName[];
  /** Masters of a Redis Cluster, `host:port`; the Redis of REDIS_URL by default. */
  readonly redisClusterNodes?: readonly string[];
}

const START_TIMEOUT_MS = 30_000;
const STOP_TIMEOUT_MS = 15_000;

/**
 * The whole suite for a test: the five services as real processes on free ports, with a database, topics and secrets of
 * its own, on the servers that REDIS_URL, KAFKA_BROKERS and MYSQL_URL name. Time-outs are short, so that an expiry can
 * be waited for. {@link World.stop} ends what it started and removes the database.
 */
export class World {
  readonly id = randomBytes(4).toString('hex');
  private readonly processes = new Map<ServiceName, ChildProcess>();
  private readonly scratch = mkdtempSync(join(tmpdir(), 'flash-sale-world-'));
  private readonly env: Record<string, string>;
  readonly shopUrl: string;
  readonly operatorUrl: string;
  readonly mysqlUrl: string;
  readonly ordersTopic: string;
  private readonly opsPorts: Record<ServiceName, number>;

  private constructor(options: WorldOptions, ports: readonly number[]) {
    const port = (index: number) => ports[index] ?? 0;
    const server = required('MYSQL_URL');
    this.mysqlUrl = new URL(`test_world_${this.id}`, server.endsWith('/') ? server : `${server}/`).href;
    this.ordersTopic = `test.${this.id}.orders`;
    this.opsPorts = {
      gateway: port(0),
      token: port(1),
      inventory: port(2),
      order: port(3),
      'order-writer': port(4),
    };
    this.shopUrl = `http://127.0.0.1:${port(5)}`;
    this.operatorUrl = `http://127.0.0.1:${port(6)}`;
    this.env = {
      ...(options.redisClusterNodes
        ? { REDIS_CLUSTER_NODES: options.redisClusterNodes.join(',') }
        : { REDIS_URL: required('REDIS_URL') }),
      KAFKA_BROKERS: required('KAFKA_BROKERS'),
      MYSQL_URL: this.mysqlUrl,
      ORDERS_TOPIC: this.ordersTopic,
      ORDERS_DLQ_TOPIC: `test.${this.id}.orders.dlq`,
      ORDERS_GROUP: `test.${this.id}.writer`,
      ORDERS_PARTITIONS: '4',
      PURCHASE_TOKEN_KEYS: `test:${randomBytes(32).toString('base64')}`,
      PAYMENT_WEBHOOK_SECRET: randomBytes(32).toString('hex'),
      PAYMENT_WEBHOOK_URL: `${this.shopUrl}/v1/payments/webhook`,
      JWT_HS256_SECRET: randomBytes(32).toString('base64'),
      JWT_ISSUER: 'flash-sale-test',
      JWT_AUDIENCE: 'flash-sale',
      DEV_LOGIN: 'true',
      INVENTORY_URL: `127.0.0.1:${port(7)}`,
      TOKEN_URL: `127.0.0.1:${port(8)}`,
      ORDER_URL: `127.0.0.1:${port(9)}`,
      PORT: String(port(5)),
      OPERATOR_PORT: String(port(6)),
      GRPC_HOST: '127.0.0.1',
      HOST: '127.0.0.1',
      OPS_HOST: '127.0.0.1',
      LOG_LEVEL: 'info',
      DRAIN_WAIT_MS: '0',
      ENQUEUE_WINDOW_MS: '1000',
      SWEEP_GRACE_MS: '3500',
      SWEEP_INTERVAL_MS: '200',
      PAYMENT_ASK_AFTER_MS: '1500',
      TEST_PROVIDER_LATE_MS: '500',
      RATE_LIMIT_PER_SHOPPER_PER_SECOND: '0',
      RATE_LIMIT_PER_ADDRESS_PER_SECOND: '0',
      ...options.env,
    };
    this.grpcPorts = { inventory: port(7), token: port(8), order: port(9) };
  }

  private readonly grpcPorts: Partial<Record<ServiceName, number>>;

  static async start(options: WorldOptions = {}): Promise<World> {
    const world = new World(options, await freePorts(10));
    await migrate(world.mysqlUrl);
    try {
      // Together: each waits for what it needs.
      await Promise.all((options.services ?? SERVICES).map((name) => world.startService(name)));
    } catch (error) {
      await world.stop();
      throw error;
    }
    return world;
  }

  /** Addresses and secrets as the services have them, for a program started beside them. */
  get environment(): Readonly<Record<string, string>> {
    return this.env;
  }

  /** Starts a service, or starts it again after {@link kill}; resolves when it is ready. */
  async startService(name: ServiceName): Promise<void> {
    const log = createWriteStream(this.logFile(name), { flags: 'a' });
    const child = spawn(
      process.execPath,
      ['--import', '@flash-sale/service/instrumentation', join(ROOT, 'apps', name, 'dist/main.js')],
      {
        cwd: join(ROOT, 'apps', name),
        env: {
          PATH: process.env['PATH'] ?? '',
          ...this.env,
          SERVICE_NAME: name,
          OPS_PORT: String(this.opsPorts[name]),
          GRPC_PORT: String(this.grpcPorts[name] ?? 0),
        },
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    );
    child.stdout.pipe(log, { end: false });
    child.stderr.pipe(log, { end: false });
    this.processes.set(name, child);
    await until(`${name} to be ready`, START_TIMEOUT_MS, async () => {
      if (child.exitCode !== null)
        throw new Error(`${name} ended with ${child.exitCode}:\n${this.lastLines(name)}`);
      return (
        (await fetch(`http://127.0.0.1:${this.opsPorts[name]}/readyz`).catch(() => null))?.status === 200
      );
    }).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${this.lastLines(name)}`);
    });
  }

  /** Ends a service at once, as a crash would. */
  async kill(name: ServiceName): Promise<void> {
    await this.end(name, 'SIGKILL');
  }

  /** Asks a service to end, waits, and gives its exit code. */
  async terminate(name: ServiceName): Promise<number | null> {
    return this.end(name, 'SIGTERM');
  }

  private async end(name: ServiceName, signal: NodeJS.Signals): Promise<number | null> {
    const child = this.processes.get(name);
    this.processes.delete(name);
    if (!child || child.exitCode !== null || child.signalCode !== null) return child?.exitCode ?? null;
    const ended = new Promise<number | null>((done) => child.once('exit', (code) => done(code)));
    child.kill(signal);
    const timer = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
    const code = await ended;
    clearTimeout(timer);
    return code;
  }

  /** What a service logged, from its start. */
  logOf(name: ServiceName): string {
    return readFileSync(this.logFile(name), 'utf8');
  }

  metricsUrl(name: ServiceName): string {
    return `http://127.0.0.1:${this.opsPorts[name]}/metrics`;
  }

  async stop(): Promise<void> {
    await Promise.all([...this.processes.keys()].map((name) => this.end(name, 'SIGTERM')));
    await dropTestDatabase(this.mysqlUrl);
    rmSync(this.scratch, { recursive: true, force: true });
  }

  // ── People ────────────────────────────────────────────────────────────────────────────────────────────────────────

  /** An access token as the identity provider would sign it. */
  accessToken(subject: string, role?: 'operator'): string {
    const now = Math.floor(Date.now() / 1000);
    const claims = {
      sub: subject,
      iss: this.env['JWT_ISSUER'],
      aud: this.env['JWT_AUDIENCE'],
      iat: now,
      exp: now + 3600,
      jti: randomBytes(8).toString('hex'),
      ...(role ? { role } : {}),
    };
    const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const body = `${encode({ alg: 'HS256', typ: 'at+jwt' })}.${encode(claims)}`;
    const secret = Buffer.from(this.env['JWT_HS256_SECRET'] ?? '', 'base64');
    return `${body}.${createHmac('sha256', secret).update(body).digest('base64url')}`;
  }

  shopper(id: string): Caller {
    return new Caller(this.shopUrl, this.accessToken(id), id, this.clientLog);
  }

  operator(): Caller {
    return new Caller(this.operatorUrl, this.accessToken('operator-1', 'operator'), 'operator-1', null);
  }

  /** Creates a sale that is open already, warms it up, and waits until the gateway sells it. */
  async openSale(settings: Readonly<Record<string, unknown>> = {}): Promise<string> {
    const now = Date.now();
    const saleId = `t${this.id}${randomBytes(3).toString('hex')}`;
    const sale = {
      saleId,
      title: 'A test sale',
      skuId: SKU_ID,
      allotment: 10,
      unitPrice: 1999,
      currency: 'CNY',
      opensAt: new Date(now - 1000).toISOString(),
      closesAt: new Date(now + 600_000).toISOString(),
      limitPerShopper: 1,
      buckets: 8,
      holdSeconds: 60,
      paySeconds: 60,
      ...settings,
    };
    const operator = this.operator();
    await operator.expect(201, 'POST', '/v1/operator/sales', sale);
    await operator.expect(200, 'POST', `/v1/operator/sales/${saleId}/warm-up`);
    const anyone = this.shopper('onlooker');
    await until('the gateway to know the sale', 10_000, async () => {
      const answer = await anyone.call('GET', `/v1/sales/${saleId}`);
      return answer.status === 200 && answer.body['phase'] !== 'warming' && answer.body['phase'] !== 'draft';
    });
    return saleId;
  }

  // ── The client's log and the auditor ──────────────────────────────────────────────────────────────────────────────

  get clientLog(): string {
    return join(this.scratch, 'client.jsonl');
  }

  /** Runs the auditor on a sale and gives its verdict. */
  async audit(
    saleId: string,
    ...args: string[]
  ): Promise<{ exitCode: number; verdict: Verdict; printed: string }> {
    appendFileSync(this.clientLog, '');
    const child = spawn(
      process.execPath,
      [join(ROOT, 'apps/auditor/dist/main.js'), '--sale', saleId, '--log', this.clientLog, '--json', ...args],
      { env: { PATH: process.env['PATH'] ?? '', ...this.env }, stdio: ['ignore', 'pipe', 'pipe'] },
    );
    let stdout = '';
    let printed = '';
    child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (printed += chunk.toString()));
    const exitCode = await new Promise<number>((done, failed) => {
      child.once('error', failed);
      child.once('close', (code) => done(code ?? 1));
    });
    const last = stdout.trim().split('\n').at(-1) ?? '';
    if (!last.startsWith('{'))
      throw new Error(`the auditor printed no verdict (exit ${exitCode}):\n${stdout}${printed}`);
    return { exitCode, verdict: JSON.parse(last) as Verdict, printed: stdout + printed };
  }

  private logFile(name: ServiceName): string {
    return join(this.scratch, `${name}.log`);
  }

  private lastLines(name: ServiceName): string {
    return this.logOf(name).trim().split('\n').slice(-15).join('\n');
  }
}

/** The auditor's answer, as far as tests read it. */
export interface Verdict {
  readonly allotment: number;
  readonly sold: number;
  readonly oversold: number;
  readonly undersold: number;
  readonly accepted: number;
  readonly rejectedAfterAccept: number;
  readonly lost: number;
  readonly duplicates: number;
  readonly refused: Readonly<Record<string, number>>;
  readonly invariants: { readonly checked: number; readonly broken: readonly string[] };
}

export interface Answer {
  /** HTTP status, or 0 where the connection was cut. */
  readonly status: number;
  readonly body: Readonly<Record<string, unknown>>;
  readonly headers: Headers;
}

/** Somebody with an access token. Every exchange of a shopper is written to the client's log, for the auditor. */
export class Caller {
  constructor(
    private readonly baseUrl: string,
    private readonly accessToken: string,
    readonly id: string,
    private readonly logFile: string | null,
  ) {}

  async call(
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<Answer> {
    const sentMs = Date.now();
    const answer = await this.exchange(method, path, body, headers);
    this.log(method, path, body, headers, sentMs, answer);
    return answer;
  }

  /** The body of an answer with the status expected; throws with the whole answer otherwise. */
  async expect(
    status: number,
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ) {
    const answer = await this.call(method, path, body, headers);
    if (answer.status !== status) {
      throw new Error(
        `${method} ${path}: expected ${status}, got ${answer.status} ${JSON.stringify(answer.body)}`,
      );
    }
    return answer.body;
  }

  enter(saleId: string, key: string, quantity = 1): Promise<Answer> {
    return this.call('POST', `/v1/sales/${saleId}/entries`, { quantity }, { 'idempotency-key': key });
  }

  order(purchaseToken: unknown, delivery: Readonly<Record<string, string>> = DELIVERY): Promise<Answer> {
    return this.call('POST', '/v1/orders', { purchaseToken, delivery });
  }

  pay(orderId: string, key: string, card = '4242424242424242'): Promise<Answer> {
    return this.call(
      'POST',
      `/v1/orders/${orderId}/payment`,
      { method: 'test-card', card },
      { 'idempotency-key': key },
    );
  }

  /** Polls an order until it is in one of the states given. */
  async orderIn(orderId: string, states: readonly string[], withinMs = 20_000): Promise<Answer['body']> {
    let last: Answer | undefined;
    await until(`order ${orderId} to be ${states.join(' or ')}`, withinMs, async () => {
      last = await this.call('GET', `/v1/orders/${orderId}`);
      return last.status === 200 && states.includes(String(last.body['state']));
    }).catch((error: unknown) => {
      throw new Error(`${String(error)}; last seen: ${last?.status} ${JSON.stringify(last?.body)}`);
    });
    return last?.body ?? {};
  }

  /** The whole way from the entry to the paid order; repeats what is not known. */
  async buy(saleId: string, key = 'k'): Promise<Answer['body']> {
    const entry = await this.persist(() => this.enter(saleId, key));
    if (!entry.body['purchaseToken'])
      throw new Error(`${this.id} was not granted: ${JSON.stringify(entry.body)}`);
    const order = await this.persist(() => this.order(entry.body['purchaseToken']));
    if (order.status !== 202)
      throw new Error(`${this.id}'s order was not taken: ${JSON.stringify(order.body)}`);
    const orderId = String(order.body['orderId']);
    await this.orderIn(orderId, ['awaiting_payment']);
    await this.persist(() => this.pay(orderId, `${key}-pay`));
    return this.orderIn(orderId, ['paid']);
  }

  /** Repeats a call while its outcome is unknown or the suite asks to come back. */
  async persist(call: () => Promise<Answer>, withinMs = 30_000): Promise<Answer> {
    const giveUpAt = Date.now() + withinMs;
    for (;;) {
      const answer = await call();
      const passing = answer.status === 0 || answer.status === 429 || answer.status === 503;
      if (!passing || Date.now() > giveUpAt) return answer;
      await sleep(200);
    }
  }

  private async exchange(
    method: string,
    path: string,
    body: unknown,
    headers: Record<string, string>,
  ): Promise<Answer> {
    try {
      const response = await fetch(`${this.baseUrl}${path}`, {
        method,
        headers: {
          authorization: `Bearer ${this.accessToken}`,
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
          ...headers,
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(15_000),
      });
      const text = await response.text();
      const parsed = text.startsWith('{') ? (JSON.parse(text) as Record<string, unknown>) : {};
      return { status: response.status, body: parsed, headers: response.headers };
    } catch {
      return { status: 0, body: {}, headers: new Headers() };
    }
  }

  private readonly entries = new Map<string, { saleId: string; quantity: number; key: string }>();

  /** One line per exchange, in the form that the auditor's `--log` describes. */
  private log(
    method: string,
    path: string,
    body: unknown,
    headers: Record<string, string>,
    sentMs: number,
    answer: Answer,
  ): void {
    if (!this.logFile) return;
    const line = this.logLine(method, path, body, headers, answer);
    if (!line) return;
    const common = {
      shopperId: this.id,
      skuId: SKU_ID,
      sentMs,
      receivedMs: Date.now(),
      http: answer.status,
      code: answer.body['code'] ?? '',
    };
    appendFileSync(
      this.logFile,
      `${JSON.stringify({ ...line, ...common, state: answer.body['state'] ?? '' })}\n`,
    );
  }

  private logLine(
    method: string,
    path: string,
    body: unknown,
    headers: Record<string, string>,
    answer: Answer,
  ): object | null {
    const entered = /^\/v1\/sales\/([^/]+)\/entries$/.exec(path)?.[1];
    if (entered) {
      const { quantity } = body as { quantity: number };
      const { entryId } = answer.body;
      const attemptId = typeof entryId === 'string' ? entryId : '';
      const key = headers['idempotency-key'] ?? '';
      if (attemptId) this.entries.set(attemptId, { saleId: entered, quantity, key });
      const purchaseToken = answer.body['purchaseToken'];
      return {
        op: 'entry',
        saleId: entered,
        attemptId,
        quantity,
        key,
        ...(purchaseToken ? { purchaseToken } : {}),
      };
    }
    const orderOf = (id: string) => ({
      attemptId: id,
      ...(this.entries.get(id) ?? { saleId: id.slice(0, -23), quantity: 1, key: '' }),
    });
    if (method === 'POST' && path === '/v1/orders') {
      const token = String((body as { purchaseToken: unknown }).purchaseToken);
      const payload = Buffer.from(token.split('.')[2] ?? '', 'base64url').toString();
      const id = payload.startsWith('{') ? ((JSON.parse(payload) as { a?: string }).a ?? '') : '';
      return id ? { op: 'order', ...orderOf(id) } : null;
    }
    const match = /^\/v1\/(orders|entries)\/([A-Za-z0-9_-]{24,64})(\/payment)?$/.exec(path);
    if (!match?.[2]) return null;
    const op =
      match[1] === 'entries'
        ? method === 'DELETE'
          ? 'leave'
          : 'entry-status'
        : match[3]
          ? 'payment'
          : method === 'DELETE'
            ? 'cancel'
            : 'order-status';
    return { op, ...orderOf(match[2]) };
  }
}

/** What is sold in tests. */
export const SKU_ID = 'sku-test';

/** Somewhere to send it, for tests. */
export const DELIVERY = {
  name: 'Alice Example',
  phone: '+86 138 0000 0000',
  address: '1 Example Road',
} as const;

/** Polls until `condition` holds; throws when it does not within the time given. */
export async function until(
  what: string,
  withinMs: number,
  condition: () => Promise<boolean>,
): Promise<void> {
  const giveUpAt = Date.now() + withinMs;
  while (!(await condition())) {
    if (Date.now() > giveUpAt) throw new Error(`waited ${withinMs} ms in vain for ${what}`);
    await sleep(50);
  }
}

export function sleep(ms: number): Promise<void> {
  return new Promise((done) => setTimeout(done, ms));
}

/** Ports that nobody listens on now. All are held open until the last is known, so none comes twice. */
async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer();
      await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
      return server;
    }),
  );
  const ports = servers.map((server) => {
    const address = server.address();
    if (address === null || typeof address === 'string') throw new Error('a TCP server has a port');
    return address.port;
  });
  await Promise.all(servers.map((server) => new Promise((closed) => server.close(closed))));
  return ports;
}

function required(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set; run the tests with npm test, which starts the servers`);
  return value;
}
