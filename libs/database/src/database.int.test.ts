import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import { Database, DatabaseError, isOlderThan } from './database.js';
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
    const tables = (await database.query('SHOW TABLES')).flatMap((row) => Object.values(row));
    expect(tables).toEqual(expect.arrayContaining(['orders', 'sale_stock', 'quota', 'ledger', 'effect']));
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

  it('counts as old what is dated in the future, but not what was written this moment', async () => {
    const times = ['NOW(3) - INTERVAL 9 SECOND', 'NOW(3)', 'NOW(3) + INTERVAL 5 MINUTE'];
    const [row] = await database.query(
      `SELECT ${times.map((time, index) => `${isOlderThan(time)} AS old${index}`).join(', ')}`,
      times.map(() => 5_000_000),
    );
    expect([row?.['old0'], row?.['old1'], row?.['old2']].map(Number)).toEqual([1, 0, 1]);
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

describe('Database when its connections die', () => {
  const server = process.env['MYSQL_URL'] ?? '';
  const url = new URL('information_schema', server.endsWith('/') ? server : `${server}/`);
  const leftOver: (() => unknown)[] = [];
  afterEach(async () => {
    for (const close of leftOver.splice(0).toReversed()) await close();
  });

  /** Passes bytes on until those that are connected are silenced: they stay open and nothing comes through. */
  async function openProxy() {
    const silent = new Set<Socket>();
    const sockets = new Set<Socket>();
    const proxy = createServer((near) => {
      const far = connect(Number(url.port || 3306), url.hostname);
      for (const [from, to] of [
        [near, far],
        [far, near],
      ] as const) {
        sockets.add(from);
        from.on('error', () => {});
        // Where the network is silent, neither side hears that the other has hung up.
        from.on('close', () => silent.has(near) || to.destroy());
        from.on('data', (bytes) => silent.has(near) || to.write(bytes));
      }
    }).listen(0, '127.0.0.1');
    await once(proxy, 'listening');
    leftOver.push(() => {
      proxy.close();
      for (const socket of sockets) socket.destroy();
    });
    const proxied = new URL(url);
    proxied.hostname = '127.0.0.1';
    proxied.port = String((proxy.address() as AddressInfo).port);
    return { url: proxied.href, silenceExisting: () => sockets.forEach((socket) => silent.add(socket)) };
  }

  /** As many connections as the pool has, all idle. */
  async function openFull(address: string, poolSize: number): Promise<Database> {
    const database = new Database({ url: address, poolSize, queryTimeoutMs: 1_500 });
    leftOver.push(() => database.close());
    await Promise.all(Array.from({ length: poolSize }, () => database.query('SELECT SLEEP(0.2)')));
    return database;
  }

  it('replaces all connections that went silent after one time-out, not one time-out each', async () => {
    const proxy = await openProxy();
    const database = await openFull(proxy.url, 4);
    proxy.silenceExisting();
    expect((await failureOf(database.ping())).failure).toBe('connection');
    for (let turn = 0; turn < 8; turn += 1) await database.ping();
    await Promise.all(Array.from({ length: 4 }, () => database.query('SELECT SLEEP(0.2)')));
  });

  it('ends a silent transaction at the server, which would keep its locks', async () => {
    const proxy = await openProxy();
    const [cutOff, other] = [await openFull(proxy.url, 2), await openFull(url.href, 1)];
    const lock = `test-${randomBytes(8).toString('hex')}`;
    const silenced = cutOff.transaction(async (statements) => {
      await statements.query('SELECT GET_LOCK(?, 0) AS got', [lock]);
      proxy.silenceExisting();
      await statements.query('SELECT 1');
    });
    expect((await failureOf(silenced)).failure).toBe('connection');
    const deadline = performance.now() + 15_000;
    for (let got = '0'; got !== '1';) {
      if (performance.now() > deadline) throw new Error('the lock is still held');
      const [row] = await other.query<{ got: string | number }>('SELECT GET_LOCK(?, 1) AS got', [lock]);
      got = String(row?.got);
    }
  });

  it('keeps the connections that answered while another was silent', async () => {
    const database = await openFull(url.href, 3);
    const idOf = async () =>
      (await database.query<{ id: string }>('SELECT CONNECTION_ID() AS id, SLEEP(0.2)'))[0]?.id;
    const slow = failureOf(database.query('SELECT SLEEP(10)'));
    const answered = await Promise.all([idOf(), idOf()]);
    await slow;
    expect(await Promise.all([idOf(), idOf(), idOf()])).toEqual(expect.arrayContaining(answered));
  });

  it('never uses a connection that the server closed for its idleness', async () => {
    const database = await openFull(url.href, 3);
    const observer = await openFull(url.href, 1);
    const ids = await Promise.all(
      Array.from({ length: 3 }, () =>
        database.transaction(async (statements) => {
          await statements.change('SET SESSION wait_timeout = 1');
          const [row] = await statements.query<{ id: string }>('SELECT CONNECTION_ID() AS id, SLEEP(0.2)');
          return row?.id ?? '';
        }),
      ),
    );
    const open = 'SELECT id FROM processlist WHERE id IN (?)';
    const deadline = performance.now() + 20_000;
    while ((await observer.query(open, [ids])).length > 0) {
      if (performance.now() > deadline) throw new Error('the server did not close the idle connections');
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    await Promise.all(Array.from({ length: 3 }, () => database.query('SELECT SLEEP(0.1)')));
  });

  it('waits for a lock less long than for an answer, so that the server ends the wait itself', async () => {
    const database = await openFull(url.href, 1);
    const [row] = await database.query('SELECT @@session.innodb_lock_wait_timeout AS seconds');
    expect(Number(row?.['seconds'])).toBe(1);
  });

  it('leaves a server that has become read-only for whatever is behind the address then', async () => {
    const database = await openFull(url.href, 1);
    const idOf = async () => (await database.query<{ id: string }>('SELECT CONNECTION_ID() AS id'))[0]?.id;
    const id = await idOf();
    const refused = database.transaction(async (statements) => {
      await statements.change('ROLLBACK');
      await statements.change('START TRANSACTION READ ONLY');
      await statements.change('CREATE TEMPORARY TABLE mysql.t (a INT)');
    });
    expect((await failureOf(refused)).failure).toBe('read_only');
    expect(await idOf()).not.toBe(id);
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
