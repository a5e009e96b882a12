import { randomUUID } from 'node:crypto';
import type { Statements } from '@flash-sale/database';

/** What an operator did, for {@link logOperation}. */
export interface Operation {
  readonly operator: string;
  /** At most 20 characters of ASCII. */
  readonly operation: string;
  /** Empty: of no sale. */
  readonly saleId: string;
  /** The phase or state that it changed; at most 10 characters. */
  readonly before: string | null;
  readonly after: string | null;
  readonly detail: string;
}

/** Adds an entry to the operators' log, in the transaction that makes the change. */
export async function logOperation(
  statements: Statements,
  { saleId, operator, operation, before, after, detail }: Operation,
): Promise<void> {
  await statements.change(
    `INSERT INTO operator_log (entry_id, sale_id, operator, operation, before_phase, after_phase, detail, at)
     VALUES (?, ?, ?, ?, ?, ?, ?, NOW(3))`,
    [randomUUID(), saleId, asciiOf(operator), operation, before, after, detail],
  );
}

/** The column holds 64 ASCII characters; a name in another script is better garbled than a change refused. */
export function asciiOf(operator: string): string {
  return operator.replaceAll(/[^\x20-\x7e]/g, '?').slice(0, 64) || 'unknown';
}
