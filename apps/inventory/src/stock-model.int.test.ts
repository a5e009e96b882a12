/**
 * The scripts against the reference model. One operation after another, both must agree on every answer and every number;
 * many at once, what is left must add up. A failing run prints its seed and the shortest sequence that fails.
 */
import { describe, expect, it } from '@jest/globals';
import { StockModel, type ModelGate } from '@flash-sale/domain';
import fc from 'fast-check';
import { describeOnEveryRedis } from './fixtures/redis-under-test.js';
import { OPEN, tailFor, type TestBucket, type TestWish } from './fixtures/test-bucket.js';
import type { GrantReply } from './scripts.js';

const HOUR_MS = 3_600_000;
const UNITS = 6;
const LIMIT = 3;

/** Few shoppers with few keys, so that they meet each other all the time. A shopper's attempts carry their initial. */
const shopper = fc.constantFrom('alice', 'bob', 'carol');
const wishes = fc
  .record({ shopper, key: fc.nat(3), quantity: fc.integer({ min: 1, max: 4 }) })
  .map(({ shopper, key, quantity }): Required<TestWish> => ({ id: `${shopper}${key}`, shopper, quantity }));
const reason = fc.constantFrom(
  'hold_expired',
  'released',
  'limit',
  'sold_out',
  'cancelled',
  'unpaid',
  'refunding',
);

const operation = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      op: fc.constant('grant' as const),
      wishes: fc.array(wishes, { minLength: 1, maxLength: 5 }),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      op: fc.constant('queue' as const),
      wish: wishes,
      delivery: fc.constantFrom('d1', 'd2'),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      op: fc.constant('offset' as const),
      wish: wishes,
      offset: fc.integer({ min: 1, max: 5 }),
    }),
  },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('release' as const), wish: wishes, shopper }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('confirm' as const), wish: wishes }) },
  { weight: 4, arbitrary: fc.record({ op: fc.constant('void' as const), wish: wishes, reason }) },
  { weight: 2, arbitrary: fc.constant({ op: 'sweep' as const }) },
  { weight: 2, arbitrary: fc.constant({ op: 'wait' as const }) },
  {
    weight: 1,
    arbitrary: fc.record({ op: fc.constant('gate' as const), paused: fc.boolean(), closed: fc.boolean() }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      op: fc.constant('out' as const),
      tid: fc.nat(2),
      needed: fc.integer({ min: 1, max: 4 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      op: fc.constant('in' as const),
      tid: fc.nat(2),
      units: fc.integer({ min: 1, max: 3 }),
      wishes: fc.array(wishes, { maxLength: 3 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('done' as const), tid: fc.nat(2) }) },
);
type Operation = typeof operation extends fc.Arbitrary<infer T> ? T : never;

const GATE: ModelGate = {
  opensAtMs: OPEN.opensAtMs,
  closesAtMs: OPEN.closesAtMs,
  paused: false,
  closed: false,
  limit: LIMIT,
  holdMs: HOUR_MS,
};

/** The model with a clock of its own: it never moves but by `wait`, while the real records are made older instead. */
class ModelRun {
  readonly model = new StockModel(UNITS, GATE);
  private nowMs = 1e9;

  run(operation: Operation): unknown {
    const { model, nowMs } = this;
    switch (operation.op) {
      case 'grant':
        return model.grant(operation.wishes.map(asModelWish), nowMs).map(describeGrant);
      case 'queue':
        return model.queue(
          { ...asModelWish(operation.wish), deliveryHash: operation.delivery },
          nowMs,
          HOUR_MS,
        );
      case 'offset':
        return model.recordOffset(operation.wish.id, String(operation.offset), nowMs, 3 * HOUR_MS);
      case 'release':
        return model.release(operation.wish.id, operation.shopper);
      case 'confirm':
        return model.apply(operation.wish.id, 'confirm', '');
      case 'void':
        return model.apply(operation.wish.id, 'void', operation.reason);
      case 'sweep':
        return model.beginExpiry(nowMs).toSorted();
      case 'wait':
        this.nowMs += 2 * HOUR_MS;
        return undefined;
      case 'gate':
        return model.setGate({ ...GATE, paused: operation.paused, closed: operation.closed });
      case 'out':
        return model.transferOut(`o${operation.tid}`, operation.needed);
      case 'in':
        return model
          .transferIn(`i${operation.tid}`, operation.units, operation.wishes.map(asModelWish), nowMs)
          .map(describeGrant);
      case 'done':
        return model.transferDone(`o${operation.tid}`);
    }
  }

  state(): unknown {
    const { model } = this;
    return {
      free: model.free,
      held: model.held,
      queued: model.queued,
      sold: model.sold,
      in: model.in,
      out: model.out,
      openTransfers: model.openTransfers,
      shoppers: Object.fromEntries(
        SHOPPERS.map((name) => [name, `${model.usedBy(name)}|${model.liveOf(name)}`]),
      ),
      attempts: Object.fromEntries(
        [...model.attempts].map(([id, a]) => [
          id,
          `${a.state}|${a.quantity}|${a.deliveryHash}|${a.offset}|${a.reason}`,
        ]),
      ),
      aliases: Object.fromEntries(model.aliases),
    };
  }
}

const SHOPPERS = ['alice', 'bob', 'carol'];
const asModelWish = ({ id, shopper, quantity }: Required<TestWish>) => ({ id, shopperId: shopper, quantity });
const describeGrant = (grant: { outcome: string; id?: string; state?: string; free?: number }) =>
  [grant.outcome, grant.id, grant.state, grant.free].filter((part) => part !== undefined).join(' ');

/** The same operations on the real bucket, answered in the model's words. */
class RealRun {
  constructor(readonly bucket: TestBucket) {}

  async run(operation: Operation): Promise<unknown> {
    const { bucket } = this;
    switch (operation.op) {
      case 'grant':
        return (await bucket.grant(...operation.wishes)).map(describeReply);
      case 'queue':
        return bucket.queue(operation.wish, { delivery: operation.delivery, aheadMs: HOUR_MS });
      case 'offset':
        await bucket.recordOffset(operation.wish.id, operation.offset, { aheadMs: 3 * HOUR_MS });
        return undefined;
      case 'release':
        return bucket.release(operation.wish.id, operation.shopper);
      case 'confirm':
        return (await bucket.apply([operation.wish.id, 'confirm'])).items[0];
      case 'void':
        return (await bucket.apply([operation.wish.id, `void ${operation.reason}`])).items[0];
      case 'sweep': {
        const due = await bucket.overdue({ leaseMs: 0 });
        return due.flatMap((item) => (item.kind === 'attempt' ? [idOf(item.tail)] : [])).toSorted();
      }
      case 'wait':
        return bucket.age(2 * HOUR_MS);
      case 'gate':
        await bucket.setGate({
          ...REAL_GATE,
          paused: Number(operation.paused),
          closed: Number(operation.closed),
        });
        return undefined;
      case 'out': {
        const reply = await bucket.transferOut(`o${operation.tid}`, operation.needed);
        return reply.outcome === 'out' ? reply.units : 0;
      }
      case 'in': {
        const reply = await bucket.transferIn(`i${operation.tid}`, operation.units, operation.wishes);
        return reply.outcome === 'ok' ? reply.items.map(describeReply) : reply;
      }
      case 'done':
        return bucket.transferDone(`o${operation.tid}`);
    }
  }

  async state(): Promise<unknown> {
    const { redis, keys } = this.bucket;
    await this.bucket.units();
    const { free, held, queued, sold, in: came, out, openTransfers } = await this.bucket.account();
    const records = Object.entries(await redis.hgetall(keys.attempts));
    const usages = await redis.hmget(keys.shoppers, ...SHOPPERS);
    return {
      free,
      held,
      queued,
      sold,
      in: came,
      out,
      openTransfers,
      shoppers: Object.fromEntries(
        SHOPPERS.map((name, index) => [name, (usages[index] ?? '0|').replace(/[^|]+$/, idOf)]),
      ),
      attempts: Object.fromEntries(
        records.flatMap(([tail, text]) => {
          const [state, , quantity, , delivery, , offset, reason] = text.split('|');
          return state === '@' ? [] : [[idOf(tail), [state, quantity, delivery, offset, reason].join('|')]];
        }),
      ),
      aliases: Object.fromEntries(
        records.flatMap(([tail, text]) => (text.startsWith('@|') ? [[idOf(tail), idOf(text.slice(2))]] : [])),
      ),
    };
  }

  /** The due set names exactly what is unresolved. */
  async unresolvedAndDue(): Promise<[string[], string[]]> {
    const { redis, keys } = this.bucket;
    const records = Object.entries(await redis.hgetall(keys.attempts));
    const open = Object.entries(await redis.hgetall(keys.transfers));
    return [
      [
        ...records.flatMap(([tail, text]) => (/^[HQhq]/.test(text) ? [tail] : [])),
        ...open.flatMap(([tid, text]) => (text.startsWith('out|') ? [`t:${tid}`] : [])),
      ].toSorted(),
      (await redis.zrange(keys.deadlines, '0', '-1')).toSorted(),
    ];
  }
}

const REAL_GATE = { ...OPEN, limit: LIMIT, holdMs: HOUR_MS };
const idOf = (tail: string) => tail.replace(/0+$/, '') + (/^[a-z]+0+$/.test(tail) ? '0' : '');
const describeReply = (reply: GrantReply) =>
  'tail' in reply
    ? `${reply.outcome} ${idOf(reply.tail)} ${reply.text[0]}`
    : [reply.outcome, 'free' in reply ? reply.free : undefined]
        .filter((part) => part !== undefined)
        .join(' ');

describe('idOf', () => {
  it('undoes tailFor', () => {
    for (const id of ['alice0', 'alice1', 'bob3']) expect(idOf(tailFor(id))).toBe(id);
  });
});

describeOnEveryRedis(({ open, connect }) => {
  it('one after another, the scripts do what the model does, to the last answer and number', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(operation, { minLength: 1, maxLength: 60, size: 'max' }),
        async (operations) => {
          const model = new ModelRun();
          const real = new RealRun(await open(UNITS, REAL_GATE));
          try {
            for (const one of operations) expect(await real.run(one)).toEqual(model.run(one));
            expect(await real.state()).toEqual(model.state());
            const [unresolved, due] = await real.unresolvedAndDue();
            expect(due).toEqual(unresolved);
          } finally {
            await real.bucket.remove();
          }
        },
      ),
      { numRuns: 200 },
    );
  }, 120_000);

  it('many at once, units still add up, nobody exceeds the limit, and what came back came back once', async () => {
    const connections = await Promise.all([1, 2, 3, 4].map(connect));
    await fc.assert(
      fc.asyncProperty(
        fc.array(operation, { minLength: 20, maxLength: 120, size: 'max' }),
        async (operations) => {
          const real = new RealRun(await open(UNITS, REAL_GATE));
          try {
            const timeless = operations.filter(({ op }) => op !== 'wait' && op !== 'gate');
            const runs = connections.map((redis) => new RealRun(real.bucket.over(redis)));
            const answers = await Promise.all(
              timeless.map((one, index) => runs[index % runs.length]?.run(one)),
            );
            const state = (await real.state()) as ReturnType<typeof totals>;
            expect(state).toMatchObject(totals(state));
            const [unresolved, due] = await real.unresolvedAndDue();
            expect(due).toEqual(unresolved);
            // One attempt was granted at most once, however often and wherever it was asked for.
            const granted = answers
              .flat()
              .filter((answer) => String(answer).startsWith('granted '))
              .map(String);
            expect(new Set(granted.map((answer) => answer.split(' ')[1])).size).toBe(granted.length);
            expect(granted.length).toBe(Object.keys(state.attempts).length);
          } finally {
            await real.bucket.remove();
          }
        },
      ),
      { numRuns: 80 },
    );
  }, 120_000);
});

/** What the attempts alone say that the counters and the shoppers' usage must be. */
function totals(state: {
  free: number;
  held: number;
  queued: number;
  sold: number;
  in: number;
  out: number;
  attempts: Record<string, string>;
  shoppers: Record<string, string>;
}) {
  const records = Object.entries(state.attempts).map(([id, text]) => {
    const [letter = '', quantity] = text.split('|');
    return { owner: id.replace(/\d+$/, ''), letter, quantity: Number(quantity) };
  });
  const sum = (letters: string) =>
    records
      .filter(({ letter }) => letters.includes(letter))
      .reduce((total, { quantity }) => total + quantity, 0);
  const used = (name: string) =>
    records
      .filter(({ owner, letter }) => owner === name && letter !== 'V')
      .reduce((total, { quantity }) => total + quantity, 0);
  for (const name of SHOPPERS) expect(used(name)).toBeLessThanOrEqual(LIMIT);
  const [held, queued, sold] = [sum('Hh'), sum('Qq'), sum('C')];
  const free = UNITS + state.in - state.out - held - queued - sold;
  expect(free).toBeGreaterThanOrEqual(0);
  return {
    ...state,
    held,
    queued,
    sold,
    free,
    shoppers: Object.fromEntries(
      Object.entries(state.shoppers).map(([name, text]) => [name, `${used(name)}|${text.split('|')[1]}`]),
    ),
  };
}
