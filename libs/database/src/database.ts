import {
  createPool,
  type Pool,
  type PoolConnection,
  type ResultSetHeader,
  type RowDataPacket,
} from 'mysql2/promise';

/** What may be bound to a `?`. Objects are excluded by type: mysql2 would expand them into SQL. */
export type SqlValue = string | number | bigint | Date | Buffer | null;

/** A row as it comes: BIGINT and DECIMAL as strings, DATETIME as Date (UTC), everything else plain. */
export type SqlRow = Record<string, string | number | Date | Buffer | null>;

export interface DatabaseOptions {
  /** `mysql://user:password@host:port/database` */
  readonly url: string;
  readonly poolSize: number;
  /** A statement without an answer by then fails and its connection is destroyed, ms. A lost majority hangs for ever. */
  readonly queryTimeoutMs?: number;
  /** How long to wait for a free connection, ms. */
  readonly acquireTimeoutMs?: number;
}

/** Why a statement failed, by errno, because names differ between MySQL and MariaDB. */
export type DatabaseFailure =
  | 'deadlock'
  | 'lock_wait'
  | 'duplicate'
  | 'check'
  | 'read_only'
  | 'full'
  | 'connection'
  | 'defect';

const FAILURE_BY_ERRNO: Readonly<Record<number, DatabaseFailure>> = {
  1213: 'deadlock',
  1205: 'lock_wait',
  1062: 'duplicate',
  3819: 'check', // MySQL
  4025: 'check', // MariaDB
  1290: 'read_only',
  1836: 'read_only',
  1792: 'read_only',
  3: 'full', // a file could not be written
  1021: 'full',
  1026: 'full',
  1030: 'full', // the storage engine's own error, most often this one
  1114: 'full',
  1180: 'full', // during COMMIT
  1040: 'connection', // too many connections
  1203: 'connection',
  1047: 'connection', // not part of its cluster now
  1053: 'connection', // shutting down
  1077: 'connection',
  1158: 'connection',
  1159: 'connection',
  1160: 'connection',
  1161: 'connection',
  1927: 'connection', // killed (MariaDB)
  1317: 'connection', // interrupted
  3101: 'deadlock', // a group of servers found a conflict at COMMIT
};

/** A statement or transaction that did not succeed; `failure` says what a caller may do about it. */
export class DatabaseError extends Error {
  override readonly name = 'DatabaseError';
  constructor(
    readonly failure: DatabaseFailure,
    override readonly cause: Error,
    /** True where COMMIT was sent and not answered: it may have happened. */
    readonly commitUnknown = false,
  ) {
    super(`${failure}${commitUnknown ? ' (commit unknown)' : ''}: ${cause.message}`);
  }

  /** Whether the same work may succeed if done again from its start. */
  get retriable(): boolean {
    return this.failure !== 'defect' && this.failure !== 'duplicate' && this.failure !== 'check';
  }
}

/** Statements on one connection. Lists in SQL are written `IN (?)` with an array value. */
export interface Statements {
  /** Rows of a SELECT. */
  query<Row extends SqlRow>(
    sql: string,
    values?: readonly (SqlValue | readonly SqlValue[] | readonly (readonly SqlValue[])[])[],
  ): Promise<Row[]>;
  /** The number of rows that a change touched (rows really changed: FOUND_ROWS is off). */
  change(
    sql: string,
    values?: readonly (SqlValue | readonly SqlValue[] | readonly (readonly SqlValue[])[])[],
  ): Promise<number>;
}

const IDLE_TIMEOUT_MS = 20_000;
/** Longer than the pool keeps an idle connection, and than any of our transactions rests between two statements. */
const WAIT_TIMEOUT_SECONDS = 30;

/**
 * MySQL. Every statement and every wait for a connection has a time-out; every transaction is READ COMMITTED, because
 * the guards are single conditional statements and row locks, which REPEATABLE READ's snapshots would undermine.
 */
export class Database implements Statements {
  private readonly pool: Pool;
  private readonly queryTimeoutMs: number;
  private readonly acquireTimeoutMs: number;
  /** When each connection answered last, on the `performance.now()` scale. */
  private readonly answeredAtMs = new WeakMap<object, number>();
  /** A connection that has not answered since then is not used again. */
  private suspectedAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: DatabaseOptions) {
    this.queryTimeoutMs = options.queryTimeoutMs ?? 4_000;
    this.acquireTimeoutMs = options.acquireTimeoutMs ?? 2_000;
    this.pool = createPool({
      uri: options.url,
      connectionLimit: options.poolSize,
      queueLimit: options.poolSize * 2,
      // With FOUND_ROWS a duplicate insert would look like a new one.
      flags: ['-FOUND_ROWS'],
      timezone: 'Z',
      supportBigNumbers: true,
      bigNumberStrings: true,
      enableKeepAlive: true,
      keepAliveInitialDelay: 10_000,
      // Where `maxIdle` is the pool's size, as by default, no connection ever counts as idle; what is above it is closed at once.
      idleTimeout: IDLE_TIMEOUT_MS,
      maxIdle: Math.max(1, options.poolSize - 1),
      connectTimeout: 3_000,
    });
    const settings = [
      // DATETIME has no zone: what NOW(3) writes and what is read as UTC must be the same moment wherever the server stands.
      "time_zone = '+00:00'",
      // A server goes on to wait, with all the locks of the transaction, for a client that has hung up.
      `innodb_lock_wait_timeout = ${Math.max(1, Math.floor(this.queryTimeoutMs / 1_000) - 1)}`,
      // And it keeps the locks of one that was cut off without a word for this long, by default for eight hours.
      `wait_timeout = ${WAIT_TIMEOUT_SECONDS}`,
    ];
    this.pool.pool.on('connection', (connection) => {
      this.answeredAtMs.set(connection, performance.now());
      // Before anything else that is asked of it; one that was not set up so must not be used.
      for (const setting of [settings.join(', '), 'TRANSACTION ISOLATION LEVEL READ COMMITTED']) {
        connection.query(`SET SESSION ${setting}`, (error) => {
          if (error) connection.destroy();
        });
      }
    });
  }

  async query<Row extends SqlRow>(
    sql: string,
    values: Parameters<Statements['query']>[1] = [],
  ): Promise<Row[]> {
    return this.withConnection((connection) => this.on(connection).query<Row>(sql, values));
  }

  async change(sql: string, values: Parameters<Statements['change']>[1] = []): Promise<number> {
    return this.withConnection((connection) => this.on(connection).change(sql, values));
  }

  /**
   * Runs `work` in one READ COMMITTED transaction. A failure rolls everything back; a connection that failed is
   * destroyed, never reused. Nothing is repeated here: whoever calls knows whether its work may run again.
   */
  async transaction<T>(work: (statements: Statements) => Promise<T>): Promise<T> {
    return this.withConnection(async (connection) => {
      const statements = this.on(connection);
      await statements.change('START TRANSACTION');
      let result: T;
      try {
        result = await work(statements);
      } catch (error) {
        await statements.change('ROLLBACK').catch(() => connection.destroy());
        throw error;
      }
      try {
        await statements.change('COMMIT');
      } catch (error) {
        connection.destroy();
        throw error instanceof DatabaseError ? new DatabaseError(error.failure, error.cause, true) : error;
      }
      return result;
    });
  }

  /** Whether the database answers. */
  async ping(): Promise<void> {
    await this.query('SELECT 1');
  }

  async close(): Promise<void> {
    await this.pool.end();
  }

  private on(connection: PoolConnection): Statements {
    const timeout = this.queryTimeoutMs;
    const run = async <T>(sql: string, values: readonly unknown[]): Promise<T> => {
      const askedAtMs = performance.now();
      try {
        const [result] = await connection.query({ sql, values: values as never, timeout });
        this.answeredAtMs.set(connection.connection, performance.now());
        return result as T;
      } catch (error) {
        const failure = asDatabaseError(error);
        this.judge(connection, failure, askedAtMs);
        throw failure;
      }
    };
    return {
      query: <Row extends SqlRow>(sql: string, values: readonly unknown[] = []) =>
        run<(Row & RowDataPacket)[]>(sql, values),
      change: async (sql: string, values: readonly unknown[] = []) =>
        (await run<ResultSetHeader>(sql, values)).affectedRows,
    };
  }

  private async withConnection<T>(work: (connection: PoolConnection) => Promise<T>): Promise<T> {
    const connection = await this.acquire();
    try {
      return await work(connection);
    } finally {
      connection.release();
    }
  }

  /** What a failed statement says about its connection, and about those that were made as it was. */
  private judge(connection: PoolConnection, { failure, cause }: DatabaseError, askedAtMs: number): void {
    // A ROLLBACK on a connection that was given up before says nothing new.
    if (!this.answeredAtMs.has(connection.connection)) return;
    if (failure === 'connection') {
      // After a time-out or a broken protocol the connection's next answer could belong to this statement.
      this.giveUp(connection);
      this.suspectedAtMs = Math.max(this.suspectedAtMs, askedAtMs);
      const timedOut = (cause as Error & { code?: string }).code === 'PROTOCOL_SEQUENCE_TIMEOUT';
      if (timedOut) void this.killAtServer(connection.threadId);
    } else if (failure === 'read_only') {
      // It leads to a server that was demoted; a fresh one may lead to the primary.
      this.giveUp(connection);
      this.suspectedAtMs = performance.now();
    } else this.answeredAtMs.set(connection.connection, performance.now());
  }

  private giveUp(connection: PoolConnection): void {
    this.answeredAtMs.delete(connection.connection);
    connection.destroy();
  }

  /**
   * Ends what a connection that was given up still does at the server, where the network may never have told that it was given
   * up: its transaction would keep its locks. As far as possible; what fails here ends by the server's own time-outs.
   */
  private async killAtServer(threadId: number): Promise<void> {
    try {
      const connection = await this.acquire();
      const kill = { sql: `KILL ${threadId}`, timeout: this.acquireTimeoutMs };
      await connection.query(kill).then(
        () => connection.release(),
        (error: unknown) => {
          // One that is not there any more (1094) is what was wanted.
          if ((error as { errno?: number }).errno === 1094) connection.release();
          else connection.destroy();
        },
      );
    } catch {
      // No connection was to be had.
    }
  }

  /**
   * A connection that is not suspected. When one went silent, those that were idle meanwhile most likely did too, and each would
   * cost its user a whole time-out.
   */
  private async acquire(): Promise<PoolConnection> {
    const deadlineMs = performance.now() + this.acquireTimeoutMs;
    for (;;) {
      const connection = await this.takeFromPool(deadlineMs);
      const answeredAtMs = this.answeredAtMs.get(connection.connection) ?? Number.POSITIVE_INFINITY;
      if (answeredAtMs >= this.suspectedAtMs) return connection;
      connection.destroy();
    }
  }

  private takeFromPool(deadlineMs: number): Promise<PoolConnection> {
    return new Promise((resolve, reject) => {
      let expired = false;
      const timer = setTimeout(() => {
        expired = true;
        const waited = new Error(`no database connection was free within ${this.acquireTimeoutMs} ms`);
        reject(new DatabaseError('connection', waited));
      }, deadlineMs - performance.now());
      this.pool.getConnection().then(
        (connection) => {
          clearTimeout(timer);
          // It came too late for its caller; without this it would never return to the pool.
          if (expired) connection.release();
          else resolve(connection);
        },
        (error: unknown) => {
          clearTimeout(timer);
          if (!expired) reject(asDatabaseError(error));
        },
      );
    });
  }
}

/**
 * SQL: whether a time lies further back than an age. A time in the future was written before the clock of the database was set
 * back, and counts as old: nothing may wait until the clock is there again. The second is for statements that overlap, since
 * each sees the time of its own beginning.
 *
 * @param time an expression of DATETIME(3), e.g. a column; never text from outside
 * @param ageMicroseconds the age, or the placeholder of the statement's parameter for it
 */
export function isOlderThan(time: string, ageMicroseconds: number | '?' = '?'): string {
  return `(${time} <= NOW(3) - INTERVAL ${ageMicroseconds} MICROSECOND OR ${time} > NOW(3) + INTERVAL 1 SECOND)`;
}

function asDatabaseError(error: unknown): DatabaseError {
  if (error instanceof DatabaseError) return error;
  const cause = error instanceof Error ? error : new Error(String(error));
  const { errno, code } = cause as Error & { errno?: number; code?: string };
  const known = errno === undefined ? undefined : FAILURE_BY_ERRNO[errno];
  if (known) return new DatabaseError(known, cause);
  const lost =
    errno === undefined ||
    errno < 0 ||
    /^(PROTOCOL_|ECONN|EPIPE|ETIMEDOUT|ENOTFOUND|EHOSTUNREACH)/.test(code ?? '') ||
    /closed state|Queue limit|Pool is closed/i.test(cause.message);
  return new DatabaseError(lost && !(cause instanceof TypeError) ? 'connection' : 'defect', cause);
}
