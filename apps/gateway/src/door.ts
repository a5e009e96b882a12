import { meter } from '@flash-sale/service';

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

/** So much of a second's entries may come at one moment. */
const BURST_SHARE = 0.1;
const RETRY_AFTER_MAX_SECONDS = 5;

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

  /** Whether an entry that comes now can only be refused; if so, it is counted as that. */
  isShut(): boolean {
    if (!this.options.behind.some((service) => service.isFull()) && this.hasRoom()) return false;
    this.refuse();
    return true;
  }

  /** Takes the room for one entry; false where there is none. */
  pass(): boolean {
    if (this.perMs === 0) return true;
    if (!this.hasRoom()) {
      this.refuse();
      return false;
    }
    this.room -= 1;
    return true;
  }

  /** Seconds; spread, so that those who were refused together do not come together again. */
  retryAfterSeconds(): number {
    return 1 + Math.floor(Math.random() * RETRY_AFTER_MAX_SECONDS);
  }

  private hasRoom(): boolean {
    if (this.perMs === 0) return true;
    const nowMs = this.now();
    this.room = Math.min(this.burst, this.room + (nowMs - this.filledMs) * this.perMs);
    this.filledMs = nowMs;
    return this.room >= 1;
  }

  private refuse(): void {
    this.refusedSoFar += 1;
    this.refusals.add(1);
  }
}
