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
  1021: 'full',
  1114: 'full',
  1040: 'connection', // too many connections
  1053: 'connection', // shutting down
  1077: 'connection',
  1927: 'connection', // killed (MariaDB)
  1317: 'connection', // interrupted
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

/**
 * MySQL. Every statement and every wait for a connection has a time-out; every transaction is READ COMMITTED, because
 * the guards are single conditional statements and row locks, which REPEATABLE READ's snapshots would undermine.
 */
export class Database implements Statements {
  private readonly pool: Pool;
  private readonly queryTimeoutMs: number;
  private readonly acquireTimeoutMs: number;

  constructor(options: DatabaseOptions) {
    this.queryTimeoutMs = options.queryTimeoutMs ?? 5_000;
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
      // Below any server's wait_timeout, so that the pool never hands out a connection the server has closed.
      idleTimeout: 60_000,
      connectTimeout: 5_000,
    });
    // DATETIME has no zone: what NOW(3) writes and what is read as UTC must be the same moment wherever the server stands.
    this.pool.pool.on('connection', (connection) => {
      connection.query("SET SESSION time_zone = '+00:00'", () => undefined);
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
      await statements.change('SET TRANSACTION ISOLATION LEVEL READ COMMITTED');
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
      try {
        const [result] = await connection.query({ sql, values: values as never, timeout });
        return result as T;
      } catch (error) {
        const failure = asDatabaseError(error);
        // After a time-out or a broken protocol the connection's next answer could belong to this statement.
        if (failure.failure === 'connection') connection.destroy();
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

  private acquire(): Promise<PoolConnection> {
    return new Promise((resolve, reject) => {
      let expired = false;
      const timer = setTimeout(() => {
        expired = true;
        const waited = new Error(`no database connection was free within ${this.acquireTimeoutMs} ms`);
        reject(new DatabaseError('connection', waited));
      }, this.acquireTimeoutMs);
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
