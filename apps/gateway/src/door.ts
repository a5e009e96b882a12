import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http';
import type { ProblemCode } from '@flash-sale/contracts';
import { IdempotencyKey, type ShopperId } from '@flash-sale/domain';
import { meter, type EarlyAnswer } from '@flash-sale/service';
import type { Caller } from './identity.js';
import { preparedProblem } from './problems.js';

export interface DoorOptions {
  /**
   * The clients behind which entries are decided and orders placed; they know how much those can take. While orders cannot be
   * placed, nobody is given a unit to order with.
   */
  readonly behind: readonly { isFull(): boolean }[];
  /** New entries that this gateway lets in a second; 0: as many as the services behind can take. */
  readonly entriesPerSecond: number;
  readonly now?: () => number;
}

/** The call that opens the door. */
const ENTRIES = { route: '/v1/sales/:saleId/entries', before: '/v1/sales/', after: '/entries' } as const;
/** So much of a second's entries may come at one moment. */
const BURST_SHARE = 0.1;
const RETRY_AFTER_MAX_SECONDS = 5;
/** Longer than that nobody keeps room without going on, e.g. by sending their body slowly; they may take it anew. */
const STAY_MS = 500;

/**
 * Where new entries wait for nothing: there is room for one more, or it is refused before anything is spent on it. Who is
 * inside already, with a place, a hold or an order, does not pass here.
 */
export class Door {
  private readonly perMs: number;
  private readonly burst: number;
  private readonly now: () => number;
  private room: number;
  private filledMs: number;
  /** Who entered and has neither passed nor left, and since when; the oldest first. */
  private readonly inside = new Map<object, number>();
  private refusedSoFar = 0;
  private readonly refusals = meter().createCounter('entries.refused', {
    description: 'New entries refused for want of room, before they cost anything',
  });

  constructor(private readonly options: DoorOptions) {
    this.now = options.now ?? (() => performance.now());
    this.perMs = options.entriesPerSecond / 1_000;
    this.burst = Math.max(1, options.entriesPerSecond * BURST_SHARE);
    this.room = this.burst;
    this.filledMs = this.now();
  }

  /** How many were refused since the start. */
  get refused(): number {
    return this.refusedSoFar;
  }

  /**
   * Takes the room for an entry that comes now, before anything else is known of it; false where it can only be refused.
   * Whoever entered must {@link leave}, or the room of those who never get as far as the line would be lost.
   *
   * @param arrival stands for the entry
   */
  enter(arrival: object): boolean {
    if (this.isFullBehind() || !this.take()) return this.refuse();
    if (this.perMs > 0) this.inside.set(arrival, this.filledMs);
    return true;
  }

  /** The entry goes on to the line, and so its room is used. False where there is none for one that did not enter. */
  pass(arrival: object): boolean {
    return this.inside.delete(arrival) || (!this.isFullBehind() && this.take()) || this.refuse();
  }

  /** The entry is over; the room that it did not use is there for others. */
  leave(arrival: object): void {
    if (this.inside.delete(arrival)) this.room = Math.min(this.burst, this.room + 1);
  }

  /** Seconds; spread, so that those who were refused together do not come together again. */
  retryAfterSeconds(): number {
    return 1 + Math.floor(Math.random() * RETRY_AFTER_MAX_SECONDS);
  }

  private isFullBehind(): boolean {
    return this.options.behind.some((service) => service.isFull());
  }

  private take(): boolean {
    if (this.perMs === 0) return true;
    const nowMs = this.now();
    this.room = Math.min(this.burst, this.room + (nowMs - this.filledMs) * this.perMs);
    this.filledMs = nowMs;
    for (const [arrival, enteredMs] of this.inside) {
      if (nowMs - enteredMs < STAY_MS) break;
      this.leave(arrival);
    }
    if (this.room < 1) return false;
    this.room -= 1;
    return true;
  }

  private refuse(): false {
    this.refusedSoFar += 1;
    this.refusals.add(1);
    return false;
  }
}

/** Whom {@link refuseEntries} asks. */
export interface EntryJudges {
  /** Whether new entries of a sale may get as far as the line; whoever memory can answer takes no room from those who buy. */
  readonly needsRoom: (saleId: string) => boolean;
  /** Whose request it is, where that was verified before. */
  readonly callerOf: (headers: IncomingHttpHeaders) => Caller | null;
  /** What memory says against an entry of somebody whom the sale is certain not to know. */
  readonly refusalOfStranger: (saleId: string, shopperId: ShopperId) => ProblemCode | null;
}

/**
 * Refuses new entries where they would only cost more to be refused later: for want of room before identity, limits and body;
 * by what memory knows of the sale before limits and body, if it is known who asks. An address that is spelled in another way
 * reaches the same call, and so does everybody who may get another answer there.
 */
export function refuseEntries(
  door: Door,
  { needsRoom, callerOf, refusalOfStranger }: EntryJudges,
): (request: IncomingMessage, response: ServerResponse) => EarlyAnswer | null {
  const prepared = new Map<ProblemCode, ReturnType<typeof preparedProblem>>();
  const answerOf = (code: ProblemCode, retryAfterSeconds?: number) => {
    const known = prepared.get(code) ?? preparedProblem(code, ENTRIES.route);
    prepared.set(code, known);
    return known(retryAfterSeconds);
  };
  return (request, response) => {
    const saleId = request.method === 'POST' ? saleOf(request.url ?? '') : null;
    if (saleId === null) return null;
    if (needsRoom(saleId)) {
      if (!door.enter(request)) return answerOf('unavailable', door.retryAfterSeconds());
      response.once('close', () => door.leave(request));
      return null;
    }
    const caller = isPlain(request.headers) ? callerOf(request.headers) : null;
    const code = caller && refusalOfStranger(saleId, caller.shopperId);
    return code && answerOf(code);
  };
}

/** Whether nothing is wrong with the headers of an entry, and no ticket says that there is a place in a line. */
function isPlain(headers: IncomingHttpHeaders): boolean {
  return (
    headers['content-type'] === 'application/json' &&
    headers['content-encoding'] === undefined &&
    headers['x-entry-ticket'] === undefined &&
    IdempotencyKey.safeParse(headers['idempotency-key']).success
  );
}

/** The sale whose entries a plainly spelled address names. */
function saleOf(url: string): string | null {
  const { before, after } = ENTRIES;
  const end = url.length - after.length;
  if (!url.startsWith(before) || !url.endsWith(after) || url.indexOf('/', before.length) !== end) return null;
  return url.slice(before.length, end);
}
