import type { ProblemCode } from '@flash-sale/contracts';
import type { Database, Statements } from '@flash-sale/database';
import {
  LineSettings,
  NewSale,
  SaleId,
  afterOperation,
  type SaleOperation,
  type StoredPhase,
} from '@flash-sale/domain';
import { uuidV7 } from '@flash-sale/service';
import { z } from 'zod';
import { SALE_COLUMNS, saleFromRow, type KnownSale, type SaleBook } from './sale-book.js';
import type { Feed } from './feed.js';
import { logOperation } from './operator-log.js';
import { orUnavailable } from './store-away.js';
import type { WarmUp } from './warm-up.js';

/** A sale as an operator asks for it. Durations may be finer than HTTP allows, for trials. */
export const SaleSettings = z
  .strictObject({
    saleId: SaleId.optional(),
    title: NewSale.shape.title,
    skuId: NewSale.shape.skuId,
    allotment: NewSale.shape.allotment,
    unitPrice: NewSale.shape.unitPrice,
    currency: NewSale.shape.currency,
    opensAtMs: z.int().min(0),
    closesAtMs: z.int().min(0),
    limitPerShopper: NewSale.shape.limitPerShopper,
    bucketCount: z.int().min(1).max(1024),
    holdMs: z.int().min(1).max(3_600_000),
    payMs: z.int().min(1).max(86_400_000),
    challenge: z.enum(['proof_of_work']).nullable(),
    line: LineSettings,
  })
  .refine((sale) => sale.opensAtMs < sale.closesAtMs, {
    path: ['closesAtMs'],
    error: 'must be later than opensAtMs',
  });
export type SaleSettings = z.infer<typeof SaleSettings>;

/** Either a sale, or why not, in words an operator can act on. */
export type SaleOutcome =
  | { readonly sale: KnownSale }
  | { readonly problem: ProblemCode; readonly detail: string; readonly sale?: KnownSale };

/** The operations that an operator may ask for; `finish-warm-up` is our own second half of `warm-up`. */
const OPERATIONS = ['warm-up', 'pause', 'resume', 'close', 'settle'] as const;

/** What is still open in a sale that is to be settled, in sentences; empty when nothing is. */
export type FindUnresolved = (sale: KnownSale) => Promise<readonly string[]>;

/**
 * The operator's side of a sale's life. MySQL first, with a line in the operators' log; then the buckets are told, then
 * the gateways. Every operation may be repeated: one that was done is answered as done, one that was cut off is finished.
 */
export class Sales {
  constructor(
    private readonly database: Database,
    private readonly book: SaleBook,
    private readonly warmUp: WarmUp,
    private readonly feed: Feed,
    private readonly findUnresolved: FindUnresolved,
    private readonly nowMs: () => number = Date.now,
  ) {}

  /** Drafts a sale. The same id with the same settings is the same sale; with others it is refused. */
  create(wanted: unknown, operator: string): Promise<SaleOutcome> {
    return orUnavailable(() => this.createNow(wanted, operator));
  }

  /** Changes a sale's phase. */
  change(saleId: string, operation: string, operator: string): Promise<SaleOutcome> {
    return orUnavailable(() => this.changeNow(saleId, operation, operator));
  }

  private async createNow(wanted: unknown, operator: string): Promise<SaleOutcome> {
    const parsed = SaleSettings.safeParse(wanted);
    if (!parsed.success) {
      const faults = parsed.error.issues.map(({ path, message }) => `${path.join('.')}: ${message}`);
      return { problem: 'invalid', detail: faults.join('; ') };
    }
    const settings = { ...parsed.data, saleId: parsed.data.saleId ?? newSaleId() };
    const sale = await this.database.transaction(async (statements) => {
      const inserted = await insertSale(statements, settings);
      const found = await readSale(statements, settings.saleId, '');
      if (inserted) {
        await logOperation(statements, {
          saleId: found.saleId,
          operator,
          operation: 'create',
          before: null,
          after: 'draft',
          detail: settings.title,
        });
      }
      return found;
    });
    this.book.remember(sale);
    const differing = differencesOf(settings, sale);
    if (differing.length === 0) return { sale };
    return {
      problem: 'sale_exists',
      detail: `sale ${sale.saleId} exists with another ${differing.join(', ')}; choose another id or leave it out`,
    };
  }

  private async changeNow(saleId: string, operation: string, operator: string): Promise<SaleOutcome> {
    const id = SaleId.safeParse(saleId);
    const sale = id.success ? await this.book.reload(id.data) : undefined;
    if (!sale) return { problem: 'not_found', detail: `there is no sale "${saleId.slice(0, 64)}"` };
    const known = OPERATIONS.find((name) => name === operation);
    if (!known) {
      const names = OPERATIONS.join(', ');
      return { problem: 'invalid', detail: `"${operation.slice(0, 40)}" is none of ${names}` };
    }
    if (known === 'warm-up') return this.warmUpSale(sale, operator);
    if (known === 'settle') return this.settle(sale, operator);
    const outcome = await this.move(sale.saleId, known, operator);
    return 'problem' in outcome ? outcome : this.announce(outcome.sale);
  }

  /** Every sale, newest first. */
  async list(limit = 200): Promise<readonly KnownSale[]> {
    const rows = await this.database.query(
      `SELECT ${SALE_COLUMNS} FROM sale ORDER BY created_at DESC, sale_id LIMIT ?`,
      [limit],
    );
    return rows.map(saleFromRow);
  }

  /** The total first, then the buckets, then the phase: a sale opens only when every bucket is loaded. */
  private async warmUpSale(sale: KnownSale, operator: string): Promise<SaleOutcome> {
    // Redis' buckets are never filled again for a sale that is on: whatever they have lost is not for sale anew.
    if (sale.storedPhase === 'warmed') return this.announce(sale);
    const begun = await this.move(sale.saleId, 'warm-up', operator, allot);
    if ('problem' in begun) {
      // Somebody else has warmed it up in the meantime: then it is done, not refused.
      return begun.sale?.storedPhase === 'warmed' ? this.announce(begun.sale) : begun;
    }
    await this.warmUp.load(begun.sale);
    const finished = await this.move(sale.saleId, 'finish-warm-up', operator);
    return 'problem' in finished ? finished : this.announce(finished.sale);
  }

  private async settle(sale: KnownSale, operator: string): Promise<SaleOutcome> {
    if (sale.storedPhase !== 'settled') {
      const closed = afterOperation(sale, 'settle', this.nowMs());
      if (closed.outcome === 'refused') return wrongPhase(sale, 'settle', closed.phase);
      const open = await this.findUnresolved(sale);
      if (open.length > 0) {
        return { problem: 'unresolved', detail: `${open.join('; ')}; try again when that is over` };
      }
    }
    const settled = await this.move(sale.saleId, 'settle', operator);
    if ('problem' in settled) return settled;
    const announced = await this.announce(settled.sale);
    await this.warmUp.retire(settled.sale);
    return announced;
  }

  /** The change in MySQL: the phase, the version and the operators' log, in one transaction. */
  private async move(
    saleId: SaleId,
    operation: SaleOperation,
    operator: string,
    also?: (statements: Statements, sale: KnownSale) => Promise<void>,
  ): Promise<SaleOutcome> {
    const outcome = await this.database.transaction(async (statements): Promise<SaleOutcome> => {
      const before = await readSale(statements, saleId, 'FOR UPDATE');
      const next = afterOperation(before, operation, this.nowMs());
      if (next.outcome === 'refused') return wrongPhase(before, operation, next.phase);
      if (next.outcome === 'already' || next.phase === before.storedPhase) return { sale: before };
      await statements.change(
        'UPDATE sale SET phase = ?, version = version + 1, updated_at = NOW(3) WHERE sale_id = ?',
        [next.phase, saleId],
      );
      await also?.(statements, before);
      await logOperation(statements, {
        saleId,
        operator,
        operation,
        before: before.storedPhase,
        after: next.phase,
        detail: '',
      });
      return { sale: { ...before, storedPhase: next.phase, version: before.version + 1 } };
    });
    if (outcome.sale) this.book.remember(outcome.sale);
    return outcome;
  }

  /** Tells the buckets, then the gateways. The change stands in MySQL either way; a watch brings it to Redis later. */
  private async announce(sale: KnownSale): Promise<SaleOutcome> {
    const told = await this.warmUp.setGates(sale).catch(() => false);
    await this.feed.publish(sale).catch(() => false);
    if (told) return { sale };
    return {
      problem: 'unavailable',
      detail: `sale ${sale.saleId} is ${sale.storedPhase} now, but Redis could not be told; it will be as soon as it answers`,
      sale,
    };
  }
}

/** Without dashes a UUID is 32 characters: short enough for a sale's id. */
function newSaleId(): SaleId {
  return SaleId.parse(uuidV7().replaceAll('-', ''));
}

function wrongPhase(sale: KnownSale, operation: string, phase: StoredPhase): SaleOutcome {
  return {
    problem: 'wrong_phase',
    detail: `sale ${sale.saleId} is ${phase}; ${operation} is not possible in this phase`,
    sale,
  };
}

async function readSale(statements: Statements, saleId: SaleId, lock: '' | 'FOR UPDATE'): Promise<KnownSale> {
  const [row] = await statements.query(`SELECT ${SALE_COLUMNS} FROM sale WHERE sale_id = ? ${lock}`, [
    saleId,
  ]);
  if (!row) throw new Error(`sale ${saleId} has vanished from MySQL`);
  return saleFromRow(row);
}

/** Whether a row was inserted; one that is there stays as it is. */
async function insertSale(
  statements: Statements,
  sale: SaleSettings & { readonly saleId: SaleId },
): Promise<boolean> {
  const changed = await statements.change(
    `INSERT INTO sale (sale_id, title, sku_id, allotment, unit_price, currency, opens_at, closes_at, limit_per_shopper,
       bucket_count, hold_ms, pay_ms, challenge, line_mode, admit_per_second, overbook, phase, created_at, updated_at)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'draft', NOW(3), NOW(3))
     ON DUPLICATE KEY UPDATE sale_id = sale_id`,
    [
      sale.saleId,
      sale.title,
      sale.skuId,
      sale.allotment,
      sale.unitPrice,
      sale.currency,
      new Date(sale.opensAtMs),
      new Date(sale.closesAtMs),
      sale.limitPerShopper,
      sale.bucketCount,
      sale.holdMs,
      sale.payMs,
      sale.challenge,
      sale.line.mode,
      sale.line.admitPerSecond,
      sale.line.overbook,
    ],
  );
  return changed === 1;
}

/** The units become the sale's: its total in MySQL, and the entry in the ledger. Happens once. */
async function allot(statements: Statements, sale: KnownSale): Promise<void> {
  await statements.change(
    'INSERT INTO sale_stock (sale_id, total, sold) VALUES (?, ?, 0) ON DUPLICATE KEY UPDATE sale_id = sale_id',
    [sale.saleId, sale.allotment],
  );
  const entry = `${sale.saleId}:allot:1`;
  await statements.change(
    `INSERT INTO ledger (entry_id, account, sale_id, order_id, amount, at)
     VALUES (?, 'allotment', ?, NULL, ?, NOW(3)), (?, 'free', ?, NULL, ?, NOW(3))
     ON DUPLICATE KEY UPDATE entry_id = entry_id`,
    [entry, sale.saleId, -sale.allotment, entry, sale.saleId, sale.allotment],
  );
}

function differencesOf(wanted: SaleSettings, sale: KnownSale): string[] {
  const { line, ...plain } = wanted;
  const names = Object.keys(plain) as (keyof typeof plain)[];
  const differing: string[] = names.filter((name) => plain[name] !== sale[name]);
  const sameLine =
    line.mode === sale.line.mode &&
    line.admitPerSecond === sale.line.admitPerSecond &&
    line.overbook === sale.line.overbook;
  return sameLine ? differing : [...differing, 'line'];
}
