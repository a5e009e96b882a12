import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { Database, DatabaseError } from './database.js';
import { dropTestDatabase, migrate } from './migrate.js';

/** Runs on the server of MYSQL_URL and, where MYSQL_REAL_URL names one, on a real MySQL as well. */
const servers: [string, string][] = [['MYSQL_URL', process.env['MYSQL_URL'] ?? '']];
if (process.env['MYSQL_REAL_URL']) servers.push(['MYSQL_REAL_URL', process.env['MYSQL_REAL_URL']]);

const failureOf = async (work: Promise<unknown>): Promise<DatabaseError> => {
  const error = await work.then(
    () => new Error('it succeeded'),
    (reason: unknown) => reason,
  );
  if (error instanceof DatabaseError) return error;
  throw error;
};

describe.each(servers)('Database on %s', (_, server) => {
  const url = new URL(
    `test_database_${randomBytes(4).toString('hex')}`,
    server.endsWith('/') ? server : `${server}/`,
  ).href;
  let database: Database;

  beforeAll(async () => {
    await migrate(url);
    database = new Database({ url, poolSize: 4, queryTimeoutMs: 1_500, acquireTimeoutMs: 300 });
  });
  afterAll(async () => {
    await database.close();
    await dropTestDatabase(url);
  });

  const addSale = (saleId: string, total = 10) =>
    database.change('INSERT INTO sale_stock (sale_id, total, sold) VALUES (?, ?, 0)', [saleId, total]);
  const sold = async (saleId: string) =>
    (await database.query<{ sold: string }>('SELECT sold FROM sale_stock WHERE sale_id = ?', [saleId]))[0]
      ?.sold;

  it('migrates once, however many processes start together', async () => {
    const ran = await Promise.all([migrate(url), migrate(url), migrate(url)]);
    expect(ran.flat()).toEqual([]);
    const tables = await database.query('SHOW TABLES');
    expect(tables.length).toBe(14);
  });

  it('reads BIGINT without losing a digit, and times in UTC with milliseconds', async () => {
    const [row] = await database.query<{ big: string; at: Date }>(
      "SELECT 9007199254740993 AS big, CAST('2026-11-11 12:00:00.123' AS DATETIME(3)) AS at",
    );
    expect(row?.big).toBe('9007199254740993');
    expect(row?.at.toISOString()).toBe('2026-11-11T12:00:00.123Z');
  });

  it('keeps time in UTC, whatever the zone of the server', async () => {
    const [row] = await database.query<{ zone: string; now: Date }>(
      'SELECT @@session.time_zone AS zone, NOW(3) AS now',
    );
    expect(row?.zone).toBe('+00:00');
    expect(Math.abs((row?.now.getTime() ?? 0) - Date.now())).toBeLessThan(60_000);
  });

  it('counts changed rows, not found ones', async () => {
    await addSale('counted');
    expect(await database.change("UPDATE sale_stock SET sold = 0 WHERE sale_id = 'counted'")).toBe(0);
    expect(await database.change("UPDATE sale_stock SET sold = 1 WHERE sale_id = 'counted'")).toBe(1);
  });

  it('sells exactly the total when 200 ask at once for one of 50 units', async () => {
    await addSale('raced', 50);
    const winners = await Promise.all(
      Array.from({ length: 8 }, async () => {
        let won = 0;
        for (let i = 0; i < 25; i += 1) {
          won += await database.change(
            "UPDATE sale_stock SET sold = sold + 1 WHERE sale_id = 'raced' AND sold + 1 <= total",
          );
        }
        return won;
      }),
    );
    expect(winners.reduce((sum, won) => sum + won, 0)).toBe(50);
    expect(await sold('raced')).toBe('50');
  });

  it('names a broken CHECK and a duplicate by errno, as not worth repeating', async () => {
    await addSale('checked', 1);
    const check = await failureOf(
      database.change("UPDATE sale_stock SET sold = 2 WHERE sale_id = 'checked'"),
    );
    expect([check.failure, check.retriable]).toEqual(['check', false]);
    const duplicate = await failureOf(addSale('checked'));
    expect([duplicate.failure, duplicate.retriable]).toEqual(['duplicate', false]);
    expect((await failureOf(database.query('SELEKT 1'))).failure).toBe('defect');
  });

  it('rolls everything back when the work throws', async () => {
    await addSale('rolled');
    const work = database.transaction(async (statements) => {
      await statements.change("UPDATE sale_stock SET sold = 5 WHERE sale_id = 'rolled'");
      throw new Error('changed my mind');
    });
    await expect(work).rejects.toThrow('changed my mind');
    expect(await sold('rolled')).toBe('0');
  });

  it('sees what others committed meanwhile: transactions are READ COMMITTED', async () => {
    await addSale('seen');
    await database.transaction(async (statements) => {
      await statements.query("SELECT sold FROM sale_stock WHERE sale_id = 'seen'");
      await database.change("UPDATE sale_stock SET sold = 3 WHERE sale_id = 'seen'");
      const [row] = await statements.query<{ sold: string }>(
        "SELECT sold FROM sale_stock WHERE sale_id = 'seen'",
      );
      expect(row?.sold).toBe('3');
    });
  });

  it('names a deadlock, and the same work succeeds when done again', async () => {
    await addSale('left');
    await addSale('right');
    const both = (first: string, second: string) =>
      database.transaction(async (statements) => {
        await statements.change('UPDATE sale_stock SET sold = sold + 1 WHERE sale_id = ?', [first]);
        await new Promise((resolve) => setTimeout(resolve, 100));
        await statements.change('UPDATE sale_stock SET sold = sold + 1 WHERE sale_id = ?', [second]);
      });
    const results = await Promise.allSettled([both('left', 'right'), both('right', 'left')]);
    const lost = results.flatMap((result) =>
      result.status === 'rejected' ? [result.reason as DatabaseError] : [],
    );
    expect(lost.map((error) => [error.failure, error.retriable])).toEqual([['deadlock', true]]);
    await both('left', 'right');
    expect([await sold('left'), await sold('right')]).toEqual(['2', '2']);
  });

  it('gives up on a statement that does not answer, and does not reuse its connection', async () => {
    const failure = await failureOf(database.query('SELECT SLEEP(5)'));
    expect([failure.failure, failure.retriable]).toEqual(['connection', true]);
    const [row] = await database.query('SELECT 42 AS answer');
    expect(Number(row?.['answer'])).toBe(42);
  });

  it('says so when no connection is free in time, and gets the late one back into the pool', async () => {
    const release: (() => void)[] = [];
    const busy = Array.from({ length: 4 }, () =>
      database.transaction(() => new Promise<void>((resolve) => release.push(resolve))),
    );
    while (release.length < 4) await new Promise((resolve) => setTimeout(resolve, 10));
    expect((await failureOf(database.ping())).message).toMatch(
      /no database connection was free within 300 ms/,
    );
    for (const done of release) done();
    await Promise.all(busy);
    await Promise.all(Array.from({ length: 4 }, () => database.ping()));
  });

  it('survives having its connections killed: the next work gets a new one', async () => {
    const killed = database.transaction(async (statements) => {
      const [row] = await statements.query<{ id: string }>('SELECT CONNECTION_ID() AS id');
      await database.change(`KILL ${Number(row?.id)}`);
      await statements.change("UPDATE sale_stock SET sold = 9 WHERE sale_id = 'left'");
    });
    expect((await failureOf(killed)).failure).toBe('connection');
    expect(await sold('left')).toBe('2');
  });
});

describe('migrate', () => {
  it('says how MYSQL_URL must look when it names no database', async () => {
    await expect(migrate('mysql://root@127.0.0.1:3306/')).rejects.toThrow(/must end with a database name/);
  });
  it('drops nothing but test databases', async () => {
    await expect(dropTestDatabase('mysql://root@127.0.0.1:3306/flash_sale')).rejects.toThrow(
      /must start with test_/,
    );
  });
});
