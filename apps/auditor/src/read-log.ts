import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { UsageError } from './env.js';
import {
  Latencies,
  type Bodies,
  type Course,
  type LogFigures,
  type LoggedAttempt,
  type Manner,
  type SoldOutAnswer,
} from './evidence.js';
import {
  attemptIdOf,
  entryMayFollow,
  mayFollow,
  readJson,
  readToken,
  type SeenToken,
  type TokenKeys,
} from './grammar.js';
import type { Slices, Spill } from './spill.js';

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
 * | bodyHash      | string? | any digest of the sent body; with `order` of the delivery alone |
 * | sentMs        | number  | epoch milliseconds just before the request was sent |
 * | receivedMs    | number  | epoch milliseconds when the whole answer was there, or when it was given up |
 * | http          | integer | status; 0 when there was no answer: cut, time-out, refused connection |
 * | code          | string  | `code` of the problem document; empty for none |
 * | state         | string  | `state` of the answer's body; empty for none |
 * | purchaseToken | string? | whenever the answer carried one (`entry`, `entry-status`): the list of issued tokens comes from here |
 * | unitPrice     | number? | whenever the answer carried one |
 * | retryAfter    | string? | the header `Retry-After` as it was; absent where it was |
 * | contentType   | string? | the header `Content-Type` of the answer |
 * | deadlineMs    | number? | how long the client waits for such an answer; absent with a stream |
 * | answeredId    | string? | the entry's or order's id in the answer's body |
 *
 * A log whose lines never have `contentType` or `deadlineMs` is taken for one of a crowd that did not look at headers or clocks:
 * what depends on them is then not checked. `retryAfter` is looked for in lines that have `contentType`.
 */
interface Exchange {
  readonly op: Operation;
  readonly bodyHash: string | null;
  readonly retryAfter: string | null;
  readonly contentType: string | null;
  readonly deadlineMs: number | null;
  readonly answeredId: string;
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

/** An exchange as it is put aside: with what its token says instead of the token. */
type PutAside = Omit<Exchange, 'purchaseToken'> & { readonly token: SeenToken | null };

const OPERATIONS = ['entry', 'entry-status', 'leave', 'order', 'order-status', 'payment', 'cancel'] as const;
type Operation = (typeof OPERATIONS)[number];

/** Refusals after which an attempt holds nothing, because nothing was done. */
const CLEAN_REFUSALS = new Set([400, 401, 403, 409, 410, 413, 422, 429]);

/** More different tokens, readers or bodies of one attempt than this are a breach already; no more are kept. */
const MAX_KEPT = 4;
/** Far more manners of answering than the contract has; those beyond are not told apart from a defect by then. */
const MAX_MANNERS = 2_000;
/** An answer may come this much after the client's own deadline. */
const LATE_MS = 1_000;

/**
 * Reads a crowd's log line by line: what it says of all attempts together is given back, what it says of each is put aside.
 *
 * @throws UsageError where the file cannot be read or a line is not as described above
 */
export async function readLog(
  file: string,
  { saleId, keys }: { saleId: string; keys: TokenKeys | null },
  spill: Spill,
): Promise<LogFigures> {
  const reader = new FiguresReader();
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
      else if (exchange.saleId === saleId) {
        reader.add(exchange);
        putAside(exchange, keys, spill);
      }
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
  return reader.figures();
}

/** What the crowd's log says of the attempts of one slice. */
export function loggedAttempts(spill: Spill, slice: number): Map<string, LoggedAttempt> {
  const reader = new AttemptReader(spill.slices, slice);
  for (const exchange of spill.take<PutAside>('log', slice)) reader.add(exchange);
  return reader.attempts;
}

/** An entry under an alias belongs to two attempts: the one its key makes, and the one that was answered. */
function putAside(exchange: Exchange, keys: TokenKeys | null, spill: Spill): void {
  const { purchaseToken, ...rest } = exchange;
  // Without a key there is no attempt, and the entry was refused for that.
  if (exchange.op === 'entry' && exchange.key === '') return;
  const aside: PutAside = { ...rest, token: purchaseToken === null ? null : readToken(purchaseToken, keys) };
  const ids = exchange.op === 'entry' ? [ownIdOf(exchange), exchange.attemptId] : [exchange.attemptId];
  const slices = new Set(ids.filter((id) => id !== '').map((id) => spill.slices.of(id)));
  for (const slice of slices) spill.put('log', slice, aside);
}

/** The id is computed from what was sent. */
function ownIdOf({ saleId, shopperId, key }: Pick<Exchange, 'saleId' | 'shopperId' | 'key'>): string {
  return attemptIdOf(saleId, shopperId, key);
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
    purchaseToken: textIn(json, 'purchaseToken'),
    unitPrice: typeof json['unitPrice'] === 'number' ? json['unitPrice'] : null,
    bodyHash: textIn(json, 'bodyHash'),
    retryAfter: textIn(json, 'retryAfter'),
    contentType: textIn(json, 'contentType'),
    deadlineMs: typeof json['deadlineMs'] === 'number' ? json['deadlineMs'] : null,
    answeredId: textIn(json, 'answeredId') ?? '',
  };
}

function textIn(json: Readonly<Record<string, unknown>>, name: string): string | null {
  const value = json[name];
  return typeof value === 'string' ? value : null;
}

/** Adds up what is said of all attempts together; memory grows with time and kinds of answers, not with asking. */
class FiguresReader {
  private readonly soldOut = new Map<string, SoldOutAnswer>();
  private readonly refused = new Map<string, number>();
  private readonly latency = { entry: new Latencies(), order: new Latencies() };
  private readonly manners = new Map<string, Manner>();
  private readonly seconds = new Map<number, { asked: number; accepted: number }>();
  private exchanges = 0;
  private toldSoldOut = 0;
  private acceptances = 0;

  add(exchange: Exchange): void {
    this.exchanges += 1;
    if (exchange.code === 'sold_out' || exchange.state === 'sold_out') this.toldSoldOut += 1;
    if (exchange.op === 'entry' || exchange.op === 'order') this.count(exchange, exchange.op);
    if (exchange.op === 'order') this.addOrder(exchange);
    if (exchange.op === 'entry' && exchange.code === 'sold_out' && exchange.key !== '')
      this.addSoldOut(exchange);
    this.addManner(exchange);
  }

  figures(): LogFigures {
    const { exchanges, toldSoldOut, acceptances, refused, latency, seconds } = this;
    const soldOut = [...this.soldOut.values()];
    const manners = [...this.manners.values()];
    return { exchanges, toldSoldOut, acceptances, refused, latency, seconds, soldOut, manners };
  }

  private count(exchange: Exchange, op: 'entry' | 'order'): void {
    if (exchange.http > 0) this.latency[op].add(exchange.receivedMs - exchange.sentMs);
    if (exchange.http < 400 && exchange.state !== 'sold_out') return;
    const reason = exchange.code || exchange.state || `http_${exchange.http}`;
    this.refused.set(reason, (this.refused.get(reason) ?? 0) + 1);
  }

  private addOrder(exchange: Exchange): void {
    const isAccepted = exchange.http === 202;
    if (isAccepted) this.acceptances += 1;
    const at = (ms: number) => {
      const second = Math.floor(ms / 1_000);
      const counts = this.seconds.get(second) ?? { asked: 0, accepted: 0 };
      this.seconds.set(second, counts);
      return counts;
    };
    at(exchange.sentMs).asked += 1;
    if (isAccepted) at(exchange.receivedMs).accepted += 1;
  }

  private addSoldOut(exchange: Exchange): void {
    const { quantity, sentMs, receivedMs } = exchange;
    // Of several that were sent in one millisecond the soonest answered says most.
    const moment = `${Math.floor(sentMs)}/${quantity}`;
    const known = this.soldOut.get(moment);
    if (!known || receivedMs < known.receivedMs) {
      this.soldOut.set(moment, { attemptId: ownIdOf(exchange), quantity, sentMs, receivedMs });
    }
  }

  private addManner(exchange: Exchange): void {
    const { op, http, code, contentType, deadlineMs, sentMs, receivedMs, shopperId } = exchange;
    const hasRetryAfter = contentType === null ? null : exchange.retryAfter !== null;
    const late = deadlineMs === null ? null : receivedMs - sentMs > deadlineMs + LATE_MS;
    const foreign =
      op !== 'entry' && exchange.answeredId !== '' && exchange.answeredId !== exchange.attemptId;
    const name = [op, http, code, hasRetryAfter, contentType, late, foreign].join(' ');
    const known = this.manners.get(name);
    if (known) known.count += 1;
    else if (this.manners.size < MAX_MANNERS) {
      const first = { attemptId: exchange.attemptId, shopperId, sentMs };
      this.manners.set(name, { op, http, code, hasRetryAfter, contentType, late, foreign, count: 1, first });
    }
  }
}

/** What is said of each attempt of one slice. */
class AttemptReader {
  readonly attempts = new Map<string, LoggedAttempt>();

  constructor(
    private readonly slices: Slices,
    private readonly slice: number,
  ) {}

  add(exchange: PutAside): void {
    if (exchange.op === 'entry') this.addEntry(exchange);
    else this.addAnswer(this.attempt(exchange.attemptId, exchange), exchange);
  }

  /** Where another id was answered than the key makes, this key is an alias of an earlier entry. */
  private addEntry(exchange: PutAside): void {
    const ownId = ownIdOf(exchange);
    const isAlias = exchange.attemptId !== '' && exchange.attemptId !== ownId;
    if (this.slices.of(ownId) === this.slice) {
      const own = this.attempt(ownId, exchange);
      if (!own.asked) {
        // It may be known already because somebody else asked about it.
        own.asked = true;
        own.shopperId = exchange.shopperId;
        own.skuId = exchange.skuId;
      }
      // The body that was acted on is one that was neither refused for what it is nor for differing from the first.
      if (exchange.http !== 400 && exchange.http !== 422) own.quantity = exchange.quantity;
      if (isSuccess(exchange)) keep(own.answeredIds, exchange.attemptId);
      addBody(own.bodies.entry, `${exchange.quantity} units`, exchange);
      if (!isAlias) this.addAnswer(own, exchange);
    }
    if (isAlias && this.slices.of(exchange.attemptId) === this.slice) {
      this.addAnswer(this.attempt(exchange.attemptId, exchange), exchange);
    }
  }

  private addAnswer(attempt: LoggedAttempt, exchange: PutAside): void {
    if (exchange.unitPrice !== null) attempt.unitPrice = exchange.unitPrice;
    if (exchange.token !== null) addToken(attempt, exchange.token);
    if (isSuccess(exchange)) keep(attempt.readers, exchange.shopperId);
    // To anybody else there is rightly no such thing.
    const isOwn = exchange.shopperId === attempt.shopperId;
    switch (exchange.op) {
      case 'entry':
      case 'entry-status':
      case 'leave':
        if (isOwn) follow(attempt.seen.entry, exchange, entryMayFollow);
        return addEntryAnswer(attempt, exchange);
      case 'order':
        attempt.firstOrderSentMs = Math.min(attempt.firstOrderSentMs ?? Infinity, exchange.sentMs);
        if (isOwn && exchange.bodyHash !== null) addBody(attempt.bodies.order, exchange.bodyHash, exchange);
        if (isOwn) follow(attempt.seen.order, exchange, orderMayFollow);
        return addOrderAnswer(attempt, exchange);
      case 'order-status':
      case 'payment':
      case 'cancel':
        // A payment answered "pending" says nothing of the order.
        if (exchange.http === 200 && exchange.state !== '') attempt.lastOrderState = exchange.state;
        if (exchange.op === 'payment' && exchange.http !== 200) return;
        if (isOwn) follow(attempt.seen.order, exchange, orderMayFollow);
        return;
      default:
        throw new Error(`unknown operation ${String(exchange.op satisfies never)}`);
    }
  }

  private attempt(attemptId: string, exchange: PutAside): LoggedAttempt {
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
      firstOrderSentMs: null,
      readers: new Set(),
      answeredIds: new Set(),
      bodies: { entry: noBodies(), order: noBodies() },
      seen: { entry: noCourse(), order: noCourse() },
      unitPrice: null,
      tokens: [],
    };
    this.attempts.set(attemptId, attempt);
    return attempt;
  }
}

const noBodies = (): Bodies => ({ sent: new Set(), actedOn: new Set(), refused: 0 });
const noCourse = (): Course => ({ state: '', sinceMs: -Infinity, answers: 0, broken: null });
const isSuccess = ({ http }: Pick<Exchange, 'http'>) => http >= 200 && http < 300;

function keep(set: Set<string>, value: string): void {
  if (set.size < MAX_KEPT) set.add(value);
}

function addToken(attempt: LoggedAttempt, token: SeenToken): void {
  if (attempt.tokens.length < MAX_KEPT && !attempt.tokens.some(({ hash }) => hash === token.hash)) {
    attempt.tokens.push(token);
  }
}

function addBody(bodies: Bodies, body: string, { http, code }: PutAside): void {
  // What is no valid body at all is refused for that, whatever the key.
  if (http === 400 || code === 'invalid') return;
  keep(bodies.sent, body);
  if (http >= 200 && http < 300) keep(bodies.actedOn, body);
  if (code === 'idempotency_key_reused') bodies.refused += 1;
}

/** A state that an answer told, `404` for "no such thing", empty for an answer that says nothing. */
function stateIn({ op, http, code, state }: PutAside): string {
  if (http >= 200 && http < 300) return state;
  if (op === 'order' && code === 'token_expired') return code;
  return http === 404 ? '404' : '';
}

/** As states follow each other; and what was refused for its token is never taken, what was taken never refused for it. */
function orderMayFollow(earlier: string, later: string): boolean {
  if (earlier === 'token_expired') return ['token_expired', 'expired', 'rejected'].includes(later);
  if (later === 'token_expired') return earlier === 'expired' || earlier === 'rejected';
  return mayFollow(earlier, later);
}

/** Only an answer to what was asked after the last one had come can be out of order. */
function follow(course: Course, exchange: PutAside, may: (earlier: string, later: string) => boolean): void {
  const state = stateIn(exchange);
  if (state === '') return;
  // Nothing was known of it, or only that it will never be: then there is rightly no such thing.
  if (state === '404' && (course.state === '' || course.state === 'token_expired')) return;
  course.answers += 1;
  const follows = course.state === '' || (state !== '404' && may(course.state, state));
  if (follows) {
    course.state = state;
    course.sinceMs = exchange.receivedMs;
  } else if (exchange.sentMs >= course.sinceMs) {
    course.broken ??= { from: course.state, to: state, sentMs: exchange.sentMs };
  }
}

function addEntryAnswer(attempt: LoggedAttempt, { op, http, code, state }: PutAside): void {
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

function addOrderAnswer(attempt: LoggedAttempt, { http, code, state, receivedMs }: PutAside): void {
  attempt.ordersSent += 1;
  if (http === 202 && state !== 'rejected' && state !== 'expired') {
    attempt.acceptedAtMs = Math.min(attempt.acceptedAtMs ?? Infinity, receivedMs);
  }
  if (http >= 200 && http < 300 && state !== '' && state !== 'queued') attempt.lastOrderState = state;
  if (CLEAN_REFUSALS.has(http)) attempt.orderRefusal = code || `http_${http}`;
  else if (http !== 202) attempt.orderUnclear = true;
}
