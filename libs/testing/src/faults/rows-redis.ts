import { acceptsAgain, loopDelayMs, mustNotShow } from './measure.js';
import type { Scenario } from './scenario.js';

/** Faults of Redis. Whatever it forgets, nobody may be told that the plentiful sale is sold out; the runner checks that. */
export const redisRows: readonly Scenario[] = [
  {
    name: 'redis-kill',
    row: 'Redis kill −9, AOF on',
    shopperSees: '503 `unavailable` for at most 5 s',
    async run(stage) {
      const { rig, crowd, expect, sleep, dice } = stage;
      const outage = crowd.window();
      await rig.redis.kill();
      await sleep(1_000 + 2_000 * dice());
      await rig.redis.start();
      stage.healed();
      await acceptsAgain(stage, 10_000, 'its return');
      const seen = await outage.end();
      expect(seen.count({ http: 503 }) > 0, 'the outage was noticed by somebody');
      expect(seen.count({ http: 500 }) === 0, 'nobody got a 500', seen.count({ http: 500 }));
    },
  },
  {
    name: 'redis-empty',
    row: 'Redis restart, empty data',
    shopperSees: '503 `unavailable` until it is rebuilt',
    async run(stage) {
      const { rig, crowd, sleep, dice } = stage;
      await rig.redis.kill();
      await sleep(1_000 * dice());
      await rig.redis.startEmpty();
      stage.healed();
      await acceptsAgain(stage, 30_000, 'its return without data');
      // What was sold before and what is sold now must add up, so both are needed.
      const after = crowd.window();
      await sleep(3_000);
      await after.end();
    },
  },
  {
    name: 'redis-failover-stale',
    row: 'Redis failover, stalled replica',
    shopperSees: 'some orders that were answered 202 end `rejected` (sold_out)',
    async run(stage) {
      const { rig, sleep, dice, note, mayReject, scarceSaleId } = stage;
      const link = await rig.redis.addReplica();
      await link.stall(true);
      await sleep(500 + 2_000 * dice());
      const grants = async () => {
        const words = await Promise.all(
          Array.from({ length: BUCKETS }, (_, bucket) =>
            rig.redis.command('HGET', `fs:{${scarceSaleId}:${bucket}}:account`, 'grants'),
          ),
        );
        return words.reduce((sum, word) => sum + Number(word.split('\r\n').at(-1)), 0);
      };
      const before = await grants();
      await rig.redis.promoteReplica();
      await rig.redis.proxy.cut();
      const lost = before - (await grants());
      stage.healed();
      note(`${lost} grants of the scarce sale forgotten`);
      mayReject(lost);
      await acceptsAgain(stage, 10_000, 'the promotion');
      await sleep(5_000);
    },
  },
  {
    name: 'redis-stop',
    row: 'Redis SIGSTOP 5 s',
    shopperSees: '503 within 300 ms',
    async run(stage) {
      const { rig, crowd, world, expect, sleep, note, undo } = stage;
      undo('let Redis go on', () => rig.redis.resume());
      await loopDelayMs(world, 'gateway');
      rig.redis.pause();
      const outage = crowd.window();
      await sleep(5_000);
      const seen = await outage.end();
      const delayMs = await loopDelayMs(world, 'gateway');
      rig.redis.resume();
      stage.healed();
      const refusals = seen.latencyMs({ http: 503 });
      note(`503 in p50 ${refusals.p50} ms, p99 ${refusals.p99} ms; gateway's loop late by p99 ${delayMs} ms`);
      expect(refusals.count > 0, 'the outage was noticed by somebody');
      expect(refusals.p50 <= 300 * stage.slack, 'a refusal takes at most 300 ms', refusals.p50);
      expect(
        delayMs < 100 * stage.slack,
        "nothing piles up: the gateway's event loop is late by less than 100 ms",
        delayMs,
      );
      await acceptsAgain(stage, 5_000, 'its return');
    },
  },
  {
    name: 'redis-slow',
    row: 'Redis latency +500 ms',
    shopperSees: '503, or slow',
    async run(stage) {
      const { rig, crowd, world, saleId, expect, sleep, note, undo } = stage;
      // Somebody with an order that waits for its payment; the crowd pays at once.
      const shopper = world.shopper('with-time');
      const entry = await shopper.persist(() => shopper.enter(saleId, 'k'));
      const order = await shopper.persist(() => shopper.order(entry.body['purchaseToken']));
      const orderId = String(order.body['orderId']);
      await shopper.orderIn(orderId, ['awaiting_payment']);
      undo('undelay Redis', () => rig.redis.proxy.pass());
      await rig.redis.proxy.delay(500);
      await sleep(500);
      const slow = crowd.window();
      await sleep(2_000);
      const looks = [await shopper.call('GET', `/v1/orders/${orderId}`)];
      const payment = await shopper.pay(orderId, 'payment');
      looks.push(await shopper.call('GET', `/v1/orders/${orderId}`));
      await sleep(4_000);
      const underWay = await world.metric('gateway', 'calls_under_way');
      const seen = await slow.end();
      await rig.redis.proxy.pass();
      stage.healed();
      note(`${underWay} calls under way in the gateway`);
      const statuses = looks.map(({ status }) => status);
      expect(
        statuses.every((status) => status === 200),
        'an order can be looked at all the same',
        statuses,
      );
      expect(payment.status === 200, 'an order can be paid all the same', payment);
      expect(underWay < 1_000, 'what is under way in the gateway stays bounded', underWay);
      expect(seen.count({ http: 500 }) === 0, 'nobody got a 500', seen.count({ http: 500 }));
      await acceptsAgain(stage, 5_000, 'the end of the delay');
    },
  },
  {
    name: 'redis-cut-mid-reply',
    row: 'Redis cut mid-reply (proxy)',
    shopperSees: '503, then the retry succeeds',
    async run(stage) {
      const { rig, until, dice, note, sleep } = stage;
      const before = (await rig.redis.proxy.figures()).lost;
      const CUTS = 30;
      for (let cut = 1; cut <= CUTS; cut += 1) {
        await rig.redis.proxy.lose({
          request: 'EVALSHA',
          nth: 1 + Math.floor(20 * dice()),
          part: dice() < 0.6 ? 'half of the reply' : 'reply',
          connection: 'cut',
        });
        await until('the cut', 15_000, async () => (await rig.redis.proxy.figures()).lost === before + cut);
        await sleep(400 * dice());
      }
      note(`${CUTS} replies cut`);
      stage.healed();
      await acceptsAgain(stage, 5_000, 'the last cut');
    },
  },
  {
    name: 'redis-script-flush',
    row: 'SCRIPT FLUSH during load (NOSCRIPT)',
    shopperSees: 'nothing',
    async run({ rig, crowd, expect, sleep, note }) {
      const FLUSHES = 30;
      const during = crowd.window();
      for (let flush = 0; flush < FLUSHES; flush += 1) {
        await rig.redis.command('SCRIPT', 'FLUSH');
        await sleep(150);
      }
      const seen = await during.end();
      note(`${FLUSHES} flushes`);
      mustNotShow(seen, expect);
    },
  },
  {
    name: 'redis-readonly',
    row: 'READONLY (demoted under us)',
    shopperSees: '503 for at most 2 s',
    async run(stage) {
      const { rig } = stage;
      await rig.redis.addReplica();
      await rig.redis.promoteReplica();
      // Clients stay connected to what is a replica now; nothing but its answers tells them.
      await rig.redis.demoteFormer();
      stage.healed();
      await acceptsAgain(stage, 2_000, 'the demotion');
    },
  },
  {
    name: 'redis-loading',
    row: 'LOADING (big AOF)',
    shopperSees: '503 `unavailable`',
    async run(stage) {
      const { rig, crowd, expect, until, note, world } = stage;
      await rig.redis.growAppendOnlyFile(50_000);
      await rig.redis.kill();
      const startedMs = performance.now();
      const state = { loading: true };
      const loaded = rig.redis.startLoadingFor(10_000).finally(() => (state.loading = false));
      await until('Redis to load', 10_000, async () =>
        (await rig.redis.command('PING').catch((error: Error) => error.message)).includes('LOADING'),
      );
      const loading = crowd.window();
      // One that runs stays ready, because not all it does needs Redis; one that starts knows nothing yet.
      await world.kill('inventory');
      await world.startService('inventory');
      const wasReadyBefore = state.loading;
      await loaded;
      stage.healed();
      const seen = await loading.end();
      note(`loading took ${Math.round(performance.now() - startedMs)} ms`);
      expect(!wasReadyBefore, 'an inventory that starts while Redis loads is not ready before that ends');
      expect(
        seen.count({ op: 'entry', http: 503 }) > 0,
        'entries were refused with 503 meanwhile',
        seen.troubles,
      );
      await acceptsAgain(stage, 10_000, 'the end of loading');
    },
  },
  {
    name: 'redis-oom',
    row: 'OOM (maxmemory reached)',
    shopperSees: '503',
    async run(stage) {
      const { rig, crowd, world, expect, sleep } = stage;
      const logged = world.logOf('inventory').length;
      await rig.redis.configure('maxmemory', '1mb');
      const full = crowd.window();
      await sleep(6_000);
      const seen = await full.end();
      await stage.heal();
      expect(seen.count({ op: 'entry', http: 503 }) > 0, 'entries were refused with 503', seen.troubles);
      expect(seen.count({ http: 500 }) === 0, 'nobody got a 500', seen.count({ http: 500 }));
      expect(world.logOf('inventory').slice(logged).includes('OOM'), 'the log of inventory says OOM');
      await acceptsAgain(stage, 5_000, 'the end of it');
    },
  },
  {
    name: 'redis-disk-full',
    row: 'AOF disk full (MISCONF)',
    shopperSees: '503',
    async run(stage) {
      const { rig, crowd, expect, sleep, until, undo } = stage;
      undo('free the disk', () => rig.redis.freeDisk());
      rig.redis.fillDisk();
      await until('Redis to refuse writes', 20_000, async () =>
        (await rig.redis.command('SET', 'probe', '1').catch((error: Error) => error.message)).includes(
          'MISCONF',
        ),
      );
      // What was queued a moment before may still be acknowledged by Kafka.
      await sleep(2_000);
      const full = crowd.window();
      await sleep(5_000);
      const seen = await full.end();
      rig.redis.freeDisk();
      stage.healed();
      expect(seen.accepted === 0, 'no order sent meanwhile was answered 202', seen.answers);
      await acceptsAgain(stage, 5_000, 'room on the disk');
    },
  },
  {
    name: 'redis-wrong-type',
    row: 'key of wrong type planted',
    shopperSees: '503 for that bucket',
    async run(stage) {
      const { rig, crowd, saleId, dice, expect, sleep, note } = stage;
      const bucket = Math.floor(BUCKETS * dice());
      const kinds = ['attempts', 'shoppers', 'deadlines'] as const;
      const kind = kinds[Math.floor(kinds.length * dice())] ?? 'deadlines';
      const key = `fs:{${saleId}:${bucket}}:${kind}`;
      const account = () => rig.redis.command('HGETALL', `fs:{${saleId}:${bucket}}:account`);
      const exchange = (script: string) => rig.redis.command('EVAL', script, 2, key, `${key}:kept`);
      // It may not be there yet, where nobody of that bucket has come.
      const move = (from: string, to: string) =>
        `if redis.call('EXISTS', ${from}) == 1 then redis.call('RENAME', ${from}, ${to}) end`;
      const restore = `if redis.call('TYPE', KEYS[1]).ok == 'string' then redis.call('DEL', KEYS[1]) end
        ${move('KEYS[2]', 'KEYS[1]')} return 1`;
      stage.undo('put the key back', () => exchange(restore));
      await exchange(`${move('KEYS[1]', 'KEYS[2]')} redis.call('SET', KEYS[1], 'planted') return 1`);
      const before = await account();
      const during = crowd.window();
      await sleep(4_000);
      const after = await account();
      await exchange(restore);
      stage.healed();
      const seen = await during.end();
      note(`${kind} of bucket ${bucket}`);
      expect(seen.count({ http: 503 }) > 0, 'shoppers of that bucket were refused with 503', seen.troubles);
      expect(seen.accepted > 0, 'shoppers of other buckets bought', seen.answers);
      expect(freeOf(before) === freeOf(after), 'nothing was taken from its account', { before, after });
      await acceptsAgain(stage, 5_000, 'the end of it');
    },
  },
  {
    name: 'redis-silent',
    row: 'established Redis sockets go silent',
    shopperSees: '503 for at most 5 s, then 202 again',
    async run(stage) {
      await stage.rig.redis.proxy.silenceEstablished();
      stage.healed();
      await acceptsAgain(stage, 5_000, 'the silence');
    },
  },
];

/** Of every sale that the world opens, unless it says otherwise. */
const BUCKETS = 8;

function freeOf(account: string): string | undefined {
  const words = account.split('\r\n');
  return words[words.indexOf('free') + 2];
}
