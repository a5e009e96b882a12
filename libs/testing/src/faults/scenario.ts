import type { ServiceName, World } from '../world.js';
import type { Crowd } from './crowd.js';
import type { Rig } from './rig.js';

/** One row of the table of faults: what is done to the running suite, and what must hold while and after it is done. */
export interface Scenario {
  /** For `--only`, in kebab-case, e.g. `gateway-kill`. */
  readonly name: string;
  /** The row as people know it, e.g. `gateway kill −9`. */
  readonly row: string;
  /** What a shopper is expected to see of it, for the table. */
  readonly shopperSees: string;
  /** True: the services reach the servers without the fault proxies between, which cost some of this machine's time. */
  readonly withoutProxies?: boolean;
  /** What it needs of the world. Rows that need the same share a world, one after another. */
  readonly world?: WorldNeeds;
  /** What differs from the usual crowd. */
  readonly crowd?: CrowdNeeds;
  /** How long the sale may take to come to rest after the fault has healed; 45 s by default. */
  readonly quietWithinMs?: number;
  /**
   * Injects the fault into a suite that is selling, looks, heals. What cannot be healed by whoever failed is undone by
   * what was given to {@link Stage.undo}. Everything that must hold is said to {@link Stage.expect}; an error thrown ends the
   * row as failed, unless it is a `NotHere`.
   */
  run(stage: Stage): Promise<void>;
}

export interface WorldNeeds {
  /** How many processes of a service run from the start; 1 by default. */
  readonly instances?: Partial<Record<ServiceName, number>>;
  /** How many processes of a service may be started later, those from the start included; as `instances` by default. */
  readonly mostInstances?: Partial<Record<ServiceName, number>>;
  /** Variables that differ from the world's own, for all services. */
  readonly env?: Readonly<Record<string, string>>;
  /** How services find each other: a list of addresses by default, or a name that the world's own name service knows. */
  readonly discovery?: 'list' | 'dns';
}

export interface CrowdNeeds {
  /** Entries a second at the plentiful sale; each of them buys, save a few who leave. */
  readonly buyersPerSecond?: number;
  /** Entries a second at the scarce sale, most of which are refused. */
  readonly seekersPerSecond?: number;
  /** Units of the scarce sale. */
  readonly scarceUnits?: number;
  /** What the plentiful sale differs in, as the operator's call takes it. */
  readonly sale?: Readonly<Record<string, unknown>>;
}

/** What a scenario plays on. The crowd is buying when it gets it, and goes on until some seconds after it has ended. */
export interface Stage {
  readonly seed: number;
  /** Numbers in [0, 1), a function of seed and scenario. */
  readonly dice: () => number;
  readonly world: World;
  readonly rig: Rig;
  readonly crowd: Crowd;
  /** The sale that is plentiful all through the row: nobody may ever be told that it is sold out. */
  readonly saleId: string;
  /** The sale with few units, which come and go; at the end all of them must be sold. */
  readonly scarceSaleId: string;
  /** Notes what must hold; the row fails with all that did not. `found` is printed with it. */
  readonly expect: (holds: boolean, what: string, found?: unknown) => void;
  /** Every bound on a time is multiplied by it: 1 where the machine does nothing else. */
  readonly slack: number;
  /** A figure or remark for the table's last column. */
  readonly note: (text: string) => void;
  /** So many accepted orders may end `rejected`, because the fault forgot as many grants; none by default. */
  readonly mayReject: (orders: number) => void;
  /** Undone after the scenario whatever happens, last given first, each bounded to 30 s. */
  readonly undo: (what: string, step: () => unknown) => void;
  /** Heals the servers and the way to them; the fault is over now. */
  readonly heal: () => Promise<void>;
  /** The fault is over now: times of recovery count from here. The end of the scenario by default. */
  readonly healed: () => void;
  /** Polls until `condition` holds; throws when it does not within the time given. */
  readonly until: (
    what: string,
    withinMs: number,
    condition: () => boolean | Promise<boolean>,
  ) => Promise<void>;
  readonly sleep: (ms: number) => Promise<void>;
}
