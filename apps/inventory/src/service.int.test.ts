/** The process itself, over the wire: what it offers, how it ends, and what it says when something is missing. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { SaleReport, SalesClient, StockClient, type inventory } from '@flash-sale/contracts';
import { AttemptId, IdempotencyKey, SaleId, ShopperId, attemptIdOf } from '@flash-sale/domain';
import { World, until } from '@flash-sale/testing';

const MAIN = join(import.meta.dirname, '../dist/main.js');
const context = undefined;

let world: World;
let sales: SalesClient;
let stock: StockClient;

beforeAll(async () => {
  world = await World.start({ services: ['inventory', 'order-writer'] });
  const address = world.environment['INVENTORY_URL'] ?? '';
  sales = new SalesClient(address);
  stock = new StockClient(address);
  await stock.ready(10_000);
}, 60_000);
afterAll(async () => {
  sales.close();
  stock.close();
  await world.stop();
}, 60_000);

const spec = (saleId: string): inventory.SaleSpec => ({
  saleId,
  title: 'Ein Stück 一',
  skuId: 'sku',
  allotment: 5,
  unitPrice: 1999,
  currency: 'CNY',
  opensAtMs: Date.now() - 1_000,
  closesAtMs: Date.now() + 600_000,
  limitPerShopper: 2,
  buckets: 4,
  holdMs: 60_000,
  payMs: 60_000,
  challenge: '',
  lineMode: '',
  admitPerSecond: 0,
  overbook: 0,
});
const change = (saleId: string, operation: string) =>
  sales.change({ saleId, operation, operator: 'olga' }, 5_000);
const attempt = (saleId: string, shopper: string): AttemptId =>
  attemptIdOf(SaleId.parse(saleId), ShopperId.parse(shopper), IdempotencyKey.parse('k'));

describe('the inventory service', () => {
  it('takes a sale through its life over gRPC', async () => {
    const saleId = `wire${world.id}`;
    const created = await sales.create({ sale: spec(saleId), operator: 'olga' });
    expect(created).toMatchObject({ problem: '', storedPhase: 'draft', phase: 'draft', epoch: 1 });
    expect(created.sale).toMatchObject({
      ...spec(saleId),
      opensAtMs: expect.any(Number),
      closesAtMs: expect.any(Number),
      lineMode: 'off',
      admitPerSecond: 1000,
    });
    expect(await change(saleId, 'warm-up')).toMatchObject({ problem: '', phase: 'open' });

    const attemptId = attempt(saleId, 'alice');
    const held = await stock.grant({ attemptId, shopperId: 'alice', quantity: 2, context });
    expect(held).toMatchObject({
      outcome: 'HELD',
      created: true,
      hold: { attemptId, shopperId: 'alice', skuId: 'sku', quantity: 2, epoch: 1, reason: '' },
    });
    const outcomes = await Promise.all(
      ['bob', 'carol', 'dave', 'erin'].map((shopperId) =>
        stock.grant({ attemptId: attempt(saleId, shopperId), shopperId, quantity: 1, context }),
      ),
    );
    expect(outcomes.map(({ outcome }) => outcome).sort()).toEqual(['HELD', 'HELD', 'HELD', 'SOLD_OUT']);
    expect((await sales.list({})).sales.find(({ sale }) => sale?.saleId === saleId)?.phase).toBe('sold_out');

    const order = { attemptId, shopperId: 'alice', quantity: 2, epoch: 1, deliveryHash: 'd', context };
    expect(await stock.queue(order)).toEqual({ outcome: 'QUEUED' });
    expect(await stock.queue({ ...order, deliveryHash: 'e' })).toEqual({ outcome: 'OTHER_DELIVERY' });
    await stock.recordOffsets({ items: [{ attemptId, shopperId: 'alice', partition: 0, offset: '7' }] });
    expect(await stock.release({ attemptId, shopperId: 'alice', context })).toEqual({
      outcome: 'ALREADY_ORDERED',
    });
    const effects: inventory.Effect[] = [{ attemptId, shopperId: 'alice', kind: 'CONFIRM', reason: '' }];
    expect(await stock.applyEffects({ effects })).toEqual({ applied: 1 });
    expect(await stock.findHold({ attemptId, shopperId: 'alice', context })).toMatchObject({
      outcome: 'CONFIRMED',
    });
    expect(await stock.findHold({ attemptId, shopperId: 'mallory', context })).toMatchObject({
      outcome: 'UNKNOWN',
    });

    const report = SaleReport.parse(JSON.parse((await sales.report({ saleId }, 5_000)).reportJson));
    expect(report).toMatchObject({
      phase: 'sold_out',
      redis: { sold: 2, held: 3, free: 0 },
      verdict: 'settling',
    });
    expect(await change(saleId, 'pause')).toMatchObject({ problem: '', phase: 'paused' });
    expect(await change(saleId, 'settle')).toMatchObject({ problem: 'wrong_phase' });
    expect(await sales.report({ saleId: 'nosuchsale' })).toMatchObject({ problem: 'not_found' });
    expect(await sales.create({ sale: undefined, operator: 'olga' })).toMatchObject({ problem: 'invalid' });
  }, 30_000);

  it('sweeps by itself: a released hold’s units are free again within moments', async () => {
    const saleId = `sweep${world.id}`;
    await sales.create({ sale: { ...spec(saleId), allotment: 1 }, operator: 'olga' });
    await change(saleId, 'warm-up');
    const ask = (shopperId: string) =>
      stock.grant({ attemptId: attempt(saleId, shopperId), shopperId, quantity: 1, context });
    expect(await ask('alice')).toMatchObject({ outcome: 'HELD' });
    expect(await ask('bob')).toMatchObject({ outcome: 'SOLD_OUT' });
    await stock.release({ attemptId: attempt(saleId, 'alice'), shopperId: 'alice', context });
    await until('bob to be granted', 10_000, async () => (await ask('bob')).outcome === 'HELD');
  }, 30_000);

  it('counts what it does', async () => {
    const names = [
      'inventory_grants_total',
      'inventory_tombstones_total',
      'inventory_effects_total',
      'sale_stock_units',
    ];
    let missing: string[] = names;
    await until('every metric to be there', 5_000, async () => {
      const metrics = await (await fetch(world.metricsUrl('inventory'))).text();
      missing = names.filter((name) => !metrics.includes(`${name}{`));
      return missing.length === 0;
    }).catch(() => {});
    expect(missing).toEqual([]);
  });

  it('ends at once and in order when asked to', async () => {
    const startedMs = performance.now();
    expect(await world.terminate('inventory')).toBe(0);
    expect(performance.now() - startedMs).toBeLessThan(20_000);
    expect(world.logOf('inventory')).not.toMatch(/"level":"(error|fatal)"/);
    await world.startService('inventory');
  }, 30_000);

  const start = (env: Readonly<Record<string, string>>) =>
    new Promise<{ code: number | null; output: string }>((resolve) => {
      const child = spawn(process.execPath, [MAIN], { env: { PATH: process.env['PATH'] ?? '', ...env } });
      let output = '';
      child.stdout.on('data', (data: Buffer) => (output += data.toString()));
      child.stderr.on('data', (data: Buffer) => (output += data.toString()));
      child.once('close', (code) => resolve({ code, output }));
    });
  const ports = { OPS_PORT: '0', GRPC_PORT: '0', GRPC_HOST: '127.0.0.1' };

  it.each([
    ['Redis', { REDIS_URL: 'redis://127.0.0.1:1' }, 'REDIS_URL'],
    ['MySQL', { MYSQL_URL: 'mysql://root@127.0.0.1:1/test_nowhere' }, 'MYSQL_URL'],
  ])(
    'says so and ends when there is no %s',
    async (_, missing, hint) => {
      const { code, output } = await start({ ...world.environment, ...ports, ...missing });
      expect(code).toBe(1);
      expect(output).toContain('inventory cannot start');
      expect(output).toContain(hint);
    },
    // A Redis is waited for half a minute: it may be starting as well.
    90_000,
  );

  it('names every wrong variable at once', async () => {
    const { code, output } = await start({
      GRPC_PORT: 'x',
      KAFKA_BROKERS: 'nonsense',
      SWEEP_INTERVAL_MS: '0',
    });
    expect(code).toBe(2);
    for (const name of ['GRPC_PORT', 'KAFKA_BROKERS', 'MYSQL_URL', 'OPS_PORT', 'SWEEP_INTERVAL_MS']) {
      expect(output).toContain(name);
    }
  });
});
