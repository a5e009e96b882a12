import { Broken, type Flaw } from './flaws.js';
import { Run, type Step } from './run.js';
import { World, type Setup } from './world.js';

/**
 * The protocol as a simulation. It is meant to be read, in this order: `stores` (what Redis, Kafka and MySQL may do to us),
 * `purchase` (hold, queue, produce, 202), `writer` (rows, offsets, effects), `sweeper` (the end of what nobody ended),
 * `recovery` and `reconcile` (Redis lost or behind), `invariants` (what must hold), `flaws` (each safety rule as the
 * mistake of leaving it out). Where the services use a rule of this library, so does the simulation: the buckets are the
 * model that the Lua scripts are tested against, the writer decides by `decideOrders`, orders move along their edges.
 *
 * A run is a function of its seed, and a failing one is made short by leaving out whatever steps it fails without.
 */
export interface Failure {
  readonly seed: number;
  readonly setup: Setup;
  readonly flaw: Flaw | undefined;
  readonly broken: Broken;
  readonly steps: readonly Step[];
  readonly trace: readonly string[];
}

const STEPS = 300;
const MAX_REPLAYS = 1_500;

/** The schedule and the sale of a seed. */
function planOf(
  seed: number,
  where: Partial<Setup> | undefined,
): { readonly setup: Setup; readonly steps: readonly Step[] } {
  const dice = new World(
    {
      total: 1,
      limit: 1,
      nodes: 1,
      buckets: 1,
      shoppers: 1,
      keys: 1,
      giveUps: 0,
      swarm: 0,
      redisChanges: 0,
      kafkaLoses: false,
    },
    undefined,
  );
  dice.seed(Math.imul(seed + 1, 0x9e3779b1));
  const nodes = 1 + dice.draw(2);
  const setup = {
    total: 1 + dice.draw(4),
    limit: 1 + dice.draw(2),
    nodes,
    buckets: nodes + dice.draw(2),
    shoppers: 1 + dice.draw(5),
    keys: 1 + dice.draw(3),
    giveUps: dice.draw(4),
    swarm: dice.draw(2 ** 31),
    redisChanges: dice.draw(4),
    kafkaLoses: dice.draw(8) === 0,
    ...where,
  };
  const steps = Array.from({ length: STEPS }, () => ({ slot: dice.draw(1 << 20), seed: dice.draw(2 ** 31) }));
  return { setup, steps };
}

function replay(
  setup: Setup,
  steps: readonly Step[],
  flaw: Flaw | undefined,
): { broken?: Broken; trace: string[] } {
  const run = new Run(setup, flaw);
  try {
    run.run(steps);
    return { trace: run.world.trace };
  } catch (error) {
    if (!(error instanceof Broken)) throw error;
    return { broken: error, trace: run.world.trace };
  }
}

/**
 * One run of the protocol.
 *
 * @param options.flaw the safety rule to leave out
 * @param options.where what the sale must be like, for the rest it is like the seed says
 * @returns the failure as it was found, if a rule broke
 */
export function simulate(
  seed: number,
  { flaw, where }: { readonly flaw?: Flaw | undefined; readonly where?: Partial<Setup> } = {},
): Failure | undefined {
  const { setup, steps } = planOf(seed, where);
  const { broken, trace } = replay(setup, steps, flaw);
  return broken && { seed, setup, flaw, broken, steps, trace };
}

/** The same failure with as few steps as can be found by leaving some out: first halves, then quarters, then single ones. */
export function shorten(failure: Failure): Failure {
  const { setup, flaw } = failure;
  let best = failure;
  let replays = 0;
  for (let size = best.steps.length; size >= 1;) {
    const before = best.steps.length;
    for (let from = 0; from < best.steps.length && replays < MAX_REPLAYS;) {
      const steps = best.steps.toSpliced(from, size);
      const { broken, trace } = replay(setup, steps, flaw);
      replays += 1;
      if (broken?.rule === failure.broken.rule) best = { ...failure, broken, steps, trace };
      else from += size;
    }
    if (size > 1) size = Math.floor(size / 2);
    else if (best.steps.length === before || replays >= MAX_REPLAYS) break;
  }
  return best;
}

/** What to read when a rule broke. */
export function describeFailure(failure: Failure): string {
  const { seed, setup, broken, steps, trace } = failure;
  const head = `seed ${seed}: ${broken.message}\n${JSON.stringify(setup)}`;
  return `${head}\nthe shortest way there, ${steps.length} steps:\n${trace.join('\n')}`;
}
