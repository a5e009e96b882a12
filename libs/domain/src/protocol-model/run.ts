import type { AttemptId } from '../ids.js';
import { Broken, type Flaw } from './flaws.js';
import { checkStep, unrest } from './invariants.js';
import { enter, place, release, type Wish } from './purchase.js';
import { reconcile } from './reconcile.js';
import { watch } from './recovery.js';
import { applyOutbox, rescan, sweep } from './sweeper.js';
import { change, settleDeadLetter, write } from './writer.js';
import { MAX_SKEW_MS, World, type Setup, type Steps, type Token } from './world.js';

/**
 * A run is a list of steps; each names who moves and carries the seed of what happens by chance in it. So every step keeps
 * its meaning when others are left out.
 */
export interface Step {
  readonly slot: number;
  readonly seed: number;
}

/** How far somebody gets before others move. */
const TURNS = [1, 2, 4, 8, 32];
/** Most steps take no time to speak of; how it passes is a step of its own. */
const MAX_STEP_MS = 20;
const MAX_CALLS = 4;
/** A process that is stopped misses this many of its turns at most. */
const MAX_SLEEP_TURNS = 20;
const ONE_SLEEPS_IN = 24;
const MAX_REST_ROUNDS = 40;
/** Rounds in which shoppers still order. */
const LAST_TRIES = 3;
const REST_ROUND_MS = 45_000;
const MAX_STEPS_AT_ONCE = 400;

/** Somebody who does one piece of work after another, dies in the midst of one, and comes back. */
class Actor {
  private running: Steps | undefined;
  private asleep = 0;

  constructor(private readonly begin: () => Steps) {}

  step(): void {
    if (this.asleep > 0) {
      this.asleep -= 1;
      return;
    }
    this.running ??= this.begin();
    if (this.running.next().done) this.running = undefined;
  }

  get isIdle(): boolean {
    return !this.running;
  }

  kill(): void {
    this.running = undefined;
  }

  /** Stopped in the midst of its work, to go on with what it believed then. */
  sleep(turns: number): void {
    this.asleep = turns;
  }

  /** To the end of its present work. */
  finish(each: () => void): void {
    this.asleep = 0;
    for (let step = 0; step < MAX_STEPS_AT_ONCE; step += 1) {
      this.step();
      each();
      if (!this.running) return;
    }
  }
}

/** One sale with all who work on it, and everything that may go wrong. */
export class Run {
  readonly world: World;
  private readonly calls: Actor[][];
  private readonly tokens: Token[][];
  private readonly workers: Actor[];
  /** Who may move, each as often as its weight. */
  private readonly slots: (() => void)[] = [];
  private redisChanges = 0;

  constructor(setup: Setup, flaw: Flaw | undefined) {
    const world = new World(setup, flaw);
    this.world = world;
    world.seed(setup.swarm);
    this.calls = world.shoppers.map(() => []);
    this.tokens = world.shoppers.map(() => []);
    const writers = [0, 1].map((writer) => new Actor(() => write(world, writer)));
    const inventories = world.inventories.map((inventory) => ({
      watch: new Actor(() => watch(world, inventory)),
      sweep: new Actor(() => sweep(world, inventory)),
      outbox: new Actor(() => applyOutbox(world, inventory)),
      reconcile: new Actor(() => reconcile(world, inventory)),
      rescan: new Actor(() => rescan(world, inventory)),
    }));
    const orders = new Actor(() => this.changeOrder());
    const operator = new Actor(() => settleDeadLetter(world, world.anyInventory()));
    this.workers = [...writers, ...inventories.flatMap((each) => Object.values(each)), operator];

    world.shoppers.forEach((shopper, index) => {
      this.weigh(4, () => this.shop(shopper, index));
    });
    // Two of these, so that no run is without shoppers.
    for (let half = 0; half < 2; half += 1) this.weigh(24, () => this.advance(world.pick(this.calls.flat())));
    for (const writer of writers) this.weigh(8, () => this.advance(writer));
    for (const { watch, sweep, outbox, reconcile, rescan } of inventories) {
      this.weigh(12, () => this.advance(watch));
      this.weigh(8, () => this.advance(sweep));
      this.weigh(2, () => this.advance(outbox));
      this.weigh(3, () => this.advance(reconcile));
      this.weigh(1, () => this.advance(rescan));
    }
    this.weigh(5, () => this.advance(orders));
    this.weigh(1, () => this.advance(operator));
    this.weigh(20, () => this.answerProduce());
    this.weigh(3, () => this.passTime());
    this.weigh(10, () => world.pick(world.nodes)?.replicate());
    this.weigh(2, () => this.changeRedis());
    this.weigh(3, () => this.fail());
  }

  /** Few faults need many changes of turn: whoever moves often gets far before anybody else does. */
  private advance(actor: Actor | undefined): void {
    if (!actor) return;
    const turns = this.world.pick(TURNS) ?? 1;
    for (let turn = 0; turn < turns; turn += 1) {
      actor.step();
      checkStep(this.world);
      if (actor.isIdle) return;
      // Stopped, or cut off from everybody, at any point: what it goes on with later may not be true any more.
      if (this.world.draw(ONE_SLEEPS_IN) === 0) return actor.sleep(this.world.draw(MAX_SLEEP_TURNS));
    }
  }

  /** Each run favours and neglects others ("swarm testing"): what is rare in most runs is common in some. */
  private weigh(weight: number, move: () => void): void {
    const times = Math.ceil(weight * (this.world.pick([0.1, 1, 3]) ?? 1));
    for (let count = 0; count < times; count += 1) this.slots.push(move);
  }

  /** @throws Broken */
  run(steps: readonly Step[]): void {
    for (const { slot, seed } of steps) {
      this.world.seed(seed);
      this.world.nowMs += this.world.draw(MAX_STEP_MS);
      this.slots[slot % this.slots.length]?.();
      checkStep(this.world);
    }
    this.rest();
  }

  /** Nothing fails any more; everybody works until nothing is left to do. */
  private rest(): void {
    const { world } = this;
    world.healed = true;
    world.note('— all faults are healed —');
    const check = () => {
      for (const sending of world.log.underWay.slice()) world.log.settle(sending, 'acknowledged');
      checkStep(world);
    };
    for (let round = 0; round < MAX_REST_ROUNDS; round += 1) {
      world.seed(Math.imul(world.setup.swarm + round, 0x9e3779b1));
      // Shoppers try once more; then whoever slept wakes up, in any order.
      if (round < LAST_TRIES) this.tokens.forEach((tokens, index) => this.order(world.pick(tokens), index));
      for (const calls of this.calls) {
        for (const call of calls.splice(0)) call.finish(check);
      }
      for (const worker of shuffled(this.workers, (n) => world.draw(n))) worker.finish(check);
      if (round >= LAST_TRIES && !unrest(world)) return;
      world.nowMs += round < LAST_TRIES ? 1_000 : REST_ROUND_MS;
    }
    const left = unrest(world);
    if (left) throw new Broken(left.rule, left.witness);
  }

  /** A shopper calls, and perhaps again before the first call has ended: an answer may be lost, a service may hang. */
  private shop(shopperId: Token['shopperId'], index: number): void {
    const { world } = this;
    const tokens = this.tokens[index] ?? [];
    const calls = this.calls[index] ?? [];
    if (calls.length >= MAX_CALLS) return;
    const inventory = world.anyInventory();
    const key = world.draw(world.setup.keys);
    const id = `${shopperId}-${key}` as AttemptId;
    const wish: Wish = { id, shopperId, quantity: 1 + (key % world.setup.limit) };
    const action = world.draw(10);
    const token = world.pick(tokens);
    if (action < 2 || !token) {
      this.call(calls, function* () {
        const entered = yield* enter(world, inventory, wish);
        if (entered.outcome === 'held') tokens.push(entered.token);
      });
    } else if (action < 10 - world.setup.giveUps) {
      this.order(token, index);
    } else {
      this.call(calls, () => release(world, inventory, { ...wish, id: token.attemptId }));
    }
  }

  private order(token: Token | undefined, index: number): void {
    const { world } = this;
    const inventory = world.anyInventory();
    if (!token) return;
    this.call(this.calls[index] ?? [], function* () {
      yield* place(world, inventory, token);
    });
  }

  private call(calls: Actor[], begin: () => Steps): void {
    let call: Actor | undefined;
    const ending = function* (): Steps {
      yield* begin();
      if (call) calls.splice(calls.indexOf(call), 1);
    };
    call = new Actor(ending);
    calls.push(call);
  }

  private *changeOrder(): Steps {
    const { world } = this;
    const row = world.pick([...world.database.orders.values()]);
    if (!row) return;
    const inventory = world.anyInventory();
    if (row.state === 'awaiting_payment') {
      yield* change(world, inventory, row, world.pick(['paid', 'cancelled', 'unpaid']) ?? 'paid');
    } else if (row.state === 'paid' && world.draw(4) === 0) yield* change(world, inventory, row, 'refunding');
    else if (row.state === 'refunding') yield* change(world, inventory, row, 'refunded');
  }

  /** A produce lands and is acknowledged; or lands and the answer is lost; or is lost; all of it now or much later. */
  private answerProduce(): void {
    const { log } = this.world;
    const sending = this.world.pick(log.underWay);
    if (!sending) return;
    const fate = this.world.pick([
      'acknowledged',
      'acknowledged',
      'acknowledged',
      'appended',
      'dropped',
    ] as const);
    log.settle(sending, fate ?? 'dropped');
    this.world.note(`Kafka: ${sending.record.order.attemptId} ${fate}`);
  }

  private passTime(): void {
    const seconds = this.world.pick([1, 1, 2, 5, 5, 9, 20, 50, 50, 650]) ?? 1;
    this.world.nowMs += seconds * 1_000;
    this.world.note(`${seconds} s pass`);
  }

  private changeRedis(): void {
    const { world } = this;
    const node = world.pick(world.nodes);
    if (!node || this.redisChanges >= world.setup.redisChanges) return;
    this.redisChanges += 1;
    const name = `Redis ${world.nodes.indexOf(node)}`;
    const fate = world.draw(4);
    if (fate === 0) {
      node.restart();
      return world.note(`${name}: restarted with its data`);
    }
    world.forgot = true;
    if (fate === 1) {
      node.loseEverything();
      return world.note(`${name}: everything is lost`);
    }
    world.torn ||= world.nodes.length > 1;
    node.failOver(world.draw(2 * MAX_SKEW_MS) - MAX_SKEW_MS);
    world.note(`${name}: a replica that is behind is promoted`);
  }

  private fail(): void {
    const { world } = this;
    const anybody = world.pick([...this.workers, ...this.calls.flat()]);
    switch (world.draw(4)) {
      case 0:
        world.log.readers.reverse();
        return world.note('Kafka: the writers have swapped their partitions');
      case 1:
        if (!world.setup.kafkaLoses) return;
        world.log.loseTail(world.draw(2));
        // Their sessions end with the broker's.
        for (const writer of this.workers.slice(0, 2)) writer.kill();
        return world.note('Kafka: the unread tail of a partition is lost');
      default:
        anybody?.kill();
    }
  }
}

function shuffled<T>(items: readonly T[], draw: (n: number) => number): T[] {
  const rest = items.slice();
  return items.flatMap(() => rest.splice(draw(rest.length), 1));
}
