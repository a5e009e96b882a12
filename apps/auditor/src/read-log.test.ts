import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from '@jest/globals';
import { UsageError } from './env.js';
import type { LogFigures, LoggedAttempt } from './evidence.js';
import { attemptIdOf } from './grammar.js';
import { loggedAttempts, readLog } from './read-log.js';
import { Slices, Spill } from './spill.js';

const folder = mkdtempSync(join(tmpdir(), 'audit-log-'));
const spills: Spill[] = [];
afterAll(() => {
  rmSync(folder, { recursive: true });
  for (const spill of spills) spill.remove();
});

const ID = attemptIdOf('s', 'alice', 'k1');
const LINE = {
  op: 'entry',
  attemptId: '',
  saleId: 's',
  shopperId: 'alice',
  skuId: 'sku',
  quantity: 1,
  key: 'k1',
  sentMs: 1_000,
  receivedMs: 1_010,
  http: 201,
  code: '',
  state: '',
};
const line = (change: Readonly<Record<string, string | number>>) => JSON.stringify({ ...LINE, ...change });

/** Cut into as many slices as can be, so that what belongs together has to find each other. */
async function read(
  ...lines: string[]
): Promise<LogFigures & { readonly attempts: ReadonlyMap<string, LoggedAttempt> }> {
  const file = join(folder, 'log.jsonl');
  writeFileSync(file, lines.join('\n'));
  const spill = new Spill(new Slices('s', 64, 1));
  spills.push(spill);
  const figures = await readLog(file, { saleId: 's', keys: null }, spill);
  const slices = Array.from({ length: spill.slices.count }, (_, slice) => loggedAttempts(spill, slice));
  return { ...figures, attempts: new Map(slices.flatMap((attempts) => [...attempts])) };
}
async function attemptAfter(...lines: string[]): Promise<LoggedAttempt> {
  const attempt = (await read(...lines)).attempts.get(ID);
  if (!attempt) throw new Error('the attempt is not in the evidence');
  return attempt;
}

describe('the crowd’s log', () => {
  it('knows an attempt by what was sent, even where no id was answered', async () => {
    const attempt = await attemptAfter(line({ http: 0 }));
    expect(attempt).toMatchObject({ shopperId: 'alice', asked: true, granted: false, entryUnclear: true });
  });

  it('gives an answer to the entry that it is about where the key is an alias', async () => {
    const alias = attemptIdOf('s', 'alice', 'k2');
    const { attempts } = await read(
      line({ state: 'granted', attemptId: ID }),
      line({ key: 'k2', attemptId: ID, http: 200, state: 'granted' }),
    );
    expect(attempts.get(ID)).toMatchObject({ granted: true, asked: true });
    expect(attempts.get(alias)).toMatchObject({ granted: false, asked: true, entryRefusal: '' });
  });

  it('takes the body that was acted on', async () => {
    const granted = line({ state: 'granted', attemptId: ID });
    const other = line({ quantity: 2, http: 422, code: 'idempotency_key_reused' });
    expect(await attemptAfter(other, granted)).toMatchObject({ quantity: 1 });
    expect(await attemptAfter(granted, other)).toMatchObject({
      quantity: 1,
      entryRefusal: 'idempotency_key_reused',
    });
  });

  it('takes the first 202 of an order, and no 202 that only shows a rejection', async () => {
    const order = { op: 'order', attemptId: ID, http: 202 };
    const rejected = line({ ...order, state: 'rejected' });
    expect(await attemptAfter(rejected)).toMatchObject({ acceptedAtMs: null, lastOrderState: 'rejected' });
    const both = await attemptAfter(
      line({ ...order, state: 'queued', receivedMs: 2_000 }),
      line({ ...order, state: 'queued', receivedMs: 3_000 }),
    );
    expect(both).toMatchObject({ acceptedAtMs: 2_000, ordersSent: 2, orderUnclear: false });
  });

  it('gives an attempt to who made it, even where somebody else asked about it first', async () => {
    const nosy = line({ op: 'order-status', shopperId: 'bob', attemptId: ID, http: 404, code: 'not_found' });
    expect(await attemptAfter(nosy, line({}))).toMatchObject({ shopperId: 'alice', asked: true });
  });

  it('takes rubbish as what it was: refused, and no attempt where there was no key', async () => {
    const { quantity: _, ...shapeless } = LINE;
    const invalid = JSON.stringify({ ...shapeless, quantity: 'one', http: 422, code: 'invalid' });
    const log = await read(line({ key: '', http: 400, code: 'malformed' }), invalid);
    expect(Object.fromEntries(log.refused)).toEqual({ malformed: 1, invalid: 1 });
    expect([...log.attempts.keys()]).toEqual([ID]);
  });

  it('keeps different tokens apart and equal ones together', async () => {
    const granted = (purchaseToken: string) => line({ attemptId: ID, state: 'granted', purchaseToken });
    expect((await attemptAfter(granted('a'), granted('b'), granted('a'))).tokens).toHaveLength(2);
  });

  it('remembers that an attempt may still be waiting, or has been sent away', async () => {
    const waiting = line({ attemptId: ID, http: 202, state: 'waiting' });
    expect(await attemptAfter(waiting)).toMatchObject({ waiting: true });
    const soldOut = line({ op: 'entry-status', attemptId: ID, http: 200, state: 'sold_out' });
    expect(await attemptAfter(waiting, soldOut)).toMatchObject({ waiting: false, entryRefusal: 'sold_out' });
  });

  it('follows what was known of an order, and finds the answer that takes it back', async () => {
    const order = { op: 'order-status', attemptId: ID, http: 200 };
    const known = line({ ...order, state: 'awaiting_payment', sentMs: 2_000, receivedMs: 2_010 });
    const gone = (sentMs: number) =>
      line({ ...order, http: 404, code: 'not_found', sentMs, receivedMs: 3_000 });
    expect((await attemptAfter(gone(1_000), known)).seen.order.broken).toBeNull();
    // It was asked before the other answer had come.
    expect((await attemptAfter(known, gone(2_005))).seen.order.broken).toBeNull();
    expect((await attemptAfter(known, gone(2_010))).seen.order.broken).toEqual({
      from: 'awaiting_payment',
      to: '404',
      sentMs: 2_010,
    });
  });

  it('knows each manner of answering once, and how often it was met', async () => {
    const limited = { http: 429, code: 'rate_limited', contentType: 'application/problem+json' };
    const log = await read(
      line({ ...limited, retryAfter: '1', deadlineMs: 5 }),
      line({ ...limited, retryAfter: '2', deadlineMs: 5 }),
      line({ ...limited, deadlineMs: 5, receivedMs: 2_006 }),
    );
    expect(log.manners).toMatchObject([
      { http: 429, hasRetryAfter: true, late: false, count: 2 },
      { http: 429, hasRetryAfter: false, late: true, count: 1 },
    ]);
  });

  it('counts refusals by reason, and keeps of sold_out answers sent in one millisecond the soonest answered', async () => {
    const soldOut = { http: 410, code: 'sold_out' };
    const log = await read(
      line({ ...soldOut, receivedMs: 1_030 }),
      line({ ...soldOut, receivedMs: 1_020, shopperId: 'bob' }),
      line({ ...soldOut, sentMs: 1_001, receivedMs: 1_040 }),
      line({ http: 429, code: 'rate_limited' }),
    );
    expect(Object.fromEntries(log.refused)).toEqual({ sold_out: 3, rate_limited: 1 });
    expect(log.toldSoldOut).toBe(3);
    expect(log.soldOut.map(({ receivedMs }) => receivedMs)).toEqual([1_020, 1_040]);
  });

  it('passes over other sales, empty lines and a last line that was cut off', async () => {
    const log = await read(line({ saleId: 'another' }), '', line({}), line({}).slice(0, 40));
    expect(log.exchanges).toBe(1);
  });

  it.each([
    ['a cut line in the middle', ['{"op":', line({})], /line 1 is no JSON object/],
    ['a missing field', [JSON.stringify({ ...LINE, http: undefined })], /line 1 has no number "http"/],
    ['an unknown operation', [line({}), line({ op: 'buy' })], /line 2 has an unknown op: buy/],
    ['an entry without its key', [line({ key: '' })], /without its key/],
    ['an order without an id', [line({ op: 'order' })], /order without an attemptId/],
  ])('refuses %s', async (_name, lines, message) => {
    const reading = read(...lines);
    await expect(reading).rejects.toThrow(UsageError);
    await expect(reading).rejects.toThrow(message);
  });
});
