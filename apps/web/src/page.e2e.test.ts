import { resolve } from 'node:path';
import { World, until } from '@flash-sale/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { chromium, type Browser, type BrowserContext } from 'playwright-core';

/** A person with a browser, among a crowd, on the page that the gateway serves. */
describe('the page', () => {
  let world: World;
  let browser: Browser;
  let context: BrowserContext;

  beforeAll(async () => {
    world = await World.start({ env: { WEB_ROOT: resolve(import.meta.dirname, '../dist') } });
    const executablePath = process.env['CHROMIUM_PATH'];
    if (!executablePath) throw new Error('CHROMIUM_PATH is not set; npm test finds or installs a browser');
    browser = await chromium.launch({
      executablePath,
      args: [
        '--no-sandbox',
        '--disable-gpu',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-sync',
        '--no-first-run',
      ],
    });
    context = await browser.newContext({ locale: 'en-GB' });
  }, 90_000);
  afterAll(async () => {
    await browser?.close();
    await world?.stop();
  }, 60_000);

  const shot = async (page: Awaited<ReturnType<BrowserContext['newPage']>>, name: string) => {
    const folder = process.env['SCREENSHOTS'];
    if (folder) await page.screenshot({ path: `${folder}/${name}.png` });
  };

  it('shows the sale, buys one unit among the crowd and pays for it', async () => {
    const saleId = await world.openSale({ title: 'Night-blue teapot', allotment: 80, buckets: 8 });
    const page = await context.newPage();
    const faults: string[] = [];
    page.on('pageerror', (error) => faults.push(error.message));
    await page.goto(`${world.shopUrl}/?sale=${saleId}`);
    await page.getByRole('heading', { name: 'Night-blue teapot' }).waitFor();
    await page.getByText('On sale now').waitFor();
    await shot(page, '1-open');

    const crowd = Promise.all(
      Array.from({ length: 60 }, (_, i) => world.shopper(`crowd-${i}`).enter(saleId, 'k')),
    );
    await page.getByRole('button', { name: /Buy now/ }).click();
    const [answers] = await Promise.all([crowd, page.getByText('A unit is set aside for you').waitFor()]);
    expect(answers.some((answer) => answer.status === 201)).toBe(true);
    await shot(page, '2-granted');

    // A reload loses nothing: the same hold is shown again.
    await page.reload();
    await page.getByText('A unit is set aside for you').waitFor();
    await page.getByRole('button', { name: 'Place the order' }).click();
    await page.getByText('Ordered. Pay to keep it').waitFor();
    await shot(page, '3-ordered');

    await page.getByLabel('Test card').selectOption('4000000000000002');
    await page.getByRole('button', { name: 'Pay', exact: true }).click();
    await page.getByText('The card was declined').waitFor();
    await shot(page, '4-declined');
    await page.getByLabel('Test card').selectOption('4242424242424242');
    await page.getByRole('button', { name: 'Pay', exact: true }).click();
    await page.getByRole('heading', { name: 'Paid' }).waitFor();
    await shot(page, '5-paid');
    expect(faults).toEqual([]);

    const shopperId = await page.evaluate(() => localStorage.getItem('flash-sale:shopper'));
    const orders = await world.shopper(String(shopperId)).expect(200, 'GET', '/v1/orders');
    expect(orders['orders']).toMatchObject([{ saleId, state: 'paid', quantity: 1 }]);
    await page.close();
  }, 90_000);

  it('waits in the line with its place shown, and is let in', async () => {
    const saleId = await world.openSale({
      title: 'In line',
      allotment: 20,
      line: { mode: 'fifo', admitPerSecond: 1 },
    });
    await Promise.all(Array.from({ length: 4 }, (_, i) => world.shopper(`before-${i}`).enter(saleId, 'k')));
    const page = await (await browser.newContext({ locale: 'en-GB' })).newPage();
    await page.goto(`${world.shopUrl}/?sale=${saleId}`);
    await page.getByRole('button', { name: /Buy now/ }).click();
    await page.getByText('You are in the line').waitFor();
    await shot(page, '6-waiting');
    await page.getByText('A unit is set aside for you').waitFor({ timeout: 30_000 });
    await page.close();
  }, 60_000);

  it('says in words that the sale is sold out, and sells a unit that comes back', async () => {
    const saleId = await world.openSale({ title: 'Only one', allotment: 1 });
    const holder = world.shopper('holder');
    const entry = await holder.enter(saleId, 'k');
    const page = await (await browser.newContext({ locale: 'en-GB' })).newPage();
    await page.goto(`${world.shopUrl}/?sale=${saleId}`);
    await page.getByRole('button', { name: /Buy now/ }).click();
    await page.getByText('Not this time').waitFor();
    await shot(page, '7-sold-out');
    await holder.call('DELETE', `/v1/entries/${String(entry.body['entryId'])}`);
    await until('the unit to come back', 15_000, async () => {
      const sale = await holder.call('GET', `/v1/sales/${saleId}`);
      return sale.body['phase'] === 'open';
    });
    await page.getByRole('button', { name: 'Try again' }).click();
    await page.getByRole('button', { name: /Buy now/ }).click();
    await page.getByText('A unit is set aside for you').waitFor();
    await page.close();
  }, 60_000);
});
