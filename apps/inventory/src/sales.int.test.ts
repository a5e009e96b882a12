import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { SALE_FEED, SaleReport, decodeSnapshot } from '@flash-sale/contracts';
import { Database } from '@flash-sale/database';
import { TestInventory, wishOf } from './fixtures/test-inventory.js';
import type { Inventory } from './inventory.js';
import { bucketKeys, stateKey } from './keys.js';
import type { KnownSale } from './sale-book.js';
import type { SaleOutcome } from './sales.js';

let world: TestInventory;
let inventory: Inventory;
let second: Inventory;

beforeAll(async () => {
  world = await TestInventory.open();
  inventory = await world.instance();
  second = await world.instance();
}, 60_000);
afterAll(() => world.close());

const problem = (outcome: SaleOutcome) => ('problem' in outcome ? outcome.problem : outcome.sale.storedPhase);
const change = async (sale: KnownSale, operation: string, at = inventory) =>
  problem(await at.sales.change(sale.saleId, operation, 'olga'));
const operations = async (saleId: string) =>
  (
    await world.database.query(
      'SELECT operation, before_phase, after_phase, operator FROM operator_log WHERE sale_id = ? ORDER BY at, entry_id',
      [saleId],
    )
  ).map((row) =>
    [row['operator'], row['operation'], `${String(row['before_phase'])}→${String(row['after_phase'])}`].join(
      ' ',
    ),
  );
const draft = async (changes: Readonly<Record<string, unknown>> = {}) => {
  const settings = world.settings(changes);
  const outcome = await inventory.sales.create(settings, 'olga');
  if (!outcome.sale) throw new Error(JSON.stringify(outcome));
  world.remember(outcome.sale);
  return { sale: outcome.sale, settings };
};
const outcomeOf = async (sale: KnownSale, shopper: string, at = inventory) => {
  const [found] = await at.stock.grant([wishOf(sale, shopper)]);
  return found?.outcome === 'hold' ? found.hold.state : found?.outcome;
};
const told = async (sale: KnownSale) => {
  const text = await world.redis.hget(SALE_FEED.snapshots, sale.saleId);
  return text === null ? null : decodeSnapshot(text);
};

describe('Sales.create', () => {
  it('drafts a sale, once for one id and one set of settings', async () => {
    const { sale, settings } = await draft();
    expect(sale).toMatchObject({ ...settings, storedPhase: 'draft', epoch: 1, version: 1 });
    const both = await Promise.all([
      inventory.sales.create(settings, 'olga'),
      second.sales.create(settings, 'oscar'),
    ]);
    expect(both).toEqual([{ sale }, { sale }]);
    expect(await operations(sale.saleId)).toEqual(['olga create null→draft']);
  });

  it('refuses another sale under the same id, and names what differs', async () => {
    const { settings } = await draft();
    const outcome = await inventory.sales.create(
      { ...settings, allotment: 11, line: { ...settings.line, mode: 'fifo' } },
      'olga',
    );
    expect(outcome).toMatchObject({
      problem: 'sale_exists',
      detail: expect.stringContaining('another allotment, line'),
    });
  });

  it('makes an id where none is given', async () => {
    const { saleId: _, ...settings } = world.settings();
    const outcome = await inventory.sales.create(settings, 'olga');
    expect(outcome.sale?.saleId).toMatch(/^[0-9a-f]{32}$/);
  });

  it.each([
    ['allotment', { allotment: 0 }],
    ['closesAtMs', { closesAtMs: 5 }],
    ['currency', { currency: 'yuan' }],
    ['bucketCount', { bucketCount: 5000 }],
    ['saleId', { saleId: 'a}b' }],
  ])('refuses a wrong %s and says which', async (field, changes) => {
    const outcome = await inventory.sales.create(world.settings(changes), 'olga');
    expect(outcome).toMatchObject({ problem: 'invalid', detail: expect.stringContaining(`${field}:`) });
  });
});

describe('Sales.change', () => {
  it('warms up: total and ledger in MySQL, every bucket loaded, gateways told', async () => {
    const { sale } = await draft({ allotment: 10 });
    expect(await outcomeOf(sale, 'alice')).toBe('not_open');
    expect(await change(sale, 'warm-up')).toBe('warmed');
    const [stock] = await world.database.query('SELECT total, sold FROM sale_stock WHERE sale_id = ?', [
      sale.saleId,
    ]);
    expect(stock).toEqual({ total: '10', sold: '0' });
    const legs = await world.database.query(
      'SELECT entry_id, account, amount FROM ledger WHERE sale_id = ? ORDER BY account',
      [sale.saleId],
    );
    expect(legs).toEqual([
      { entry_id: `${sale.saleId}:allot:1`, account: 'allotment', amount: '-10' },
      { entry_id: `${sale.saleId}:allot:1`, account: 'free', amount: '10' },
    ]);
    const shares = await Promise.all([0, 1, 2, 3].map((bucket) => world.account(sale, bucket)));
    expect(shares.map(({ initial, free }) => [initial, free])).toEqual([
      [3, 3],
      [3, 3],
      [2, 2],
      [2, 2],
    ]);
    expect(await world.redis.hgetall(stateKey(sale.saleId))).toMatchObject({
      epoch: '1',
      credit: '0',
      boot: expect.stringMatching(/./),
    });
    expect(await told(sale)).toMatchObject({
      storedPhase: 'warmed',
      epoch: 1,
      soldOut: false,
      filterBits: 0,
    });
    expect(await outcomeOf(sale, 'alice')).toBe('held');
    expect(await operations(sale.saleId)).toEqual([
      'olga create null→draft',
      'olga warm-up draft→warming',
      'olga finish-warm-up warming→warmed',
    ]);
  });

  it('gives no unit twice when it is warmed up again, also by two at once', async () => {
    const { sale } = await draft({ allotment: 10 });
    const both = await Promise.all([change(sale, 'warm-up'), change(sale, 'warm-up', second)]);
    expect(both).toEqual(['warmed', 'warmed']);
    expect(await outcomeOf(sale, 'alice')).toBe('held');
    expect(await change(sale, 'warm-up')).toBe('warmed');
    expect([await world.total(sale, 'initial'), await world.total(sale, 'free')]).toEqual([10, 9]);
    const [legs] = await world.database.query('SELECT COUNT(*) AS n FROM ledger WHERE sale_id = ?', [
      sale.saleId,
    ]);
    expect(Number(legs?.['n'])).toBe(2);
  });

  it('finishes a warm-up that a crash cut off half-way, and sells nothing before', async () => {
    const { sale } = await draft({ allotment: 10 });
    await change(sale, 'warm-up');
    // As a crash after two of four buckets would have left it.
    await world.database.change("UPDATE sale SET phase = 'warming' WHERE sale_id = ?", [sale.saleId]);
    for (const bucket of [2, 3]) await world.redis.del(bucketKeys(sale.saleId, bucket).account);
    await world.redis.del(stateKey(sale.saleId));
    for (const bucket of [0, 1])
      await world.redis.hset(bucketKeys(sale.saleId, bucket).account, 'gateVersion', 0);
    await second.book.reload(sale.saleId);
    expect(await outcomeOf(sale, 'alice', second)).toBe('not_open');
    expect(await change(sale, 'warm-up', second)).toBe('warmed');
    expect([await world.total(sale, 'initial'), await world.total(sale, 'free')]).toEqual([10, 10]);
    expect(await outcomeOf(sale, 'alice', second)).toBe('held');
  });

  it('never fills the buckets of a running sale again that Redis has lost', async () => {
    const sale = await world.openSale(inventory);
    await world.redis.del(bucketKeys(sale.saleId, 0).account, bucketKeys(sale.saleId, 0).attempts);
    expect(await change(sale, 'warm-up')).toBe('unavailable');
    expect(await world.redis.exists(bucketKeys(sale.saleId, 0).account)).toBe(0);
  });

  it('pauses and resumes at every instance: new grants stop, what is known goes on', async () => {
    const sale = await world.openSale(inventory);
    await outcomeOf(sale, 'alice');
    expect(await change(sale, 'pause')).toBe('paused');
    expect(await outcomeOf(sale, 'bob', second)).toBe('paused');
    expect(await outcomeOf(sale, 'alice', second)).toBe('held');
    expect(await second.stock.queue([{ ...wishOf(sale, 'alice'), epoch: 1, deliveryHash: 'd' }])).toEqual([
      'queued',
    ]);
    expect(await told(sale)).toMatchObject({ storedPhase: 'paused' });
    expect([await change(sale, 'pause'), await change(sale, 'resume', second)]).toEqual(['paused', 'warmed']);
    expect(await outcomeOf(sale, 'bob')).toBe('held');
    expect(await told(sale)).toMatchObject({ storedPhase: 'warmed' });
  });

  it('closes for good', async () => {
    const sale = await world.openSale(inventory);
    expect([await change(sale, 'close'), await change(sale, 'close', second)]).toEqual(['closed', 'closed']);
    expect(await outcomeOf(sale, 'bob')).toBe('closed');
    expect([
      await change(sale, 'resume'),
      await change(sale, 'warm-up'),
      await change(sale, 'pause'),
    ]).toEqual(['wrong_phase', 'wrong_phase', 'wrong_phase']);
  });

  it('refuses what it does not know, in words', async () => {
    const { sale } = await draft();
    expect(await change(sale, 'explode')).toBe('invalid');
    expect(await change({ ...sale, saleId: 'nosuchsale' as never }, 'pause')).toBe('not_found');
    const early = await inventory.sales.change(sale.saleId, 'pause', 'olga');
    expect(early).toMatchObject({ problem: 'wrong_phase', detail: expect.stringContaining('is draft') });
  });

  it('brings a change to buckets that could not be told, with the next watch of any instance', async () => {
    const sale = await world.openSale(inventory);
    await second.watch.pass();
    // As if Redis had been away while it was paused.
    await world.database.change("UPDATE sale SET phase = 'paused', version = version + 1 WHERE sale_id = ?", [
      sale.saleId,
    ]);
    await second.watch.pass();
    expect(await outcomeOf(sale, 'bob', second)).toBe('paused');
    expect(await told(sale)).toMatchObject({ storedPhase: 'paused' });
  });

  it('says unavailable when MySQL is away, and throws nothing at the operator', async () => {
    const away = new Database({
      url: 'mysql://root@127.0.0.1:1/test_nowhere',
      poolSize: 2,
      acquireTimeoutMs: 200,
    });
    const alone = await world.instance({ database: away });
    expect(problem(await alone.sales.create(world.settings(), 'olga'))).toBe('unavailable');
    expect(problem(await alone.sales.change('x', 'pause', 'olga'))).toBe('unavailable');
    await away.close();
  });
});

describe('settling and the report', () => {
  it('is refused while anything is unresolved, and says what', async () => {
    const sale = await world.openSale(inventory);
    await outcomeOf(sale, 'alice');
    expect(await change(sale, 'settle')).toBe('wrong_phase');
    await change(sale, 'close');
    const held = await inventory.sales.change(sale.saleId, 'settle', 'olga');
    expect(held).toMatchObject({ problem: 'unresolved', detail: expect.stringContaining('1 holds') });

    await inventory.stock.applyEffects([{ ...wishOf(sale, 'alice'), kind: 'void', reason: 'released' }]);
    await world.database.change(
      `INSERT INTO orders (order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, state, batch_id, epoch,
         created_at, updated_at) VALUES (?, ?, 'bob', 'sku', 1, 1, 'CNY', 'awaiting_payment', 'b', 1, NOW(3), NOW(3))`,
      [wishOf(sale, 'bob').attemptId, sale.saleId],
    );
    const unpaid = await inventory.sales.change(sale.saleId, 'settle', 'olga');
    expect(unpaid).toMatchObject({
      problem: 'unresolved',
      detail: expect.stringContaining('wait for their payment'),
    });
  });

  it('ends a sale that is over by the clock, and gives its keys an end in a week', async () => {
    const sale = await world.openSale(inventory, { closesAtMs: Date.now() + 200 });
    await outcomeOf(sale, 'alice');
    await inventory.stock.applyEffects([{ ...wishOf(sale, 'alice'), kind: 'void', reason: 'released' }]);
    await new Promise((resolve) => setTimeout(resolve, 250));
    expect(await outcomeOf(sale, 'bob')).toBe('closed');
    expect([await change(sale, 'settle'), await change(sale, 'settle', second)]).toEqual([
      'settled',
      'settled',
    ]);
    const { account, attempts } = bucketKeys(sale.saleId, 0);
    expect(await world.redis.ttl(account)).toBeGreaterThan(6 * 86_400);
    expect(await world.redis.ttl(stateKey(sale.saleId))).toBeGreaterThan(6 * 86_400);
    expect(await told(sale)).toMatchObject({ storedPhase: 'settled' });
    expect(await outcomeOf(sale, 'alice', second)).toBe('void');
    await world.redis.del(account, attempts, bucketKeys(sale.saleId, 1).account);
    expect(await outcomeOf(sale, 'alice')).not.toBe('sold_out');
  });

  it('reports stores that agree as balanced, and every difference in a sentence', async () => {
    const sale = await world.openSale(inventory, { allotment: 10 });
    await outcomeOf(sale, 'alice');
    const orderId = wishOf(sale, 'alice').attemptId;
    const read = async () => SaleReport.parse(await inventory.reports.report(sale));
    expect(await read()).toMatchObject({ verdict: 'settling', phase: 'open', redis: { held: 1, free: 9 } });

    await inventory.stock.applyEffects([{ ...wishOf(sale, 'alice'), kind: 'confirm', reason: '' }]);
    await world.database.change('UPDATE sale_stock SET sold = 1 WHERE sale_id = ?', [sale.saleId]);
    await world.database.change(
      `INSERT INTO orders (order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, state, batch_id, epoch,
         version, created_at, updated_at) VALUES (?, ?, 'alice', ?, 1, ?, ?, 'paid', 'b', 1, 2, NOW(3), NOW(3))`,
      [orderId, sale.saleId, sale.skuId, sale.unitPrice, sale.currency],
    );
    await world.database.change(
      `INSERT INTO order_event VALUES (?, 1, 'queued', 'awaiting_payment', 'test', NOW(3)),
         (?, 2, 'awaiting_payment', 'paid', 'test', NOW(3))`,
      [orderId, orderId],
    );
    await world.database.change(
      `INSERT INTO payment (payment_id, order_id, sale_id, shopper_id, idempotency_key, body_hash, amount, currency, method,
         state, created_at, updated_at) VALUES (?, ?, ?, 'alice', 'k', 'x', ?, ?, 'test-card', 'captured', NOW(3), NOW(3))`,
      [`p-${orderId}`, orderId, sale.saleId, sale.unitPrice, sale.currency],
    );
    await world.database.change(`INSERT INTO quota VALUES (?, 'alice', 1)`, [sale.saleId]);
    await world.database.change(
      `INSERT INTO ledger VALUES ('e', 'held', ?, 'o', -1, NOW(3)), ('e', 'sold', ?, 'o', 1, NOW(3))`,
      [sale.saleId, sale.saleId],
    );
    expect(await read()).toMatchObject({
      verdict: 'balanced',
      differences: [],
      mysql: { total: 10, sold: 1, paid: 1, ordersByState: { paid: 1 } },
    });

    await world.database.change('UPDATE sale_stock SET sold = 2 WHERE sale_id = ?', [sale.saleId]);
    const differing = await read();
    expect(differing.verdict).toBe('differs');
    expect(differing.differences).toContain('the units sold in Redis is 1, but sale_stock.sold is 2');

    await world.redis.del(stateKey(sale.saleId));
    expect(await read()).toMatchObject({ redis: { available: false, buckets: [] } });
  });
});
