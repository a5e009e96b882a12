/**
 * How long a big sale takes that Redis has lost. REBUILD_ORDERS makes it bigger. The time is printed and not judged, because it
 * is the machine's; what was built is, and the memory that it took:
 *
 *     REBUILD_ORDERS=1000000 npm test -- apps/inventory/src/rebuild-size.int.test.ts
 */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { until } from '@flash-sale/testing';
import { TestBooks } from './fixtures/test-books.js';
import { TestInventory, wishOf } from './fixtures/test-inventory.js';
import type { Inventory } from './inventory.js';
import { bucketKeys } from './keys.js';
import type { KnownSale } from './sale-book.js';

const ORDERS = Number(process.env['REBUILD_ORDERS'] ?? 20_000);
const BUCKETS = 8;
const ROWS_PER_INSERT = 2_000;
/** Of every ten orders, one after the other: seven have units. */
const STATES = [
  'paid',
  'paid',
  'cancelled',
  'paid',
  'paid',
  'unpaid',
  'paid',
  'paid',
  'expired',
  'awaiting_payment',
];
const SOLD: ReadonlySet<string> = new Set(['paid', 'awaiting_payment']);
/** All rows of a million orders would be ten times as much. */
const MAX_GROWTH_MB = 64;
const LOOK_AT_MEMORY_EVERY_MS = 1_000;

let world: TestInventory;
let books: TestBooks;
let inventory: Inventory;
let sale: KnownSale;
let sold = 0;

beforeAll(async () => {
  world = await TestInventory.open({ rebuildLeaseMs: 10_000 });
  books = new TestBooks(world);
  inventory = await world.instance();
  sale = await world.openSale(inventory, { allotment: ORDERS, bucketCount: BUCKETS });
  sold = await writeOrders();
}, 900_000);
afterAll(() => world.close(), 120_000);

describe(`A sale of ${ORDERS} orders is built anew in memory that does not grow with it`, () => {
  it('where Redis has lost everything', async () => {
    await books.loseAll(sale);
    await rebuild('everything lost');
    const [row] = await world.database.query('SELECT restored_orders FROM rebuild WHERE sale_id = ?', [
      sale.saleId,
    ]);
    expect(Number(row?.['restored_orders'])).toBe(ORDERS);
  }, 600_000);

  it('where Redis has lost one bucket, and what was decided lately is compared in the others', async () => {
    await books.lose(sale, 0);
    await rebuild(`one bucket of ${BUCKETS} lost`);
  }, 600_000);
});

async function rebuild(what: string): Promise<void> {
  const before = liveMegabytes();
  let peak = before;
  const startedMs = performance.now();
  let lookAtMs = startedMs;
  await until('the sale to be rebuilt', 590_000, async () => {
    inventory.rebuilds.consider(sale);
    if (performance.now() >= lookAtMs) {
      lookAtMs = performance.now() + LOOK_AT_MEMORY_EVERY_MS;
      peak = Math.max(peak, liveMegabytes());
    }
    return books.isServed(sale);
  });
  const tookMs = Math.round(performance.now() - startedMs);
  process.stdout.write(`${ORDERS} orders, ${what}: ${tookMs} ms, ${peak - before} MB more in memory\n`);
  expect(peak - before).toBeLessThan(MAX_GROWTH_MB);

  expect([await world.total(sale, 'sold'), await world.total(sale, 'free')]).toEqual([sold, ORDERS - sold]);
  const records = await Promise.all(
    Array.from({ length: BUCKETS }, (_, bucket) =>
      world.redis.hlen(bucketKeys(sale.saleId, bucket).attempts),
    ),
  );
  expect(records.reduce((sum, count) => sum + count, 0)).toBe(ORDERS);
}

/** What is in use when all that is not was thrown away. */
function liveMegabytes(): number {
  setFlagsFromString('--expose-gc');
  runInNewContext('gc')();
  const { heapUsed, external } = process.memoryUsage();
  return Math.round((heapUsed + external) / 2 ** 20);
}

/**
 * Rows as the writer and whoever ended them left them, of which Redis was told just now; in the order of their keys, so that
 * MySQL only appends.
 *
 * @returns how many count as sold
 */
async function writeOrders(): Promise<number> {
  const orders = Array.from({ length: ORDERS }, (_, n) => {
    const { attemptId, shopperId } = wishOf(sale, `shopper-${n}`);
    return { attemptId, shopperId, state: STATES[n % STATES.length] ?? '', offset: n };
  }).sort((a, b) => (a.attemptId < b.attemptId ? -1 : 1));
  const delivery = JSON.stringify({ name: 'A. Shopper', street: 'x'.repeat(100) });
  const at = new Date();
  for (let first = 0; first < ORDERS; first += ROWS_PER_INSERT) {
    const batch = orders.slice(first, first + ROWS_PER_INSERT);
    await world.database.change(
      `INSERT INTO orders (order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, state, batch_id, epoch,
         delivery, delivery_hash, kafka_partition, kafka_offset, created_at, updated_at) VALUES ?`,
      [
        batch.map(({ attemptId, shopperId, state, offset }) => [
          attemptId,
          sale.saleId,
          shopperId,
          'sku',
          1,
          1999,
          'CNY',
          state,
          'writer',
          1,
          delivery,
          'hash-of-22-characters.',
          0,
          offset,
          at,
          at,
        ]),
      ],
    );
    await world.database.change(
      `INSERT INTO effect (order_id, kind, sale_id, shopper_id, created_at, applied_at)
       SELECT order_id, IF(state IN ('paid', 'awaiting_payment'), 'confirm', 'void'), sale_id, shopper_id, NOW(3), NOW(3)
       FROM orders WHERE order_id BETWEEN ? AND ?`,
      [batch[0]?.attemptId ?? '', batch.at(-1)?.attemptId ?? ''],
    );
  }
  const units = orders.filter(({ state }) => SOLD.has(state)).length;
  await world.database.change('UPDATE sale_stock SET sold = ? WHERE sale_id = ?', [units, sale.saleId]);
  return units;
}
