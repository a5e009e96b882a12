import { once } from 'node:events';
import { createReadStream, createWriteStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { finished } from 'node:stream/promises';

/** What the ledger says about the load itself. */
export interface Ledger {
  readonly exchanges: number;
  /** First asks for a unit in each second of the run, from the first arrival on. */
  readonly entriesBySecond: readonly number[];
  /** Lines that are not the scenario's: what k6 had to say. */
  readonly remarks: readonly string[];
}

const MOST_REMARKS = 20;

/**
 * k6 writes what the scenario logs and its own warnings into one file. Separates them: exchanges go to `ledgerFile`, in the
 * auditor's format, and k6's remarks are returned.
 *
 * @param startedAtMs when the load began; earlier exchanges belong to its first second
 */
export async function separateLedger(
  logFile: string,
  ledgerFile: string,
  startedAtMs: number,
): Promise<Ledger> {
  const out = createWriteStream(ledgerFile, { flags: 'wx', mode: 0o600 });
  const bySecond: number[] = [];
  const remarks: string[] = [];
  const seen = new Set<string>();
  let exchanges = 0;
  for await (const line of createInterface({ input: createReadStream(logFile), crlfDelay: Infinity })) {
    const exchange = readExchange(line);
    if (!exchange) {
      if (line.trim() !== '' && remarks.length < MOST_REMARKS) remarks.push(line.trim());
      continue;
    }
    exchanges += 1;
    if (exchange.op === 'entry' && !seen.has(exchange.shopperId)) {
      seen.add(exchange.shopperId);
      const second = Math.max(0, Math.floor((exchange.sentMs - startedAtMs) / 1_000));
      while (bySecond.length <= second) bySecond.push(0);
      bySecond[second] = (bySecond[second] ?? 0) + 1;
    }
    if (!out.write(`${line}\n`)) await once(out, 'drain');
  }
  out.end();
  await finished(out);
  return { exchanges, entriesBySecond: bySecond, remarks };
}

function readExchange(line: string): { op: string; shopperId: string; sentMs: number } | undefined {
  if (!line.startsWith('{"op":')) return undefined;
  try {
    const { op, shopperId, sentMs } = JSON.parse(line) as Record<string, unknown>;
    return typeof op === 'string' && typeof shopperId === 'string' && typeof sentMs === 'number'
      ? { op, shopperId, sentMs }
      : undefined;
  } catch {
    return undefined;
  }
}
