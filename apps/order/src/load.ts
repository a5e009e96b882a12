import { Circuit } from '@flash-sale/contracts';
import { DatabaseError, type Database, type Statements } from '@flash-sale/database';

/** Too much is waiting already, or it was not its turn before its caller stopped to wait. Nothing was begun. */
export class Overloaded extends Error {
  override readonly name = 'Overloaded';
}

interface Waiting {
  readonly deadlineMs: number;
  readonly begin: () => void;
  readonly refuse: (error: Overloaded) => void;
}

/**
 * Lets so many pieces of work run at once and so many more wait in line, so that a burst is worked off at the speed of the
 * database instead of running into its limits. Whoever's caller has gone is passed over: working for nobody is what turns
 * a busy minute into an outage.
 */
export class Gate {
  private running = 0;
  private readonly waiting: Waiting[] = [];

  constructor(
    private readonly places: number,
    private readonly maxWaiting: number,
  ) {}

  /**
   * @param deadlineMs when the caller stops to wait, on the `performance.now()` scale
   * @throws Overloaded where the work was not begun
   */
  async run<Result>(work: () => Promise<Result>, deadlineMs: number): Promise<Result> {
    await this.enter(deadlineMs);
    try {
      return await work();
    } finally {
      this.leave();
    }
  }

  private enter(deadlineMs: number): Promise<void> {
    if (this.running < this.places) {
      this.running += 1;
      return Promise.resolve();
    }
    if (this.waiting.length >= this.maxWaiting) {
      return Promise.reject(new Overloaded(`${this.waiting.length} calls are waiting already`));
    }
    return new Promise((resolve, reject) => {
      this.waiting.push({ deadlineMs, begin: resolve, refuse: reject });
    });
  }

  private leave(): void {
    const nowMs = performance.now();
    for (let next = this.waiting.shift(); next; next = this.waiting.shift()) {
      if (next.deadlineMs > nowMs) {
        // The place goes over to it, so nobody who comes now can slip in between.
        next.begin();
        return;
      }
      next.refuse(new Overloaded('its turn did not come in time'));
    }
    this.running -= 1;
  }
}

/** What the order service needs of a database. */
export type OrderDatabase = Pick<Database, 'query' | 'change' | 'transaction'>;

const MAX_WAITING_STEPS = 512;
const MAX_WAIT_MS = 3_000;

/**
 * A database whose users wait in line for its connections, first come, first served. Without it a burst would meet the
 * pool's own limit, which refuses at once. While the database does not answer, nobody waits for it: steps reject with `NotSent`.
 */
export class QueuedDatabase implements OrderDatabase {
  private readonly gate: Gate;
  private readonly circuit = new Circuit(
    'MySQL',
    (error) => error instanceof DatabaseError && error.failure === 'connection',
  );

  /** @param places the pool's connections that these users may have at once */
  constructor(
    private readonly database: OrderDatabase,
    places: number,
  ) {
    this.gate = new Gate(places, MAX_WAITING_STEPS);
  }

  readonly query: Database['query'] = (sql, values) => this.inTurn(() => this.database.query(sql, values));

  readonly change: Database['change'] = (sql, values) => this.inTurn(() => this.database.change(sql, values));

  transaction<Result>(work: (statements: Statements) => Promise<Result>): Promise<Result> {
    return this.inTurn(() => this.database.transaction(work));
  }

  private inTurn<Result>(step: () => Promise<Result>): Promise<Result> {
    return this.gate.run(() => this.circuit.run(step), performance.now() + MAX_WAIT_MS);
  }
}

const QUIET_MS = 1_000;

/** Says a thing once a second at most, with the number of times that it was not said: an outage must not flood the logs. */
export class Rarely {
  private lastMs = Number.NEGATIVE_INFINITY;
  private unsaid = 0;

  say(line: (unsaid: number) => void): void {
    const nowMs = performance.now();
    if (nowMs - this.lastMs < QUIET_MS) {
      this.unsaid += 1;
      return;
    }
    this.lastMs = nowMs;
    line(this.unsaid);
    this.unsaid = 0;
  }
}
