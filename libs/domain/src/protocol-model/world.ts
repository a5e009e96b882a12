import { bucketOf, type AttemptId, type SaleId, type ShopperId } from '../ids.js';
import { splitAllotment } from '../sale.js';
import { StockModel, type ModelGate } from '../stock-model.js';
import { Broken, type Flaw, type Rule } from './flaws.js';
import { Database, Log, RedisNode, type Bucket } from './stores.js';

/**
 * A piece of the protocol as it runs in some process. At every `yield` anything else may happen first: steps of others,
 * faults, time; and the process may die there, or sleep for minutes and go on.
 */
export type Steps<T = void> = Generator<void, T, void>;

/** Durations of the protocol, ms. */
export const HOLD_MS = 20_000;
/** A queued order's deadline is at least this far ahead. */
export const QUEUE_AHEAD_MS = 30_000;
/** A produce begins at most this long after the hold was queued… */
export const PRODUCE_WITHIN_MS = 10_000;
/** …and counts if its acknowledgement is handled this soon. */
export const ACKNOWLEDGED_WITHIN_MS = 1_500;
/** A sweeper touches nothing that is overdue by less: both windows above and {@link MAX_SKEW_MS} fit into it. */
export const GRACE_MS = 15_000;
export const OFFSET_AHEAD_MS = 600_000;
/** Between the clocks of two Redis hosts. */
export const MAX_SKEW_MS = 3_000;

export const SALE = 'sale' as SaleId;

/** A proof of a hold, signed; its shopper may use it whenever they like. */
export interface Token {
  readonly attemptId: AttemptId;
  readonly shopperId: ShopperId;
  readonly quantity: number;
  readonly epoch: number;
}

export interface Setup {
  readonly total: number;
  readonly limit: number;
  readonly nodes: number;
  readonly buckets: number;
  readonly shoppers: number;
  /** Attempts that each shopper may make. */
  readonly keys: number;
  /** Of ten calls with a token, how many give it up. */
  readonly giveUps: number;
  /** Seed of who moves how often. */
  readonly swarm: number;
  /** How often a Redis process loses data, is replaced by its replica or restarts. */
  readonly redisChanges: number;
  /** Whether Kafka may lose what it has acknowledged. */
  readonly kafkaLoses: boolean;
}

export class World {
  nowMs = 0;
  readonly nodes: readonly RedisNode[];
  readonly log = new Log();
  readonly database: Database;
  readonly inventories: readonly Inventory[];
  readonly shoppers: readonly ShopperId[];
  /** Orders that were answered 202, with the epoch of the sale at that moment. */
  readonly accepted = new Map<AttemptId, number>();
  /** Epochs in which every bucket was once seen empty at the same moment, with nothing on the way. */
  readonly emptyIn = new Set<number>();
  /** Whether any Redis has lost anything; and whether one of several fell behind the others, which tears transfers. */
  forgot = false;
  torn = false;
  /** From here on nothing fails any more. */
  healed = false;
  readonly trace: string[] = [];
  private readonly homes: ReadonlyMap<string, number>;
  private draws = 0;
  private ids = 0;

  constructor(
    readonly setup: Setup,
    private readonly flaw: Flaw | undefined,
  ) {
    this.database = new Database(setup.total, setup.limit);
    this.nodes = Array.from({ length: setup.nodes }, () => new RedisNode());
    this.database.sale.runIds = this.runIds();
    this.inventories = ['inventory 1', 'inventory 2'].map((name) => new Inventory(this, name));
    this.shoppers = ['ann', 'bob', 'cid', 'dan', 'eve'].slice(0, setup.shoppers) as ShopperId[];
    this.homes = new Map(this.shoppers.map((shopper) => [shopper, bucketOf(shopper, setup.buckets)]));
    splitAllotment(setup.total, setup.buckets).forEach((units, index) => {
      const bucket = { epoch: 1, frozen: false, stock: new StockModel(units, this.gate()) };
      this.nodeOf(index).data.buckets.set(index, bucket);
    });
    this.stateNode.data.state = { epoch: 1, credit: 0, soldOut: false };
    for (const node of this.nodes) node.replicate();
  }

  /** Whether the run leaves this safety rule out. */
  without(flaw: Flaw): boolean {
    return this.flaw === flaw;
  }

  /** A number from 0 to n − 1; everything that happens by chance within a step comes from the step's own seed. */
  draw(n: number): number {
    this.draws = (this.draws + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.draws ^ (this.draws >>> 15), 1 | this.draws);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % n;
  }

  seed(seed: number): void {
    this.draws = seed | 0;
  }

  pick<T>(items: readonly T[]): T | undefined {
    return items.length === 0 ? undefined : items[this.draw(items.length)];
  }

  newId(prefix: string): string {
    this.ids += 1;
    return `${prefix}${this.ids}`;
  }

  note(text: string): void {
    this.trace.push(`${(this.nowMs / 1000).toFixed(1)} s  ${text}`);
  }

  require(holds: boolean, rule: Rule, witness: () => string): void {
    if (!holds) throw new Broken(rule, witness());
  }

  /**
   * A transaction, all or nothing. `unknown` is what the caller sees of a failure: it may be committed all the same.
   */
  transact<T>(what: string, work: () => T): T | 'unknown' {
    const fate = this.healed ? 7 : this.draw(8);
    if (fate === 0) {
      this.note(`${what}: rolled back`);
      return 'unknown';
    }
    const value = work();
    this.note(fate === 1 ? `${what}: committed, but the answer is lost` : `${what}: committed`);
    return fate === 1 ? 'unknown' : value;
  }

  homeOf(shopperId: ShopperId): number {
    return this.homes.get(shopperId) ?? 0;
  }

  nodeOf(bucket: number): RedisNode {
    const node = this.nodes[bucket % this.nodes.length];
    if (!node) throw new Error(`no node for bucket ${bucket}`);
    return node;
  }

  /** Where the sale's own state lies: sold out or not, and the credit counter. */
  get stateNode(): RedisNode {
    return this.nodeOf(0);
  }

  redisNowMs(bucket: number): number {
    return this.nowMs + this.nodeOf(bucket).skewMs;
  }

  runIds(): readonly number[] {
    return this.nodes.map(({ runId }) => runId);
  }

  /** All buckets that exist, whatever their epoch. */
  bucketsInRedis(): { readonly index: number; readonly bucket: Bucket }[] {
    return Array.from({ length: this.setup.buckets }, (_, index) => {
      const bucket = this.nodeOf(index).data.buckets.get(index);
      return bucket ? [{ index, bucket }] : [];
    }).flat();
  }

  gate(): ModelGate {
    const always = { opensAtMs: -1e9, closesAtMs: 1e12, paused: false, closed: false };
    return { ...always, limit: this.setup.limit, holdMs: HOLD_MS };
  }

  anyInventory(): Inventory {
    return this.pick(this.inventories) ?? new Inventory(this, 'inventory');
  }
}

/** What one process of inventory believes. It learns better by {@link watch}. */
export class Inventory {
  epoch = 1;
  /** Its connections: the Redis processes that MySQL says the epoch was made on. */
  runIds: readonly number[];

  constructor(
    private readonly world: World,
    readonly name: string,
  ) {
    this.runIds = world.runIds();
  }

  /** A connection serves only as long as it leads to the process that it was checked with. */
  private isConnectedTo(node: RedisNode): boolean {
    const index = this.world.nodes.indexOf(node);
    return this.runIds[index] === node.runId || this.world.without('a changed Redis is served at once');
  }

  /**
   * A bucket that this process may change, for a call that was begun in an epoch. Undefined means `unavailable`: Redis
   * is gone, or another one than we know, or a recovery is at work, or has been since the call began.
   */
  serve(index: number, epoch: number): Bucket | undefined {
    const bucket = this.find(index);
    if (!bucket || bucket.frozen) return undefined;
    return bucket.epoch === epoch || this.world.without('epoch ignored') ? bucket : undefined;
  }

  /** A bucket whatever its epoch: where a record is, it decides, whoever asks. */
  find(index: number): Bucket | undefined {
    const node = this.world.nodeOf(index);
    return this.isConnectedTo(node) ? node.data.buckets.get(index) : undefined;
  }

  /** The sale's state in an epoch. */
  state(epoch: number) {
    const { stateNode } = this.world;
    const { state } = stateNode.data;
    return this.isConnectedTo(stateNode) && state?.epoch === epoch ? state : undefined;
  }

  /** Units have come back: whoever has seen all buckets empty before may not say so any more. */
  credit(epoch: number): void {
    const state = this.state(epoch);
    if (!state) return;
    state.credit += 1;
    state.soldOut = false;
  }
}
