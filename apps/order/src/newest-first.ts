import type { SqlValue } from '@flash-sale/database';

/**
 * Lists that are read newest first, a page at a time. A page begins behind the last row of the one before, by time and id,
 * so that rows that come meanwhile shift nothing, and no page costs more than the first.
 */
export interface Page<Row> {
  readonly rows: readonly Row[];
  /** Undefined: no more. */
  readonly nextCursor: string | undefined;
}

export interface PageRequest {
  /** From the page before; empty for the first. */
  readonly cursor: string;
  /** Rows of one page; bounded here. */
  readonly limit: number;
  /** The columns that the rows are sorted by; an index should have them in this order. */
  readonly timeColumn: string;
  readonly idColumn: string;
}

const MAX_ROWS = 100;
// Milliseconds until the year 2286, and an id.
const CURSOR = /^(\d{1,13})\.([A-Za-z0-9_-]{1,64})$/;

/**
 * @param read gives the rows that fit `where`, as sorted and limited by `tail`
 * @param placeOf the two columns of a row
 * @returns undefined where the cursor is none of ours
 */
export async function readNewestFirst<Row>(
  { cursor, limit, timeColumn, idColumn }: PageRequest,
  read: (where: string, tail: string, values: SqlValue[]) => Promise<readonly Row[]>,
  placeOf: (row: Row) => { readonly at: Date; readonly id: string },
): Promise<Page<Row> | undefined> {
  const [, ms, id] = CURSOR.exec(Buffer.from(cursor, 'base64url').toString('utf8')) ?? [];
  if (cursor !== '' && (ms === undefined || id === undefined)) return undefined;
  const size = Math.min(Math.max(limit, 1), MAX_ROWS);
  const at = new Date(Number(ms));
  const found = await read(
    cursor === '' ? 'TRUE' : `(${timeColumn} < ? OR (${timeColumn} = ? AND ${idColumn} < ?))`,
    `ORDER BY ${timeColumn} DESC, ${idColumn} DESC LIMIT ${size + 1}`,
    cursor === '' || id === undefined ? [] : [at, at, id],
  );
  const rows = found.slice(0, size);
  const last = rows.at(-1);
  return { rows, nextCursor: found.length > size && last ? cursorBehind(placeOf(last)) : undefined };
}

function cursorBehind({ at, id }: { readonly at: Date; readonly id: string }): string {
  return Buffer.from(`${at.getTime()}.${id}`).toString('base64url');
}
