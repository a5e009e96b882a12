import 'reflect-metadata';
import { createConnection } from 'mysql2/promise';
import { DataSource } from 'typeorm';
import { FirstTables1763700000000 } from './migrations/1763700000000-first-tables.js';
import { DeadLetterReplays1763800000000 } from './migrations/1763800000000-dead-letter-replays.js';
import { Recovery1763810000000 } from './migrations/1763810000000-recovery.js';
import { Blocklist1763820000000 } from './migrations/1763820000000-blocklist.js';

/** Held while migrating, so that services that start together do not create the same table twice. */
const LOCK = 'flash-sale-migrations';
const LOCK_WAIT_SECONDS = 60;

/**
 * Creates the database if it is not there and brings its tables up to date. Safe to run by any number of processes at
 * once: one migrates, the others wait for it. Never synchronises entities with tables.
 *
 * @param url `mysql://user:password@host:port/database`
 * @returns the names of the migrations that ran
 */
export async function migrate(url: string): Promise<string[]> {
  const { database, server } = splitUrl(url);
  const lock = await createConnection({ uri: server, connectTimeout: 5_000 });
  try {
    const [rows] = await lock.query('SELECT GET_LOCK(?, ?) AS taken', [LOCK, LOCK_WAIT_SECONDS]);
    if ((rows as { taken: number }[])[0]?.taken !== 1) {
      throw new Error(
        `another process has been migrating for ${LOCK_WAIT_SECONDS} s; see what it is waiting for`,
      );
    }
    await lock.query('CREATE DATABASE IF NOT EXISTS ?? CHARACTER SET utf8mb4', [database]);
    const source = new DataSource({
      type: 'mysql',
      url,
      synchronize: false,
      migrations: [
        FirstTables1763700000000,
        DeadLetterReplays1763800000000,
        Recovery1763810000000,
        Blocklist1763820000000,
      ],
    });
    await source.initialize();
    try {
      // DDL commits by itself in MySQL: a transaction around it would only pretend.
      const ran = await source.runMigrations({ transaction: 'none' });
      return ran.map((migration) => migration.name);
    } finally {
      await source.destroy();
    }
  } finally {
    await lock.end();
  }
}

/** Removes a test's database with everything in it. Refuses a name that does not say that it is a test's. */
export async function dropTestDatabase(url: string): Promise<void> {
  const { database, server } = splitUrl(url);
  if (!database.startsWith('test_'))
    throw new Error(`"${database}" is not a test database: its name must start with test_`);
  const connection = await createConnection({ uri: server, connectTimeout: 5_000 });
  try {
    await connection.query('DROP DATABASE IF EXISTS ??', [database]);
  } finally {
    await connection.end();
  }
}

function splitUrl(url: string): { database: string; server: string } {
  const parsed = new URL(url);
  const database = decodeURIComponent(parsed.pathname.slice(1));
  if (!/^[A-Za-z0-9_]{1,64}$/.test(database)) {
    throw new Error(
      `MYSQL_URL must end with a database name of letters, digits and _, e.g. mysql://root@127.0.0.1:3306/flash_sale`,
    );
  }
  parsed.pathname = '/';
  return { database, server: parsed.href };
}
