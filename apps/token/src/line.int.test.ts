import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { CallFailed, type inventory, type token } from '@flash-sale/contracts';
import {
  IdempotencyKey,
  SaleId,
  ShopperId,
  attemptIdOf,
  verifyPurchaseToken,
  type SigningKeys,
} from '@flash-sale/domain';
import { connectRedis, type RedisClient } from '@flash-sale/redis';
import { startRedisCluster, type RedisCluster } from '@flash-sale/stack';
import { lineKeys } from './keys.js';
import { Line, type StockForLine } from './line.js';
import { ProofOfWork } from './proof-of-work.js';

/**
 * The line and its scripts on a real Redis (REDIS_URL, its database 3). Behind it stands a small honest Stock in memory,
 * so that each of its answers can be had at will; the real one is met in the end-to-end tests.
 */
class SmallStock implements StockForLine {
  readonly holds = new Map<string, { state: inventory.FindHoldResult['outcome']; hold: inventory.Hold }>();
  /** Answers every grant of an unknown attempt, where set. */
  refusal: inventory.GrantResult['outcome'] | 'no answer' | null = null;
  free = 1_000;

  grant = async (item: inventory.GrantItem): Promise<inventory.GrantResult> => {
    await delay(1);
    const known = this.holds.get(item.attemptId);
    if (known) return { outcome: known.state as 'HELD', hold: known.hold, created: false };
    if (this.refusal === 'no answer') throw new CallFailed('Stock.Grant', 'UNAVAILABLE', new Error('gone'));
    if (this.refusal) return { outcome: this.refusal, hold: undefined, created: false };
    if (this.free < item.quantity) return { outcome: 'SOLD_OUT', hold: undefined, created: false };
    this.free -= item.quantity;
    const hold: inventory.Hold = {
      attemptId: item.attemptId,
      shopperId: item.shopperId,
      skuId: 'sku-1',
      quantity: item.quantity,
      epoch: 1,
      grantedAtMs: 1_000,
      deadlineMs: 61_000,
      reason: '',
    };
    this.holds.set(item.attemptId, { state: 'HELD', hold });
    return { outcome: 'HELD', hold, created: true };
  };

  findHold = async (item: inventory.FindHoldItem): Promise<inventory.FindHoldResult> => {
    const known = this.holds.get(item.attemptId);
    return known && known.hold.shopperId === item.shopperId
      ? { outcome: known.state, hold: known.hold }
      : { outcome: 'UNKNOWN', hold: undefined };
  };

  release = async (item: inventory.ReleaseItem): Promise<inventory.ReleaseResult> => {
    const known = this.holds.get(item.attemptId);
    if (!known || known.hold.shopperId !== item.shopperId) return { outcome: 'UNKNOWN' };
    if (known.state === 'QUEUED' || known.state === 'CONFIRMED') return { outcome: 'ALREADY_ORDERED' };
    this.end(item.attemptId, 'released');
    return { outcome: 'RELEASED' };
  };

  end(attemptId: string, reason: string): void {
    const known = this.holds.get(attemptId);
    if (known) this.holds.set(attemptId, { state: 'VOID', hold: { ...known.hold, reason } });
  }
  become(attemptId: string, state: 'QUEUED' | 'CONFIRMED' | 'EXPIRING'): void {
    const known = this.holds.get(attemptId);
    if (known) this.holds.set(attemptId, { state, hold: known.hold });
  }
}

const keys: SigningKeys = [{ id: 'k1', secret: randomBytes(32) }];
let redis: RedisClient;
let stock: SmallStock;
let line: Line;
let saleId: SaleId;

beforeAll(async () => {
  const address = process.env['REDIS_URL'];
  if (!address)
    throw new Error('REDIS_URL is not set: run this test by `npm test`, or start a stack and name it');
  redis = await connectRedis({
    url: new URL('/3', address).href,
    name: 'line-test',
    commandTimeoutMs: 2_000,
  });
});
afterAll(() => redis.disconnect());
beforeEach(() => {
  saleId = SaleId.parse(`line-${randomBytes(6).toString('hex')}`);
  stock = new SmallStock();
  line = newLine();
});

function newLine(): Line {
  const proofOfWork = new ProofOfWork(redis, {
    secret: randomBytes(32),
    cost: 1,
    maxTries: 10,
    lifetimeMs: 60_000,
    now: Date.now,
  });
  return new Line({ redis, stock, keys, proofOfWork, stockTimeoutMs: 1_000 });
}

function item(shopper: string, key: string, changes: Partial<token.EnterItem> = {}): token.EnterItem {
  const shopperId = ShopperId.parse(shopper);
  return {
    attemptId: attemptIdOf(saleId, shopperId, IdempotencyKey.parse(key)),
    shopperId,
    quantity: 1,
    challengeSolution: '',
    challenge: '',
    lineMode: 'fifo',
    admitPerSecond: 1,
    context: undefined,
    ...changes,
  };
}
/** Nobody is let through while a test runs, however slow the machine. */
const STANDING = { admitPerSecond: 0.001 };
const enter = async (shopper: string, key = 'k', changes: Partial<token.EnterItem> = {}) =>
  one(await line.enter([item(shopper, key, { ...STANDING, ...changes })]));
const find = async (shopper: string, key = 'k', changes: Partial<token.EnterItem> = {}) =>
  one(await line.find([item(shopper, key, changes)]));
const leave = async (shopper: string, key = 'k', changes: Partial<token.EnterItem> = {}) =>
  one(await line.leave([item(shopper, key, changes)]));
function one<T>(answers: readonly T[]): T {
  const [answer] = answers;
  if (answer === undefined || answers.length !== 1)
    throw new Error(`one answer was expected, not ${answers.length}`);
  return answer;
}
/** Uses up the credit for the first entry, so that the next has to wait. */
const occupyHead = () => enter('head');

describe('Line.progress', () => {
  const progress = () => line.progress(saleId, STANDING.admitPerSecond);

  it('tells how far the line has come, so that every other place can be counted', async () => {
    expect(await progress()).toMatchObject({ admitted: 0, admittedTo: 0, soldOut: false });
    const head = await enter('head');
    expect(head.state).toBe('granted');
    const [two, three, four] = [await enter('two'), await enter('three'), await enter('four')];
    const before = await progress();
    expect(before).toMatchObject({ admitted: 1, admittedTo: 1 });
    expect([two, three, four].map(({ place }) => place)).toEqual(
      [2, 3, 4].map((number) => ({ number, bornMs: before.bornMs, admitted: 1 })),
    );
    await leave('two');
    // The line is moved on by whoever asks how far it has come.
    await redis.hset(lineKeys(saleId).gate, 'credit', '1');
    expect(await progress()).toMatchObject({ admitted: 2, admittedTo: 3 });
    expect(await find('three', 'k', STANDING)).toMatchObject({ state: 'granted' });
    expect(await find('four', 'k', STANDING)).toMatchObject({
      state: 'waiting',
      position: 1,
      place: { number: 4, bornMs: before.bornMs, admitted: 2 },
    });
  });

  it('is that of another line after Redis has lost the first', async () => {
    const { bornMs } = await progress();
    const { gate, places, entries, shoppers } = lineKeys(saleId);
    await redis.del(gate, places, entries, shoppers);
    await delay(5);
    expect((await progress()).bornMs).toBeGreaterThan(bornMs);
  });
});

describe('Line without a line', () => {
  const off = { lineMode: 'off' };

  it("grants at once, with a token that Stock's hold stands behind", async () => {
    const granted = await enter('alice', 'k', off);
    expect(granted).toMatchObject({ problem: '', state: 'granted', created: true, expiresAtMs: 61_000 });
    expect(verifyPurchaseToken(granted.purchaseToken, keys)).toMatchObject({
      attemptId: granted.entryId,
      saleId,
      shopperId: 'alice',
      quantity: 1,
      expiresAtMs: 61_000,
    });
  });

  it('answers a repeated request with the same token, as known', async () => {
    const first = await enter('alice', 'k', off);
    expect(await enter('alice', 'k', off)).toEqual({ ...first, created: false });
    expect(await find('alice', 'k', off)).toEqual({ ...first, created: false });
  });

  it.each([
    ['QUEUED', 'ordered'],
    ['CONFIRMED', 'ordered'],
    ['EXPIRING', 'granted'],
  ] as const)('shows an attempt that is %s as %s', async (state, shown) => {
    const { entryId } = await enter('alice', 'k', off);
    stock.become(entryId, state);
    expect(await enter('alice', 'k', off)).toMatchObject({ state: shown, created: false });
  });

  it.each([
    ['hold_expired', 'expired'],
    ['lost', 'expired'],
    ['released', 'released'],
    ['limit', 'ordered'],
    ['sold_out', 'ordered'],
    ['cancelled', 'ordered'],
    ['unpaid', 'ordered'],
    ['refunding', 'ordered'],
  ])('shows one that is void because of %s as %s', async (reason, shown) => {
    const { entryId } = await enter('alice', 'k', off);
    stock.end(entryId, reason);
    expect(await find('alice', 'k', off)).toMatchObject({ state: shown, reason });
  });

  it.each([
    ['SOLD_OUT', 'sold_out'],
    ['NOT_ENOUGH_LEFT', 'not_enough_left'],
    ['LIMIT_REACHED', 'limit_reached'],
    ['ENTRY_EXISTS', 'entry_exists'],
    ['KEY_REUSED', 'idempotency_key_reused'],
    ['NOT_OPEN', 'sale_not_open'],
    ['PAUSED', 'sale_paused'],
    ['CLOSED', 'sale_closed'],
    ['UNKNOWN_SALE', 'not_found'],
    ['UNAVAILABLE', 'unavailable'],
    ['no answer', 'unavailable'],
  ] as const)('answers %s with %s', async (refusal, problem) => {
    stock.refusal = refusal;
    expect(await enter('alice', 'k', off)).toMatchObject({ problem, state: '' });
  });

  it('leaves a hold to Stock, and knows nothing of what Stock does not know', async () => {
    await enter('alice', 'k', off);
    expect(await leave('alice', 'k', off)).toEqual({ problem: '' });
    expect(await leave('alice', 'k', off)).toEqual({ problem: '' });
    expect(await leave('bob', 'k', off)).toEqual({ problem: 'not_found' });
    expect(await find('bob', 'k', off)).toMatchObject({ problem: 'not_found' });
    stock.become((await enter('carol', 'k', off)).entryId, 'QUEUED');
    expect(await leave('carol', 'k', off)).toEqual({ problem: 'already_ordered' });
  });

  it('keeps the order of a batch of several sales', async () => {
    const other = {
      ...item('bob', 'k', off),
      attemptId: attemptIdOf(SaleId.parse('other'), ShopperId.parse('bob'), IdempotencyKey.parse('k')),
    };
    const answers = await line.enter([item('alice', 'k', off), other, item('carol', 'k', off)]);
    expect(answers.map(({ entryId }) => entryId)).toEqual([
      item('alice', 'k').attemptId,
      other.attemptId,
      item('carol', 'k').attemptId,
    ]);
  });
});

describe('Line with a line', () => {
  it('lets the first through at once and the others wait in order of arrival', async () => {
    expect(await enter('a')).toMatchObject({ state: 'granted', created: true });
    expect(await enter('b')).toMatchObject({
      state: 'waiting',
      created: true,
      position: 1,
      estimatedWaitSeconds: 1,
      pollAfterMs: 500,
    });
    expect(await enter('c')).toMatchObject({
      state: 'waiting',
      created: true,
      position: 2,
      estimatedWaitSeconds: 2,
    });
    const answers = await line.enter([item('d', 'k'), item('e', 'k'), item('f', 'k')]);
    expect(answers.map(({ position }) => position)).toEqual([3, 4, 5]);
    expect(answers[0]?.ticket).toMatch(/^t1\.k1\.[\w-]+\.[\w-]+$/);
  });

  it('answers a repeated request with the present place, as known, with the same ticket', async () => {
    await occupyHead();
    const first = await enter('b');
    expect(await enter('b')).toEqual({ ...first, created: false });
    expect(await find('b')).toEqual({ ...first, created: false });
  });

  it("moves on at the sale's rate, and grants when one that was let through asks", async () => {
    const rate = { admitPerSecond: 20 };
    const shoppers = Array.from({ length: 30 }, (_, i) => `s${i}`);
    const startedMs = performance.now();
    await line.enter(shoppers.map((shopper) => item(shopper, 'k', rate)));
    const grantedAt = new Map<string, number>();
    while (grantedAt.size < shoppers.length) {
      const waiting = shoppers.filter((shopper) => !grantedAt.has(shopper));
      const answers = await line.find(waiting.map((shopper) => item(shopper, 'k', rate)));
      for (const [i, { state }] of answers.entries()) {
        if (state === 'granted') grantedAt.set(waiting[i] ?? '', performance.now() - startedMs);
      }
      await delay(20);
      if (performance.now() - startedMs > 10_000) throw new Error('the line does not move');
    }
    // 30 entries at 20 a second with one free: about 1.45 s, and never an earlier one after a later one.
    expect(performance.now() - startedMs).toBeGreaterThan(1_300);
    expect(performance.now() - startedMs).toBeLessThan(3_000);
    const times = shoppers.map((shopper) => grantedAt.get(shopper) ?? 0);
    expect(times).toEqual([...times].sort((x, y) => x - y));
  });

  it("saves up at most a second's worth of admissions", async () => {
    const rate = { admitPerSecond: 5 };
    await enter('first', 'k', rate);
    await delay(2_500);
    const answers = await line.enter(Array.from({ length: 12 }, (_, i) => item(`s${i}`, 'k', rate)));
    expect(answers.filter(({ state }) => state === 'granted').length).toBe(5);
  });

  it('makes one entry of a hundred simultaneous requests with one key', async () => {
    await occupyHead();
    const answers = await Promise.all(Array.from({ length: 100 }, () => enter('b')));
    expect(answers.filter(({ created }) => created).length).toBe(1);
    expect(new Set(answers.map(({ entryId, position }) => `${entryId} ${position}`)).size).toBe(1);
  });

  it('gives places to simultaneous shoppers without a gap and without a double', async () => {
    await occupyHead();
    const answers = await Promise.all(Array.from({ length: 100 }, (_, i) => enter(`s${i}`)));
    const positions = answers.map(({ position }) => position);
    // Each answer saw the line as it was then; together they are all the places.
    expect([...positions].sort((x, y) => x - y)).toEqual(Array.from({ length: 100 }, (_, i) => i + 1));
  });

  it('takes another key of the same shopper as another name for the same place, for good', async () => {
    await occupyHead();
    const first = await enter('b', 'k1');
    expect(await enter('b', 'k2')).toEqual({ ...first, created: false });
    expect(await leave('b', 'k2')).toEqual({ problem: '' });
    expect(await find('b', 'k1')).toMatchObject({ state: 'released' });
    expect(await enter('b', 'k2')).toMatchObject({ entryId: first.entryId, state: 'released' });
  });

  it('refuses another quantity, of the same key and of another', async () => {
    await occupyHead();
    await enter('b', 'k1');
    expect(await enter('b', 'k1', { quantity: 2 })).toMatchObject({ problem: 'idempotency_key_reused' });
    expect(await enter('b', 'k2', { quantity: 2 })).toMatchObject({ problem: 'entry_exists' });
  });

  it('keeps a shopper who was let through to one live entry, and lets a new one in when that is over', async () => {
    const first = await enter('a', 'k1');
    expect(first.state).toBe('granted');
    expect(await enter('a', 'k2')).toEqual({ ...first, created: false });
    expect(await enter('a', 'k3', { quantity: 2 })).toMatchObject({ problem: 'entry_exists' });
    stock.end(first.entryId, 'hold_expired');
    const next = await enter('a', 'k4');
    expect(next).toMatchObject({ state: 'waiting', created: true });
    expect(next.entryId).not.toBe(first.entryId);
    expect(await find('a', 'k1')).toMatchObject({ state: 'expired', reason: 'hold_expired' });
  });

  it('forgets the place of who leaves; the others move up', async () => {
    await occupyHead();
    await enter('b');
    await enter('c');
    expect(await leave('b')).toEqual({ problem: '' });
    expect(await leave('b')).toEqual({ problem: '' });
    expect(await find('b')).toMatchObject({ state: 'released' });
    expect(await find('c')).toMatchObject({ state: 'waiting', position: 1 });
    expect(await enter('b', 'again')).toMatchObject({ state: 'waiting', created: true, position: 2 });
  });

  it('releases the hold of who was let through and leaves', async () => {
    const { entryId } = await enter('a');
    expect(await leave('a')).toEqual({ problem: '' });
    expect(stock.holds.get(entryId)?.hold.reason).toBe('released');
    expect(await find('a')).toMatchObject({ state: 'released' });
  });

  it('shows nobody the place of another', async () => {
    await occupyHead();
    const { entryId } = await enter('b');
    const stranger = { ...item('mallory', 'k'), attemptId: entryId };
    expect(one(await line.find([stranger]))).toMatchObject({ problem: 'not_found' });
    expect(one(await line.leave([stranger]))).toEqual({ problem: 'not_found' });
    expect(await find('b')).toMatchObject({ state: 'waiting', position: 1 });
  });

  it('ends who waits when everything is sold, and refuses who comes then', async () => {
    await occupyHead();
    await enter('b');
    await enter('c');
    await enter('d');
    stock.free = 0;
    await delay(1_100);
    expect(await find('b')).toMatchObject({ state: 'sold_out', reason: 'sold_out' });
    // Nobody waits until the head for what is gone.
    expect(await find('c')).toMatchObject({ state: 'sold_out' });
    expect(await find('d')).toMatchObject({ state: 'sold_out' });
    expect(await enter('e')).toMatchObject({ problem: 'sold_out' });
    expect(await enter('d')).toMatchObject({ state: 'sold_out', problem: '' });
    // Units came back: whoever comes later is served again.
    stock.free = 1;
    await delay(1_100);
    expect(await enter('e', 'k', { admitPerSecond: 1 })).toMatchObject({ state: 'granted', created: true });
  });

  it.each([
    ['SOLD_OUT', 'sold_out'],
    ['NOT_ENOUGH_LEFT', 'not_enough_left'],
    ['LIMIT_REACHED', 'limit_reached'],
    ['CLOSED', 'sale_closed'],
    ['PAUSED', 'sale_paused'],
  ] as const)(
    'forgets an entry that met %s before it ever waited, so its key can be used again',
    async (refusal, problem) => {
      stock.refusal = refusal;
      expect(await enter('a')).toMatchObject({ problem });
      stock.refusal = null;
      await delay(1_100);
      expect(await enter('a', 'k', { admitPerSecond: 1 })).toMatchObject({ state: 'granted', created: true });
    },
  );

  it.each([
    ['NOT_ENOUGH_LEFT', 'sold_out', 'not_enough_left'],
    ['CLOSED', 'expired', 'sale_closed'],
    ['LIMIT_REACHED', 'released', 'limit_reached'],
  ] as const)('ends an entry that waited and met %s as %s', async (refusal, state, reason) => {
    await occupyHead();
    await enter('b');
    stock.refusal = refusal;
    await delay(1_100);
    expect(await find('b')).toMatchObject({ state, reason });
    stock.refusal = null;
    expect(await find('b')).toMatchObject({ state, reason });
  });

  it('keeps the place at the head while the sale is paused, and lets nobody else through', async () => {
    await occupyHead();
    await enter('b');
    await enter('c');
    stock.refusal = 'PAUSED';
    await delay(1_100);
    expect(await find('b')).toMatchObject({ state: 'waiting', position: 1 });
    await delay(500);
    expect(await find('c')).toMatchObject({ state: 'waiting', position: 1 });
    stock.refusal = null;
    expect(await find('b')).toMatchObject({ state: 'granted' });
  });

  it('keeps an entry whose grant had no answer', async () => {
    await occupyHead();
    await enter('b');
    stock.refusal = 'no answer';
    await delay(1_100);
    expect(await find('b')).toMatchObject({ problem: 'unavailable' });
    stock.refusal = null;
    expect(await find('b')).toMatchObject({ state: 'granted' });
  });

  it('goes on after Redis has forgotten its scripts', async () => {
    await wholeWay();
  });
});

describe('Line on a Redis Cluster of three masters', () => {
  let cluster: RedisCluster;
  let single: RedisClient;
  beforeAll(async () => {
    cluster = await startRedisCluster({ masters: 3, log: () => {} });
    single = redis;
    redis = await connectRedis({ clusterNodes: cluster.nodes, name: 'line-test', commandTimeoutMs: 5_000 });
  }, 60_000);
  afterAll(async () => {
    redis.disconnect();
    redis = single;
    await cluster.stop();
  });

  it('goes the whole way, whatever slot the sale lies in, and forgotten scripts or not', async () => {
    for (let sale = 0; sale < 6; sale += 1) {
      saleId = SaleId.parse(`line-${sale}-${randomBytes(6).toString('hex')}`);
      line = newLine();
      await wholeWay();
    }
  });
});

/** Each script once, each time on a Redis that does not know it any more. */
async function wholeWay(): Promise<void> {
  const nodes = 'nodes' in redis ? redis.nodes('master') : [redis];
  const forget = () => Promise.all(nodes.map((node) => node.script('FLUSH')));
  await forget();
  stock.refusal = 'SOLD_OUT';
  expect(await enter('early')).toMatchObject({ problem: 'sold_out' });
  stock.refusal = null;
  await delay(1_100);
  await forget();
  expect(await enter('a', 'k', { admitPerSecond: 1 })).toMatchObject({ state: 'granted' });
  expect(await enter('b')).toMatchObject({ state: 'waiting', position: 1 });
  await forget();
  expect(await find('b', 'k', STANDING)).toMatchObject({ state: 'waiting', position: 1 });
  expect(await enter('c')).toMatchObject({ state: 'waiting', position: 2 });
  await forget();
  expect(await leave('b')).toEqual({ problem: '' });
  expect(await find('c', 'k', STANDING)).toMatchObject({ state: 'waiting', position: 1 });
  expect(await enter('c', 'again')).toMatchObject({ state: 'waiting', position: 1, created: false });
}
