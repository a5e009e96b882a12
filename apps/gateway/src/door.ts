import type { IncomingMessage, ServerResponse } from 'node:http';
import { meter, type EarlyAnswer } from '@flash-sale/service';
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

/**
 * Refuses new entries before identity, limits and body: what can only be refused should cost next to nothing. An address that
 * is spelled in another way reaches the same call, and its room is taken there.
 *
 * @param needsRoom of a sale's id; whoever memory can answer goes on, and takes no room from those who buy
 */
export function refuseEntries(
  door: Door,
  needsRoom: (saleId: string) => boolean,
): (request: IncomingMessage, response: ServerResponse) => EarlyAnswer | null {
  const answerAfter = preparedProblem('unavailable', ENTRIES.route);
  return (request, response) => {
    const saleId = request.method === 'POST' ? saleOf(request.url ?? '') : null;
    if (saleId === null || !needsRoom(saleId)) return null;
    if (!door.enter(request)) return answerAfter(door.retryAfterSeconds());
    response.once('close', () => door.leave(request));
    return null;
  };
}

/** The sale whose entries a plainly spelled address names. */
function saleOf(url: string): string | null {
  const { before, after } = ENTRIES;
  const end = url.length - after.length;
  if (!url.startsWith(before) || !url.endsWith(after) || url.indexOf('/', before.length) !== end) return null;
  return url.slice(before.length, end);
}
