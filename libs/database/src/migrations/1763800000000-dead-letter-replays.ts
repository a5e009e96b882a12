import type { MigrationInterface, QueryRunner } from 'typeorm';

/**
 * What operators need of dead letters: an id for an address, the record itself as long as the letter is open (the topic of
 * dead letters keeps it too, but cannot be asked for one record), and when it was last produced again.
 */
export class DeadLetterReplays1763800000000 implements MigrationInterface {
  name = 'DeadLetterReplays1763800000000';

  async up(runner: QueryRunner): Promise<void> {
    for (const statement of UP) await runner.query(statement);
  }

  async down(runner: QueryRunner): Promise<void> {
    for (const statement of DOWN) await runner.query(statement);
  }
}

const ASCII = 'CHARACTER SET ascii COLLATE ascii_bin';

const UP = [
  // The id follows from the record's place, so that a letter noted twice is one letter, whoever notes it.
  `ALTER TABLE dead_letter
    ADD COLUMN letter_id VARCHAR(24) ${ASCII} GENERATED ALWAYS AS
      (LEFT(SHA2(CONCAT(topic, '/', partition_number, '/', record_offset), 256), 24)) STORED,
    ADD COLUMN record_value BLOB NULL,
    ADD COLUMN record_headers TEXT CHARACTER SET utf8mb4 NULL,
    ADD COLUMN replay_at DATETIME(3) NULL,
    ADD COLUMN closed_at DATETIME(3) NULL,
    ADD UNIQUE KEY dead_letter_by_id (letter_id),
    ADD KEY dead_letters_by_time (at, letter_id),
    ADD KEY dead_letters_by_state (state, at, letter_id)`,
  `ALTER TABLE operator_log ADD KEY operator_log_by_time (at, entry_id)`,
];

const DOWN = [
  `ALTER TABLE operator_log DROP KEY operator_log_by_time`,
  `ALTER TABLE dead_letter DROP KEY dead_letters_by_state, DROP KEY dead_letters_by_time, DROP KEY dead_letter_by_id,
    DROP COLUMN closed_at, DROP COLUMN replay_at, DROP COLUMN record_headers, DROP COLUMN record_value,
    DROP COLUMN letter_id`,
];
