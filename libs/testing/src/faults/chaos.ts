import { requireFaketime } from '@flash-sale/stack';
import { sleep } from '../waiting.js';
import { SERVICES, type ServiceName } from '../world.js';
import type { Scenario, Stage } from './scenario.js';
import { diceOf, type Dice } from './seeded.js';

/** A fault as chaos knows it: done to one target, over by itself. */
interface Trouble {
  readonly name: string;
  /** What it is done to; nothing has two troubles at once. */
  readonly target: string;
  /** Injects it and heals it again; `strength` is in [0, 1). */
  readonly strike: (stage: Stage, strength: number) => Promise<void>;
}

/** One line of the schedule. */
export interface Strike {
  readonly atMs: number;
  readonly trouble: Trouble;
  readonly strength: number;
}

const between = (least: number, most: number, strength: number) =>
  Math.round(least + (most - least) * strength);
/** Between two strikes. Some overlap, since many last longer than this. */
const GAP_MS = { least: 1_500, most: 9_000 };
/** The end of it, in which everything comes back. */
const CALM_MS = 10_000;

const processTroubles = SERVICES.flatMap((name): Trouble[] => [
  {
    name: `kill ${name}`,
    target: name,
    strike: async ({ world }, strength) => {
      await world.kill(name);
      await sleep(between(0, 3_000, strength));
      await world.startService(name);
    },
  },
  {
    name: `restart ${name}`,
    target: name,
    strike: async ({ world }) => {
      await world.terminate(name);
      await world.startService(name);
    },
  },
  {
    name: `pause ${name}`,
    target: name,
    strike: async ({ world }, strength) => {
      world.pause(name);
      await sleep(between(500, 9_000, strength));
      world.resume(name);
    },
  },
]);

const clockTroubles = (['gateway', 'order-writer'] satisfies ServiceName[]).map((name): Trouble => ({
  name: `wrong clock of ${name}`,
  target: name,
  strike: async ({ world }, strength) => {
    await world.terminate(name);
    await world.startService(name, 0, await requireFaketime(between(-300_000, 300_000, strength)));
    await sleep(4_000);
    await world.terminate(name);
    await world.startService(name);
  },
}));

const serverTroubles = (['redis', 'kafka', 'mysql'] as const).flatMap((name): Trouble[] => [
  {
    name: `kill ${name}`,
    target: name,
    strike: async ({ rig }, strength) => {
      await rig[name].kill();
      await sleep(between(200, 4_000, strength));
      await rig[name].start();
    },
  },
  {
    name: `pause ${name}`,
    target: name,
    strike: async ({ rig }, strength) => {
      rig[name].pause();
      await sleep(between(300, 9_000, strength));
      rig[name].resume();
    },
  },
  {
    name: `slow ${name}`,
    target: name,
    strike: async ({ rig }, strength) => {
      await rig[name].proxy.delay(between(20, 500, strength));
      await sleep(5_000);
      await rig[name].proxy.delay(0);
    },
  },
  { name: `cut ${name}`, target: name, strike: ({ rig }) => rig[name].proxy.cut() },
  {
    name: `silence on connections to ${name}`,
    target: name,
    strike: async ({ rig }) => {
      await rig[name].proxy.silenceEstablished();
      await sleep(6_000);
    },
  },
]);

const lossTroubles = (
  [
    ['redis', 'EVALSHA'],
    ['kafka', 'PRODUCE'],
    ['mysql', 'COMMIT'],
  ] as const
).map(([name, request]): Trouble => ({
  name: `lose replies to ${request}`,
  target: name,
  strike: async ({ rig }, strength) => {
    for (let loss = 0; loss < 3; loss += 1) {
      await rig[name].proxy.lose({
        request,
        nth: between(1, 20, strength),
        part: 'reply',
        connection: 'cut',
      });
      await sleep(1_000);
    }
  },
}));

const redisTroubles: readonly Trouble[] = [
  {
    name: 'forget scripts',
    target: 'redis',
    strike: async ({ rig }) => void (await rig.redis.command('SCRIPT', 'FLUSH')),
  },
  {
    name: 'empty redis',
    target: 'redis',
    strike: async ({ rig }) => {
      await rig.redis.kill();
      await rig.redis.startEmpty();
    },
  },
];

const TROUBLES: readonly Trouble[] = [
  ...processTroubles,
  ...clockTroubles,
  ...serverTroubles,
  ...lossTroubles,
  ...redisTroubles,
];

/** What strikes when: a function of the seed and the time alone, whatever the suite makes of it. */
export function scheduleOf(seed: number, forMs: number): Strike[] {
  const dice: Dice = diceOf(seed, 'chaos');
  const strikes: Strike[] = [];
  for (let atMs = 0; atMs < forMs - CALM_MS; atMs += between(GAP_MS.least, GAP_MS.most, dice())) {
    const trouble = TROUBLES[Math.floor(dice() * TROUBLES.length)];
    if (trouble) strikes.push({ atMs, trouble, strength: dice() });
  }
  return strikes;
}

/** All faults at random. */
export function chaos(minutes: number, say: (line: string) => void): Scenario {
  return {
    name: 'chaos',
    row: 'all at random, seeded, 10 min',
    shopperSees: 'mixed',
    quietWithinMs: 90_000,
    crowd: { scarceUnits: 600 * minutes },
    async run(stage) {
      const { world, rig, crowd, seed, note, expect, undo } = stage;
      undo('right clocks, awake processes', async () => {
        for (const name of SERVICES) {
          if (world.running(name).length > 0) world.resume(name);
          else await world.startService(name);
        }
      });
      const startedMs = performance.now();
      const strikes = scheduleOf(seed, minutes * 60_000);
      const busy = new Map<string, Promise<void>>();
      const failures: string[] = [];
      let struck = 0;
      for (const { atMs, trouble, strength } of strikes) {
        await sleep(Math.max(0, atMs - (performance.now() - startedMs)));
        // A target that is still in trouble is spared; which one that is depends on the machine, the schedule does not.
        if (busy.has(trouble.target)) continue;
        struck += 1;
        const seconds = Math.round((performance.now() - startedMs) / 1_000);
        say(`${seconds} s: ${trouble.name} (${strength.toFixed(2)})`);
        const striking = trouble
          .strike(stage, strength)
          .catch((error: unknown) => void failures.push(`${trouble.name}: ${String(error).split('\n')[0]}`))
          .finally(() => busy.delete(trouble.target));
        busy.set(trouble.target, striking);
      }
      await Promise.all(busy.values());
      await rig.heal();
      await sleep(Math.max(0, minutes * 60_000 - (performance.now() - startedMs)));
      note(`${struck} of ${strikes.length} strikes, ${crowd.accepted} orders accepted under them`);
      expect(failures.length === 0, 'every strike could be carried out and healed', failures);
      expect(crowd.accepted > 0, 'orders were accepted');
    },
  };
}
