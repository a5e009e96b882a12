import { randomBytes, randomUUID } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { CallFailed, SALE_FEED, encodeSnapshot, type SaleSnapshot, type token } from '@flash-sale/contracts';
import {
  IdempotencyKey,
  ShopperId,
  attemptIdOf,
  bucketOf,
  filterBitsFor,
  filterPositions,
} from '@flash-sale/domain';
import { connectRedis, type RedisClient } from '@flash-sale/redis';
import { createLog } from '@flash-sale/service';
import { Door } from './door.js';
import { Admissions, type EntryRequest } from './admission.js';
import { saleOf } from './fixtures/lone-gateway.js';
import { Refusal } from './problems.js';
import { RateLimits } from './rate-limits.js';
import { SalesFeed } from './sales-feed.js';

/**
 * Who is refused from memory and who is asked for, on a real feed in a real Redis (REDIS_URL, its database 5, where no other
 * test says that the sales are complete while this one has them lost). The line behind notes what it was asked and answers
 * as told.
 */
const NOT_FOUND: Partial<token.Entry> = { problem: 'not_found' };
const GRANTED: Partial<token.Entry> = { problem: '', state: 'granted', created: true };
let url: string;
let redis: RedisClient;
let feed: SalesFeed;
let asked: string[];
let answers: { enter: Partial<token.Entry>; find: Partial<token.Entry> };
let published: SaleSnapshot[];

beforeAll(async () => {
  const address = process.env['REDIS_URL'];
  if (!address)
    throw new Error('REDIS_URL is not set: run this test by `npm test`, or start a stack and name it');
  url = new URL('/5', address).href;
  redis = await connectRedis({ url, name: 'admission-test' });
});
afterAll(() => redis.disconnect());
beforeEach(async () => {
  asked = [];
  published = [];
  answers = { enter: GRANTED, find: NOT_FOUND };
  await redis.hset(SALE_FEED.snapshots, SALE_FEED.complete, '1');
  feed = new SalesFeed({ redis, address: { url }, log: createLog('test', 'silent') });
  await feed.start();
});
afterEach(async () => {
  await feed.close();
  for (const { saleId } of published) {
    await redis.hdel(SALE_FEED.snapshots, saleId);
    await redis.del(SALE_FEED.holders(saleId));
  }
});

const line = {
  enter: async (): Promise<token.Entry> => {
    asked.push('enter');
    return answers.enter as token.Entry;
  },
  findEntry: async (): Promise<token.Entry> => {
    asked.push('find');
    return answers.find as token.Entry;
  },
  leave: async (): Promise<token.LeaveResult> => {
    asked.push('leave');
    return { problem: '' };
  },
  progress: async (): Promise<token.ProgressReply> => {
    asked.push('progress');
    return { bornMs: 1, admitted: 0, admittedTo: 0, soldOut: false };
  },
};
function admissions(perShopper = 0): Admissions {
  return new Admissions(feed, new RateLimits({ redis, perShopper, perAddress: 0 }), line, doorFor(0));
}
function doorFor(entriesPerSecond: number): Door {
  return new Door({ behind: [], entriesPerSecond });
}
async function publish(changes: Partial<SaleSnapshot>): Promise<SaleSnapshot> {
  const snapshot = saleOf(changes);
  published.push(snapshot);
  await redis.hset(SALE_FEED.snapshots, snapshot.saleId, encodeSnapshot(snapshot));
  await redis.publish(SALE_FEED.channel, encodeSnapshot(snapshot));
  await until(() => feed.find(snapshot.saleId)?.snapshot.version === snapshot.version);
  return snapshot;
}
async function until(condition: () => boolean, withinMs = 3_000): Promise<void> {
  const giveUpAt = performance.now() + withinMs;
  while (!condition()) {
    if (performance.now() > giveUpAt) throw new Error('it never came to be');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
const request = ({ saleId }: SaleSnapshot, changes: Partial<EntryRequest> = {}): EntryRequest => ({
  saleId,
  shopperId: ShopperId.parse(`s${randomBytes(6).toString('hex')}`),
  address: '127.0.0.1',
  arrival: {},
  key: IdempotencyKey.parse('k'),
  quantity: 1,
  challenge: '',
  hasTicket: false,
  context: { traceparent: '', requestId: 'r' },
  ...changes,
});
/** The published filter with one holder in it. */
async function publishHolder(
  snapshot: Pick<SaleSnapshot, 'saleId' | 'bucketCount' | 'filterBits'>,
  holder: ShopperId,
) {
  const { saleId, bucketCount, filterBits } = snapshot;
  const bitmap = Buffer.alloc((filterBits / 8) * bucketCount);
  for (const position of filterPositions(holder, filterBits)) {
    const at = bucketOf(holder, bucketCount) * (filterBits / 8) + (position >> 3);
    bitmap.writeUInt8(bitmap.readUInt8(at) | (0x80 >> (position & 7)), at);
  }
  await redis.set(SALE_FEED.holders(saleId), bitmap);
}

describe('Admissions.enter', () => {
  it("lets an open sale's shoppers through to the line", async () => {
    const sale = await publish({});
    expect(await admissions().enter(request(sale))).toMatchObject({ outcome: 'entry', entry: GRANTED });
    expect(asked).toEqual(['enter']);
  });

  it('does not know a sale that nobody published', async () => {
    expect(await admissions().enter(request(saleOf()))).toEqual({ outcome: 'refused', code: 'not_found' });
    expect(asked).toEqual([]);
  });

  it.each([
    ['draft', {}, 'sale_not_open'],
    ['warming', {}, 'sale_not_open'],
    ['warmed', { opensAtMs: Date.now() + 60_000 }, 'sale_not_open'],
  ] as const)('refuses a sale that is %s without asking anybody', async (storedPhase, changes, code) => {
    const sale = await publish({ storedPhase, ...changes });
    expect(await admissions().enter(request(sale))).toEqual({ outcome: 'refused', code });
    expect(asked).toEqual([]);
  });

  it("leaves it to Redis' clock within the last moment before the opening and the first after the closing", async () => {
    const opening = await publish({ opensAtMs: feed.now() + 200 });
    await admissions().enter(request(opening));
    const closing = await publish({ closesAtMs: feed.now() - 20 });
    await admissions().enter(request(closing));
    expect(asked).toEqual(['enter', 'enter']);
  });

  it.each([
    ['paused', { storedPhase: 'paused' }, 'sale_paused'],
    ['closed by an operator', { storedPhase: 'closed' }, 'sale_closed'],
    ['closed by the clock', { closesAtMs: Date.now() - 30_000 }, 'sale_closed'],
    ['settled', { storedPhase: 'settled' }, 'sale_closed'],
  ] as const)('looks for a known attempt before it refuses a sale that is %s', async (_, changes, code) => {
    const sale = await publish(changes);
    expect(await admissions().enter(request(sale))).toEqual({ outcome: 'refused', code });
    answers.find = { ...GRANTED, created: false };
    expect(await admissions().enter(request(sale))).toMatchObject({
      outcome: 'entry',
      entry: { state: 'granted', created: false },
    });
    expect(asked).toEqual(['find', 'find']);
  });

  it('refuses strangers from memory while everything is sold, and looks for those who may hold units', async () => {
    const filterBits = filterBitsFor(100, 4);
    const holder = ShopperId.parse('holder-1');
    const draft = saleOf({ soldOut: true, filterBits, filterVersion: 7, version: 2 });
    await publishHolder(draft, holder);
    const sale = await publish(draft);
    const gate = admissions();
    await until(() => {
      const known = feed.find(sale.saleId);
      return known !== undefined && !feed.mayHold(known, ShopperId.parse('stranger'));
    });
    for (let i = 0; i < 50; i += 1) {
      expect(await gate.enter(request(sale, { shopperId: ShopperId.parse(`stranger-${i}`) }))).toEqual({
        outcome: 'refused',
        code: 'sold_out',
      });
    }
    // Of 50 strangers hardly one can be mistaken for a holder.
    expect(asked.length).toBeLessThanOrEqual(2);
    asked = [];
    answers.find = { ...GRANTED, created: false };
    expect(await gate.enter(request(sale, { shopperId: holder }))).toMatchObject({ outcome: 'entry' });
    expect(asked).toEqual(['find']);
    asked = [];
    answers.find = NOT_FOUND;
    await gate.enter(request(sale, { hasTicket: true }));
    expect(asked).toEqual(['find']);
  });

  it('asks for everybody as long as the filter is not the one that the sale names', async () => {
    const filterBits = filterBitsFor(100, 4);
    const draft = saleOf({ soldOut: true, filterBits, filterVersion: 7, version: 2 });
    const sale = await publish(draft);
    expect(await admissions().enter(request(sale))).toEqual({ outcome: 'refused', code: 'sold_out' });
    expect(asked).toEqual(['find']);
  });

  it('sells again as soon as units are back, and drops what an older snapshot says', async () => {
    const sale = await publish({ soldOut: true, version: 5 });
    await publish({ ...sale, soldOut: false, version: 6 });
    await redis.publish(SALE_FEED.channel, encodeSnapshot({ ...sale, soldOut: true, version: 4 }));
    await redis.publish(SALE_FEED.channel, 'not a snapshot');
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(await admissions().enter(request(sale))).toMatchObject({ outcome: 'entry' });
  });

  it('does not let a quantity wait in line that nobody may have', async () => {
    const sale = await publish({ line: { mode: 'fifo', admitPerSecond: 1, overbook: 0 } });
    expect(await admissions().enter(request(sale, { quantity: 3 }))).toEqual({
      outcome: 'refused',
      code: 'limit_reached',
    });
    expect(asked).toEqual([]);
  });

  it("limits a shopper's rate, but still answers a known attempt a little beyond it", async () => {
    const sale = await publish({});
    const gate = admissions(4);
    const shopperId = ShopperId.parse(`fast-${randomBytes(4).toString('hex')}`);
    const another = () => request(sale, { shopperId, key: IdempotencyKey.parse(randomUUID()) });
    const storm = await Promise.all(Array.from({ length: 12 }, () => gate.enter(another())));
    const limited = storm.filter((answer) => answer.outcome === 'refused');
    expect(limited.length).toBeGreaterThanOrEqual(7);
    expect(limited[0]).toMatchObject({ code: 'rate_limited', retryAfterSeconds: 1 });
    answers.find = { ...GRANTED, created: false };
    expect(await gate.enter(request(sale, { shopperId }))).toMatchObject({
      outcome: 'entry',
      entry: { created: false },
    });
    // A machine is not answered any more, whatever it owns.
    const flood = await Promise.all(Array.from({ length: 40 }, () => gate.enter(another())));
    expect(flood.at(-1)).toMatchObject({ outcome: 'refused', code: 'rate_limited' });
  });

  it('lets in no more new entries than were set for a second, and still says what is sold out', async () => {
    const limits = new RateLimits({ redis, perShopper: 0, perAddress: 0 });
    const few = new Admissions(feed, limits, line, doorFor(1));
    const sale = await publish({});
    expect(await few.enter(request(sale))).toMatchObject({ outcome: 'entry' });
    const beyond = await few.enter(request(sale));
    expect(beyond).toMatchObject({ outcome: 'refused', code: 'unavailable' });
    expect(beyond.outcome === 'refused' && beyond.retryAfterSeconds).toBeGreaterThanOrEqual(1);
    answers.find = NOT_FOUND;
    const gone = await publish({ soldOut: true, storedPhase: 'warmed' });
    expect(await few.enter(request(gone))).toEqual({ outcome: 'refused', code: 'sold_out' });
    expect(asked.filter((call) => call === 'enter')).toHaveLength(1);
  });

  it('asks to come again when nobody answers', async () => {
    const sale = await publish({});
    const silentLine = {
      ...line,
      enter: () => Promise.reject(new CallFailed('Line.Enter', 'UNAVAILABLE', new Error('gone'))),
    };
    const limits = new RateLimits({ redis, perShopper: 0, perAddress: 0 });
    const silent = new Admissions(feed, limits, silentLine, doorFor(0));
    await expect(silent.enter(request(sale))).rejects.toThrow(new Refusal('unavailable'));
  });
});

describe('a double click', () => {
  const entry = (changes: object) => ({ ...GRANTED, entryId: 'e', purchaseToken: 't', ...changes });

  it('meets the first answer while that is under way, and for a moment after it', async () => {
    const sale = await publish({});
    const gate = admissions();
    const clicked = request(sale);
    answers.enter = entry({});
    const first = await Promise.all([gate.enter(clicked), gate.enter({ ...clicked, arrival: {} })]);
    answers.enter = entry({ created: false, state: 'ordered' });
    expect(await gate.enter({ ...clicked, arrival: {} })).toEqual(first[0]);
    expect(first[1]).toEqual(first[0]);
    expect(first[0]).toMatchObject({ entry: { created: true, state: 'granted' } });
    expect(asked).toEqual(['enter']);
    // Then it is asked for again.
    await new Promise((resolve) => setTimeout(resolve, 600));
    expect(await gate.enter(clicked)).toMatchObject({ entry: { created: false, state: 'ordered' } });
  });

  it('of another quantity, with another challenge, of somebody else or with another key is no double click', async () => {
    const sale = await publish({});
    const gate = admissions();
    const clicked = request(sale, { challenge: 'solved' });
    await gate.enter(clicked);
    answers.enter = { problem: 'idempotency_key_reused' };
    expect(await gate.enter({ ...clicked, quantity: 2 })).toMatchObject({ code: 'idempotency_key_reused' });
    expect(await gate.enter({ ...clicked, challenge: '' })).toMatchObject({ code: 'idempotency_key_reused' });
    await gate.enter({ ...clicked, shopperId: ShopperId.parse('another') });
    await gate.enter({ ...clicked, key: IdempotencyKey.parse('another') });
    expect(asked).toHaveLength(5);
    // The first one is still answered as it was.
    expect(await gate.enter(clicked)).toMatchObject({ entry: { state: 'granted' } });
    expect(asked).toHaveLength(5);
  });

  it('after a refusal, or after nobody answered, is asked for again', async () => {
    const sale = await publish({});
    const clicked = request(sale);
    const gate = admissions();
    answers.enter = { problem: 'sold_out' };
    const both = await Promise.all([gate.enter(clicked), gate.enter(clicked)]);
    expect(both).toEqual([
      { outcome: 'refused', code: 'sold_out' },
      { outcome: 'refused', code: 'sold_out' },
    ]);
    expect(asked).toEqual(['enter']);
    answers.enter = GRANTED;
    expect(await gate.enter(clicked)).toMatchObject({ outcome: 'entry' });
    let calls = 0;
    const broken = {
      ...line,
      enter: () => {
        calls += 1;
        return Promise.reject(new CallFailed('Line.Enter', 'UNAVAILABLE', new Error('gone')));
      },
    };
    const limits = new RateLimits({ redis, perShopper: 0, perAddress: 0 });
    const silent = new Admissions(feed, limits, broken, doorFor(0));
    const failed = await Promise.allSettled([silent.enter(clicked), silent.enter(clicked)]);
    expect(failed.map(({ status }) => status)).toEqual(['rejected', 'rejected']);
    expect(calls).toBe(1);
    await expect(silent.enter(clicked)).rejects.toThrow(new Refusal('unavailable'));
    expect(calls).toBe(2);
  });

  it('takes no second room at the door, and is not counted', async () => {
    const sale = await publish({});
    const door = doorFor(20);
    const limits = new RateLimits({ redis, perShopper: 1, perAddress: 0 });
    const gate = new Admissions(feed, limits, line, door);
    const arrivals = [{}, {}, {}];
    const clicked = request(sale);
    // The burst of this door is two.
    expect([door.enter({}), door.enter(arrivals[0] ?? {})]).toEqual([true, true]);
    await gate.enter({ ...clicked, arrival: arrivals[0] ?? {} });
    await until(() => door.enter(arrivals[1] ?? {}));
    expect(await gate.enter({ ...clicked, arrival: arrivals[1] ?? {} })).toMatchObject({ outcome: 'entry' });
    // The room that the second click came with is free again at once.
    expect(door.enter(arrivals[2] ?? {})).toBe(true);
    expect(asked).toEqual(['enter']);
  });

  it('after a look meets what that has shown', async () => {
    const sale = await publish({ line: { mode: 'fifo', admitPerSecond: 1, overbook: 0 } });
    const gate = admissions();
    const clicked = request(sale);
    const attemptId = attemptIdOf(clicked.saleId, clicked.shopperId, clicked.key);
    answers.enter = entry({ state: 'waiting', position: 1 });
    expect(await gate.enter(clicked)).toMatchObject({ entry: { state: 'waiting' } });
    answers.find = entry({ created: false });
    await gate.find(attemptId, sale.saleId, clicked.shopperId, clicked.context);
    answers.enter = answers.find;
    expect(await gate.enter(clicked)).toMatchObject({ entry: { state: 'granted', created: false } });
  });

  it('after the place was given up does not meet what was given up', async () => {
    const sale = await publish({});
    const gate = admissions();
    const clicked = request(sale);
    await gate.enter(clicked);
    const attemptId = attemptIdOf(clicked.saleId, clicked.shopperId, clicked.key);
    await gate.leave(attemptId, clicked.shopperId, clicked.context);
    answers.enter = entry({ created: false, state: 'released' });
    expect(await gate.enter(clicked)).toMatchObject({ entry: { state: 'released' } });
    expect(asked).toEqual(['enter', 'leave', 'enter']);
  });
});

describe('a poll of a waiting entry', () => {
  const line1 = { line: { mode: 'fifo', admitPerSecond: 1, overbook: 0 } } as const;

  it('costs no call while the line has not come near; what ends the sale, or blocks the shopper, is told at once', async () => {
    const sale = await publish(line1);
    const gate = admissions();
    const clicked = request(sale);
    const { shopperId } = clicked;
    const attemptId = attemptIdOf(sale.saleId, shopperId, clicked.key);
    const poll = () => gate.find(attemptId, sale.saleId, shopperId, clicked.context);
    const place = { number: 40, bornMs: 1, admitted: 0 };
    answers.enter = { ...GRANTED, state: 'waiting', entryId: attemptId, position: 40, ticket: 't', place };
    answers.find = { ...answers.enter, created: false };
    expect(await gate.enter(clicked)).toMatchObject({ entry: { created: true, position: 40 } });
    await poll();
    asked = [];
    for (let i = 0; i < 50; i += 1) {
      expect(await poll()).toMatchObject({ entry: { state: 'waiting', created: false, position: 40 } });
    }
    expect(asked.filter((call) => call !== 'progress')).toEqual([]);
    await publish({ ...sale, soldOut: true, version: 2 });
    answers.find = { ...GRANTED, state: 'sold_out', entryId: attemptId };
    expect(await poll()).toMatchObject({ entry: { state: 'sold_out' } });
    await publish({ ...sale, version: 3 });
    expect(await poll()).toMatchObject({ entry: { state: 'sold_out' } });
  });
});

describe('Admissions.refusalsOfStrangers', () => {
  const told = ({ saleId }: SaleSnapshot) =>
    admissions()
      .refusalsOfStrangers()
      .find((one) => one.saleId === saleId);

  it('says nothing of a sale that sells', async () => {
    expect(told(await publish({}))).toBeUndefined();
  });

  it('says of a sale that is not open how long it stays so, up to the last moment before', async () => {
    const later = told(await publish({ opensAtMs: feed.now() + 60_000 }));
    expect(later).toMatchObject({ code: 'sale_not_open' });
    expect(later?.holders).toBeUndefined();
    expect(later?.forMs).toBeGreaterThan(50_000);
    expect(later?.forMs).toBeLessThanOrEqual(59_750);
    expect(told(await publish({ opensAtMs: feed.now() + 200 }))).toBeUndefined();
    // It may be warmed up, and thereby open, at any moment.
    expect(told(await publish({ storedPhase: 'warming' }))).toBeUndefined();
  });

  it('says of a sale that is sold out who may hold units, as soon as that is known', async () => {
    const sale = saleOf({ soldOut: true, filterBits: filterBitsFor(100, 4), filterVersion: 7 });
    await publish(sale);
    expect(told(sale)).toBeUndefined();
    const holder = ShopperId.parse('holder');
    await publishHolder(sale, holder);
    await publish({ ...sale, version: 2 });
    await until(() => told(sale) !== undefined);
    const { code, holders } = told(sale) ?? {};
    expect({ code, version: holders?.version }).toEqual({ code: 'sold_out', version: '1-7' });
    expect(holders?.bytes.some((byte) => byte !== 0)).toBe(true);
  });

  it('says nothing of a sale whose line knows people whom no filter does, nor of what it is not sure of', async () => {
    const changes = { soldOut: true, filterBits: filterBitsFor(100, 4), filterVersion: 1 };
    const fifo = saleOf({ ...changes, line: { mode: 'fifo', admitPerSecond: 1, overbook: 0 } });
    const sure = saleOf(changes);
    for (const sale of [fifo, sure]) {
      await publishHolder(sale, ShopperId.parse('holder'));
      await publish(sale);
    }
    await until(() => told(sure) !== undefined);
    expect(told(fifo)).toBeUndefined();
    await redis.hdel(SALE_FEED.snapshots, SALE_FEED.complete);
    await until(() => told(sure) === undefined);
  });
});

describe('SalesFeed', () => {
  it('knows within a second and a half what was published while it was not listening, and what is gone', async () => {
    const sale = saleOf();
    published.push(sale);
    await redis.hset(SALE_FEED.snapshots, sale.saleId, encodeSnapshot(sale));
    await until(() => feed.find(sale.saleId) !== undefined, 1_500);
    await redis.hdel(SALE_FEED.snapshots, sale.saleId);
    await until(() => feed.find(sale.saleId) === undefined, 1_500);
  });

  it('refuses nobody from memory while Redis has lost the sales, and does not say that they do not exist', async () => {
    const sale = await publish({ soldOut: true });
    const stranger = { ...request(sale), saleId: saleOf().saleId };
    expect(await admissions().enter(request(sale))).toMatchObject({ code: 'sold_out' });
    expect(await admissions().enter(stranger)).toMatchObject({ code: 'not_found' });
    await redis.hdel(SALE_FEED.snapshots, SALE_FEED.complete, sale.saleId);
    await until(() => !feed.isFresh(), 3_000);
    asked = [];
    await admissions().enter(request(sale));
    expect(asked).toEqual(['enter']);
    expect(feed.phaseOf(sale)).toBe('open');
    expect(await admissions().enter(stranger)).toMatchObject({ code: 'unavailable' });
    // The rebuild's first word: a new epoch, in which nothing is known yet.
    await redis.hset(
      SALE_FEED.snapshots,
      sale.saleId,
      encodeSnapshot({ ...sale, epoch: sale.epoch + 1, version: 0, soldOut: false }),
    );
    await redis.hset(SALE_FEED.snapshots, SALE_FEED.complete, '1');
    await until(() => feed.isFresh(), 3_000);
    asked = [];
    await admissions().enter(request(sale));
    expect(asked).toEqual(['enter']);
  });

  it('goes by the clock of Redis', async () => {
    const [seconds = 0] = await redis.time();
    expect(Math.abs(feed.now() - seconds * 1_000)).toBeLessThan(1_100);
    expect(feed.isFresh()).toBe(true);
  });
});
