import { Pool } from 'undici';
import type { ClientLog } from './client-log.js';
import type { Figures } from './figures.js';
import { Fifo, Pacer } from './pacing.js';
import { arrivalTimesMs, diceOf, intentionsOf } from './seeded.js';
import { Shopper, type Answer, type ShopperRequest, type Step } from './shopper.js';
import { headersOf, isTimeout, NO_HEADERS, readAnswer, recordOf, wireOf } from './wire.js';

export interface CrowdOptions {
  /** The gateway, for example `http://127.0.0.1:8080`. */
  readonly origin: string;
  readonly saleId: string;
  readonly skuId: string;
  readonly shoppers: number;
  readonly perSecond: number;
  readonly seed: number;
  readonly abandon: number;
  readonly decline: number;
  /** The access token of a shopper. */
  readonly accessToken: (shopperId: string) => string;
  readonly figures: Figures;
  readonly log: ClientLog;
}

/** A request that is on its way or waits for a connection. */
interface Errand {
  readonly visitor: Visitor;
  readonly request: ShopperRequest;
  /** When the shopper wanted it sent: latencies count from here, so that waiting for a connection is not hidden. */
  readonly dueMs: number;
}

interface Visitor {
  readonly shopper: Shopper;
  readonly headers: Readonly<Record<string, string>>;
}

/** Requests under way at once, for each kind, so that no kind waits for another: a hold ends while its order queues. */
const LANES = { entry: 128, order: 64, look: 48, payment: 32 };
type LaneName = keyof typeof LANES;
const TICK_MS = 5;
const EXCHANGE_TIMEOUT_MS = 6_000;
/** How many refused people together ask again in a second. Five are enough to find one returned unit. */
const ASK_AGAIN_PER_SECOND = 600;

interface Lane {
  readonly waiting: Fifo<Errand>;
  inFlight: number;
  readonly most: number;
}

const LANE_OF: Readonly<Record<ShopperRequest['kind'], LaneName>> = {
  entry: 'entry',
  line: 'look',
  order: 'order',
  order_status: 'look',
  payment: 'payment',
};

function laneOf(most: number): Lane {
  return { waiting: new Fifo<Errand>(), inFlight: 0, most };
}

/**
 * The crowd: arrivals by an open law (they do not wait for anybody's answer), each with a journey of its own, over a
 * bounded number of connections; those who were refused share one bounded rate of asking again.
 */
export class Crowd {
  /** Settles when everybody has left; rejects when the crowd cannot go on. */
  readonly done: Promise<void>;
  readonly #pool: Pool;
  readonly #arrivals: Float64Array;
  readonly #intentions: ReturnType<typeof intentionsOf>;
  readonly #dice: () => number;
  /** Next steps of purchases under way, by the time they are due. */
  readonly #pauses = new Pacer<Errand>(Infinity);
  readonly #askingAgain = new Pacer<Errand>(ASK_AGAIN_PER_SECOND);
  readonly #lanes = {
    entry: laneOf(LANES.entry),
    order: laneOf(LANES.order),
    look: laneOf(LANES.look),
    payment: laneOf(LANES.payment),
  } satisfies Record<LaneName, Lane>;
  #startedAtMs = 0;
  #arrived = 0;
  #doorsClosed = false;
  #timer: NodeJS.Timeout | undefined;
  #settle: { resolve: () => void; reject: (error: Error) => void } = { resolve: () => {}, reject: () => {} };

  constructor(private readonly options: CrowdOptions) {
    const { shoppers, perSecond, seed } = options;
    this.#arrivals = arrivalTimesMs(shoppers, perSecond, diceOf(seed, 'arrivals'));
    this.#intentions = intentionsOf(shoppers, options, diceOf(seed, 'intentions'));
    this.#dice = diceOf(seed, 'pauses');
    this.#pool = new Pool(options.origin, {
      connections: Object.values(LANES).reduce((sum, most) => sum + most, 0),
      pipelining: 1,
      headersTimeout: EXCHANGE_TIMEOUT_MS,
      bodyTimeout: EXCHANGE_TIMEOUT_MS,
      connect: { timeout: EXCHANGE_TIMEOUT_MS },
    });
    this.done = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
  }

  start(): void {
    this.#startedAtMs = performance.now();
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
  }

  /** Nobody asks for a unit any more; purchases under way go on to their end. */
  closeDoors(): void {
    if (this.#doorsClosed) return;
    this.#doorsClosed = true;
    for (const { visitor } of this.#askingAgain.clear()) visitor.shopper.sendHome();
    const purchases = this.#pauses.clear();
    for (const errand of purchases) {
      if (errand.request.kind === 'line') errand.visitor.shopper.sendHome();
      else this.#pauses.add(errand.dueMs, errand);
    }
    const { waiting } = this.#lanes.entry;
    for (let errand = waiting.shift(); errand; errand = waiting.shift()) errand.visitor.shopper.sendHome();
    this.#endIfEmpty();
  }

  /** Ends everything at once. Requests under way are cut. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    await this.#pool.destroy();
  }

  #tick(): void {
    try {
      const now = performance.now();
      if (!this.#doorsClosed) this.#admitArrivals(now);
      for (const errand of this.#pauses.take(now)) this.#enqueue(errand);
      for (const errand of this.#askingAgain.take(now)) this.#enqueue({ ...errand, dueMs: now });
      this.#pump();
      this.#endIfEmpty();
    } catch (error) {
      this.#fail(error);
    }
  }

  #admitArrivals(now: number): void {
    for (;;) {
      const dueMs = this.#startedAtMs + (this.#arrivals[this.#arrived] ?? Infinity);
      if (dueMs > now) return;
      const intention = this.#intentions[this.#arrived] ?? 'buy';
      this.#arrived += 1;
      const id = `shopper-${this.options.seed}-${this.#arrived}`;
      const shopper = new Shopper(id, intention, this.options.figures, this.#dice);
      const headers = { authorization: `Bearer ${this.options.accessToken(id)}` };
      this.#take({ shopper, headers }, shopper.arrive(), dueMs);
    }
  }

  #take(visitor: Visitor, step: Step, now: number): void {
    if (step.do === 'leave') return;
    const errand: Errand = { visitor, request: step.request, dueMs: now + step.afterMs };
    const wantsIn = step.request.kind === 'entry' || step.request.kind === 'line';
    if (this.#doorsClosed && wantsIn) visitor.shopper.sendHome();
    else if (step.do === 'ask_again') this.#askingAgain.add(errand.dueMs, errand);
    else if (step.request.kind === 'entry') this.#enqueue(errand);
    else if (step.afterMs > 0) this.#pauses.add(errand.dueMs, errand);
    else this.#enqueue(errand);
  }

  #enqueue(errand: Errand): void {
    this.#lanes[LANE_OF[errand.request.kind]].waiting.push(errand);
  }

  #pump(): void {
    for (const lane of Object.values(this.#lanes)) {
      while (lane.inFlight < lane.most && !this.options.log.congested) {
        const errand = lane.waiting.shift();
        if (!errand) break;
        lane.inFlight += 1;
        this.#run(errand, lane).catch((error: unknown) => this.#fail(error));
      }
    }
  }

  async #run(errand: Errand, lane: Lane): Promise<void> {
    const { visitor, request } = errand;
    const answer = await this.#exchange(visitor, request);
    lane.inFlight -= 1;
    const now = performance.now();
    this.#measure(request, answer, now - errand.dueMs);
    this.#take(visitor, visitor.shopper.next(request, answer), now);
    this.#pump();
    this.#endIfEmpty();
  }

  async #exchange(visitor: Visitor, request: ShopperRequest): Promise<Answer> {
    const { figures, log, saleId, skuId } = this.options;
    const { method, path, headers, body } = wireOf(request, saleId);
    const { id: shopperId, entryKey } = visitor.shopper;
    const sentMs = Date.now();
    figures.requests += 1;
    let answer: Answer;
    let seen = NO_HEADERS;
    try {
      const reply = await this.#pool.request({
        method,
        path,
        headers: { ...visitor.headers, ...headers },
        ...(body === undefined ? {} : { body }),
      });
      seen = headersOf(reply.headers);
      answer = readAnswer(reply.statusCode, reply.headers['retry-after'], await reply.body.text());
    } catch (error) {
      figures.unanswered += 1;
      answer = { http: 0, code: isTimeout(error) ? 'timeout' : 'cut', body: {}, retryAfterMs: 0 };
    }
    const receivedMs = Date.now();
    const times = { sentMs, receivedMs, deadlineMs: EXCHANGE_TIMEOUT_MS };
    log.write(recordOf({ saleId, skuId, shopperId, entryKey, request, answer, ...seen, ...times }));
    return answer;
  }

  #measure(request: ShopperRequest, answer: Answer, elapsedMs: number): void {
    const { entryMs, orderMs } = this.options.figures;
    const answered = answer.http > 0 && answer.http < 500;
    if (request.kind === 'entry' && answered) entryMs.add(elapsedMs);
    if (request.kind === 'order' && answer.http === 202) orderMs.add(elapsedMs);
  }

  #endIfEmpty(): void {
    const everybodyCame = this.#doorsClosed || this.#arrived === this.options.shoppers;
    const pausing = this.#pauses.size + this.#askingAgain.size;
    const busy = Object.values(this.#lanes).some((lane) => lane.waiting.size + lane.inFlight > 0);
    if (!everybodyCame || pausing > 0 || busy) return;
    clearInterval(this.#timer);
    this.#settle.resolve();
  }

  #fail(error: unknown): void {
    clearInterval(this.#timer);
    this.#settle.reject(error instanceof Error ? error : new Error(String(error)));
  }
}
