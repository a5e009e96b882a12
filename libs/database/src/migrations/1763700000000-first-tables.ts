import type { MigrationInterface, QueryRunner } from 'typeorm';

/**
 * The first tables. Ids are ASCII and compared byte by byte. A sale's rows all carry its id, so that they can live on
 * one shard. CHECK (sold <= total) is the last belt under the writer's conditional update.
 */
export class FirstTables1763700000000 implements MigrationInterface {
  name = 'FirstTables1763700000000';

  async up(runner: QueryRunner): Promise<void> {
    for (const statement of TABLES) await runner.query(statement);
  }

  async down(runner: QueryRunner): Promise<void> {
    for (const statement of TABLES.toReversed()) {
      const table = /CREATE TABLE (\w+)/.exec(statement)?.[1];
      await runner.query(`DROP TABLE ${table}`);
    }
  }
}

const ID = (length: number) => `VARCHAR(${length}) CHARACTER SET ascii COLLATE ascii_bin`;

const TABLES = [
  // A sale's settings. `phase` is what an operator did; open, sold_out and closing by the clock follow from it.
  `CREATE TABLE sale (
    sale_id ${ID(40)} NOT NULL PRIMARY KEY,
    title VARCHAR(200) NOT NULL,
    sku_id ${ID(64)} NOT NULL,
    allotment BIGINT NOT NULL,
    unit_price BIGINT NOT NULL,
    currency ${ID(3)} NOT NULL,
    opens_at DATETIME(3) NOT NULL,
    closes_at DATETIME(3) NOT NULL,
    limit_per_shopper INT NOT NULL,
    bucket_count INT NOT NULL,
    hold_ms BIGINT NOT NULL,
    pay_ms BIGINT NOT NULL,
    challenge ${ID(20)} NULL,
    line_mode ${ID(10)} NOT NULL,
    admit_per_second INT NOT NULL,
    overbook DOUBLE NOT NULL,
    phase ${ID(10)} NOT NULL,
    epoch INT NOT NULL DEFAULT 1,
    version INT NOT NULL DEFAULT 1,
    created_at DATETIME(3) NOT NULL,
    updated_at DATETIME(3) NOT NULL
  ) ENGINE=InnoDB`,

  // The guard: units sold of units to sell. One row per sale, locked last.
  `CREATE TABLE sale_stock (
    sale_id ${ID(40)} NOT NULL PRIMARY KEY,
    total BIGINT NOT NULL,
    sold BIGINT NOT NULL,
    CONSTRAINT sold_within_total CHECK (sold <= total),
    CONSTRAINT sold_not_negative CHECK (sold >= 0)
  ) ENGINE=InnoDB`,

  // One row per attempt that was decided: an order, a rejection, or the tombstone of one that can never become an order.
  `CREATE TABLE orders (
    order_id ${ID(64)} NOT NULL PRIMARY KEY,
    sale_id ${ID(40)} NOT NULL,
    shopper_id ${ID(64)} NOT NULL,
    sku_id ${ID(64)} NOT NULL,
    quantity INT NOT NULL,
    unit_price BIGINT NOT NULL,
    currency ${ID(3)} NOT NULL,
    state ${ID(20)} NOT NULL,
    reason ${ID(20)} NULL,
    batch_id ${ID(36)} NOT NULL,
    epoch INT NOT NULL,
    token_expires_at DATETIME(3) NULL,
    delivery TEXT CHARACTER SET utf8mb4 NULL,
    delivery_hash ${ID(22)} NULL,
    request_id ${ID(64)} NULL,
    kafka_partition INT NULL,
    kafka_offset BIGINT NULL,
    pay_before DATETIME(3) NULL,
    version INT NOT NULL DEFAULT 1,
    created_at DATETIME(3) NOT NULL,
    updated_at DATETIME(3) NOT NULL,
    KEY orders_of_shopper (shopper_id, created_at, order_id),
    KEY orders_due (state, pay_before),
    KEY orders_of_sale (sale_id, state)
  ) ENGINE=InnoDB`,

  // What a shopper has of a sale, in units that count as sold.
  `CREATE TABLE quota (
    sale_id ${ID(40)} NOT NULL,
    shopper_id ${ID(64)} NOT NULL,
    used INT NOT NULL,
    PRIMARY KEY (sale_id, shopper_id),
    CONSTRAINT used_not_negative CHECK (used >= 0)
  ) ENGINE=InnoDB`,

  // Every edge an order took, numbered from 1 without gaps; orders.version is the last number.
  `CREATE TABLE order_event (
    order_id ${ID(64)} NOT NULL,
    seq INT NOT NULL,
    from_state ${ID(20)} NOT NULL,
    to_state ${ID(20)} NOT NULL,
    cause ${ID(40)} NOT NULL,
    at DATETIME(3) NOT NULL,
    PRIMARY KEY (order_id, seq)
  ) ENGINE=InnoDB`,

  // Append-only movements; the legs of an entry sum to 0, and an account's balance is the sum of its legs.
  `CREATE TABLE ledger (
    entry_id ${ID(100)} NOT NULL,
    account ${ID(12)} NOT NULL,
    sale_id ${ID(40)} NOT NULL,
    order_id ${ID(64)} NULL,
    amount BIGINT NOT NULL,
    at DATETIME(3) NOT NULL,
    PRIMARY KEY (entry_id, account),
    KEY ledger_of_sale (sale_id, account)
  ) ENGINE=InnoDB`,

  // The outbox: what Redis must be told. Kept after it was applied, so that it can be applied again to an older Redis.
  `CREATE TABLE effect (
    order_id ${ID(64)} NOT NULL,
    kind ${ID(8)} NOT NULL,
    sale_id ${ID(40)} NOT NULL,
    shopper_id ${ID(64)} NOT NULL,
    reason ${ID(20)} NULL,
    created_at DATETIME(3) NOT NULL,
    applied_at DATETIME(3) NULL,
    PRIMARY KEY (order_id, kind),
    KEY effects_to_apply (applied_at, created_at),
    KEY effects_of_sale (sale_id, applied_at)
  ) ENGINE=InnoDB`,

  `CREATE TABLE payment (
    payment_id ${ID(64)} NOT NULL PRIMARY KEY,
    order_id ${ID(64)} NOT NULL,
    sale_id ${ID(40)} NOT NULL,
    shopper_id ${ID(64)} NOT NULL,
    idempotency_key ${ID(128)} NOT NULL,
    body_hash ${ID(22)} NOT NULL,
    amount BIGINT NOT NULL,
    currency ${ID(3)} NOT NULL,
    method ${ID(20)} NOT NULL,
    state ${ID(12)} NOT NULL,
    created_at DATETIME(3) NOT NULL,
    updated_at DATETIME(3) NOT NULL,
    UNIQUE KEY payment_by_key (order_id, idempotency_key),
    KEY payments_open (state, created_at)
  ) ENGINE=InnoDB`,

  // At most one per payment: the primary key says so.
  `CREATE TABLE refund (
    payment_id ${ID(64)} NOT NULL PRIMARY KEY,
    order_id ${ID(64)} NOT NULL,
    amount BIGINT NOT NULL,
    state ${ID(12)} NOT NULL,
    created_at DATETIME(3) NOT NULL,
    updated_at DATETIME(3) NOT NULL,
    KEY refunds_open (state, created_at)
  ) ENGINE=InnoDB`,

  `CREATE TABLE webhook_event (
    event_id ${ID(64)} NOT NULL PRIMARY KEY,
    payment_id ${ID(64)} NOT NULL,
    result ${ID(12)} NOT NULL,
    received_at DATETIME(3) NOT NULL
  ) ENGINE=InnoDB`,

  // Records that could not be handled; the record itself is in the dead letter topic.
  `CREATE TABLE dead_letter (
    topic ${ID(100)} NOT NULL,
    partition_number INT NOT NULL,
    record_offset BIGINT NOT NULL,
    order_id ${ID(64)} NULL,
    cause ${ID(40)} NOT NULL,
    schema_version ${ID(16)} NOT NULL,
    state ${ID(12)} NOT NULL,
    at DATETIME(3) NOT NULL,
    PRIMARY KEY (topic, partition_number, record_offset),
    KEY dead_letter_of_order (order_id)
  ) ENGINE=InnoDB`,

  `CREATE TABLE operator_log (
    entry_id ${ID(36)} NOT NULL PRIMARY KEY,
    sale_id ${ID(40)} NOT NULL,
    operator ${ID(64)} NOT NULL,
    operation ${ID(20)} NOT NULL,
    before_phase ${ID(10)} NULL,
    after_phase ${ID(10)} NULL,
    detail TEXT CHARACTER SET utf8mb4 NOT NULL,
    at DATETIME(3) NOT NULL,
    KEY operator_log_of_sale (sale_id, at)
  ) ENGINE=InnoDB`,

  // The test payment provider's own books, as a real provider would keep them on its side.
  `CREATE TABLE test_provider_charge (
    payment_id ${ID(64)} NOT NULL PRIMARY KEY,
    amount BIGINT NOT NULL,
    result ${ID(12)} NOT NULL,
    settles_at DATETIME(3) NOT NULL,
    notified_at DATETIME(3) NULL,
    refunded_at DATETIME(3) NULL,
    KEY charges_to_report (notified_at, settles_at)
  ) ENGINE=InnoDB`,
];
