import type { MigrationInterface, QueryRunner } from 'typeorm';

/** What it takes to build a sale's stock in Redis anew, and to correct it. */
export class Recovery1763810000000 implements MigrationInterface {
  name = 'Recovery1763810000000';

  async up(runner: QueryRunner): Promise<void> {
    for (const statement of TABLES) await runner.query(statement);
  }

  async down(runner: QueryRunner): Promise<void> {
    for (const table of ['correction', 'rebuild']) await runner.query(`DROP TABLE ${table}`);
  }
}

const ID = (length: number) => `VARCHAR(${length}) CHARACTER SET ascii COLLATE ascii_bin`;

const TABLES = [
  // One row per rebuild. The one with the sale's present epoch is under way, or the last; its epoch is the fence: whoever
  // takes over from an owner that fell silent begins a rebuild of a later epoch.
  `CREATE TABLE rebuild (
    sale_id ${ID(40)} NOT NULL,
    epoch INT NOT NULL,
    owner ${ID(36)} NOT NULL,
    cause VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL,
    lease_until DATETIME(3) NOT NULL,
    started_at DATETIME(3) NOT NULL,
    finished_at DATETIME(3) NULL,
    lost_buckets INT NULL,
    restored_orders BIGINT NULL,
    free_units BIGINT NULL,
    PRIMARY KEY (sale_id, epoch)
  ) ENGINE=InnoDB`,

  // What the reconciler changed in Redis. Written before Redis is told, and marked with its ledger entry after it was; what
  // is left pending is finished by its id.
  `CREATE TABLE correction (
    correction_id ${ID(100)} NOT NULL PRIMARY KEY,
    sale_id ${ID(40)} NOT NULL,
    epoch INT NOT NULL,
    bucket INT NOT NULL,
    kind ${ID(20)} NOT NULL,
    order_id ${ID(64)} NULL,
    units BIGINT NOT NULL,
    state ${ID(10)} NOT NULL,
    detail VARCHAR(400) CHARACTER SET utf8mb4 NOT NULL,
    at DATETIME(3) NOT NULL,
    KEY corrections_of_sale (sale_id, kind, state)
  ) ENGINE=InnoDB`,
];
