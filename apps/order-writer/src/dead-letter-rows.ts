import type { Statements } from '@flash-sale/database';
import { AttemptId } from '@flash-sale/domain';
import { replayOf, replayedLetter, type DeadRecord, type SourceRecord } from './dead-letters.js';
import { insertRows } from './insert-rows.js';

/**
 * The records of which a dead letter was noted already, whatever became of it: they need not be found at fault once more.
 *
 * @returns the places of those records, see {@link placeOf}, perhaps with some of others
 */
export async function findBuried(
  statements: Statements,
  records: readonly SourceRecord[],
): Promise<ReadonlySet<string>> {
  if (records.length === 0) return new Set();
  const all = <Value>(of: (record: SourceRecord) => Value) => [...new Set(records.map(of))];
  const rows = await statements.query<{ topic: string; partition: number; offset: string }>(
    `SELECT topic, partition_number AS \`partition\`, record_offset AS \`offset\` FROM dead_letter
      WHERE topic IN (?) AND partition_number IN (?) AND record_offset IN (?)`,
    [all(({ topic }) => topic), all(({ partition }) => partition), all(({ offset }) => offset)],
  );
  return new Set(rows.map(placeOf));
}

/** Where a record lies, as one word. */
export function placeOf(record: {
  readonly topic: string;
  readonly partition: number;
  readonly offset: bigint | string;
}): string {
  return `${record.topic}/${record.partition}/${record.offset}`;
}

/**
 * Closes the dead letters whose replays are among the records, in the transaction that decides the replay or buries it again:
 * there is no moment at which the sweeper would find the attempt neither pending nor decided.
 */
export async function closeReplayed(statements: Statements, records: readonly SourceRecord[]): Promise<void> {
  for (const source of records) {
    const letter = replayedLetter(source);
    if (!letter) continue;
    await statements.change(
      `UPDATE dead_letter SET state = 'replayed', closed_at = NOW(3), record_value = NULL, record_headers = NULL
        WHERE topic = ? AND partition_number = ? AND record_offset = ? AND order_id = ? AND state = 'pending'`,
      [letter.topic, letter.partition, letter.offset, letter.orderId],
    );
  }
}

/** Values may be long, and are sent in hexadecimal: this many rows stay below any packet limit. */
const DEAD_LETTERS_PER_INSERT = 100;

/**
 * Notes dead letters beside the orders, so that the offset passes no record without a trace, and the sweeper knows that the
 * attempt is pending until an operator drops or replays it. The record stays with its letter where a replay could be decided.
 */
export async function insertDeadLetters(
  statements: Statements,
  records: readonly DeadRecord[],
): Promise<void> {
  for (let at = 0; at < records.length; at += DEAD_LETTERS_PER_INSERT) {
    await insertRows(statements, {
      into: `dead_letter (topic, partition_number, record_offset, order_id, cause, schema_version, record_value,
        record_headers, state, at)`,
      template: "(?, ?, ?, ?, ?, ?, ?, ?, 'pending', NOW(3))",
      rows: records.slice(at, at + DEAD_LETTERS_PER_INSERT).map(({ source, cause, schema }) => {
        const replay = replayOf(source);
        return [
          source.topic,
          source.partition,
          source.offset,
          AttemptId.safeParse(source.key).data ?? null,
          cause,
          schema,
          replay?.value ?? null,
          replay ? JSON.stringify(replay.headers) : null,
        ];
      }),
      onDuplicate: 'topic = topic',
    });
  }
}
