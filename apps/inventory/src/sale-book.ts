import type { Database, SqlRow } from '@flash-sale/database';
import { LineSettings, SaleId, SkuId, StoredPhase, type Sale } from '@flash-sale/domain';

/** A sale with the number of its last change; of two versions the higher is true. */
export interface KnownSale extends Sale {
  readonly version: number;
}

interface SaleRow extends SqlRow {
  sale_id: string;
  title: string;
  sku_id: string;
  allotment: string;
  unit_price: string;
  currency: string;
  opens_at: Date;
  closes_at: Date;
  limit_per_shopper: number;
  bucket_count: number;
  hold_ms: string;
  pay_ms: string;
  challenge: string | null;
  line_mode: string;
  admit_per_second: number;
  overbook: number;
  phase: string;
  epoch: number;
  version: number;
}

/** The columns that {@link saleFromRow} reads. */
export const SALE_COLUMNS =
  'sale_id, title, sku_id, allotment, unit_price, currency, opens_at, closes_at, limit_per_shopper, bucket_count, ' +
  'hold_ms, pay_ms, challenge, line_mode, admit_per_second, overbook, phase, epoch, version';

export function saleFromRow(row: SqlRow): KnownSale {
  const r = row as SaleRow;
  return {
    saleId: SaleId.parse(r.sale_id),
    title: r.title,
    skuId: SkuId.parse(r.sku_id),
    allotment: Number(r.allotment),
    unitPrice: Number(r.unit_price),
    currency: r.currency,
    opensAtMs: r.opens_at.getTime(),
    closesAtMs: r.closes_at.getTime(),
    limitPerShopper: r.limit_per_shopper,
    bucketCount: r.bucket_count,
    holdMs: Number(r.hold_ms),
    payMs: Number(r.pay_ms),
    challenge: r.challenge === 'proof_of_work' ? 'proof_of_work' : null,
    line: LineSettings.parse({
      mode: r.line_mode,
      admitPerSecond: r.admit_per_second,
      overbook: r.overbook,
    }),
    storedPhase: StoredPhase.parse(r.phase),
    epoch: r.epoch,
    version: r.version,
  };
}

/** Sales that ended are kept in memory this long, so that late retries still find their buckets. */
const KEEP_SETTLED_MS = 24 * 3600 * 1000;
const MAX_SALES = 5_000;
/** How long the answer "there is no such sale" is believed. */
const MISSING_FOR_MS = 1_000;
const MAX_MISSING = 10_000;

/**
 * The sales, in the memory of every instance. MySQL is the truth; instances hear of each other's changes by the feed and
 * read everything again once a second, so a missed message costs a second.
 */
export class SaleBook {
  private readonly sales = new Map<string, KnownSale>();
  /** Sale → the version at which it came to rest. */
  private readonly resting = new Map<string, number>();
  private readonly missingUntilMs = new Map<string, number>();
  private readonly loading = new Map<string, Promise<KnownSale | undefined>>();

  constructor(private readonly database: Database) {}

  /** All sales that are not long over. */
  all(): readonly KnownSale[] {
    return [...this.sales.values()];
  }

  /** Sales with stock in Redis that is not settled. */
  active(): readonly KnownSale[] {
    return this.all().filter(
      ({ storedPhase }) => storedPhase === 'warmed' || storedPhase === 'paused' || storedPhase === 'closed',
    );
  }

  /** Those of them in which something may still happen by itself. */
  moving(): readonly KnownSale[] {
    return this.active().filter((sale) => !this.isResting(sale));
  }

  isResting(sale: KnownSale): boolean {
    return this.resting.get(sale.saleId) === sale.version;
  }

  /** The sale is over and everything in it is resolved; until it is changed there is nothing to sweep. */
  setResting(sale: KnownSale): void {
    this.resting.set(sale.saleId, sale.version);
  }

  /** Sales that were settled between one and eight days ago. */
  async longSettled(): Promise<readonly string[]> {
    const rows = await this.database.query(
      "SELECT sale_id FROM sale WHERE phase = 'settled' AND updated_at BETWEEN ? AND ? LIMIT 500",
      [new Date(Date.now() - 8 * KEEP_SETTLED_MS), new Date(Date.now() - KEEP_SETTLED_MS)],
    );
    return rows.map((row) => String(row['sale_id']));
  }

  get(saleId: SaleId): KnownSale | undefined {
    return this.sales.get(saleId);
  }

  /** The sale from memory, or from MySQL if it is not there; undefined where there is none. */
  async find(saleId: SaleId): Promise<KnownSale | undefined> {
    const known = this.sales.get(saleId);
    if (known) return known;
    if ((this.missingUntilMs.get(saleId) ?? 0) > performance.now()) return undefined;
    return this.reload(saleId);
  }

  /** The sale as MySQL has it now. Calls for one sale at the same time share one query. */
  reload(saleId: SaleId): Promise<KnownSale | undefined> {
    const running = this.loading.get(saleId);
    if (running) return running;
    const load = this.readNow(saleId).finally(() => this.loading.delete(saleId));
    this.loading.set(saleId, load);
    return load;
  }

  /** Takes over what somebody has just read or written, unless something newer is known. */
  remember(sale: KnownSale): void {
    const known = this.sales.get(sale.saleId);
    if (!known || sale.version >= known.version) this.sales.set(sale.saleId, sale);
    this.missingUntilMs.delete(sale.saleId);
  }

  /** Reads every sale again. */
  async refresh(): Promise<void> {
    const rows = await this.database.query(
      `SELECT ${SALE_COLUMNS} FROM sale WHERE phase <> 'settled' OR updated_at > ? ORDER BY updated_at DESC LIMIT ?`,
      [new Date(Date.now() - KEEP_SETTLED_MS), MAX_SALES],
    );
    const present = new Set<string>();
    for (const row of rows) {
      const sale = saleFromRow(row);
      present.add(sale.saleId);
      this.remember(sale);
    }
    for (const [saleId, sale] of this.sales) {
      if (present.has(saleId) || sale.storedPhase !== 'settled') continue;
      this.sales.delete(saleId);
      this.resting.delete(saleId);
    }
  }

  /** The sale as MySQL has it after this call began; shares no query that began before. */
  async readNow(saleId: SaleId): Promise<KnownSale | undefined> {
    const [row] = await this.database.query(`SELECT ${SALE_COLUMNS} FROM sale WHERE sale_id = ?`, [saleId]);
    if (!row) {
      if (this.missingUntilMs.size >= MAX_MISSING) this.missingUntilMs.clear();
      this.missingUntilMs.set(saleId, performance.now() + MISSING_FOR_MS);
      return undefined;
    }
    const sale = saleFromRow(row);
    this.remember(sale);
    return sale;
  }
}
