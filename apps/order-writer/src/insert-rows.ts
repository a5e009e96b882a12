import type { SqlValue, Statements } from '@flash-sale/database';

export interface Insert {
  /** The table and its columns. */
  readonly into: string;
  /** One row's VALUES, with a `?` for each bound value and the database's clock where a time is wanted. */
  readonly template: string;
  readonly rows: readonly (readonly SqlValue[])[];
  readonly onDuplicate?: string;
}

/**
 * A chunk has at most 500 records, so that one statement for all its rows stays below any packet limit.
 *
 * @returns how many rows are new; only where `onDuplicate` changes nothing
 */
export async function insertRows(statements: Statements, insert: Insert): Promise<number> {
  if (insert.rows.length === 0) return 0;
  const values = insert.rows.map(() => insert.template).join(', ');
  const tail = insert.onDuplicate ? ` ON DUPLICATE KEY UPDATE ${insert.onDuplicate}` : '';
  return statements.change(`INSERT INTO ${insert.into} VALUES ${values}${tail}`, insert.rows.flat());
}
