import { describe, expect, it } from '@jest/globals';
import { UnexpectedReply } from '@flash-sale/redis';
import { describeOnEveryRedis, flushScripts } from './fixtures/redis-under-test.js';
import { freshSaleId, tailFor, wish } from './fixtures/test-bucket.js';
import { stateKey } from './keys.js';
import { scripts, type GrantReply } from './scripts.js';

const outcomes = (replies: readonly GrantReply[]) => replies.map(({ outcome }) => outcome);

describeOnEveryRedis(({ redis, open }) => {
  describe('apply-effects.lua', () => {
    const prepare = async (state: 'held' | 'queued' | 'expiring' | 'expiring order' | 'sold') => {
      const bucket = await open(3);
      await bucket.grant(wish('a1', 'alice', 2));
      if (state === 'queued' || state === 'expiring order') await bucket.queue(wish('a1', 'alice', 2));
      if (state.startsWith('expiring')) {
        await bucket.age(100_000);
        await bucket.overdue();
      }
      if (state === 'sold') await bucket.apply(['a1', 'confirm']);
      return bucket;
    };

    it.each(['held', 'queued', 'expiring', 'expiring order'] as const)(
      'confirms what is %s',
      async (state) => {
        const bucket = await prepare(state);
        expect(await bucket.apply(['a1', 'confirm'])).toMatchObject({
          freed: 0,
          items: [{ outcome: 'applied' }],
        });
        expect(await bucket.apply(['a1', 'confirm'])).toMatchObject({
          freed: 0,
          items: [{ outcome: 'already' }],
        });
        expect(await bucket.units()).toBe('free 1 held 0 queued 0 sold 2');
        expect(await bucket.usage('alice')).toBe('2|');
        expect(await redis().zcard(bucket.keys.deadlines)).toBe(0);
        expect(await bucket.attempt('a1')).toMatchObject({ state: 'confirmed', reason: '' });
      },
    );

    it.each(['held', 'queued', 'expiring', 'expiring order', 'sold'] as const)(
      'returns the units of what is %s exactly once',
      async (state) => {
        const bucket = await prepare(state);
        expect(await bucket.apply(['a1', 'void cancelled'])).toMatchObject({
          freed: 2,
          items: [{ outcome: 'applied' }],
        });
        expect(await bucket.apply(['a1', 'void unpaid'])).toMatchObject({
          freed: 0,
          items: [{ outcome: 'already' }],
        });
        expect(await bucket.units()).toBe('free 3 held 0 queued 0 sold 0');
        expect(await bucket.usage('alice')).toBe('0|');
        expect(await redis().zcard(bucket.keys.deadlines)).toBe(0);
        expect(await bucket.attempt('a1')).toMatchObject({ state: 'void', reason: 'cancelled' });
      },
    );

    it('gives no credit for what Redis does not know, nor for an alias', async () => {
      const bucket = await open(3);
      await bucket.grant(wish('a1', 'alice'), wish('a2', 'alice'));
      const reply = await bucket.apply(['zz', 'void cancelled'], ['a2', 'void cancelled'], ['zz', 'confirm']);
      expect(reply).toMatchObject({ freed: 0, items: [1, 2, 3].map(() => ({ outcome: 'missing' })) });
      expect(await bucket.units()).toBe('free 2 held 1 queued 0 sold 0');
    });

    it('does not sell again what is void, and says why it is', async () => {
      const bucket = await open(3);
      await bucket.grant(wish('a1', 'alice'));
      const reply = await bucket.apply(['a1', 'void limit'], ['a1', 'confirm']);
      expect(reply.items).toEqual([{ outcome: 'applied' }, { outcome: 'void_before', reason: 'limit' }]);
      expect(await bucket.units()).toBe('free 3 held 0 queued 0 sold 0');
    });

    it('applies a whole life in one batch, and leaves the shopper free to come again', async () => {
      const bucket = await open(3);
      await bucket.grant(wish('a1', 'alice', 2));
      expect(await bucket.apply(['a1', 'confirm'], ['a1', 'void refunding'])).toMatchObject({ freed: 2 });
      expect(outcomes(await bucket.grant(wish('a2', 'alice', 2)))).toEqual(['granted']);
    });

    it('keeps the shopper’s live entry when an older order of theirs is void', async () => {
      const bucket = await open(5);
      await bucket.grant(wish('a1', 'alice'));
      await bucket.apply(['a1', 'confirm']);
      await bucket.grant(wish('a2', 'alice'));
      await bucket.apply(['a1', 'void cancelled']);
      expect(await bucket.usage('alice')).toBe(`1|${tailFor('a2')}`);
    });

    it('credits once when the same effect is applied by many at once', async () => {
      const bucket = await open(3);
      await bucket.grant(wish('a1', 'alice'));
      const replies = await Promise.all(Array.from({ length: 40 }, () => bucket.apply(['a1', 'void limit'])));
      expect(replies.reduce((sum, { freed }) => sum + freed, 0)).toBe(1);
      expect(await bucket.units()).toBe('free 3 held 0 queued 0 sold 0');
    });

    it('refuses to make a balance negative, and then changes nothing', async () => {
      const bucket = await open(3);
      await bucket.grant(wish('a1', 'alice'), wish('b1', 'bob'));
      await redis().hset(bucket.keys.account, 'held', 1, 'free', 2);
      await expect(bucket.apply(['a1', 'confirm'], ['b1', 'confirm'])).rejects.toThrow(
        /held would become -1/,
      );
      expect(await bucket.attempt('a1')).toMatchObject({ state: 'held' });
    });
  });

  describe('overdue.lua and expire-lost.lua', () => {
    it('leave alone what is within its deadline and the grace', async () => {
      const bucket = await open(2);
      await bucket.grant(wish('a1', 'alice'));
      await bucket.age(70_000);
      expect(await bucket.overdue({ graceMs: 60_000 })).toEqual([]);
      expect(await bucket.attempt('a1')).toMatchObject({ state: 'held' });
    });

    it('let a hold and an order without an offset begin to expire, counted as before', async () => {
      const bucket = await open(2);
      await bucket.grant(wish('a1', 'alice'), wish('b1', 'bob'));
      await bucket.queue(wish('b1', 'bob'));
      await bucket.age(100_000);
      const due = await bucket.overdue();
      expect(due.map((item) => (item.kind === 'attempt' ? item.text.slice(0, 1) : 't')).sort()).toEqual([
        'h',
        'q',
      ]);
      expect(await bucket.units()).toBe('free 0 held 1 queued 1 sold 0');
      expect(await bucket.attempt('a1')).toMatchObject({ state: 'expiring', reason: 'hold_expired' });
    });

    it('hand an attempt to one sweeper until its lease is over, then to the next', async () => {
      const bucket = await open(2);
      await bucket.grant(wish('a1', 'alice'));
      await bucket.age(100_000);
      const all = await Promise.all([1, 2, 3].map(() => bucket.overdue({ graceMs: 1_000, leaseMs: 60_000 })));
      expect(all.flat()).toHaveLength(1);
      expect(await bucket.overdue({ graceMs: 1_000 })).toHaveLength(0);
      await bucket.age(61_000);
      expect(await bucket.overdue({ graceMs: 1_000 })).toHaveLength(1);
    });

    it('look at an acknowledged order without ending it, and end it once Kafka is known to have lost it', async () => {
      const bucket = await open(2);
      await bucket.grant(wish('a1', 'alice'));
      await bucket.queue(wish('a1', 'alice'));
      await bucket.recordOffset('a1', 7);
      await bucket.age(700_000);
      expect(await bucket.overdue()).toMatchObject([{ text: expect.stringMatching(/^Q/) }]);
      expect(await bucket.expireLost('a1', 8)).toBe(0);
      expect(await bucket.expireLost('a1', 7)).toBe(1);
      expect(await bucket.expireLost('a1', 7)).toBe(0);
      expect(await bucket.attempt('a1')).toMatchObject({ state: 'expiring', reason: 'lost' });
    });

    it('hand out no more than asked for, and forget members that are resolved', async () => {
      const bucket = await open(9);
      await bucket.grant(...Array.from({ length: 5 }, (_, n) => wish(`x${n}`, `s${n}`)));
      await redis().zadd(bucket.keys.deadlines, 1, 'nobody');
      await bucket.age(100_000);
      expect(await bucket.overdue({ limit: 3 })).toHaveLength(2);
      expect(await bucket.overdue({ limit: 9 })).toHaveLength(3);
      expect(await redis().zscore(bucket.keys.deadlines, 'nobody')).toBeNull();
    });
  });

  describe('transfers', () => {
    it('take what is needed and half of the rest, once per tid', async () => {
      const bucket = await open(10);
      expect(await bucket.transferOut('t1', 2)).toEqual({ outcome: 'out', units: 6 });
      expect(await bucket.transferOut('t1', 2)).toEqual({ outcome: 'out', units: 6 });
      expect(await bucket.transferOut('t2', 9)).toEqual({ outcome: 'out', units: 4 });
      expect(await bucket.transferOut('t3', 1)).toMatchObject({ outcome: 'empty' });
      expect(await bucket.account()).toMatchObject({ free: 0, out: 10, openTransfers: 2 });
      expect(await bucket.units()).toBe('free 0 held 0 queued 0 sold 0');
    });

    it('bring units once, and grant what they were fetched for in the same breath', async () => {
      const bucket = await open(0);
      const wishes = [wish('a1', 'alice', 2), wish('b1', 'bob'), wish('c1', 'carol', 2)];
      const first = await bucket.transferIn('t1', 4, wishes);
      expect(first).toMatchObject({ outcome: 'ok', free: 1 });
      expect(first.outcome === 'ok' && outcomes(first.items)).toEqual(['granted', 'granted', 'empty']);
      const again = await bucket.transferIn('t1', 4, wishes);
      expect(again.outcome === 'ok' && outcomes(again.items)).toEqual(['known', 'known', 'empty']);
      expect(await bucket.account()).toMatchObject({ in: 4, free: 1, held: 3 });
      expect(await bucket.units()).toBe('free 1 held 3 queued 0 sold 0');
    });

    it('are done once, and remembered', async () => {
      const bucket = await open(5);
      await bucket.transferOut('t1', 1);
      expect(await redis().zscore(bucket.keys.deadlines, 't:t1')).not.toBeNull();
      expect([
        await bucket.transferDone('t1'),
        await bucket.transferDone('t1'),
        await bucket.transferDone('zz'),
      ]).toEqual(['done', 'already', 'unknown']);
      expect(await bucket.account()).toMatchObject({ openTransfers: 0, out: 3 });
      expect(await redis().hget(bucket.keys.transfers, 't1')).toBe('done|3|9');
      expect(await redis().zscore(bucket.keys.deadlines, 't:t1')).toBeNull();
    });

    it('of another epoch, or from or to a lost bucket, are refused', async () => {
      const bucket = await open(5);
      expect(await bucket.transferOut('t1', 1, 9, 2)).toEqual({ outcome: 'other_epoch', epoch: 1 });
      expect(await bucket.transferIn('t1', 1, [], 2)).toEqual({ outcome: 'other_epoch', epoch: 1 });
      await bucket.remove();
      expect(await bucket.transferOut('t1', 1)).toEqual({ outcome: 'gone' });
      expect(await bucket.transferIn('t1', 1)).toEqual({ outcome: 'gone' });
      expect(await bucket.transferDone('t1')).toBe('gone');
    });

    it('left half done are handed to a sweeper', async () => {
      const bucket = await open(5);
      await bucket.transferOut('t1', 1, 4);
      expect(await bucket.overdue()).toEqual([]);
      await bucket.age(6_000);
      expect(await bucket.overdue()).toEqual([{ kind: 'transfer', tid: 't1', units: 3, destination: 4 }]);
    });
  });

  describe('load.lua and gate.lua', () => {
    it('load once per epoch, a later one anew, an earlier one never', async () => {
      const bucket = await open(5);
      await bucket.grant(wish('a1', 'alice'));
      expect(await bucket.load(5)).toBe('already');
      expect(await bucket.units()).toBe('free 4 held 1 queued 0 sold 0');
      expect(await bucket.load(9, 2)).toBe('loaded');
      expect(await bucket.load(5, 1)).toBe('later');
      expect(await redis().hget(bucket.keys.account, 'free')).toBe('9');
      expect(await redis().exists(bucket.keys.attempts)).toBe(0);
    });

    it('let no older gate overwrite a newer one', async () => {
      const bucket = await open(5);
      expect(await bucket.setGate({ paused: 1 }, 7)).toEqual({ outcome: 'set' });
      expect(await bucket.setGate({ paused: 0 }, 6)).toEqual({ outcome: 'already' });
      expect(outcomes(await bucket.grant(wish('a1', 'alice')))).toEqual(['paused']);
      expect(await bucket.setGate({ paused: 0 }, 8)).toEqual({ outcome: 'set' });
      expect(outcomes(await bucket.grant(wish('a1', 'alice')))).toEqual(['granted']);
      await bucket.remove();
      expect(await bucket.setGate({}, 9)).toEqual({ outcome: 'gone' });
    });
  });

  describe('the sale’s state', () => {
    const state = async () => {
      const keys = [stateKey(freshSaleId())];
      const claim = (credit: number, epoch = 1) => scripts.soldOut.run(redis(), keys, [epoch, credit]);
      const credit = (epoch = 1) => scripts.credit.run(redis(), keys, [epoch]);
      const next = (epoch = 1) => scripts.nextVersion.run(redis(), keys, [epoch]);
      const load = (epoch: number) => scripts.loadState.run(redis(), keys, [epoch, 'boot']);
      return { keys, claim, credit, next, load };
    };

    it('becomes sold out only if nothing was credited since the counter was read', async () => {
      const { keys, claim, credit, load } = await state();
      await load(1);
      await credit();
      expect(await claim(0)).toEqual({ outcome: 'credited' });
      expect(await claim(1)).toEqual({ outcome: 'set' });
      expect(await claim(1)).toEqual({ outcome: 'already' });
      expect(await credit()).toEqual({ outcome: 'lifted' });
      expect(await credit()).toEqual({ outcome: 'noted' });
      expect(await claim(1)).toEqual({ outcome: 'credited' });
      await redis().del(...keys);
    });

    it('numbers snapshots without gaps or doubles', async () => {
      const { keys, next, load, claim } = await state();
      await load(1);
      const numbers = await Promise.all(Array.from({ length: 20 }, () => next()));
      expect(new Set(numbers.map((reply) => (reply.outcome === 'ok' ? reply.version : 0))).size).toBe(20);
      await claim(0);
      expect(await next()).toEqual({ outcome: 'ok', version: 21, soldOut: true });
      await redis().del(...keys);
    });

    it('says nothing where Redis has lost it, or of another epoch', async () => {
      const { keys, claim, credit, next, load } = await state();
      for (const ask of [claim(0), credit(), next()]) expect(await ask).toEqual({ outcome: 'gone' });
      expect([await load(2), await load(2), await load(1)]).toEqual(['loaded', 'already', 'later']);
      for (const ask of [claim(0), credit(), next()]) {
        expect(await ask).toEqual({ outcome: 'other_epoch', epoch: 2 });
      }
      await redis().del(...keys);
    });
  });

  it('every script works again after the server has forgotten it', async () => {
    const bucket = await open(9);
    const other = await open(9);
    const steps: (() => Promise<unknown>)[] = [
      () => bucket.grant(wish('a1', 'alice')),
      () => bucket.queue(wish('a1', 'alice')),
      () => bucket.recordOffset('a1', 1),
      () => bucket.find('a1', 'alice'),
      () => bucket.release('a1', 'alice'),
      () => bucket.apply(['a1', 'confirm']),
      () => bucket.overdue(),
      () => bucket.expireLost('a1', 1),
      () => bucket.transferOut('t', 1),
      () => other.transferIn('t', 1),
      () => bucket.transferDone('t'),
      () => bucket.load(9),
      () => bucket.setGate({}),
      () => bucket.account(),
      () => scripts.loadState.run(redis(), [stateKey(bucket.saleId)], [1, 'boot']),
      () => scripts.credit.run(redis(), [stateKey(bucket.saleId)], [1]),
      () => scripts.soldOut.run(redis(), [stateKey(bucket.saleId)], [1, 1]),
      () => scripts.nextVersion.run(redis(), [stateKey(bucket.saleId)], [1]),
    ];
    for (const step of steps) {
      await flushScripts(redis());
      await step();
    }
    await flushScripts(redis());
    const crowd = Array.from({ length: 30 }, (_, n) => bucket.grant(wish(`x${n}`, `shopper-${n}`)));
    expect((await Promise.all(crowd)).flat().filter(({ outcome }) => outcome === 'granted')).toHaveLength(4);
    expect(await bucket.units()).toBe('free 0 held 4 queued 0 sold 1');
  });

  it('a reply that the decoder does not know is a fault, never an outcome', async () => {
    const bucket = await open(1);
    await bucket.grant(wish('a1', 'alice'));
    await redis().hset(bucket.keys.account, 'free', 'lots');
    await expect(bucket.account()).rejects.toThrow(UnexpectedReply);
  });
});
