import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Database } from '@flash-sale/database';
import { SaleId, ShopperId, IdempotencyKey, attemptIdOf } from '@flash-sale/domain';
import { KafkaAdmin, hasPassed } from '@flash-sale/kafka';
import { DELIVERY, World, sleep, until, type ServiceName } from '@flash-sale/testing';
import { RunningEdge } from './edge.js';
import { requestHead, requestText, type SecondCall } from './generator.js';
import { CpuProfile } from './flame/profile.js';
import type { ProcessGroup } from './processes.js';
import type { Servers } from './servers.js';

export interface SuiteOptions {
  /** Of each service; 1 by default. */
  readonly processes?: number;
  /** False: every call between services travels alone. */
  readonly coalesce?: boolean;
}

/** Somebody with an access token of their own. */
export interface Shopper {
  readonly id: string;
  readonly token: string;
}

export const SERVICES: readonly ServiceName[] = ['gateway', 'token', 'inventory', 'order', 'order-writer'];
/** What a world for tests shortens is as in production here, and limits by shopper are on: they cost something. */
const AS_IN_PRODUCTION = {
  ENQUEUE_WINDOW_MS: '10000',
  SWEEP_GRACE_MS: '15000',
  SWEEP_INTERVAL_MS: '1000',
  PAYMENT_ASK_AFTER_MS: '10000',
  ORDERS_PARTITIONS: '12',
  // Not by address: here all shoppers have the same one. A tenth of it is counted in memory alone, and no shopper of ours sends so
  // much; by production's 20 the three requests that some of them send within a second would cost calls to Redis.
  RATE_LIMIT_PER_SHOPPER_PER_SECOND: '100',
};
const SALE_LASTS_MS = 12 * 3_600_000;
const DECIDED_WITHIN_MS = 60_000;
const APPLIED_WITHIN_MS = 20_000;
const LOOK_EVERY_MS = 20;
const KEY = 'visit-1';
const ENTRY_BODY = '{"quantity":1}';
/** What costs a gateway least; for a load's greeting. */
export const HELLO = requestText('GET', '/v1/time', {});
/** Never sold out while a benchmark runs. */
const PLENTY = 1_000_000;

/** A suite of real processes with production's settings, the sales that operations are measured on, and what they are asked. */
export class Suite {
  private readonly admin: KafkaAdmin;
  private readonly database: Database;
  private shoppers = 0;
  private soldOutSale: Promise<string> | undefined;
  private plentifulSale: Promise<string> | undefined;
  private edge: Promise<RunningEdge> | undefined;
  private stopping: Promise<void> | undefined;

  private constructor(
    private readonly world: World,
    private readonly servers: Servers,
    private readonly processes: number,
  ) {
    this.admin = new KafkaAdmin({ brokers: servers.addresses.kafkaBrokers.split(','), clientId: 'bench' });
    this.database = new Database({ url: world.mysqlUrl, poolSize: 2 });
  }

  static async start(servers: Servers, options: SuiteOptions = {}): Promise<Suite> {
    const { processes = 1, coalesce = true } = options;
    const world = await World.start({
      servers: servers.addresses,
      env: { ...AS_IN_PRODUCTION, COALESCE: String(coalesce) },
      instances: Object.fromEntries(SERVICES.map((name) => [name, processes])),
    });
    return new Suite(world, servers, processes);
  }

  /** Safe to call twice. */
  stop(): Promise<void> {
    this.stopping ??= this.end();
    return this.stopping;
  }

  private async end(): Promise<void> {
    await this.edge?.then((edge) => edge.stop()).catch(() => undefined);
    await this.admin.close();
    await this.database.close();
    await this.world.stop();
  }

  /** Everything whose CPU time an operation costs. */
  get groups(): ProcessGroup[] {
    const indices = Array.from({ length: this.processes }, (_, index) => index);
    const services = SERVICES.map((name) => ({
      name,
      pids: indices.map((index) => {
        const pid = this.world.processId(name, index);
        if (pid === undefined) throw new Error(`${name} ${index} has ended:\n${this.lastLines(name, index)}`);
        return pid;
      }),
    }));
    return [...services, ...this.servers.groups];
  }

  get origins(): string[] {
    return this.world.gateways.map(({ shopUrl }) => shopUrl);
  }

  /** nginx in front of the gateways, which knows already who is refused; started when it is first asked for. */
  async behindEdge(): Promise<RunningEdge> {
    this.edge ??= RunningEdge.start(this.world.gateways);
    const edge = await this.edge;
    const saleId = await this.soldOut();
    await until('the edge to refuse by itself', 20_000, async () => {
      const before = await edge.answeredItself();
      for (const shopper of this.newShoppers(1)) {
        await fetch(`${edge.origin}/v1/sales/${saleId}/entries`, {
          method: 'POST',
          headers: { ...jsonFrom(shopper), 'idempotency-key': KEY },
          body: ENTRY_BODY,
          signal: AbortSignal.timeout(5_000),
        });
      }
      return (await edge.answeredItself()) > before;
    });
    return edge;
  }

  // ── Shoppers and what they send ─────────────────────────────────────────────────────────────────────────────────────

  /** Shoppers who were never here before. */
  newShoppers(count: number): Shopper[] {
    return Array.from({ length: count }, () => {
      this.shoppers += 1;
      const id = `b-${this.shoppers}`;
      return { id, token: this.world.accessToken(id) };
    });
  }

  enters(saleId: string, shopper: Shopper): string {
    const headers = { ...jsonFrom(shopper), 'idempotency-key': KEY };
    return requestText('POST', `/v1/sales/${saleId}/entries`, headers, ENTRY_BODY);
  }

  /** Asks where the entry made by {@link enters} stands. */
  looks(saleId: string, { id, token }: Shopper): string {
    const entryId = attemptIdOf(SaleId.parse(saleId), ShopperId.parse(id), IdempotencyKey.parse(KEY));
    return requestText('GET', `/v1/entries/${entryId}`, { authorization: `Bearer ${token}` });
  }

  orders(shopper: Shopper, purchaseToken: string): string {
    const body = `${ORDER_BODY.before}${purchaseToken}${ORDER_BODY.after}`;
    return requestText('POST', '/v1/orders', jsonFrom(shopper), body);
  }

  /** Orders with what {@link enters} was answered. */
  thenOrders(shoppers: readonly Shopper[]): SecondCall {
    return {
      heads: shoppers.map((shopper) => requestHead('POST', '/v1/orders', jsonFrom(shopper))),
      field: 'purchaseToken',
      bodyBefore: ORDER_BODY.before,
      bodyAfter: ORDER_BODY.after,
      expected: 202,
    };
  }

  // ── Sales ───────────────────────────────────────────────────────────────────────────────────────────────────────────

  /** A sale whose holds outlive the benchmark, known to every gateway. */
  async openSale(settings: Readonly<Record<string, unknown>> = {}): Promise<string> {
    const saleId = await this.world.openSale({
      allotment: PLENTY,
      closesAt: new Date(Date.now() + SALE_LASTS_MS).toISOString(),
      holdSeconds: 3_600,
      paySeconds: 86_400,
      ...settings,
    });
    await this.isInPhase(saleId, 'open');
    return saleId;
  }

  /** The one that operations share which leave something behind. */
  plentiful(): Promise<string> {
    this.plentifulSale ??= this.openSale();
    return this.plentifulSale;
  }

  /** One whose only unit is held for an hour. */
  soldOut(): Promise<string> {
    this.soldOutSale ??= this.sellOut();
    return this.soldOutSale;
  }

  private async sellOut(): Promise<string> {
    const saleId = await this.openSale({ allotment: 1, buckets: 1 });
    for (const [id, status] of [
      ['the-holder', 201],
      ['the-late-one', 410],
    ] as const) {
      const shopper = this.world.shopper(id);
      const answer = await shopper.persist(() => shopper.enter(saleId, KEY));
      if (answer.status !== status)
        throw new Error(`${id} was answered ${answer.status} ${JSON.stringify(answer.body)}, not ${status}`);
    }
    await this.isInPhase(saleId, 'sold_out');
    return saleId;
  }

  /** Resolves when every gateway says so. */
  private async isInPhase(saleId: string, phase: string): Promise<void> {
    for (const origin of this.origins) {
      await until(`the gateway at ${origin} to call sale ${saleId} ${phase}`, 20_000, async () => {
        const answer = await fetch(`${origin}/v1/sales/${saleId}`, { signal: AbortSignal.timeout(5_000) });
        const sale = (await answer.json()) as { phase?: string };
        return sale.phase === phase;
      });
    }
  }

  // ── The writer ──────────────────────────────────────────────────────────────────────────────────────────────────────

  /**
   * Stops the writer where it stands, so that orders pile up. Not longer than its session in Kafka's group lasts, 6 s, or joining
   * again becomes part of what is measured.
   */
  pauseWriter(): void {
    for (let index = 0; index < this.processes; index += 1) this.world.pause('order-writer', index);
  }

  resumeWriter(): void {
    for (let index = 0; index < this.processes; index += 1) this.world.resume('order-writer', index);
  }

  /**
   * Waits until every order that is in Kafka now is decided, and every decision is told to Redis.
   *
   * @returns when the last one was decided, on the `performance.now()` scale, ms
   */
  async settled(): Promise<number> {
    const { ordersTopic } = this.world;
    const group = this.world.environment['ORDERS_GROUP'] ?? '';
    const { ends, lows } = await this.admin.logBounds(ordersTopic);
    await often('the orders to be decided', DECIDED_WITHIN_MS, async () =>
      hasPassed(await this.admin.committedOffsets(group, ordersTopic), ends, lows),
    );
    const decidedMs = performance.now();
    await often('Redis to be told of every decision', APPLIED_WITHIN_MS, async () => {
      const rows = await this.database.query('SELECT 1 FROM effect WHERE applied_at IS NULL LIMIT 1');
      return rows.length === 0;
    });
    return decidedMs;
  }

  /** Has V8's profiler look at what a service's first process does, so many µs apart, until it is stopped. */
  async profile(service: ServiceName, intervalMicros: number): Promise<{ stop(): Promise<CpuProfile> }> {
    const folder = mkdtempSync(join(tmpdir(), 'flash-sale-profile-'));
    const file = join(folder, 'cpuprofile');
    const session = 'globalThis.profilerSession';
    await this.world.evaluate(
      service,
      `${session} = new (process.getBuiltinModule('node:inspector').Session)(); ${session}.connect();
        ${session}.post('Profiler.enable');
        ${session}.post('Profiler.setSamplingInterval', { interval: ${intervalMicros} });
        ${session}.post('Profiler.start')`,
    );
    return {
      stop: async () => {
        try {
          await this.world.evaluate(
            service,
            `${session}.post('Profiler.stop', (error, { profile }) =>
              process.getBuiltinModule('node:fs').writeFileSync(${JSON.stringify(file)}, JSON.stringify(profile)));
            ${session}.disconnect()`,
          );
          return CpuProfile.parse(JSON.parse(readFileSync(file, 'utf8')));
        } finally {
          rmSync(folder, { recursive: true, force: true });
        }
      },
    };
  }

  /** Starts the gateways anew, so that their memory is that of nothing but what comes next. */
  async restartGateways(): Promise<void> {
    for (let index = 0; index < this.processes; index += 1) {
      await this.world.terminate('gateway', index);
      await this.world.startService('gateway', index);
    }
    for (const sale of [this.soldOutSale, this.plentifulSale]) {
      if (sale) await this.isInPhase(await sale, sale === this.soldOutSale ? 'sold_out' : 'open');
    }
  }

  private lastLines(name: ServiceName, index: number): string {
    return this.world.logOf(name, index).trim().split('\n').slice(-10).join('\n');
  }
}

const [before = '', after = ''] = JSON.stringify({ purchaseToken: '|', delivery: DELIVERY }).split('|');
const ORDER_BODY = { before, after };

function jsonFrom({ token }: Shopper): Record<string, string> {
  return { authorization: `Bearer ${token}`, 'content-type': 'application/json' };
}

/** As `until`, but looking more often: the time at which it holds is a measurement. */
async function often(what: string, withinMs: number, condition: () => Promise<boolean>): Promise<void> {
  const giveUpAtMs = performance.now() + withinMs;
  while (!(await condition())) {
    if (performance.now() > giveUpAtMs) throw new Error(`waited ${withinMs} ms in vain for ${what}`);
    await sleep(LOOK_EVERY_MS);
  }
}
