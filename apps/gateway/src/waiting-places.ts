import type { LineClient, SaleSnapshot, token } from '@flash-sale/contracts';
import { waitOf, type AttemptId, type SaleId, type ShopperId } from '@flash-sale/domain';
import { LRUCache } from 'lru-cache';

/** A bound for memory, about 20 MB. Of more people than that each is looked up, as somebody new is. */
const KNOWN_PLACES = 40_000;
/**
 * How long a place is believed without a look: so long an entry that was given up elsewhere may be shown as waiting. Spread,
 * so that those who came together do not look together.
 */
const LOOK_AFTER_MS = { least: 10_000, most: 20_000 } as const;
/** While anybody asks, the line's progress is asked for so often. */
const PROGRESS_EVERY_MS = 200;
/** Older progress says nothing of who still waits. */
const PROGRESS_FRESH_MS = 750;

interface Place {
  readonly entry: token.Entry;
  readonly shopperId: ShopperId;
  /** Of the sale; in another one nothing of this holds. */
  readonly epoch: number;
}

interface KnownLine {
  progress: token.ProgressReply | undefined;
  /** When the progress that is known was asked for, on the `performance.now()` scale. */
  ofMs: number;
  askedMs: number;
}

/**
 * Who waits in lines, as far as this gateway has seen, so that most polls cost no call. An entry that was seen waiting waits
 * as long as the line has let nobody through who came after it: one small call tells that for all entries of a sale, five
 * times a second while anybody asks, and moves the line on as their own looks would have. Those whose turn may come within
 * a second are looked up. So nobody is told to wait whose turn was more than {@link PROGRESS_FRESH_MS} ago.
 */
export class WaitingPlaces {
  private readonly places = new LRUCache<AttemptId, Place>({ max: KNOWN_PLACES });
  private readonly lines = new Map<SaleId, KnownLine>();

  constructor(private readonly client: Pick<LineClient, 'progress'>) {}

  /** Remembers what a look has shown; anything but a place in the line is not remembered any more. */
  note({ epoch }: SaleSnapshot, attemptId: AttemptId, shopperId: ShopperId, entry: token.Entry): void {
    // Another name of an entry would outlive it here.
    if (entry.state === 'waiting' && entry.place && entry.entryId === attemptId) {
      const { least, most } = LOOK_AFTER_MS;
      const ttl = Math.round(least + Math.random() * (most - least));
      this.places.set(attemptId, { entry: { ...entry, created: false }, shopperId, epoch }, { ttl });
    } else {
      this.places.delete(attemptId);
    }
  }

  forget(attemptId: AttemptId): void {
    this.places.delete(attemptId);
  }

  /** The entry as it stands, if it certainly waits; undefined where somebody has to look. */
  find(sale: SaleSnapshot, attemptId: AttemptId, shopperId: ShopperId): token.Entry | undefined {
    const known = this.places.get(attemptId);
    if (!known?.entry.place || known.shopperId !== shopperId || known.epoch !== sale.epoch) return undefined;
    const { admitPerSecond } = sale.line;
    const progress = this.progressOf(sale.saleId, admitPerSecond);
    if (!progress || progress.soldOut) return undefined;
    const { number, bornMs, admitted } = known.entry.place;
    if (progress.bornMs !== bornMs || progress.admittedTo >= number) return undefined;
    // Those before it who left since the look make it one less each; the next look will tell.
    const position = known.entry.position - Math.max(0, progress.admitted - admitted);
    if (position <= admitPerSecond) return undefined;
    return { ...known.entry, position, ...waitOf(position, admitPerSecond) };
  }

  private progressOf(saleId: SaleId, admitPerSecond: number): token.ProgressReply | undefined {
    const nowMs = performance.now();
    const never = Number.NEGATIVE_INFINITY;
    const line = this.lines.get(saleId) ?? { progress: undefined, ofMs: never, askedMs: never };
    if (nowMs - line.askedMs >= PROGRESS_EVERY_MS) {
      line.askedMs = nowMs;
      this.lines.set(saleId, line);
      void this.ask(line, nowMs, saleId, admitPerSecond);
    }
    return nowMs - line.ofMs < PROGRESS_FRESH_MS ? line.progress : undefined;
  }

  /** Never rejects: without an answer what is known grows old, and everybody is looked up. */
  private async ask(line: KnownLine, askedMs: number, saleId: SaleId, admitPerSecond: number): Promise<void> {
    try {
      const progress = await this.client.progress({ saleId, admitPerSecond }, PROGRESS_FRESH_MS);
      if (askedMs > line.ofMs) Object.assign(line, { progress, ofMs: askedMs });
    } catch {
      // The looks that follow say so to shoppers and to the log.
    }
  }
}
