import type { StockClient } from '@flash-sale/contracts';
import type { Log } from '@flash-sale/service';
import type { Effect } from './write-chunk.js';

const MAX_UNDER_WAY = 4;
const WITHIN_MS = 1_500;

/**
 * Tells inventory what was decided, so that Redis learns of it within milliseconds. Only a nudge: the rows of the outbox
 * are the truth, and inventory finds by itself those it was not told of. So nobody waits for it, and when inventory is slow
 * it is left out rather than queued.
 */
export class EffectAnnouncer {
  private readonly underWay = new Set<Promise<void>>();

  constructor(
    private readonly stock: Pick<StockClient, 'applyEffects'>,
    private readonly log: Log,
  ) {}

  /** Never throws. */
  readonly announce = (effects: readonly Effect[]): void => {
    if (this.underWay.size >= MAX_UNDER_WAY) return;
    const told = this.tell(effects).finally(() => this.underWay.delete(told));
    this.underWay.add(told);
  };

  /** Resolves when nothing is under way any more. */
  async drain(): Promise<void> {
    await Promise.all(this.underWay);
  }

  private async tell(effects: readonly Effect[]): Promise<void> {
    try {
      await this.stock.applyEffects(
        {
          effects: effects.map(({ attemptId, shopperId, kind, reason }) => ({
            attemptId,
            shopperId,
            kind: kind === 'confirm' ? 'CONFIRM' : 'VOID',
            reason: reason ?? '',
          })),
        },
        WITHIN_MS,
      );
    } catch (error) {
      this.log.debug({ err: error, effects: effects.length }, 'inventory was not told; it will find out');
    }
  }
}
