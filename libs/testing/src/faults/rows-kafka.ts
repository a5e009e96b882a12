import { acceptsAgain } from './measure.js';
import type { Scenario, Stage } from './scenario.js';

/** After the last acknowledgement that was under way when Kafka went; from then on a 202 would be a promise of nobody. */
const LAST_ACKS_MS = 2_000;

/**
 * Watches a stretch in which Kafka cannot take anything, and states that nobody was promised anything in it. An order that
 * Kafka had taken and MySQL has decided, though its acknowledgement was lost, may be confirmed to whoever repeats it.
 */
async function promisesNothing(stage: Stage, whileMs: number): Promise<void> {
  const { crowd, expect, note, sleep } = stage;
  await sleep(LAST_ACKS_MS);
  const outage = crowd.window();
  await sleep(whileMs);
  const seen = await outage.end();
  expect(seen.promised === 0, 'nobody was promised an order while Kafka was away', seen.promised);
  const refused = seen.count({ op: 'order', http: 503 });
  expect(refused > 0, 'orders were refused with 503 meanwhile', seen.answers);
  const refusals = seen.latencyMs({ op: 'order', http: 503 });
  note(`${refused} orders answered 503 in p50 ${refusals.p50} ms, p99 ${refusals.p99} ms, none queued`);
}

/**
 * Somebody who comes now can buy within so long, ms; noted, and judged. Those who were there before are no measure: their holds
 * ran out meanwhile, and are only given back when the writer has read what Kafka had taken.
 */
async function newcomersBuyAgain(stage: Stage, withinMs: number, since: string): Promise<void> {
  const { world, saleId, until, note } = stage;
  const startedMs = performance.now();
  let come = 0;
  await until('a newcomer to buy', withinMs * stage.slack, async () => {
    come += 1;
    const shopper = world.shopper(`newcomer-${come}`);
    const entry = await shopper.enter(saleId, 'k');
    const token = entry.body['purchaseToken'];
    return token !== undefined && (await shopper.order(token)).status === 202;
  });
  note(`somebody new buys ${Math.round(performance.now() - startedMs)} ms after ${since}`);
}

/** Faults of Kafka, which remembers what was promised: without it there are no promises. */
export const kafkaRows: readonly Scenario[] = [
  {
    name: 'kafka-down',
    row: 'Kafka broker down 30 s',
    shopperSees: '503 `enqueue_unknown`, Retry-After',
    async run(stage) {
      await stage.rig.kafka.shutDown();
      await promisesNothing(stage, 28_000);
      await stage.rig.kafka.start();
      stage.healed();
      await newcomersBuyAgain(stage, 5_000, "the broker's return");
    },
  },
  {
    name: 'kafka-kill',
    row: 'Kafka kill −9 + restart',
    shopperSees: '503 `enqueue_unknown`, Retry-After',
    async run(stage) {
      await stage.rig.kafka.kill();
      await promisesNothing(stage, 1_000 + 4_000 * stage.dice());
      await stage.rig.kafka.start();
      stage.healed();
      await newcomersBuyAgain(stage, 5_000, "the broker's return");
    },
  },
  {
    name: 'kafka-stop',
    row: 'Kafka SIGSTOP 10 s',
    shopperSees: '503 `enqueue_unknown`, Retry-After',
    async run(stage) {
      const { rig, undo } = stage;
      undo('let Kafka go on', () => rig.kafka.resume());
      rig.kafka.pause();
      await promisesNothing(stage, 8_000);
      rig.kafka.resume();
      stage.healed();
      await newcomersBuyAgain(stage, 5_000, "the broker's return");
    },
  },
  {
    name: 'kafka-slow',
    row: 'Kafka latency +500 ms',
    shopperSees: '202, slower',
    async run({ rig, crowd, expect, sleep, note, undo, healed, slack }) {
      undo('undelay Kafka', () => rig.kafka.proxy.pass());
      await rig.kafka.proxy.delay(500);
      await sleep(1_000);
      const slow = crowd.window();
      await sleep(9_000);
      const seen = await slow.end();
      await rig.kafka.proxy.pass();
      healed();
      const accepted = seen.latencyMs({ op: 'order', http: 202 });
      note(`202 in p50 ${accepted.p50} ms, p99 ${accepted.p99} ms`);
      expect(accepted.count > 0, 'orders are accepted all the same', seen.answers);
      expect(accepted.p99 < 3_000 * slack, 'a 202 comes before its caller gives up', accepted.p99);
    },
  },
  {
    name: 'kafka-reply-lost',
    row: 'produce response lost (proxy)',
    shopperSees: '503, then the retry gets 202',
    async run({ rig, crowd, expect, until, sleep, dice, note }) {
      const LOSSES = 15;
      const before = (await rig.kafka.proxy.figures()).lost;
      const during = crowd.window();
      for (let loss = 1; loss <= LOSSES; loss += 1) {
        const ends = ['go on', 'cut', 'silence'] as const;
        await rig.kafka.proxy.lose({
          request: 'PRODUCE',
          nth: 1 + Math.floor(8 * dice()),
          part: 'reply',
          connection: ends[Math.floor(ends.length * dice())] ?? 'cut',
        });
        await until('the loss', 20_000, async () => (await rig.kafka.proxy.figures()).lost === before + loss);
        await sleep(300 * dice());
      }
      const seen = await during.end();
      note(`${LOSSES} replies to produce requests lost`);
      expect(
        seen.count({ op: 'order', code: 'enqueue_unknown' }) > 0,
        'some were told that it is not known',
        seen.answers,
      );
      expect(seen.accepted > 0, 'orders were accepted in between', seen.answers);
    },
  },
  {
    name: 'kafka-in-sync',
    row: 'not enough in-sync replicas',
    shopperSees: '503',
    async run(stage) {
      const { rig, world } = stage;
      await rig.kafka.replicate(world.ordersTopic, Number(world.environment['ORDERS_PARTITIONS']));
      await acceptsAgain(stage, 10_000, 'a second replica is needed and there');
      await rig.kafka.killSecond();
      // Longer than a broker's session: at first its answer is waited for, later it is known to be gone.
      await promisesNothing(stage, 14_000);
      await rig.kafka.startSecond();
      await acceptsAgain(stage, 5_000, "the second broker's return");
      await stage.heal();
    },
  },
  {
    name: 'kafka-disk-full',
    row: 'Kafka disk full',
    shopperSees: '503',
    async run(stage) {
      const { rig, until, note, undo } = stage;
      undo('free the disk', () => rig.kafka.freeDisk());
      rig.kafka.fillDisk();
      // A broker whose only log directory cannot be written ends itself.
      await until('the broker to end', 30_000, () => !rig.kafka.isRunning());
      await promisesNothing(stage, 3_000);
      rig.kafka.freeDisk();
      await rig.kafka.start();
      note('the broker ended itself and was started again when there was room');
      stage.healed();
      await newcomersBuyAgain(stage, 5_000, "the broker's return");
    },
  },
  {
    name: 'kafka-silent',
    row: 'established Kafka sockets go silent',
    shopperSees: '503 for at most 5 s, then 202 again',
    async run(stage) {
      await stage.rig.kafka.proxy.silenceEstablished();
      stage.healed();
      await acceptsAgain(stage, 5_000, 'the silence');
    },
  },
];
