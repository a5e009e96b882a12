import { spawn, type ChildProcess } from 'node:child_process';
import { createHmac, randomBytes } from 'node:crypto';
import { appendFileSync, cpSync, createWriteStream, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { dropTestDatabase, migrate } from '@flash-sale/database';
import { chooseFreePorts } from '@flash-sale/stack';
import { Caller, SKU_ID } from './caller.js';
import { NameService } from './name-service.js';
import { sleep, until } from './waiting.js';

const ROOT = resolve(import.meta.dirname, '../../..');

export type ServiceName = 'gateway' | 'token' | 'inventory' | 'order' | 'order-writer';

/** In the order of starting: who is asked comes before who asks. */
export const SERVICES: readonly ServiceName[] = ['inventory', 'order-writer', 'order', 'token', 'gateway'];

/** Where the servers are. One of the two about Redis is given. */
export interface ServerAddresses {
  readonly redisUrl?: string;
  /** Masters of a Redis Cluster, `host:port`. */
  readonly redisClusterNodes?: readonly string[];
  readonly kafkaBrokers: string;
  readonly mysqlUrl: string;
}

export interface WorldOptions {
  /** Variables that differ from the world's own, for all services. */
  readonly env?: Readonly<Record<string, string>>;
  /** Which services to start; all by default. */
  readonly services?: readonly ServiceName[];
  /** Masters of a Redis Cluster, `host:port`; the Redis of REDIS_URL by default. */
  readonly redisClusterNodes?: readonly string[];
  /** What the services are given; the servers that REDIS_URL, KAFKA_BROKERS and MYSQL_URL name by default. */
  readonly servers?: ServerAddresses;
  /** Where the world itself and the auditor find the same servers, where services reach them through proxies only. */
  readonly directly?: ServerAddresses;
  /** How many processes of a service are started; 1 by default. */
  readonly instances?: Partial<Record<ServiceName, number>>;
  /** How many processes of a service there may be at most; as `instances` by default. */
  readonly mostInstances?: Partial<Record<ServiceName, number>>;
  /** How services find each other: by a list of addresses, or by name at the world's own name service. */
  readonly discovery?: 'list' | 'dns';
}

const START_TIMEOUT_MS = 60_000;
const STOP_TIMEOUT_MS = 30_000;

/**
 * Loaded first into every service: when whoever started it is gone, however it ended, so is the service. Without this a
 * killed run would leave services behind that look for their dead servers for ever.
 */
const END_WITH_PARENT = `data:text/javascript,${encodeURIComponent(
  `process.once('disconnect', () => process.kill(process.pid, 'SIGKILL')); process.channel?.unref();`,
)}`;

/** Where one process of a service answers. */
interface Place {
  readonly host: string;
  readonly opsPort: number;
  /** gRPC; for a gateway: the shoppers' HTTP. */
  readonly port: number;
  readonly operatorPort: number;
}

/**
 * The whole suite for a test: the five services as real processes on free ports, with a database, topics and secrets of
 * its own, on the servers that REDIS_URL, KAFKA_BROKERS and MYSQL_URL name, or on those given. Time-outs are short, so that
 * an expiry can be waited for. {@link World.stop} ends what it started and removes the database.
 */
export class World {
  readonly id = randomBytes(4).toString('hex');
  private readonly processes = new Map<string, ChildProcess>();
  private readonly scratch = mkdtempSync(join(tmpdir(), 'flash-sale-world-'));
  private readonly env: Record<string, string>;
  /** Differs from `env` where services reach servers through proxies. */
  private readonly directEnv: Record<string, string>;
  private readonly places: Readonly<Record<ServiceName, readonly Place[]>>;
  readonly shopUrl: string;
  readonly operatorUrl: string;
  readonly mysqlUrl: string;
  readonly ordersTopic: string;

  private constructor(
    options: WorldOptions,
    ports: number[],
    /** The name service, with discovery by it. */
    readonly names: NameService | null,
  ) {
    const servers = options.servers ?? serversOfEnvironment(options.redisClusterNodes);
    const direct = options.directly ?? servers;
    this.places = placesOf(options, ports);
    const [gateway] = this.places.gateway;
    if (!gateway) throw new Error('a world has a gateway');
    const database = `test_world_${this.id}`;
    this.mysqlUrl = databaseUrl(direct.mysqlUrl, database);
    this.ordersTopic = `test.${this.id}.orders`;
    this.shopUrl = `http://127.0.0.1:${gateway.port}`;
    this.operatorUrl = `http://127.0.0.1:${gateway.operatorPort}`;
    this.env = {
      ...addressVariables(servers, database),
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
      INVENTORY_URL: this.addressOf('inventory'),
      TOKEN_URL: this.addressOf('token'),
      ORDER_URL: this.addressOf('order'),
      // Without it grpc-js asks the system's resolver, whatever server the target names.
      ...(names ? { GRPC_NODE_USE_ALTERNATIVE_RESOLVER: 'true' } : {}),
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
    this.directEnv = { ...this.env, ...addressVariables(direct, database) };
  }

  static async start(options: WorldOptions = {}): Promise<World> {
    const names = options.discovery === 'dns' ? await NameService.start() : null;
    const world = new World(options, await chooseFreePorts(portsNeeded(options)), names);
    await migrate(world.mysqlUrl);
    try {
      const services = options.services ?? SERVICES;
      // Together: each waits for what it needs.
      await Promise.all(
        services.flatMap((name) =>
          Array.from({ length: options.instances?.[name] ?? 1 }, (_, index) =>
            world.startService(name, index),
          ),
        ),
      );
    } catch (error) {
      await world.stop();
      throw error;
    }
    return world;
  }

  /** Addresses and secrets for a program started beside the services; no proxy stands between it and the servers. */
  get environment(): Readonly<Record<string, string>> {
    return this.directEnv;
  }

  /** Where shoppers find each gateway there may be, and where it says whether it is ready. */
  get gateways(): readonly { readonly shopUrl: string; readonly readyUrl: string }[] {
    return this.places.gateway.map(({ port, opsPort }) => ({
      shopUrl: `http://127.0.0.1:${port}`,
      readyUrl: `http://127.0.0.1:${opsPort}/readyz`,
    }));
  }

  /** How others are told to find a service. */
  private addressOf(name: ServiceName): string {
    const places = this.places[name];
    if (this.names && places[0]) return `${this.names.url}/${name}.test:${places[0].port}`;
    return places.map(({ host, port }) => `${host}:${port}`).join(',');
  }

  /**
   * Starts a process of a service, or starts it again after {@link kill}; resolves when it is ready.
   *
   * @param env variables of this process alone
   */
  async startService(
    name: ServiceName,
    index = 0,
    env: Readonly<Record<string, string>> = {},
  ): Promise<void> {
    const place = this.place(name, index);
    // The one that runs would say that the new one is ready, and nobody would end it.
    if (this.processId(name, index) !== undefined) throw new Error(`${name} ${index} is running already`);
    const log = createWriteStream(this.logFile(name, index), { flags: 'a' });
    const ports =
      name === 'gateway'
        ? { PORT: String(place.port), OPERATOR_PORT: String(place.operatorPort) }
        : { GRPC_HOST: place.host, GRPC_PORT: String(place.port) };
    const child = spawn(
      process.execPath,
      // Port 0: whoever opens the inspector of one process must not meet that of another.
      [
        '--inspect-port=0',
        '--import',
        END_WITH_PARENT,
        '--import',
        '@flash-sale/service/instrumentation',
        join(ROOT, 'apps', name, 'dist/main.js'),
      ],
      {
        cwd: join(ROOT, 'apps', name),
        env: {
          PATH: process.env['PATH'] ?? '',
          ...this.env,
          ...ports,
          SERVICE_NAME: name,
          OPS_PORT: String(place.opsPort),
          ...env,
        },
        stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      },
    );
    child.stdout?.pipe(log, { end: false });
    child.stderr?.pipe(log, { end: false });
    this.processes.set(`${name} ${index}`, child);
    await until(`${name} ${index} to be ready`, START_TIMEOUT_MS, async () => {
      if (child.exitCode !== null || child.signalCode !== null)
        throw new Error(`${name} ${index} ended with ${child.exitCode ?? child.signalCode}`);
      return this.isReady(name, index);
    }).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${this.lastLines(name, index)}`);
    });
    if (name !== 'gateway') this.names?.add(`${name}.test`, place.host);
  }

  /** Whether a process says so itself. */
  async isReady(name: ServiceName, index = 0): Promise<boolean> {
    const url = `http://127.0.0.1:${this.place(name, index).opsPort}/readyz`;
    const signal = AbortSignal.timeout(2_000);
    return (await fetch(url, { signal }).catch(() => null))?.status === 200;
  }

  /** The processes of a service that were started and have not been ended. */
  running(name: ServiceName): number[] {
    return this.places[name].flatMap((_, index) =>
      this.processId(name, index) === undefined ? [] : [index],
    );
  }

  /** The system's number of a process; undefined once it has ended, for whatever reason. */
  processId(name: ServiceName, index = 0): number | undefined {
    const child = this.processes.get(`${name} ${index}`);
    return child?.exitCode === null && child.signalCode === null ? child.pid : undefined;
  }

  /** Ends a process at once, as a crash would. */
  async kill(name: ServiceName, index = 0): Promise<void> {
    await this.end(name, index, 'SIGKILL');
  }

  /** Asks a process to end, waits, and gives its exit code; null when it had to be killed. */
  async terminate(name: ServiceName, index = 0): Promise<number | null> {
    return this.end(name, index, 'SIGTERM');
  }

  /** Stops a process where it stands, as a virtual machine that is being moved would be. */
  pause(name: ServiceName, index = 0): void {
    this.child(name, index).kill('SIGSTOP');
  }

  resume(name: ServiceName, index = 0): void {
    this.child(name, index).kill('SIGCONT');
  }

  /** Evaluates an expression inside a process of ours, by its inspector. */
  async evaluate(name: ServiceName, expression: string, index = 0): Promise<void> {
    const child = this.child(name, index);
    const seenBefore = this.logOf(name, index).length;
    child.kill('SIGUSR1');
    let url: string | undefined;
    await until(`the inspector of ${name} ${index}`, 5_000, async () => {
      url = /Debugger listening on (ws:\S+)/.exec(this.logOf(name, index).slice(seenBefore))?.[1];
      return url !== undefined;
    });
    const socket = new WebSocket(url ?? '');
    try {
      await new Promise((opened, failed) => {
        socket.addEventListener('open', opened, { once: true });
        socket.addEventListener('error', failed, { once: true });
      });
      const answered = new Promise((done) => socket.addEventListener('message', done, { once: true }));
      // The inspector is closed again by what it evaluates, so that the next time finds it closed.
      const closing = `${expression}; process.getBuiltinModule('node:inspector').close()`;
      const request = { id: 1, method: 'Runtime.evaluate', params: { expression: closing } };
      socket.send(JSON.stringify(request));
      await Promise.race([
        answered,
        new Promise((done) => socket.addEventListener('close', done)),
        sleep(10_000),
      ]);
    } finally {
      socket.close();
    }
  }

  private async end(name: ServiceName, index: number, signal: NodeJS.Signals): Promise<number | null> {
    const key = `${name} ${index}`;
    const child = this.processes.get(key);
    this.processes.delete(key);
    this.names?.remove(`${name}.test`, this.place(name, index).host);
    if (!child || child.exitCode !== null || child.signalCode !== null) return child?.exitCode ?? null;
    const ended = new Promise<number | null>((done) => child.once('exit', (code) => done(code)));
    child.kill(signal);
    // One that is paused would never see the request.
    child.kill('SIGCONT');
    const timer = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
    const code = await ended;
    clearTimeout(timer);
    return code;
  }

  private child(name: ServiceName, index: number): ChildProcess {
    const child = this.processes.get(`${name} ${index}`);
    if (!child) throw new Error(`no process ${index} of ${name} is running`);
    return child;
  }

  private place(name: ServiceName, index: number): Place {
    const place = this.places[name][index];
    if (!place) throw new Error(`the world has no place for process ${index} of ${name}; see mostInstances`);
    return place;
  }

  /** What a process logged, from its start. */
  logOf(name: ServiceName, index = 0): string {
    return readFileSync(this.logFile(name, index), 'utf8');
  }

  /** Copies what the processes and the shoppers logged, to be looked at when the world is gone. */
  saveLogs(folder: string): void {
    cpSync(this.scratch, folder, { recursive: true });
  }

  metricsUrl(name: ServiceName, index = 0): string {
    return `http://127.0.0.1:${this.place(name, index).opsPort}/metrics`;
  }

  /** A metric of a service, all its series together, of one process or of all that run; 0 where nothing is counted yet. */
  async metric(name: ServiceName, metric: string, index?: number): Promise<number> {
    const pages = await Promise.all(
      (index === undefined ? this.running(name) : [index]).map(async (one) => {
        const answer = await fetch(this.metricsUrl(name, one), { signal: AbortSignal.timeout(5_000) });
        return answer.text();
      }),
    );
    const series = pages.join('\n').matchAll(new RegExp(`^${metric}(?:\\{[^\n]*\\})? (\\S+)`, 'gm'));
    return [...series].reduce((sum, match) => sum + Number(match[1]), 0);
  }

  async stop(): Promise<void> {
    const all = SERVICES.flatMap((name) => this.running(name).map((index) => [name, index] as const));
    await Promise.all(all.map(([name, index]) => this.end(name, index, 'SIGTERM')));
    await this.names?.stop();
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
      // As most are when a sale opens: not fresh. A gateway whose clock is behind must not take it for one from the future.
      iat: now - 900,
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
    // Both may be repeated; on a busy machine the first calls after the start can meet a time-out.
    for (const [path, body] of [['', sale], [`/${saleId}/warm-up`]] as const) {
      const answer = await operator.persist(() => operator.call('POST', `/v1/operator/sales${path}`, body));
      if (answer.status !== 200 && answer.status !== 201)
        throw new Error(`the sale could not be opened: ${answer.status} ${JSON.stringify(answer.body)}`);
    }
    const anyone = this.shopper('onlooker');
    await until('the gateway to know the sale', 20_000, async () => {
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
      { env: { PATH: process.env['PATH'] ?? '', ...this.directEnv }, stdio: ['ignore', 'pipe', 'pipe'] },
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

  private logFile(name: ServiceName, index: number): string {
    return join(this.scratch, index === 0 ? `${name}.log` : `${name}-${index}.log`);
  }

  private lastLines(name: ServiceName, index: number): string {
    return this.logOf(name, index).trim().split('\n').slice(-15).join('\n');
  }
}

function serversOfEnvironment(redisClusterNodes: readonly string[] | undefined): ServerAddresses {
  return {
    ...(redisClusterNodes ? { redisClusterNodes } : { redisUrl: required('REDIS_URL') }),
    kafkaBrokers: required('KAFKA_BROKERS'),
    mysqlUrl: required('MYSQL_URL'),
  };
}

function addressVariables(servers: ServerAddresses, database: string): Record<string, string> {
  return {
    ...(servers.redisClusterNodes
      ? { REDIS_CLUSTER_NODES: servers.redisClusterNodes.join(',') }
      : { REDIS_URL: servers.redisUrl ?? '' }),
    KAFKA_BROKERS: servers.kafkaBrokers,
    MYSQL_URL: databaseUrl(servers.mysqlUrl, database),
  };
}

function databaseUrl(server: string, database: string): string {
  return new URL(database, server.endsWith('/') ? server : `${server}/`).href;
}

function mostOf(options: WorldOptions, name: ServiceName): number {
  return Math.max(options.instances?.[name] ?? 1, options.mostInstances?.[name] ?? 1);
}

const PORTS_PER_PLACE = 3;

function portsNeeded(options: WorldOptions): number {
  return SERVICES.reduce((sum, name) => sum + PORTS_PER_PLACE * mostOf(options, name), 0);
}

function placesOf(options: WorldOptions, ports: number[]): Record<ServiceName, readonly Place[]> {
  const next = () => ports.pop() ?? 0;
  const places = (name: ServiceName): Place[] => {
    const shared = next();
    return Array.from({ length: mostOf(options, name) }, (_, index) => ({
      // A name stands for hosts, not ports: with a name service each process has an address of its own.
      ...(options.discovery === 'dns' && name !== 'gateway'
        ? { host: `127.0.1.${index + 1}`, port: shared }
        : { host: '127.0.0.1', port: index === 0 ? shared : next() }),
      opsPort: next(),
      operatorPort: next(),
    }));
  };
  return {
    gateway: places('gateway'),
    token: places('token'),
    inventory: places('inventory'),
    order: places('order'),
    'order-writer': places('order-writer'),
  };
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
  /** What the operator's report shows as well. */
  readonly books: Readonly<Record<'redis' | 'mysql' | 'kafka', Readonly<Record<string, unknown>>>>;
  readonly invariants: { readonly checked: number; readonly broken: readonly string[] };
}

function required(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set; run the tests with npm test, which starts the servers`);
  return value;
}
