import { isOlderThan, type Database, type SqlRow } from '@flash-sale/database';
import { effectOf, type OrderState } from '@flash-sale/domain';
import { decidedColumns, decidedRowFrom, reasonOf } from './decided-rows.js';
import type { Effect, Stock } from './stock.js';

/** One try applies at most this many. */
export const MAX_EFFECTS = 500;

interface EffectRow extends SqlRow {
  order_id: string;
  shopper_id: string;
  kind: string;
  reason: string | null;
}

/**
 * Effects: what Redis must learn of MySQL's decisions. The rows of the outbox are the truth, whoever wrote them nudges, and
 * whatever a nudge did not bring about is done here a second later. A row is marked only after Redis was told.
 */
export class Effects {
  constructor(
    private readonly stock: Stock,
    private readonly database: Database,
  ) {}

  /**
   * Applies effects and marks their rows. Idempotent; effects of one attempt are applied in the order of its life.
   *
   * @returns how many Redis has been told of; the others are kept
   */
  async apply(effects: readonly Effect[]): Promise<number> {
    const inOrder = effects.toSorted(byLife);
    const outcomes = await this.stock.applyEffects(inOrder);
    const forgotten = inOrder.filter((_, index) => outcomes[index]?.outcome === 'missing');
    const untold = forgotten.length > 0 ? await this.adopt(forgotten) : new Set();
    const told = inOrder.filter(
      ({ attemptId }, index) => outcomes[index]?.outcome !== 'unavailable' && !untold.has(attemptId),
    );
    for (const kind of ['confirm', 'void'] as const) {
      const ids = told.filter((effect) => effect.kind === kind).map(({ attemptId }) => attemptId);
      if (ids.length === 0) continue;
      await this.database.change(
        'UPDATE effect SET applied_at = NOW(3) WHERE order_id IN (?) AND kind = ? AND applied_at IS NULL',
        [ids.toSorted(), kind],
      );
    }
    return told.length;
  }

  /**
   * What Redis has forgotten, or never knew because MySQL alone decided it, is in its free units. The record that the row says
   * takes them from there, or says that there are none to take; so a unit that MySQL has sold is not granted again.
   *
   * @returns the attempts of which Redis could not be told
   */
  private async adopt(effects: readonly Effect[]): Promise<Set<string>> {
    const ids = [...new Set(effects.map(({ attemptId }) => attemptId))];
    const rows = await this.database.query(
      `SELECT ${decidedColumns('orders')} FROM orders WHERE order_id IN (?)`,
      [ids],
    );
    const wanted = rows.map(decidedRowFrom).map((row) => ({ row, seen: '', correctionId: '' }));
    const outcomes = await this.stock.restore(wanted);
    // Known by now after all: the effect is for it.
    return new Set(
      wanted.flatMap(({ row }, index) => (outcomes[index]?.outcome === 'restored' ? [] : [row.orderId])),
    );
  }

  /** Applies what rows of these states mean, whether or not it was applied before: Redis may have forgotten it. */
  applyRows(
    rows: readonly {
      readonly attemptId: string;
      readonly shopperId: string;
      readonly state: Exclude<OrderState, 'queued'>;
      readonly reason: string | null;
    }[],
  ): Promise<number> {
    return this.apply(
      rows.map(({ attemptId, shopperId, state, reason }) => ({
        attemptId,
        shopperId,
        kind: effectOf(state),
        reason: reasonOf(state, reason),
      })),
    );
  }

  /**
   * One pass over the outbox: effects that are older than `ageMs` and of which Redis has not been told.
   *
   * @param saleIds the sales that can be told now: the effects of others are kept, and must not stand in their way
   * @returns how many there were and how many are done
   */
  async sweep(
    ageMs: number,
    saleIds: readonly string[],
  ): Promise<{ readonly found: number; readonly applied: number }> {
    if (saleIds.length === 0) return { found: 0, applied: 0 };
    const rows = await this.database.query<EffectRow>(
      `SELECT order_id, shopper_id, kind, reason FROM effect
       WHERE applied_at IS NULL AND sale_id IN (?)
         AND ${isOlderThan('created_at')}
       ORDER BY created_at LIMIT ?`,
      [saleIds, ageMs * 1_000, MAX_EFFECTS],
    );
    if (rows.length === 0) return { found: 0, applied: 0 };
    const applied = await this.apply(
      rows.map((row) => ({
        attemptId: row.order_id,
        shopperId: row.shopper_id,
        kind: row.kind === 'confirm' ? 'confirm' : 'void',
        reason: row.reason ?? '',
      })),
    );
    return { found: rows.length, applied };
  }
}

/** Confirmed before void, whatever the clock says of two rows written in one millisecond. */
function byLife(a: Effect, b: Effect): number {
  return a.kind === b.kind ? 0 : a.kind === 'confirm' ? -1 : 1;
}
