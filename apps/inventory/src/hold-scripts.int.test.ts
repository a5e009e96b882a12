import { describe, expect, it } from '@jest/globals';
import { ShopperId, filterPositions } from '@flash-sale/domain';
import { describeOnEveryRedis } from './fixtures/redis-under-test.js';
import { tailFor, wish } from './fixtures/test-bucket.js';
import type { GrantReply } from './scripts.js';

const outcomes = (replies: readonly GrantReply[]) => replies.map(({ outcome }) => outcome);

describeOnEveryRedis(({ redis, open }) => {
  describe('grant.lua', () => {
    it('sets units aside with a deadline by the clock of Redis', async () => {
      const bucket = await open(3, { holdMs: 5_000 });
      const [reply] = await bucket.grant(wish('a1', 'alice', 2));
      const hold = await bucket.attempt('a1');
      expect(reply).toMatchObject({ outcome: 'granted', tail: tailFor('a1') });
      expect(hold).toMatchObject({ state: 'held', shopperId: 'alice', quantity: 2, epoch: 1, reason: '' });
      expect(hold?.deadlineMs).toBe((hold?.grantedAtMs ?? 0) + 5_000);
      expect(await bucket.units()).toBe('free 1 held 2 queued 0 sold 0');
      expect(await bucket.usage('alice')).toBe(`2|${tailFor('a1')}`);
      expect(Number(await redis().zscore(bucket.keys.deadlines, tailFor('a1')))).toBe(hold?.deadlineMs);
    });

    it('gives a repeated attempt the same answer and no second unit, at every stage of its life', async () => {
      const bucket = await open(5);
      const again = async () => (await bucket.grant(wish('a1', 'alice')))[0];
      const [first] = await bucket.grant(wish('a1', 'alice'));
      expect(await again()).toEqual({ ...first, outcome: 'known' });
      expect(await bucket.units()).toBe('free 4 held 1 queued 0 sold 0');
      await bucket.apply(['a1', 'confirm']);
      expect(await again()).toMatchObject({ outcome: 'known', text: expect.stringMatching(/^C/) });
      expect(await bucket.units()).toBe('free 4 held 0 queued 0 sold 1');
      await bucket.apply(['a1', 'void cancelled']);
      expect(await again()).toMatchObject({ outcome: 'known', text: expect.stringMatching(/^V/) });
      expect(await bucket.units()).toBe('free 5 held 0 queued 0 sold 0');
    });

    it('decides a batch one item after another, on what the items before have left', async () => {
      const bucket = await open(2);
      const replies = await bucket.grant(
        wish('a1', 'alice'),
        wish('a1', 'alice'),
        wish('b1', 'bob', 2),
        wish('b2', 'bob'),
        wish('c1', 'carol'),
        wish('a2', 'alice', 2),
      );
      expect(outcomes(replies)).toEqual(['granted', 'known', 'empty', 'granted', 'empty', 'entry_exists']);
      expect(replies[2]).toEqual({ outcome: 'empty', free: 1 });
      expect(await bucket.units()).toBe('free 0 held 2 queued 0 sold 0');
    });

    it('never gives a shopper more than the limit, within a batch and across batches', async () => {
      const bucket = await open(10, { limit: 3 });
      await bucket.grant(wish('a1', 'alice', 2));
      await bucket.apply(['a1', 'confirm']);
      const replies = await bucket.grant(
        wish('a2', 'alice', 2),
        wish('a3', 'alice', 4),
        wish('a4', 'alice', 1),
      );
      expect(outcomes(replies)).toEqual(['limit', 'limit', 'granted']);
      expect(await bucket.usage('alice')).toBe(`3|${tailFor('a4')}`);
    });

    it('records another key of a live entry as its alias for good', async () => {
      const bucket = await open(5);
      const [first] = await bucket.grant(wish('a1', 'alice'));
      expect(await bucket.grant(wish('a2', 'alice'))).toEqual([{ ...first, outcome: 'known' }]);
      await bucket.apply(['a1', 'void released']);
      const [later] = await bucket.grant(wish('a2', 'alice'));
      expect(later).toMatchObject({
        outcome: 'known',
        tail: tailFor('a1'),
        text: expect.stringMatching(/^V/),
      });
      expect(outcomes(await bucket.grant(wish('a2', 'alice', 2)))).toEqual(['mismatch']);
      expect(await bucket.units()).toBe('free 5 held 0 queued 0 sold 0');
    });

    it('refuses another quantity: under the same attempt as reused, under another as a second entry', async () => {
      const bucket = await open(5);
      await bucket.grant(wish('a1', 'alice'));
      expect(outcomes(await bucket.grant(wish('a1', 'alice', 2), wish('a2', 'alice', 2)))).toEqual([
        'mismatch',
        'entry_exists',
      ]);
      expect(await redis().hlen(bucket.keys.attempts)).toBe(1);
    });

    it.each([
      ['not_open', { opensAtMs: 8e12 }],
      ['closed', { closesAtMs: 1 }],
      ['closed', { closed: 1, paused: 1 }],
      ['paused', { paused: 1 }],
    ] as const)(
      'answers a newcomer %s under the gate %j, and a known attempt as before',
      async (word, gate) => {
        const bucket = await open(5);
        await bucket.grant(wish('a1', 'alice'));
        await bucket.setGate(gate);
        expect(outcomes(await bucket.grant(wish('b1', 'bob'), wish('a1', 'alice')))).toEqual([word, 'known']);
      },
    );

    it('keeps the gate shut until it was told a version', async () => {
      const bucket = await open(1);
      await bucket.remove();
      await bucket.load(1);
      expect(outcomes(await bucket.grant(wish('a1', 'alice')))).toEqual(['not_open']);
    });

    it('decides nothing for a bucket that Redis has lost, or of another epoch', async () => {
      const bucket = await open(5);
      expect(await bucket.tryGrant(2, wish('a1', 'alice'))).toEqual({ outcome: 'other_epoch', epoch: 1 });
      await bucket.remove();
      expect(await bucket.tryGrant(1, wish('a1', 'alice'))).toEqual({ outcome: 'gone' });
    });

    it('remembers holders in the filter and counts grants', async () => {
      const bucket = await open(5);
      await bucket.grant(wish('a1', 'alice'), wish('a1', 'alice'));
      const positions = filterPositions(ShopperId.parse('alice'), 1024);
      const bits = await Promise.all(positions.map((at) => redis().getbit(bucket.keys.holders, at)));
      expect(bits).toEqual([1, 1, 1, 1]);
      expect(await redis().bitcount(bucket.keys.holders)).toBe(new Set(positions).size);
      expect((await bucket.account()).grants).toBe(1);
    });

    it('changes nothing where one of its keys has a wrong type', async () => {
      for (const broken of ['shoppers', 'deadlines', 'holders'] as const) {
        const bucket = await open(5);
        await redis().rpush(bucket.keys[broken], 'planted');
        await expect(bucket.grant(wish('a1', 'alice'))).rejects.toThrow(/grant\.lua.*WRONGTYPE/);
        expect(await redis().hmget(bucket.keys.account, 'free', 'held', 'grants')).toEqual(['5', '0', '0']);
        expect(await redis().hlen(bucket.keys.attempts)).toBe(0);
      }
    });

    it('gives the last units to exactly as many of many who come at once', async () => {
      const bucket = await open(7);
      const crowd = Array.from({ length: 200 }, (_, n) => wish(`x${n}`, `shopper-${n}`));
      const replies = (await Promise.all(crowd.map((one) => bucket.grant(one)))).flat();
      expect(replies.filter(({ outcome }) => outcome === 'granted')).toHaveLength(7);
      expect(await bucket.units()).toBe('free 0 held 7 queued 0 sold 0');
    });

    it('holds once for one attempt that comes many times at once', async () => {
      const bucket = await open(50);
      const replies = await Promise.all(
        Array.from({ length: 50 }, () => bucket.grant(wish('a1', 'alice'), wish('a2', 'alice'))),
      );
      expect(replies.flat().filter(({ outcome }) => outcome === 'granted')).toHaveLength(1);
      expect(await bucket.units()).toBe('free 49 held 1 queued 0 sold 0');
    });
  });

  describe('queue.lua', () => {
    const a1 = wish('a1', 'alice');

    it('turns a hold into a queued order whose deadline is far enough ahead', async () => {
      const bucket = await open(2, { holdMs: 1_000 });
      await bucket.grant(a1);
      const before = await bucket.attempt('a1');
      expect(await bucket.queue(a1, { aheadMs: 30_000 })).toBe('queued');
      const after = await bucket.attempt('a1');
      expect(after?.state).toBe('queued');
      expect(after?.deadlineMs).toBeGreaterThanOrEqual((before?.grantedAtMs ?? 0) + 30_000);
      expect(Number(await redis().zscore(bucket.keys.deadlines, tailFor('a1')))).toBe(after?.deadlineMs);
      expect(await bucket.units()).toBe('free 1 held 0 queued 1 sold 0');
    });

    it('answers a replay alike and puts the deadline off again, but never back', async () => {
      const bucket = await open(2);
      await bucket.grant(a1);
      await bucket.queue(a1, { aheadMs: 100_000 });
      const first = (await bucket.attempt('a1'))?.deadlineMs ?? 0;
      expect(await bucket.queue(a1, { aheadMs: 1 })).toBe('queued');
      expect((await bucket.attempt('a1'))?.deadlineMs).toBe(first);
      expect(await bucket.queue(a1, { aheadMs: 200_000 })).toBe('queued');
      expect((await bucket.attempt('a1'))?.deadlineMs).toBeGreaterThanOrEqual(first + 90_000);
      expect(await bucket.units()).toBe('free 1 held 0 queued 1 sold 0');
    });

    it('refuses another delivery, while it is queued and after it was decided', async () => {
      const bucket = await open(2);
      await bucket.grant(a1);
      await bucket.queue(a1, { delivery: 'here' });
      expect(await bucket.queue(a1, { delivery: 'there' })).toBe('other_delivery');
      await bucket.apply(['a1', 'confirm']);
      expect(await bucket.queue(a1, { delivery: 'there' })).toBe('other_delivery');
      expect(await bucket.queue(a1, { delivery: 'here' })).toBe('decided');
    });

    it('does not queue a hold past its deadline', async () => {
      const bucket = await open(2, { holdMs: 60_000 });
      await bucket.grant(a1);
      await bucket.age(61_000);
      expect(await bucket.queue(a1)).toBe('token_expired');
      expect(await bucket.units()).toBe('free 1 held 1 queued 0 sold 0');
    });

    it('sends the order on to MySQL where Redis does not know its hold', async () => {
      const bucket = await open(2);
      expect(await bucket.queue(a1)).toBe('missing');
      await bucket.grant(wish('a2', 'alice'), a1);
      // An alias is none of its own: the hold that the token was made of was forgotten.
      expect(await bucket.queue(a1, { epoch: 0 })).toBe('missing');
    });

    it('judges a hold that it knows, whatever epoch the token is of', async () => {
      const bucket = await open(2);
      await bucket.grant(a1);
      expect(await bucket.queue(a1, { epoch: 0 })).toBe('queued');
      expect(await bucket.units()).toBe('free 1 held 0 queued 1 sold 0');
      // Made of another hold under the same id, which was forgotten with its epoch.
      expect(await bucket.queue(wish('a1', 'alice', 2), { epoch: 0 })).toBe('token_expired');
    });

    it('decides nothing in a bucket that Redis has lost, or that is being rebuilt', async () => {
      const bucket = await open(2);
      await bucket.grant(a1);
      await bucket.redis.hset(bucket.keys.account, 'frozen', 1);
      expect(await bucket.queue(a1)).toBe('frozen');
      await bucket.remove();
      expect(await bucket.queue(a1)).toBe('gone');
    });

    it('waits for what is expiring', async () => {
      const bucket = await open(2);
      await bucket.grant(a1);
      await bucket.age(61_000);
      await bucket.overdue();
      expect(await bucket.queue(a1)).toBe('expiring');
    });

    it.each(['cancelled', 'unpaid', 'limit', 'sold_out', 'refunding', 'lost', 'poison'])(
      'answers with the row of an order that is void because %s',
      async (reason) => {
        const bucket = await open(2);
        await bucket.grant(a1);
        await bucket.apply(['a1', `void ${reason}`]);
        expect(await bucket.queue(a1)).toBe('decided');
      },
    );

    it.each(['hold_expired', 'released'])(
      'says that the token expired when the hold ended as %s, unless Kafka has it',
      async (reason) => {
        const bucket = await open(2);
        await bucket.grant(a1);
        await bucket.apply(['a1', `void ${reason}`]);
        expect(await bucket.queue(a1)).toBe('token_expired');
        await bucket.recordOffset('a1', 17);
        expect(await bucket.queue(a1)).toBe('decided');
      },
    );

    it('trusts no token that contradicts the hold', async () => {
      const bucket = await open(5);
      await bucket.grant(a1, wish('a2', 'alice'));
      expect(await bucket.queue(wish('a1', 'bob'))).toBe('contradicts');
      expect(await bucket.queue(wish('a1', 'alice', 2))).toBe('contradicts');
    });

    it('queues once for many who come at once', async () => {
      const bucket = await open(5);
      await bucket.grant(a1);
      const replies = await Promise.all(Array.from({ length: 50 }, () => bucket.queue(a1)));
      expect(new Set(replies)).toEqual(new Set(['queued']));
      expect(await bucket.units()).toBe('free 4 held 0 queued 1 sold 0');
    });
  });

  describe('record-offsets.lua', () => {
    it('notes the last acknowledgement and gives a queued order more time', async () => {
      const bucket = await open(2);
      await bucket.grant(wish('a1', 'alice'));
      await bucket.queue(wish('a1', 'alice'));
      await bucket.recordOffset('a1', 5);
      const before = (await bucket.attempt('a1'))?.deadlineMs ?? 0;
      expect(await bucket.recordOffset('a1', 9, { partition: 2, aheadMs: 900_000 })).toBe(1);
      const after = await bucket.attempt('a1');
      expect(after?.placedAt).toEqual({ partition: 2, offset: 9n });
      expect(after?.deadlineMs).toBeGreaterThan(before);
      expect(Number(await redis().zscore(bucket.keys.deadlines, tailFor('a1')))).toBe(after?.deadlineMs);
    });

    it('notes it for what is expiring too, without giving more time, and for nothing unknown', async () => {
      const bucket = await open(2);
      await bucket.grant(wish('a1', 'alice'));
      await bucket.queue(wish('a1', 'alice'));
      await bucket.age(100_000);
      await bucket.overdue();
      const before = await bucket.attempt('a1');
      await bucket.recordOffset('a1', 5);
      expect(await bucket.attempt('a1')).toEqual({ ...before, placedAt: { partition: 3, offset: 5n } });
      expect(await bucket.recordOffset('zz', 5)).toBe(0);
    });
  });

  describe('release.lua', () => {
    it('gives a hold up once, keeps its units held, and makes it due at once', async () => {
      const bucket = await open(2);
      await bucket.grant(wish('a1', 'alice'));
      expect([await bucket.release('a1', 'alice'), await bucket.release('a1', 'alice')]).toEqual([
        'released',
        'released',
      ]);
      expect(await bucket.attempt('a1')).toMatchObject({ state: 'expiring', reason: 'released' });
      expect(await bucket.units()).toBe('free 1 held 1 queued 0 sold 0');
      expect(await bucket.overdue({ graceMs: 1_000 })).toHaveLength(1);
    });

    it('follows an alias, and stays released when it is over', async () => {
      const bucket = await open(2);
      await bucket.grant(wish('a1', 'alice'), wish('a2', 'alice'));
      expect(await bucket.release('a2', 'alice')).toBe('released');
      await bucket.apply(['a1', 'void released']);
      expect(await bucket.release('a1', 'alice')).toBe('released');
    });

    it('does not give up what was ordered, and knows nothing of strangers', async () => {
      const bucket = await open(5);
      await bucket.grant(wish('a1', 'alice'), wish('b1', 'bob'), wish('c1', 'carol'));
      await bucket.queue(wish('a1', 'alice'));
      await bucket.apply(['b1', 'confirm'], ['c1', 'void limit']);
      expect(await bucket.release('a1', 'alice')).toBe('already_ordered');
      expect(await bucket.release('b1', 'bob')).toBe('already_ordered');
      expect(await bucket.release('c1', 'carol')).toBe('already_ordered');
      expect(await bucket.release('a1', 'mallory')).toBe('unknown');
      expect(await bucket.release('zz', 'alice')).toBe('unknown');
      await bucket.remove();
      expect(await bucket.release('a1', 'alice')).toBe('gone');
    });
  });

  describe('find.lua', () => {
    it('finds an attempt by its own id and by an alias, for its shopper only', async () => {
      const bucket = await open(5);
      const [granted] = await bucket.grant(wish('a1', 'alice'), wish('a2', 'alice'));
      const record = granted?.outcome === 'granted' ? { tail: granted.tail, text: granted.text } : null;
      expect(await bucket.find('a1', 'alice')).toEqual(record);
      expect(await bucket.find('a2', 'alice')).toEqual(record);
      expect(await bucket.find('a1', 'mallory')).toBeNull();
      expect(await bucket.find('zz', 'alice')).toBeNull();
      await bucket.remove();
      expect(await bucket.find('a1', 'alice')).toEqual({ outcome: 'gone' });
    });
  });
});
