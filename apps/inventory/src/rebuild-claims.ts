import { randomUUID } from 'node:crypto';
import type { Database, SqlRow } from '@flash-sale/database';
import { SALE_COLUMNS, saleFromRow, type KnownSale } from './sale-book.js';
import { enterCorrection } from './reconcile.js';

export interface RebuildRow extends SqlRow {
  epoch: number;
  owner: string;
  leased: number;
  finished: number;
}

/** What a rebuild found, for the books. */
export interface Found {
  readonly lost: number;
  readonly orders: number;
  readonly free: number;
  /** Units that the buckets believed to have too few of, or too many. */
  readonly adjusted: number;
}

/** Who rebuilds a sale: one instance at a time, by the sale's row and a lease, in an epoch that nobody else has. */
export class RebuildClaims {
  readonly owner = randomUUID();

  constructor(
    private readonly database: Database,
    private readonly leaseMs: number,
  ) {}

  /** The sale's last rebuild: under way, left, or finished. */
  async last(
    saleId: string,
    statements: Pick<Database, 'query'> = this.database,
  ): Promise<RebuildRow | undefined> {
    const [row] = await statements.query<RebuildRow>(
      // A lease longer than any was given before the database's clock was set back; whoever still holds it renews it soon.
      `SELECT epoch, owner, lease_until BETWEEN NOW(3) AND NOW(3) + INTERVAL ? MICROSECOND + INTERVAL 1 SECOND AS leased,
          finished_at IS NOT NULL AS finished
        FROM rebuild WHERE sale_id = ? ORDER BY epoch DESC LIMIT 1`,
      [this.leaseMs * 1_000, saleId],
    );
    return row;
  }

  /** Takes the next epoch and the lease, unless somebody else was faster. The sale's row is the lock. */
  take(
    sale: KnownSale,
    { cause, maxEpoch }: { readonly cause: string; readonly maxEpoch: number },
  ): Promise<{ readonly sale: KnownSale; readonly servedEpoch: number } | undefined> {
    return this.database.transaction(async (statements) => {
      const [row] = await statements.query(`SELECT ${SALE_COLUMNS} FROM sale WHERE sale_id = ? FOR UPDATE`, [
        sale.saleId,
      ]);
      const now = row && saleFromRow(row);
      if (!now || now.epoch !== sale.epoch || now.storedPhase === 'settled') return undefined;
      const last = await this.last(sale.saleId, statements);
      const taken = last?.epoch === now.epoch && last.finished === 0 && last.leased === 1;
      if (taken && last.owner !== this.owner) return undefined;
      const [served] = await statements.query(
        'SELECT COALESCE(MAX(epoch), 1) AS epoch FROM rebuild WHERE sale_id = ? AND finished_at IS NOT NULL',
        [sale.saleId],
      );
      const epoch = Math.max(now.epoch, maxEpoch) + 1;
      await statements.change(
        'UPDATE sale SET epoch = ?, version = version + 1, updated_at = NOW(3) WHERE sale_id = ?',
        [epoch, sale.saleId],
      );
      await statements.change(
        `INSERT INTO rebuild (sale_id, epoch, owner, cause, lease_until, started_at)
         VALUES (?, ?, ?, ?, NOW(3) + INTERVAL ? MICROSECOND, NOW(3))`,
        [sale.saleId, epoch, this.owner, cause.slice(0, 200), this.leaseMs * 1_000],
      );
      return {
        sale: { ...now, epoch, version: now.version + 1 },
        servedEpoch: Number(served?.['epoch'] ?? 1),
      };
    });
  }

  /** Says that the owner lives. Returns false where somebody else has taken over. */
  async renew(sale: KnownSale): Promise<boolean> {
    const renewed = await this.database.change(
      `UPDATE rebuild JOIN sale ON sale.sale_id = rebuild.sale_id AND sale.epoch = rebuild.epoch
        SET rebuild.lease_until = NOW(3) + INTERVAL ? MICROSECOND
        WHERE rebuild.sale_id = ? AND rebuild.epoch = ? AND rebuild.owner = ? AND rebuild.finished_at IS NULL`,
      [this.leaseMs * 1_000, sale.saleId, sale.epoch, this.owner],
    );
    return renewed > 0;
  }

  /** Gives an unfinished rebuild up; whoever takes over begins anew. */
  async release(sale: KnownSale): Promise<void> {
    await this.database.change(
      `UPDATE rebuild SET lease_until = NOW(3)
        WHERE sale_id = ? AND epoch = ? AND owner = ? AND finished_at IS NULL`,
      [sale.saleId, sale.epoch, this.owner],
    );
  }

  /** From here on anybody may open the buckets. */
  async finish(sale: KnownSale, found: Found): Promise<void> {
    const finished = await this.database.transaction(async (statements) => {
      const [row] = await statements.query('SELECT epoch FROM sale WHERE sale_id = ? FOR UPDATE', [
        sale.saleId,
      ]);
      if (row?.['epoch'] !== sale.epoch) return 0;
      if (found.adjusted !== 0) {
        const id = `${sale.saleId}:fix:rebuild-${sale.epoch}`;
        await statements.change(
          `INSERT INTO correction (correction_id, sale_id, epoch, bucket, kind, order_id, units, state, detail, at)
           VALUES (?, ?, ?, 0, 'total', NULL, ?, 'done', 'found in a rebuild', NOW(3))`,
          [id, sale.saleId, sale.epoch, found.adjusted],
        );
        await enterCorrection(statements, id, sale.saleId, 'redis_lost', 'redis_free', found.adjusted);
      }
      return statements.change(
        `UPDATE rebuild SET finished_at = NOW(3), lost_buckets = ?, restored_orders = ?, free_units = ?
          WHERE sale_id = ? AND epoch = ? AND owner = ? AND finished_at IS NULL`,
        [found.lost, found.orders, found.free, sale.saleId, sale.epoch, this.owner],
      );
    });
    if (finished !== 1) throw new Error(`another instance has taken over sale ${sale.saleId}`);
  }
}
