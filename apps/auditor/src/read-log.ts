import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { UsageError } from './env.js';
import { Latencies, type LogEvidence, type LoggedAttempt, type SoldOutAnswer } from './evidence.js';
import { attemptIdOf, readJson, readToken, type TokenKeys } from './grammar.js';

/**
 * The crowd's log: what shoppers sent and were answered, one JSON object per line (JSONL, UTF-8), one line per HTTP exchange,
 * written when the exchange is over. Exchanges of one attempt stand in the order in which they ended; those of different
 * attempts may be interleaved. A last line that was cut off is ignored. An entry that was refused with a 4xx may have been
 * rubbish: there the key may be empty and the quantity anything.
 *
 * | field         | type    | meaning |
 * |---------------|---------|---------|
 * | op            | string  | `entry` POST entries · `entry-status` GET or stream of an entry · `leave` DELETE of an entry · `order` POST orders · `order-status` GET or stream of an order · `payment` POST payment · `cancel` DELETE of an order |
 * | attemptId     | string  | the entry's or order's id as answered; for `entry` it may be empty where no id was answered, for all others it is the id that was asked about |
 * | saleId        | string  | lines of other sales are passed over |
 * | shopperId     | string  | who was logged in |
 * | skuId         | string  | the SKU of the sale as the crowd knows it |
 * | quantity      | integer | units of the attempt; with `entry` exactly what was sent |
 * | key           | string  | the idempotency key of the attempt's **entry**, in every line of the attempt (never a payment's own key); it may be empty except with `entry` |
 * | bodyHash      | string? | any digest of the sent body; not looked at yet |
 * | sentMs        | number  | epoch milliseconds just before the request was sent |
 * | receivedMs    | number  | epoch milliseconds when the whole answer was there, or when it was given up |
 * | http          | integer | status; 0 when there was no answer: cut, time-out, refused connection |
 * | code          | string  | `code` of the problem document; empty for none |
 * | state         | string  | `state` of the answer's body; empty for none |
 * | purchaseToken | string? | whenever the answer carried one (`entry`, `entry-status`): the list of issued tokens comes from here |
 * | unitPrice     | number? | whenever the answer carried one |
 */
interface Exchange {
  readonly op: Operation;
  readonly attemptId: string;
  readonly saleId: string;
  readonly shopperId: string;
  readonly skuId: string;
  readonly quantity: number;
  readonly key: string;
  readonly sentMs: number;
  readonly receivedMs: number;
  readonly http: number;
  readonly code: string;
  readonly state: string;
  readonly purchaseToken: string | null;
  readonly unitPrice: number | null;
}

const OPERATIONS = ['entry', 'entry-status', 'leave', 'order', 'order-status', 'payment', 'cancel'] as const;
type Operation = (typeof OPERATIONS)[number];

/** Refusals after which an attempt holds nothing, because nothing was done. */
const CLEAN_REFUSALS = new Set([400, 401, 403, 409, 410, 413, 422, 429]);

/** More different tokens for one attempt than this are a breach already; no more are kept. */
const MAX_TOKENS = 4;

/**
 * Reads a crowd's log line by line; what is kept is one compact record per attempt.
 *
 * @throws UsageError where the file cannot be read or a line is not as described above
 */
export async function readLog(file: string, saleId: string, keys: TokenKeys | null): Promise<LogEvidence> {
  const reader = new LogReader(saleId, keys);
  const input = createReadStream(file);
  const lines = createInterface({ input, crlfDelay: Infinity });
  let number = 0;
  let fault: string | null = null;
  try {
    for await (const line of lines) {
      number += 1;
      // A faulty line is forgiven only where it turns out to be the last: the crowd was stopped while writing it.
      if (fault !== null) throw new UsageError(`${file}: ${fault}`);
      if (line.trim() === '') continue;
      const exchange = parseExchange(line);
      if (typeof exchange === 'string') fault = `line ${number} ${exchange}`;
      else reader.add(exchange);
    }
    if (fault !== null && !fault.endsWith(NOT_JSON)) throw new UsageError(`${file}: ${fault}`);
  } catch (error) {
    if (error instanceof UsageError) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new UsageError(
      `The crowd's log ${file} cannot be read (${reason}); check the path given with --log.`,
    );
  } finally {
    lines.close();
    input.destroy();
  }
  return reader.evidence();
}

const NOT_JSON = 'is no JSON object';

/** An exchange, or what is wrong with the line. */
function parseExchange(line: string): Exchange | string {
  const json = readJson(line);
  if (json === null) return NOT_JSON;
  for (const name of ['attemptId', 'saleId', 'shopperId', 'skuId', 'key', 'code', 'state']) {
    if (typeof json[name] !== 'string') return `has no string "${name}"`;
  }
  for (const name of ['sentMs', 'receivedMs', 'http']) {
    if (typeof json[name] !== 'number') return `has no number "${name}"`;
  }
  const exchange = json as unknown as Exchange;
  const { op, http, quantity } = exchange;
  if (!OPERATIONS.includes(op)) return `has an unknown op: ${String(json['op'])}`;
  if (op !== 'entry' && exchange.attemptId === '') return `is a ${op} without an attemptId`;
  const isRubbish = op === 'entry' && CLEAN_REFUSALS.has(http);
  if (op === 'entry' && exchange.key === '' && !isRubbish) return 'is an entry without its key';
  if (typeof quantity !== 'number' && !isRubbish) return 'has no number "quantity"';
  return {
    ...exchange,
    quantity: typeof quantity === 'number' ? quantity : 0,
    purchaseToken: typeof json['purchaseToken'] === 'string' ? json['purchaseToken'] : null,
    unitPrice: typeof json['unitPrice'] === 'number' ? json['unitPrice'] : null,
  };
}

class LogReader {
  private readonly attempts = new Map<string, LoggedAttempt>();
  private readonly soldOut = new Map<string, SoldOutAnswer>();
  private readonly refused = new Map<string, number>();
  private readonly latency = { entry: new Latencies(), order: new Latencies() };
  private exchanges = 0;
  private toldSoldOut = 0;

  constructor(
    private readonly saleId: string,
    private readonly keys: TokenKeys | null,
  ) {}

  add(exchange: Exchange): void {
    if (exchange.saleId !== this.saleId) return;
    this.exchanges += 1;
    if (exchange.code === 'sold_out' || exchange.state === 'sold_out') this.toldSoldOut += 1;
    if (exchange.op === 'entry' || exchange.op === 'order') this.count(exchange, exchange.op);
    // Without a key there is no attempt, and the entry was refused for that.
    if (exchange.op === 'entry' && exchange.key === '') return;
    if (exchange.op === 'entry') this.addEntry(exchange);
    else this.addAnswer(this.attempt(exchange.attemptId, exchange), exchange);
  }

  evidence(): LogEvidence {
    return {
      exchanges: this.exchanges,
      attempts: this.attempts,
      soldOut: [...this.soldOut.values()],
      toldSoldOut: this.toldSoldOut,
      refused: this.refused,
      latency: this.latency,
    };
  }

  private count(exchange: Exchange, op: 'entry' | 'order'): void {
    if (exchange.http > 0) this.latency[op].add(exchange.receivedMs - exchange.sentMs);
    if (exchange.http < 400 && exchange.state !== 'sold_out') return;
    const reason = exchange.code || exchange.state || `http_${exchange.http}`;
    this.refused.set(reason, (this.refused.get(reason) ?? 0) + 1);
  }

  /** The id is computed from what was sent; where another was answered, this key is an alias of an earlier entry. */
  private addEntry(exchange: Exchange): void {
    const ownId = attemptIdOf(exchange.saleId, exchange.shopperId, exchange.key);
    const own = this.attempt(ownId, exchange);
    if (!own.asked) {
      // It may be known already because somebody else asked about it.
      own.asked = true;
      own.shopperId = exchange.shopperId;
      own.skuId = exchange.skuId;
    }
    // The body that was acted on is one that was neither refused for what it is nor for differing from the first.
    if (exchange.http !== 400 && exchange.http !== 422) own.quantity = exchange.quantity;
    const isAlias = exchange.attemptId !== '' && exchange.attemptId !== ownId;
    this.addAnswer(isAlias ? this.attempt(exchange.attemptId, exchange) : own, exchange);
    if (exchange.code === 'sold_out') this.addSoldOut(exchange, ownId);
  }

  private addAnswer(attempt: LoggedAttempt, exchange: Exchange): void {
    if (exchange.unitPrice !== null) attempt.unitPrice = exchange.unitPrice;
    if (exchange.purchaseToken !== null) this.addToken(attempt, exchange.purchaseToken);
    switch (exchange.op) {
      case 'entry':
      case 'entry-status':
      case 'leave':
        return addEntryAnswer(attempt, exchange);
      case 'order':
        return addOrderAnswer(attempt, exchange);
      case 'order-status':
      case 'payment':
      case 'cancel':
        // A payment answered "pending" says nothing of the order.
        if (exchange.http === 200 && exchange.state !== '') attempt.lastOrderState = exchange.state;
        return;
      default:
        throw new Error(`unknown operation ${String(exchange.op satisfies never)}`);
    }
  }

  private addToken(attempt: LoggedAttempt, token: string): void {
    const seen = readToken(token, this.keys);
    if (attempt.tokens.length < MAX_TOKENS && !attempt.tokens.some(({ hash }) => hash === seen.hash)) {
      attempt.tokens.push(seen);
    }
  }

  private addSoldOut(exchange: Exchange, attemptId: string): void {
    const { quantity, sentMs, receivedMs } = exchange;
    // Of several that were sent in one millisecond the soonest answered says most; so memory grows with time, not with asking.
    const moment = `${Math.floor(sentMs)}/${quantity}`;
    const known = this.soldOut.get(moment);
    if (!known || receivedMs < known.receivedMs) {
      this.soldOut.set(moment, { attemptId, quantity, sentMs, receivedMs });
    }
  }

  private attempt(attemptId: string, exchange: Exchange): LoggedAttempt {
    const known = this.attempts.get(attemptId);
    if (known) return known;
    const attempt: LoggedAttempt = {
      shopperId: exchange.shopperId,
      skuId: exchange.skuId,
      quantity: exchange.quantity,
      asked: false,
      granted: false,
      waiting: false,
      entryUnclear: false,
      orderUnclear: false,
      entryRefusal: '',
      orderRefusal: '',
      ordersSent: 0,
      acceptedAtMs: null,
      lastOrderState: '',
      firstSentMs: exchange.sentMs,
      unitPrice: null,
      tokens: [],
    };
    this.attempts.set(attemptId, attempt);
    return attempt;
  }
}

function addEntryAnswer(attempt: LoggedAttempt, { op, http, code, state }: Exchange): void {
  if (state === 'granted' || state === 'ordered') attempt.granted = true;
  attempt.waiting = state === 'waiting' || (attempt.waiting && state === '');
  if (state === 'sold_out') attempt.entryRefusal = 'sold_out';
  if (op !== 'entry') return;
  if (CLEAN_REFUSALS.has(http)) {
    attempt.entryRefusal = code || `http_${http}`;
    // A refused entry that had been waiting has left the line.
    if (http === 410) attempt.waiting = false;
  } else if (http === 0 || http >= 400) {
    attempt.entryUnclear = true;
  }
}

function addOrderAnswer(attempt: LoggedAttempt, { http, code, state, receivedMs }: Exchange): void {
  attempt.ordersSent += 1;
  if (http === 202 && state !== 'rejected' && state !== 'expired') {
    attempt.acceptedAtMs = Math.min(attempt.acceptedAtMs ?? Infinity, receivedMs);
  }
  if (http >= 200 && http < 300 && state !== '' && state !== 'queued') attempt.lastOrderState = state;
  if (CLEAN_REFUSALS.has(http)) attempt.orderRefusal = code || `http_${http}`;
  else if (http !== 202) attempt.orderUnclear = true;
}
