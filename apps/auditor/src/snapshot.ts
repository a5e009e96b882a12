import { createReadStream, createWriteStream } from 'node:fs';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { finished } from 'node:stream/promises';
import { UsageError } from './env.js';
import type { LedgerLeg } from './evidence.js';
import { readJson } from './grammar.js';
import type { MysqlReader } from './read-mysql.js';
import type { Spill } from './spill.js';

/** The first line of a snapshot, so that nobody compares with anything else. */
const HEADER = 'ledger-snapshot-1';

/**
 * Writes what the sale's ledger says now to a file, one leg per line; an audit later shows that nothing of it was changed.
 *
 * @returns how many legs there are
 * @throws UsageError where the file cannot be written
 */
export async function takeSnapshot(file: string, saleId: string, mysql: MysqlReader): Promise<number> {
  const stream = createWriteStream(file, { mode: 0o600 });
  const write = async (line: object) => {
    if (!stream.write(`${JSON.stringify(line)}\n`)) await once(stream, 'drain');
  };
  let legs = 0;
  try {
    await once(stream, 'open');
    await write({ format: HEADER, saleId });
    await mysql.beginSnapshot();
    for (const [entryId, others] of await mysql.otherEntries(saleId)) {
      for (const leg of others) await write({ entryId, ...leg });
      legs += others.length;
    }
    for await (const { entryId, leg } of mysql.ledger(saleId, {
      from: `${saleId}-`,
      before: `${saleId}-~`,
    })) {
      await write({ entryId, ...leg });
      legs += 1;
    }
    await mysql.endSnapshot();
    stream.end();
    await finished(stream);
  } catch (error) {
    stream.destroy();
    if (error instanceof UsageError) throw error;
    throw new UsageError(
      `The snapshot ${file} cannot be written (${error instanceof Error ? error.message : String(error)}); check --take-snapshot.`,
    );
  }
  return legs;
}

/** Puts a snapshot's legs aside, each with the entries of its slice. @throws UsageError where it is no snapshot of the sale */
export async function readSnapshot(file: string, saleId: string, spill: Spill): Promise<void> {
  const input = createReadStream(file);
  const lines = createInterface({ input, crlfDelay: Infinity });
  let number = 0;
  try {
    for await (const line of lines) {
      number += 1;
      const json = readJson(line);
      if (number === 1) {
        if (json?.['format'] === HEADER && json['saleId'] === saleId) continue;
        throw new UsageError(
          `${file} is no snapshot of the ledger of ${saleId}; make one with --take-snapshot.`,
        );
      }
      const { entryId, account, amount, orderId, atMs } = json ?? {};
      if (typeof entryId !== 'string' || typeof account !== 'string' || typeof amount !== 'number')
        throw new UsageError(`${file}: line ${number} is no leg of a ledger`);
      const leg: LedgerLeg = {
        account,
        amount,
        orderId: typeof orderId === 'string' ? orderId : null,
        atMs: Number(atMs),
      };
      // An entry lies where its id does: with its order, or with those that belong to none.
      const isOfOrder = entryId.startsWith(`${saleId}-`);
      spill.put('snapshot', isOfOrder ? spill.slices.of(entryId) : 0, [entryId, leg]);
    }
  } catch (error) {
    if (error instanceof UsageError) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new UsageError(`The snapshot ${file} cannot be read (${reason}); check --snapshot.`);
  } finally {
    lines.close();
    input.destroy();
  }
}
