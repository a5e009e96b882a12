import type { MigrationInterface, QueryRunner } from 'typeorm';

/** Who may not take part. */
export class Blocklist1763820000000 implements MigrationInterface {
  name = 'Blocklist1763820000000';

  async up(runner: QueryRunner): Promise<void> {
    for (const statement of STATEMENTS) await runner.query(statement);
  }

  async down(runner: QueryRunner): Promise<void> {
    for (const table of ['blocked_shopper', 'blocklist']) await runner.query(`DROP TABLE ${table}`);
  }
}

const ID = (length: number) => `VARCHAR(${length}) CHARACTER SET ascii COLLATE ascii_bin`;

const STATEMENTS = [
  `CREATE TABLE blocked_shopper (
    shopper_id ${ID(64)} NOT NULL PRIMARY KEY,
    reason VARCHAR(500) CHARACTER SET utf8mb4 NOT NULL,
    operator ${ID(64)} NOT NULL,
    at DATETIME(3) NOT NULL
  ) ENGINE=InnoDB`,

  // One row: its lock puts changes in an order, and its version names the list that Redis and gateways have. It follows the
  // clock, so that no two lists have the same one, not even after a database has lost its last commits.
  `CREATE TABLE blocklist (
    id TINYINT NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    shoppers INT NOT NULL
  ) ENGINE=InnoDB`,
  'INSERT INTO blocklist (id, version, shoppers) VALUES (1, ROUND(UNIX_TIMESTAMP(NOW(3)) * 1000), 0)',
];
