import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { sleep, until } from '../waiting.js';
import { World } from '../world.js';
import { Crowd } from './crowd.js';
import { Rig } from './rig.js';
import { NotHere } from './rig-server.js';
import type { Scenario, Stage } from './scenario.js';
import { diceOf, type Dice } from './seeded.js';

/** How one row went with one seed. */
export interface Outcome {
  readonly name: string;
  readonly row: string;
  readonly seed: number;
  readonly result: 'passed' | 'failed' | 'not here';
  /** Everything that did not hold, or why the row cannot be produced here. */
  readonly reasons: readonly string[];
  /** What was measured while the fault lasted. */
  readonly shopperSaw: string;
  readonly notes: readonly string[];
  readonly tookMs: number;
}

export interface RunnerOptions {
  readonly buyersPerSecond: number;
  readonly seekersPerSecond: number;
  readonly scarceUnits: number;
  /** How long a granted hold waits for its order. */
  readonly holdSeconds: number;
  /** What every bound on a time is multiplied by; 1 on a machine that does nothing else. */
  readonly slack: number;
  /** Where the logs of rows that failed are kept. */
  readonly failuresFolder: string;
  /** Says what is going on, a line at a time. */
  readonly progress: (line: string) => void;
}

/** Shorter than in production, so that an expiry can be waited for. */
const TIMES = {
  PAY_SECONDS: 60,
  QUEUED_MS: '6000',
  EFFECT_AGE_MS: '500',
} as const;
const PLENTIFUL_UNITS = 60_000;
/** After the healing; a row reports what it measured and fails beyond that times the slack. */
const ACCEPTED_AGAIN_WITHIN_MS = 15_000;
const DECIDED_WITHIN_MS = 10_000;
const FINISH_WITHIN_MS = 60_000;
const QUIET_WITHIN_MS = 45_000;
const UNDO_WITHIN_MS = 30_000;

/**
 * Plays rows one after another: a suite of real processes that is selling, a fault, its end, and then everything that must
 * hold whatever the fault was: orders are accepted and decided again without a hand, every unit of the scarce sale is sold,
 * nobody was told that the plentiful one is sold out, no accepted order was lost, and the whole auditor agrees.
 */
export class Runner {
  /** Promises, so that what is still starting is stopped too. */
  private rig: Promise<Rig> | null = null;
  /** Rows that need the same share a world, because starting one takes as long as a row. */
  private world: { readonly key: string; readonly world: Promise<World> } | null = null;

  constructor(private readonly options: RunnerOptions) {}

  async play(scenario: Scenario, seed: number): Promise<Outcome> {
    const startedMs = performance.now();
    const reasons: string[] = [];
    const notes: string[] = [];
    let shopperSaw = '–';
    let result: Outcome['result'] = 'passed';
    try {
      const ground = await this.prepare(scenario);
      const row = new Row({ ...ground, scenario, seed, options: this.options, reasons, notes });
      try {
        await row.play();
      } finally {
        shopperSaw = row.shopperSaw;
        await row.end();
      }
    } catch (error) {
      if (error instanceof NotHere) result = 'not here';
      const message = error instanceof Error ? error.message : String(error);
      reasons.push(shortened(message));
      if (result !== 'not here') this.options.progress(message);
    }
    if (result !== 'not here' && reasons.length > 0) result = 'failed';
    if (result === 'failed') await this.keepLogs(`${scenario.name}-${seed}`);
    // What a failed row leaves behind proves nothing about the next.
    if (result !== 'passed') await this.leaveWorld();
    const tookMs = performance.now() - startedMs;
    return { name: scenario.name, row: scenario.row, seed, result, reasons, shopperSaw, notes, tookMs };
  }

  async stop(): Promise<void> {
    await this.leaveWorld();
    await this.leaveRig();
  }

  private async prepare(scenario: Scenario): Promise<{ rig: Rig; world: World }> {
    const key = JSON.stringify([scenario.withoutProxies ?? false, scenario.world ?? {}]);
    if (this.world?.key !== key) await this.leaveWorld();
    this.rig ??= Rig.start({ log: this.options.progress });
    const rig = await this.rig;
    const { env, ...needs } = scenario.world ?? {};
    this.world ??= {
      key,
      world: World.start({
        ...needs,
        servers: scenario.withoutProxies ? rig.direct : rig.addresses,
        directly: rig.direct,
        env: { QUEUED_MS: TIMES.QUEUED_MS, EFFECT_AGE_MS: TIMES.EFFECT_AGE_MS, ...env },
      }),
    };
    return { rig, world: await this.world.world };
  }

  private async keepLogs(name: string): Promise<void> {
    const world = await this.world?.world.catch(() => null);
    if (!world) return;
    const folder = join(this.options.failuresFolder, name);
    rmSync(folder, { recursive: true, force: true });
    world.saveLogs(folder);
    this.options.progress(`the logs are in ${folder}`);
  }

  private async leaveWorld(): Promise<void> {
    const world = await this.world?.world.catch(() => null);
    this.world = null;
    if (!world) return;
    // The services must reach the servers to end well; servers that do not come back are of no use to anybody.
    const rig = await this.rig?.catch(() => null);
    const healed = await rig?.heal().then(
      () => true,
      () => false,
    );
    await world.stop().catch((error: unknown) => this.options.progress(`world: ${String(error)}`));
    if (!healed) await this.leaveRig();
  }

  private async leaveRig(): Promise<void> {
    const rig = await this.rig?.catch(() => null);
    this.rig = null;
    await rig?.stop().catch((error: unknown) => this.options.progress(`servers: ${String(error)}`));
  }
}

interface RowOptions {
  readonly world: World;
  readonly rig: Rig;
  readonly scenario: Scenario;
  readonly seed: number;
  readonly options: RunnerOptions;
  readonly reasons: string[];
  readonly notes: string[];
}

/** One row with one seed, from the opening of its sales to the auditor. */
class Row {
  private readonly undos: { readonly what: string; readonly step: () => unknown }[] = [];
  private readonly dice: Dice;
  private crowd: Crowd | null = null;
  private healed: { readonly ms: number; readonly epochMs: number } | null = null;
  private sales = { saleId: '', scarceSaleId: '' };
  private readonly scarceUnits: number;
  /** Accepted orders that may end `rejected`, in both sales together. */
  private mostRejected = 0;
  shopperSaw = '–';

  constructor(private readonly row: RowOptions) {
    this.dice = diceOf(row.seed, row.scenario.name);
    this.scarceUnits = row.scenario.crowd?.scarceUnits ?? row.options.scarceUnits;
  }

  async play(): Promise<void> {
    const { world, scenario } = this.row;
    // The log of the row before is of no use to this row's auditor.
    rmSync(world.clientLog, { force: true });
    this.sales = await this.openSales();
    const crowd = this.gather();
    await crowd.start();
    await crowd.accepting(30_000);
    await until('the first payment', 30_000, async () => crowd.paid > 0);

    const during = crowd.window();
    try {
      await scenario.run(this.stage(crowd));
      this.shopperSaw = during.soFar().troubles;
    } finally {
      await this.undo();
    }
    if (this.healed === null) this.markHealed();
    await this.mustRecover(crowd);
    const rejected = await Promise.all(Object.values(this.sales).map((saleId) => this.mustBeClean(saleId)));
    const sum = rejected.reduce((all, some) => all + some, 0);
    this.expect(
      sum <= this.mostRejected,
      `of the accepted orders no more than ${this.mostRejected} end rejected`,
      sum,
    );
  }

  /** Leaves the ground to the next row as this one has found it. */
  async end(): Promise<void> {
    await this.undo();
    await this.crowd?.stop();
  }

  private gather(): Crowd {
    const { world, scenario, seed, options } = this.row;
    this.crowd = new Crowd({
      gateways: world.gateways,
      logFile: world.clientLog,
      accessToken: (id) => world.accessToken(id),
      seed,
      ...this.sales,
      buyersPerSecond: scenario.crowd?.buyersPerSecond ?? options.buyersPerSecond,
      seekersPerSecond: scenario.crowd?.seekersPerSecond ?? options.seekersPerSecond,
    });
    return this.crowd;
  }

  private async openSales(): Promise<{ saleId: string; scarceSaleId: string }> {
    const { world, scenario, options } = this.row;
    const common = {
      closesAt: new Date(Date.now() + 3 * 3_600_000).toISOString(),
      holdSeconds: options.holdSeconds,
      paySeconds: TIMES.PAY_SECONDS,
    };
    return {
      saleId: await world.openSale({ ...common, allotment: PLENTIFUL_UNITS, ...scenario.crowd?.sale }),
      scarceSaleId: await world.openSale({ ...common, allotment: this.scarceUnits }),
    };
  }

  private stage(crowd: Crowd): Stage {
    const { world, rig, seed, notes } = this.row;
    return {
      seed,
      dice: this.dice,
      world,
      rig,
      crowd,
      ...this.sales,
      expect: (holds, what, found) => this.expect(holds, what, found),
      slack: this.row.options.slack,
      note: (text) => notes.push(text),
      mayReject: (orders) => (this.mostRejected += orders),
      undo: (what, step) => this.undos.push({ what, step }),
      heal: async () => {
        await rig.heal();
        this.markHealed();
      },
      healed: () => this.markHealed(),
      until: (what, withinMs, condition) => until(what, withinMs, async () => condition()),
      sleep,
    };
  }

  private markHealed(): void {
    this.healed = { ms: performance.now(), epochMs: Date.now() };
  }

  private expect(holds: boolean, what: string, found?: unknown): void {
    if (holds) return;
    this.row.reasons.push(found === undefined ? what : `${what} (found ${shortened(JSON.stringify(found))})`);
  }

  private async undo(): Promise<void> {
    for (let undo = this.undos.pop(); undo; undo = this.undos.pop()) {
      const { what, step } = undo;
      await within(UNDO_WITHIN_MS, Promise.resolve().then(step)).catch((error: unknown) =>
        this.row.reasons.push(`undoing "${what}" failed: ${String(error)}`),
      );
    }
  }

  /** Without a hand: orders are accepted again, and what was accepted is decided. */
  private async mustRecover(crowd: Crowd): Promise<void> {
    const { rig, notes, options } = this.row;
    await rig.heal();
    const againMs = await crowd.accepting(ACCEPTED_AGAIN_WITHIN_MS * options.slack);
    notes.push(`accepted again after ${Math.round(againMs)} ms`);
    // Some more are bought, so that what the fault has left behind meets new work.
    await sleep(2_000);
    await crowd.finish(() => this.scarceIsPaid(), FINISH_WITHIN_MS);
    const decided = crowd.decidedAfterMs(this.healed?.ms);
    notes.push(`${crowd.accepted} orders, decided after p99 ${decided.p99} ms, at most ${decided.max} ms`);
    if (crowd.turnedAway > 0) notes.push(`${crowd.turnedAway} arrivals turned away while others waited`);
    this.expect(
      decided.max <= DECIDED_WITHIN_MS * options.slack,
      'an order took more than 10 s from its 202, or from the healing, to its decision',
      decided.max,
    );
    this.expect(
      crowd.undecided === 0,
      'accepted orders whose decision their shoppers never saw',
      crowd.undecided,
    );
    const toldSoldOut = crowd.exchanges.filter(
      ({ saleId, code, state }) =>
        saleId === this.sales.saleId && (code === 'sold_out' || state === 'sold_out'),
    );
    this.expect(
      toldSoldOut.length === 0,
      'shoppers were told that the plentiful sale is sold out',
      toldSoldOut.length,
    );
  }

  /** Paid, since what is merely sold can be cancelled a moment later. */
  private async scarceIsPaid(): Promise<boolean> {
    const path = `/v1/operator/sales/${this.sales.scarceSaleId}/report`;
    const report = await this.row.world.operator().call('GET', path);
    const { mysql } = report.body as { mysql?: { paid?: number } };
    return mysql?.paid === this.scarceUnits;
  }

  /** @returns how many accepted orders of the sale ended `rejected` */
  private async mustBeClean(saleId: string): Promise<number> {
    const { world, scenario, notes } = this.row;
    const { verdict, printed } = await world.audit(
      saleId,
      '--faults',
      '--quiet-wait-ms',
      String(scenario.quietWithinMs ?? QUIET_WITHIN_MS),
      ...(this.healed ? ['--healed-at', String(this.healed.epochMs)] : []),
    );
    const which = saleId === this.sales.saleId ? 'plentiful' : 'scarce';
    const { broken } = verdict.invariants;
    this.expect(broken.length === 0, `the auditor finds the ${which} sale broken: ${broken.join(', ')}`);
    if (broken.length > 0) this.row.options.progress(printed);
    this.expect(verdict.lost === 0, `accepted orders of the ${which} sale are lost`, verdict.lost);
    if (verdict.rejectedAfterAccept > 0)
      notes.push(
        `${verdict.rejectedAfterAccept} accepted orders of the ${which} sale ended rejected (sold_out)`,
      );
    if (which === 'scarce')
      this.expect(verdict.sold === this.scarceUnits, 'units of the scarce sale were not sold', verdict.sold);
    return verdict.rejectedAfterAccept;
  }
}

/** For a cell of the table; the whole was printed. */
function shortened(text: string): string {
  const [line = ''] = text.split('\n');
  return line.length > 300 ? `${line.slice(0, 300)}…` : line;
}

async function within<T>(ms: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${ms} ms`)), ms);
  });
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}
