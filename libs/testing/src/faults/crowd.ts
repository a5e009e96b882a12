import { createHash } from 'node:crypto';
import { createWriteStream, type WriteStream } from 'node:fs';
import { request as httpRequest, type IncomingHttpHeaders } from 'node:http';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { finished } from 'node:stream/promises';
import { DELIVERY, SKU_ID } from '../caller.js';
import { sleep } from '../waiting.js';
import { Balancer } from './balancer.js';
import { RushThread, type RushAnswer } from './rush.js';
import { diceOf, type Dice } from './seeded.js';

export interface CrowdOptions {
  readonly gateways: readonly { readonly shopUrl: string; readonly readyUrl: string }[];
  /** The client's log, for the auditor; lines are appended. */
  readonly logFile: string;
  readonly accessToken: (shopperId: string) => string;
  readonly seed: number;
  readonly saleId: string;
  readonly scarceSaleId: string;
  readonly buyersPerSecond: number;
  readonly seekersPerSecond: number;
}

export type Operation = 'entry' | 'entry-status' | 'leave' | 'order' | 'order-status' | 'payment' | 'cancel';

/** One request and what became of it. Times are on the `performance.now()` scale. */
export interface Exchange {
  readonly op: Operation;
  readonly saleId: string;
  readonly sentMs: number;
  readonly endedMs: number;
  /** 0 where there was no answer; `code` then says `timeout`, `refused` or `cut`. */
  readonly http: number;
  readonly code: string;
  /** `state` of the answer's body; empty for none. */
  readonly state: string;
  /** Which gateway was asked. */
  readonly gateway: string;
}

/** A step of load that was made ready. */
export interface Rush {
  start(): void;
  /** Ends it; resolves when everybody has been answered. */
  stop(): Promise<{
    /** Of the rush's own thread: 99th percentile, ms. */
    readonly lagMs: number;
    /** How much later than they were to come people were sent, ms; it is part of their latency. */
    readonly lateness: Quantiles;
  }>;
}

/** Which exchanges are meant; what is not given does not matter. */
export interface Which {
  readonly op?: Operation;
  readonly http?: number;
  readonly code?: string;
  readonly gateway?: string;
}

export interface Quantiles {
  readonly count: number;
  readonly p50: number;
  readonly p95: number;
  readonly p99: number;
  readonly max: number;
}

/** An order whose 202 somebody has seen. */
interface Accepted {
  readonly acceptedMs: number;
  /** When its shopper first saw that it was decided. */
  decidedMs: number | null;
}

const CLIENT_DEADLINE_MS = 6_000;
/** People under way at once; arrivals beyond that are turned away at the door, and counted. */
const MOST_UNDERWAY = { buyers: 400, seekers: 150 };
const MOST_CONNECTIONS = 1_000;
/** How long somebody repeats one request whose outcome is unknown. */
const PATIENCE_MS = 90_000;
const TICK_MS = 20;
/** Who comes: to buy, or to try at the scarce sale. */
const KINDS = ['buyers', 'seekers'] as const;
type Kind = (typeof KINDS)[number];
const ENTRY_BODY = { quantity: 1 };
const FIRST_KEY = 'visit-1';
/** One in so many requests is sent twice at once, as by a double click. */
const DOUBLE_CLICK = 0.1;

/**
 * Several hundred attempts a second on two sales, by an open law: arrivals do not wait for anybody's answer. At the
 * plentiful sale people buy; at the scarce one they mostly do not get anything, and those who do mostly let go of it again.
 * Everybody repeats what has no answer under the same key, as the page does.
 */
export class Crowd {
  readonly balancer: Balancer;
  readonly exchanges: Exchange[] = [];
  /** Arrivals that were turned away because too many were waiting already. */
  turnedAway = 0;
  paid = 0;
  private readonly orders = new Map<string, Accepted>();
  /** When each request that is under way was sent. */
  private readonly sending = new Set<{ readonly sentMs: number }>();
  private readonly dice: Dice;
  private readonly log: WriteStream;
  private readonly digests = new WeakMap<object, string>();
  private readonly rates: Record<Kind, number>;
  private readonly underway: Record<Kind | 'rushers', number> = { buyers: 0, seekers: 0, rushers: 0 };
  private rushThread: RushThread | null = null;
  private readonly lag = monitorEventLoopDelay({ resolution: 10 });
  private people = 0;
  private timer: NodeJS.Timeout | undefined;
  /** From the closing on, whoever gets a scarce unit buys it. */
  private closing = false;
  private gaveUpAtMs = Infinity;

  constructor(private readonly options: CrowdOptions) {
    this.dice = diceOf(options.seed, 'crowd');
    this.rates = { buyers: options.buyersPerSecond, seekers: options.seekersPerSecond };
    this.balancer = new Balancer(options.gateways, MOST_CONNECTIONS);
    this.log = createWriteStream(options.logFile, { flags: 'a' });
  }

  async start(): Promise<void> {
    await this.balancer.start();
    this.lag.enable();
    const due: Record<Kind, number> = { buyers: 0, seekers: 0 };
    let last = performance.now();
    this.timer = setInterval(() => {
      const now = performance.now();
      // After a stall of this process not everybody who would have come arrives at once.
      const elapsedS = Math.min(0.5, (now - last) / 1_000);
      last = now;
      for (const kind of KINDS) {
        for (due[kind] += this.rates[kind] * elapsedS; due[kind] >= 1; due[kind] -= 1) this.arrive(kind);
      }
    }, TICK_MS);
  }

  /**
   * Gets ready so many people more a second, who come to the plentiful sale and leave for good when they are refused: a step
   * of load that does not grow by itself. They all go to the first gateway. Nobody comes before its `start`.
   */
  prepareRush(perSecond: number, seconds: number): Rush {
    const rushers = Array.from({ length: perSecond * seconds }, (_, index) => {
      const id = `rushers-${this.people + index + 1}`;
      return { id, authorization: `Bearer ${this.options.accessToken(id)}` };
    });
    this.people += rushers.length;
    const [gateway] = this.options.gateways;
    if (!gateway) throw new Error('a crowd has at least one gateway');
    const { shopUrl } = gateway;
    const latenessMs: number[] = [];
    const thread = new RushThread(
      {
        shopUrl,
        path: `/v1/sales/${this.options.saleId}/entries`,
        idempotencyKey: FIRST_KEY,
        body: JSON.stringify(ENTRY_BODY),
        perSecond,
        deadlineMs: CLIENT_DEADLINE_MS,
        rushers,
      },
      (answers) => {
        for (const answer of answers) {
          latenessMs.push(answer.sentMs - answer.dueMs);
          this.meetRusher(answer, shopUrl);
        }
      },
    );
    this.rushThread = thread;
    // Windows wait for the whole rush, since nobody here knows who of it is under way.
    const underway = { sentMs: Infinity };
    const end = async () => {
      thread.stop();
      try {
        const { turnedAway, lagMs } = await thread.ended;
        this.turnedAway += turnedAway;
        return { lagMs, lateness: quantilesOf(latenessMs) };
      } finally {
        this.sending.delete(underway);
      }
    };
    let ending: ReturnType<typeof end> | undefined;
    return {
      start: () => {
        underway.sentMs = performance.now();
        this.sending.add(underway);
        thread.start();
      },
      stop: () => (ending ??= end()),
    };
  }

  // ── What others look at ───────────────────────────────────────────────────────────────────────────────────────────

  /** Watches what is sent from now on. */
  window(name = ''): Window {
    return new Window(this.exchanges, this.sending, name);
  }

  /**
   * Waits until an order that is sent from now on is answered 202.
   *
   * @returns after how many ms; throws when none is in time
   */
  async accepting(withinMs: number): Promise<number> {
    const sinceMs = performance.now();
    let seen = this.exchanges.length;
    for (;;) {
      for (; seen < this.exchanges.length; seen += 1) {
        const exchange = this.exchanges[seen];
        if (exchange?.op === 'order' && exchange.http === 202 && exchange.sentMs >= sinceMs)
          return exchange.endedMs - sinceMs;
      }
      if (performance.now() - sinceMs > withinMs)
        throw new Error(`no order was accepted within ${withinMs} ms`);
      await sleep(20);
    }
  }

  /** How long orders took from their 202, or from `sinceMs` where that is later, until their shopper saw the decision. */
  decidedAfterMs(sinceMs = 0): Quantiles {
    const decided = [...this.orders.values()].flatMap(({ acceptedMs, decidedMs }) =>
      decidedMs !== null && decidedMs > sinceMs ? [decidedMs - Math.max(acceptedMs, sinceMs)] : [],
    );
    return quantilesOf(decided);
  }

  /** Orders that were accepted and whose decision nobody has seen yet. */
  get undecided(): number {
    return [...this.orders.values()].filter(({ decidedMs }) => decidedMs === null).length;
  }

  get accepted(): number {
    return this.orders.size;
  }

  /** Of the crowd's own process: with a large one its latencies prove nothing. */
  get lagMs(): number {
    return Math.round(this.lag.percentile(99) / 1e6);
  }

  // ── Its end ───────────────────────────────────────────────────────────────────────────────────────────────────────

  /** Nobody new comes to the plentiful sale; at the scarce one whoever gets a unit buys it, until `soldOut` says so. */
  async finish(soldOut: () => Promise<boolean>, withinMs: number): Promise<void> {
    const giveUpAtMs = performance.now() + withinMs;
    this.rates.buyers = 0;
    this.closing = true;
    while (!(await soldOut()) && performance.now() < giveUpAtMs) await sleep(300);
    clearInterval(this.timer);
    this.gaveUpAtMs = giveUpAtMs;
    const anybody = () => Object.values(this.underway).some((count) => count > 0);
    while (anybody() && performance.now() < giveUpAtMs + 8_000) await sleep(50);
  }

  async stop(): Promise<void> {
    clearInterval(this.timer);
    this.gaveUpAtMs = 0;
    await this.rushThread?.terminate();
    this.balancer.stop();
    this.lag.disable();
    this.log.end();
    await finished(this.log).catch(() => undefined);
  }

  // ── People ────────────────────────────────────────────────────────────────────────────────────────────────────────

  private arrive(kind: Kind): void {
    if (this.underway[kind] >= MOST_UNDERWAY[kind]) {
      this.turnedAway += 1;
      return;
    }
    this.people += 1;
    this.underway[kind] += 1;
    const saleId = kind === 'seekers' ? this.options.scarceSaleId : this.options.saleId;
    const id = `${kind}-${this.people}`;
    void this.visit(new Visitor(`Bearer ${this.options.accessToken(id)}`, id, saleId), kind).finally(() => {
      this.underway[kind] -= 1;
    });
  }

  /** Takes down what the thread has seen; who was let in goes on here. */
  private meetRusher({ rusher, dueMs, sentMs, endedMs, ...seen }: RushAnswer, gateway: string): void {
    const visitor = new Visitor(rusher.authorization, rusher.id, this.options.saleId);
    visitor.key = FIRST_KEY;
    const { http, text, retryAfter, contentType } = seen;
    const answer =
      http === 0
        ? { http, code: text, body: {}, retryAfter, contentType }
        : readAnswer(http, { retryAfter, contentType }, text);
    const epochMs = performance.timeOrigin;
    const times = { sentMs: sentMs - epochMs, endedMs: endedMs - epochMs };
    // Whoever was to come at a moment has waited from then on, whether or not their thread had time for them.
    this.note(visitor, 'entry', answer, gateway, { ...times, sentMs: dueMs - epochMs });
    this.record(visitor, 'entry', ENTRY_BODY, answer, times);
    if (typeof answer.body['entryId'] !== 'string') return;
    this.underway.rushers += 1;
    void this.visit(visitor, 'rushers', answer).finally(() => {
      this.underway.rushers -= 1;
    });
  }

  private async visit(visitor: Visitor, kind: Kind | 'rushers', first?: Answered): Promise<void> {
    // A hold may end before its order got through; then the shopper starts over, under a new key.
    for (let attempt = 1; attempt <= 3; attempt += 1) {
      visitor.key = attempt === 1 ? FIRST_KEY : `visit-${attempt}`;
      const enter = () => this.enter(visitor);
      const entry =
        attempt === 1 && first ? first : await (kind === 'rushers' ? enter() : this.persist(enter));
      if (!entry || typeof entry.body['entryId'] !== 'string') return;
      visitor.attemptId = entry.body['entryId'];
      const token = entry.body['purchaseToken'];
      if (typeof token === 'string') {
        if (await this.use(visitor, token, kind)) return;
      } else if (entry.body['state'] !== 'expired') return;
    }
  }

  /** @returns false when the hold was over before it could be used */
  private async use(visitor: Visitor, purchaseToken: string, kind: Kind | 'rushers'): Promise<boolean> {
    const roll = this.dice();
    const means = this.closing || kind !== 'seekers';
    if (roll < (means ? 0.02 : 0.35)) {
      await this.persist(() => this.send(visitor, 'leave', 'DELETE', `/v1/entries/${visitor.attemptId}`));
      return true;
    }
    // Walks away without a word.
    if (!means && roll < 0.6) return true;
    const order = await this.persist(() =>
      this.send(visitor, 'order', 'POST', '/v1/orders', { purchaseToken, delivery: DELIVERY }),
    );
    if (order?.code === 'token_expired') return false;
    if (order?.http !== 202 && order?.http !== 200) return true;
    const accepted: Accepted = { acceptedMs: performance.now(), decidedMs: null };
    this.orders.set(visitor.attemptId, accepted);
    const state = await this.decision(visitor);
    accepted.decidedMs = state === null ? null : performance.now();
    if (state === 'awaiting_payment') await this.conclude(visitor, means);
    return true;
  }

  /** Looks at the order until it is decided; null when it is not in time. */
  private async decision(visitor: Visitor): Promise<string | null> {
    for (let pauseMs = 150; ; pauseMs = Math.min(1_000, pauseMs * 1.5)) {
      await sleep(pauseMs * (0.5 + this.dice()));
      const answer = await this.persist(() =>
        this.send(visitor, 'order-status', 'GET', `/v1/orders/${visitor.attemptId}`),
      );
      if (!answer) return null;
      const { state } = answer.body;
      if (answer.http === 200 && typeof state === 'string' && state !== 'queued') return state;
      if (answer.http !== 200 && answer.http !== 404) return null;
      if (performance.now() > this.gaveUpAtMs) return null;
    }
  }

  private async conclude(visitor: Visitor, pays: boolean): Promise<void> {
    const path = `/v1/orders/${visitor.attemptId}`;
    if (this.dice() < (pays ? 0.03 : 0.5)) {
      await this.persist(() => this.send(visitor, 'cancel', 'DELETE', path));
      return;
    }
    const card = { method: 'test-card', card: '4242424242424242' };
    // A payment that never reached the provider is settled as declined; people then try once more.
    for (const key of ['payment-1', 'payment-2']) {
      const answer = await this.persist(() =>
        this.send(visitor, 'payment', 'POST', `${path}/payment`, card, key),
      );
      if (answer?.http === 200) this.paid += 1;
      if (answer?.code !== 'payment_declined') return;
    }
  }

  private enter(visitor: Visitor): Promise<Answered> {
    const path = `/v1/sales/${visitor.saleId}/entries`;
    return this.send(visitor, 'entry', 'POST', path, ENTRY_BODY, visitor.key);
  }

  /** Repeats a call while its outcome is unknown or the suite asks to come back; null when patience is over. */
  private async persist(call: () => Promise<Answered>): Promise<Answered | null> {
    const untilMs = Math.min(performance.now() + PATIENCE_MS, this.gaveUpAtMs);
    for (let pauseMs = 150; ; pauseMs = Math.min(1_500, pauseMs * 1.6)) {
      // The second click's answer is the first one's, or the auditor will say so.
      const [answer] = await Promise.all(this.dice() < DOUBLE_CLICK ? [call(), call()] : [call()]);
      const passing = [0, 429, 503].includes(answer.http) || answer.code === 'in_progress';
      if (!passing) return answer;
      if (performance.now() > Math.min(untilMs, this.gaveUpAtMs)) return null;
      const askedMs = Math.min(5_000, 1_000 * (Number(answer.retryAfter) || 0));
      await sleep(Math.max(pauseMs, askedMs) * (0.5 + this.dice()));
    }
  }

  private async send(
    visitor: Visitor,
    op: Operation,
    method: string,
    path: string,
    body?: object,
    idempotencyKey?: string,
  ): Promise<Answered> {
    const backend = this.balancer.next();
    backend.sent += 1;
    const sentMs = performance.now();
    const underway = { sentMs };
    this.sending.add(underway);
    const answer = await new Promise<Answered>((resolve) => {
      const text = body === undefined ? undefined : JSON.stringify(body);
      const asking = httpRequest(
        `${backend.shopUrl}${path}`,
        {
          method,
          agent: backend.agent,
          headers: {
            authorization: visitor.authorization,
            ...(text === undefined
              ? {}
              : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }),
            ...(idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey }),
          },
        },
        (response) => {
          const chunks: Buffer[] = [];
          response.on('data', (chunk: Buffer) => chunks.push(chunk));
          response.on('error', (error) => resolve(noAnswer(error)));
          response.on('end', () =>
            resolve(
              readAnswer(
                response.statusCode ?? 0,
                headersOf(response.headers),
                Buffer.concat(chunks).toString(),
              ),
            ),
          );
        },
      );
      // Whatever the connection does: nobody waits longer than that.
      const deadline = setTimeout(
        () => asking.destroy(Object.assign(new Error(), { code: 'ETIMEDOUT' })),
        CLIENT_DEADLINE_MS,
      );
      asking.on('error', (error) => resolve(noAnswer(error)));
      asking.on('close', () => clearTimeout(deadline));
      asking.end(text);
    });
    this.sending.delete(underway);
    const times = { sentMs, endedMs: performance.now() };
    this.note(visitor, op, answer, backend.shopUrl, times);
    this.record(visitor, op, body, answer, times);
    return answer;
  }

  private note(
    { saleId }: Visitor,
    op: Operation,
    { http, code, body }: Answered,
    gateway: string,
    times: { readonly sentMs: number; readonly endedMs: number },
  ): void {
    this.exchanges.push({ op, saleId, ...times, http, code, state: textOf(body['state']), gateway });
  }

  /** One line in the form that the auditor's `--log` describes. */
  private record(
    visitor: Visitor,
    op: Operation,
    body: object | undefined,
    answer: Answered,
    { sentMs, endedMs }: { readonly sentMs: number; readonly endedMs: number },
  ): void {
    const { state, purchaseToken, unitPrice, entryId, orderId } = answer.body;
    const line = {
      op,
      attemptId: op === 'entry' ? textOf(entryId) : visitor.attemptId,
      answeredId: textOf(entryId ?? orderId),
      saleId: visitor.saleId,
      shopperId: visitor.id,
      skuId: SKU_ID,
      quantity: 1,
      key: visitor.key,
      sentMs: Math.floor(performance.timeOrigin + sentMs),
      receivedMs: Math.ceil(performance.timeOrigin + endedMs),
      http: answer.http,
      code: answer.http === 0 ? '' : answer.code,
      state: textOf(state),
      deadlineMs: CLIENT_DEADLINE_MS,
      contentType: answer.contentType,
      ...(answer.retryAfter === undefined ? {} : { retryAfter: answer.retryAfter }),
      ...(body === undefined ? {} : { bodyHash: this.digestOf(op === 'order' ? DELIVERY : body) }),
      ...(typeof purchaseToken === 'string' ? { purchaseToken } : {}),
      ...(typeof unitPrice === 'number' ? { unitPrice } : {}),
    };
    if (!this.log.writableEnded) this.log.write(`${JSON.stringify(line)}\n`);
  }

  /** Most bodies are the same object. */
  private digestOf(body: object): string {
    const digest =
      this.digests.get(body) ?? createHash('sha256').update(JSON.stringify(body)).digest('base64url');
    this.digests.set(body, digest);
    return digest;
  }
}

/** What was sent between its start and its end. */
export class Window {
  readonly startMs = performance.now();

  constructor(
    private readonly exchanges: readonly Exchange[],
    private readonly sending: ReadonlySet<{ readonly sentMs: number }>,
    readonly name: string,
  ) {}

  /** Closes it, and waits until everything that was sent in it has ended. */
  async end(): Promise<Seen> {
    const endMs = performance.now();
    // Nothing is under way for longer than the client's deadline.
    while ([...this.sending].some(({ sentMs }) => sentMs < endMs)) await sleep(20);
    return new Seen(this.exchanges, this.startMs, endMs);
  }

  /** What is known of it so far; requests under way are missing. */
  soFar(): Seen {
    return new Seen(this.exchanges, this.startMs, performance.now());
  }
}

/** What a crowd saw in a stretch of time. */
export class Seen {
  private readonly sent: readonly Exchange[];
  /** Orders that were promised in the stretch, by a 202 of a queued one, whenever they were sent. One that is decided is a fact. */
  readonly promised: number;

  constructor(
    exchanges: readonly Exchange[],
    readonly startMs: number,
    readonly endMs: number,
  ) {
    const within = (ms: number) => ms >= startMs && ms < endMs;
    this.sent = exchanges.filter((exchange) => within(exchange.sentMs));
    this.promised = exchanges.filter(
      ({ op, http, state, endedMs }) =>
        op === 'order' && http === 202 && state === 'queued' && within(endedMs),
    ).length;
  }

  get durationMs(): number {
    return this.endMs - this.startMs;
  }

  /** Orders sent in the stretch that were answered 202. */
  get accepted(): number {
    return this.count({ op: 'order', http: 202 });
  }

  /** Requests without any answer. */
  get cut(): number {
    return this.count({ http: 0 });
  }

  /** When the first order that was accepted had been sent, ms after the start; null for none. */
  get firstAcceptedMs(): number | null {
    const first = this.sent.find(({ op, http }) => op === 'order' && http === 202);
    return first ? first.sentMs - this.startMs : null;
  }

  count(which: Which = {}): number {
    return this.those(which).length;
  }

  /** Of requests that got an answer, unless the missing answer is asked for. */
  latencyMs(which: Which = {}): Quantiles {
    return quantilesOf(
      this.those(which)
        .filter(({ http }) => http > 0 || which.http === 0)
        .map(({ sentMs, endedMs }) => endedMs - sentMs),
    );
  }

  /** How often each answer came: `order 503 enqueue_unknown` → 12. */
  get answers(): Readonly<Record<string, number>> {
    const counts: Record<string, number> = {};
    for (const { op, http, code } of this.sent) {
      const answer = [op, http || '', code].filter(Boolean).join(' ');
      counts[answer] = (counts[answer] ?? 0) + 1;
    }
    return counts;
  }

  /** What shoppers saw besides success and the refusals of a scarce sale, for the table. */
  get troubles(): string {
    const counts = new Map<string, number>();
    for (const { http, code } of this.sent) {
      if (http > 0 && http < 400) continue;
      if (['sold_out', 'not_enough_left', 'entry_exists'].includes(code)) continue;
      const trouble = http === 0 ? code : `${http} ${code}`;
      counts.set(trouble, (counts.get(trouble) ?? 0) + 1);
    }
    const total = Math.max(1, this.sent.length);
    const parts = [...counts]
      .toSorted(([, one], [, other]) => other - one)
      .map(([trouble, count]) => `${trouble} ${((100 * count) / total).toFixed(1)} %`);
    return parts.length > 0 ? parts.join(', ') : 'nothing';
  }

  private those({ op, http, code, gateway }: Which): readonly Exchange[] {
    return this.sent.filter(
      (exchange) =>
        (op === undefined || exchange.op === op) &&
        (http === undefined || exchange.http === http) &&
        (code === undefined || exchange.code === code) &&
        (gateway === undefined || exchange.gateway === gateway),
    );
  }
}

class Visitor {
  key = '';
  attemptId = '';

  constructor(
    readonly authorization: string,
    readonly id: string,
    readonly saleId: string,
  ) {}
}

interface Answered {
  readonly http: number;
  readonly code: string;
  readonly body: Readonly<Record<string, unknown>>;
  readonly retryAfter: string | undefined;
  readonly contentType: string;
}

function headersOf(headers: IncomingHttpHeaders): Pick<Answered, 'retryAfter' | 'contentType'> {
  return { retryAfter: headers['retry-after'], contentType: headers['content-type'] ?? '' };
}

function readAnswer(
  http: number,
  headers: Pick<Answered, 'retryAfter' | 'contentType'>,
  text: string,
): Answered {
  const read = { http, ...headers };
  try {
    const body = (text === '' ? {} : JSON.parse(text)) as Readonly<Record<string, unknown>>;
    return { ...read, body, code: http >= 400 ? textOf(body['code']) : '' };
  } catch {
    return { ...read, body: {}, code: 'unreadable' };
  }
}

function textOf(value: unknown): string {
  return typeof value === 'string' ? value : '';
}

function noAnswer(error: NodeJS.ErrnoException): Answered {
  const code = error.code === 'ETIMEDOUT' ? 'timeout' : error.code === 'ECONNREFUSED' ? 'refused' : 'cut';
  return { http: 0, code, body: {}, retryAfter: undefined, contentType: '' };
}

function quantilesOf(values: readonly number[]): Quantiles {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (share: number) => Math.round(sorted[Math.ceil(sorted.length * share) - 1] ?? 0);
  return { count: sorted.length, p50: at(0.5), p95: at(0.95), p99: at(0.99), max: at(1) };
}
