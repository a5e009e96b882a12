import { randomUUID } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { BLOCKLIST_FEED, SALE_FEED, type SaleSnapshot } from '@flash-sale/contracts';
import { filterBitsFor, type SaleId } from '@flash-sale/domain';
import { LoneGateway, accessToken, saleOf } from './fixtures/lone-gateway.js';

/**
 * What a refused shopper costs Redis: nothing. A real gateway with limits so low that counting in Redis would begin with the
 * second request; everything that reaches its database (10, where nobody else is) is overheard.
 */
let world: LoneGateway;
let ears: Socket | undefined;
let commands: string[] = [];
const url = () => {
  const address = process.env['REDIS_URL'];
  if (!address)
    throw new Error('REDIS_URL is not set: run this test by `npm test`, or start a stack and name it');
  return new URL('/10', address).href;
};
const filterBits = filterBitsFor(100, 4);
const sales: SaleSnapshot[] = [];
/** Only to spell what comes before a sale's id in a key. */
const NOBODYS_SALE = '' as SaleId;

beforeAll(async () => {
  world = await LoneGateway.start({
    REDIS_URL: url(),
    RATE_LIMIT_PER_SHOPPER_PER_SECOND: '1',
    RATE_LIMIT_PER_ADDRESS_PER_SECOND: '5000',
  });
  ears = await overhear();
});
afterAll(async () => {
  ears?.destroy();
  await world.redis.del(BLOCKLIST_FEED.list);
  for (const sale of sales) await world.unpublish(sale);
  await world.stop();
});

/** By hand, because ioredis' own monitor fails where something is to be heard in the moment it begins. */
async function overhear(): Promise<Socket> {
  const { hostname, port } = new URL(url());
  const socket = connect(Number(port || 6379), hostname);
  const begun = new Promise<void>((resolve, reject) => {
    socket.once('error', reject);
    createInterface({ input: socket }).on('line', (line) => {
      if (line === '+OK') resolve();
      // +1339518083.107412 [10 127.0.0.1:60866] "hget" "fs:blocklist" "*"
      const [, words] = /^\+[\d.]+ \[10 [^\]]+\] (.*)$/.exec(line) ?? [];
      if (words) commands.push(words.replaceAll('"', '').toLowerCase());
    });
  });
  socket.write('MONITOR\r\n');
  await begun;
  return socket;
}
async function publish(changes: Partial<SaleSnapshot>): Promise<SaleSnapshot> {
  const sale = await world.publish(changes);
  sales.push(sale);
  return sale;
}
/** The answers, and what reached Redis besides what a gateway reads by itself however many call. */
async function costOf(calls: number, send: (i: number) => Promise<Response>) {
  // Something that is certain to be overheard says that everything before it was.
  const overheard = async () => {
    const mark = randomUUID();
    await world.redis.echo(mark);
    while (!commands.includes(`echo ${mark}`)) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  await overheard();
  commands = [];
  const answers = new Set<string>();
  for (let i = 0; i < calls; i += 1) {
    const response = await send(i);
    const { code } = (await response.json()) as { code?: string };
    answers.add(`${response.status}${code ? ` ${code}` : ''}`);
  }
  await overheard();
  const own = [
    'time',
    'ping',
    'echo ',
    `hgetall ${SALE_FEED.snapshots}`,
    `hget ${BLOCKLIST_FEED.list}`,
    'get fs:degradation',
  ];
  // A channel is heard in every database: other tests' sales are told here too, and their filters looked for.
  const ours = sales.map(({ saleId }) => SALE_FEED.holders(saleId));
  const isOthers = (command: string) =>
    command.startsWith(`get ${SALE_FEED.holders(NOBODYS_SALE)}`) &&
    !ours.some((key) => command === `get ${key}`.toLowerCase());
  const caused = commands.filter(
    (command) => !own.some((each) => command.startsWith(each)) && !isOthers(command),
  );
  return { answers: [...answers], caused };
}
const enter = (saleId: string, shopperId: string) =>
  fetch(`${world.url}/v1/sales/${saleId}/entries`, {
    method: 'POST',
    headers: {
      authorization: `Bearer ${accessToken(shopperId)}`,
      'content-type': 'application/json',
      'idempotency-key': randomUUID(),
    },
    body: '{"quantity":1}',
  });

async function answered(answer: string, saleId: string, shopperId: string): Promise<void> {
  const giveUpAt = performance.now() + 20_000;
  for (;;) {
    const response = await enter(saleId, shopperId);
    const { code } = (await response.json()) as { code?: string };
    if (`${response.status} ${code}` === answer) return;
    if (performance.now() > giveUpAt) throw new Error(`never ${answer}, but ${response.status} ${code}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

describe('what memory refuses', () => {
  it.each([
    ['410 sold_out', { soldOut: true, filterBits, filterVersion: 1 }],
    ['409 sale_paused', { storedPhase: 'paused', filterBits, filterVersion: 1 }],
    ['409 sale_closed', { storedPhase: 'closed', filterBits, filterVersion: 1 }],
    ['409 sale_not_open', { opensAtMs: Date.now() + 600_000 }],
    ['409 limit_reached', { limitPerShopper: 0, line: { mode: 'fifo', admitPerSecond: 1, overbook: 0 } }],
  ] as const)(
    'costs Redis nothing: %s',
    async (answer, changes) => {
      const sale = saleOf(changes);
      await world.redis.set(SALE_FEED.holders(sale.saleId), Buffer.alloc((filterBits / 8) * 4));
      await publish(sale);
      // Until the filter is there, and counts for a pause, everybody is asked for, of a service that is not there.
      await answered(answer, sale.saleId, 'early');
      const { answers, caused } = await costOf(30, () => enter(sale.saleId, `stranger-${sale.saleId}`));
      expect({ answers, caused }).toEqual({ answers: [answer], caused: [] });
    },
    30_000,
  );

  it('costs Redis nothing: 403 blocked', async () => {
    const sale = await publish({});
    await world.redis.hset(BLOCKLIST_FEED.list, BLOCKLIST_FEED.version, '5', 'mallory', '1');
    await world.redis.publish(BLOCKLIST_FEED.channel, '{"before":0,"version":5}');
    await answered('403 blocked', sale.saleId, 'mallory');
    const { answers, caused } = await costOf(30, () => enter(sale.saleId, 'mallory'));
    expect({ answers, caused }).toEqual({ answers: ['403 blocked'], caused: [] });
  });

  it('is told from what is let through, which is counted', async () => {
    const sale = await publish({});
    const { caused } = await costOf(5, () => enter(sale.saleId, 'buyer'));
    expect(caused.some((command) => command.includes('eval'))).toBe(true);
  });
});

describe('sale pages', () => {
  it('cost Redis nothing, however many are asked for', async () => {
    const sale = await publish({});
    for (const path of ['sales', `sales/${sale.saleId}`, 'time']) {
      const { answers, caused } = await costOf(700, () => fetch(`${world.url}/v1/${path}`));
      expect({ answers, caused }).toEqual({ answers: ['200'], caused: [] });
    }
  });
});
