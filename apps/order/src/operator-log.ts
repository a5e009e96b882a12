import { randomUUID } from 'node:crypto';
import type { Statements } from '@flash-sale/database';
import type { OrderDatabase } from './load.js';
import { readNewestFirst, type Page } from './newest-first.js';
import { transact } from './repeat.js';

/** What an operator did. */
export interface Operation {
  readonly operator: string;
  /** 1 to 20 characters of ASCII, e.g. `dead-letter-drop`. */
  readonly operation: string;
  /** Empty: of no sale. */
  readonly saleId: string;
  /** The state or phase that it changed; empty where it is no such change. At most 10 characters. */
  readonly before: string;
  readonly after: string;
  /** For people to read; JSON where there are several facts. */
  readonly detail: string;
}

export interface LoggedOperation extends Operation {
  readonly entryId: string;
  readonly at: Date;
}

/** As much as a page of the log should show of one entry. */
const MAX_DETAIL = 4_000;

/** What operators did, whichever service did it for them. It is only ever added to. */
export class OperatorLog {
  constructor(private readonly database: OrderDatabase) {}

  /** Records a change that somebody else is about to make. */
  async record(operation: Operation): Promise<void> {
    const entryId = randomUUID();
    await transact(this.database, (statements) => recordOperation(statements, entryId, operation));
  }

  /**
   * A page of the log.
   *
   * @param saleId empty: of all sales, and of none
   * @returns undefined where the cursor is none of ours
   */
  list(saleId: string, cursor: string, limit: number): Promise<Page<LoggedOperation> | undefined> {
    return readNewestFirst(
      { cursor, limit, timeColumn: 'at', idColumn: 'entry_id' },
      (where, tail, values) =>
        this.database.query<LoggedOperation & Record<string, string | Date>>(
          `SELECT entry_id AS entryId, sale_id AS saleId, operator, operation,
              COALESCE(before_phase, '') AS \`before\`, COALESCE(after_phase, '') AS \`after\`, detail, at
            FROM operator_log WHERE ${saleId === '' ? '' : 'sale_id = ? AND '}${where} ${tail}`,
          [...(saleId === '' ? [] : [saleId]), ...values],
        ),
      ({ at, entryId }) => ({ at, id: entryId }),
    );
  }
}

/**
 * Adds an entry in the transaction that makes the change. Adding the same entry again is harmless.
 *
 * @param entryId made once per operation, so that a repeated transaction has one entry
 */
export async function recordOperation(
  statements: Statements,
  entryId: string,
  { operator, operation, saleId, before, after, detail }: Operation,
): Promise<void> {
  await statements.change(
    `INSERT INTO operator_log (entry_id, sale_id, operator, operation, before_phase, after_phase, detail, at)
      VALUES (?, ?, ?, ?, ?, ?, ?, NOW(3)) ON DUPLICATE KEY UPDATE entry_id = entry_id`,
    [entryId, saleId, operator, operation, before || null, after || null, detail.slice(0, MAX_DETAIL)],
  );
}
