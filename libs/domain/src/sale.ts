import { z } from 'zod';
import { SaleId, SkuId } from './ids.js';

/** What the database keeps of a sale's life; `open`, `sold_out` and closing by the clock follow from it and the time. */
export const StoredPhase = z.enum(['draft', 'warming', 'warmed', 'paused', 'closed', 'settled']);
export type StoredPhase = z.infer<typeof StoredPhase>;

/** What everybody sees. */
export const Phase = z.enum([
  'draft',
  'warming',
  'warmed',
  'open',
  'paused',
  'sold_out',
  'closed',
  'settled',
]);
export type Phase = z.infer<typeof Phase>;

/** How entries are let through: `off` grants at once, `fifo` admits `admitPerSecond` in order of arrival. */
export const LineSettings = z.strictObject({
  mode: z.enum(['off', 'fifo']).default('off'),
  /** Entries let through a second, 1 to 100,000. */
  admitPerSecond: z.int().min(1).max(100_000).default(1000),
  /** Share of units for which more entries may be admitted than there is stock; kept for the line's later rules. */
  overbook: z.number().min(0).max(10).default(0),
});
export type LineSettings = z.infer<typeof LineSettings>;

const MAX_ALLOTMENT = 100_000_000;
const instant = z.iso.datetime({
  offset: false,
  precision: null,
  error: 'an ISO 8601 time in UTC, e.g. 2026-11-11T12:00:00.000Z',
});

/** An operator's description of a sale; defaults are what a first sale wants. */
export const NewSale = z
  .strictObject({
    saleId: SaleId.optional(),
    title: z.string().min(1).max(200),
    skuId: SkuId,
    /** Units to sell, 1 to 100,000,000. */
    allotment: z.int().min(1).max(MAX_ALLOTMENT),
    /** Minor units of the currency. */
    unitPrice: z.int().min(0).max(1_000_000_000),
    currency: z.string().regex(/^[A-Z]{3}$/, 'an ISO 4217 code, e.g. CNY'),
    opensAt: instant,
    closesAt: instant,
    limitPerShopper: z.int().min(1).max(1000),
    /** Slices of the stock, each in its own hash slot. One Redis process gains nothing from more than one. */
    buckets: z.int().min(1).max(1024).default(8),
    /** How long a granted hold waits for its order. */
    holdSeconds: z.int().min(1).max(3600).default(120),
    /** How long an order waits for its payment. */
    paySeconds: z.int().min(1).max(86_400).default(900),
    challenge: z.enum(['proof_of_work']).nullable().default(null),
    line: LineSettings.prefault({}),
  })
  .refine((sale) => Date.parse(sale.opensAt) < Date.parse(sale.closesAt), {
    path: ['closesAt'],
    error: 'must be later than opensAt',
  });
export type NewSale = z.infer<typeof NewSale>;

/** A sale as the services know it. Times are milliseconds since 1970. */
export interface Sale {
  readonly saleId: SaleId;
  readonly title: string;
  readonly skuId: SkuId;
  readonly allotment: number;
  readonly unitPrice: number;
  readonly currency: string;
  readonly opensAtMs: number;
  readonly closesAtMs: number;
  readonly limitPerShopper: number;
  readonly bucketCount: number;
  readonly holdMs: number;
  readonly payMs: number;
  readonly challenge: 'proof_of_work' | null;
  readonly line: LineSettings;
  readonly storedPhase: StoredPhase;
  /** Grows by one each time that the stock in Redis is built anew from MySQL. */
  readonly epoch: number;
}

/** The changes an operator may ask for, each with the stored phases it is allowed from and the one it leads to. */
const OPERATIONS = {
  'warm-up': { from: ['draft', 'warming'], to: 'warming' },
  'finish-warm-up': { from: ['warming'], to: 'warmed' },
  pause: { from: ['warmed'], to: 'paused' },
  resume: { from: ['paused'], to: 'warmed' },
  close: { from: ['warmed', 'paused'], to: 'closed' },
  settle: { from: ['closed'], to: 'settled' },
} as const satisfies Record<string, { from: readonly StoredPhase[]; to: StoredPhase }>;
export type SaleOperation = keyof typeof OPERATIONS;

/**
 * Where an operation leads, `already` where it has been done before (so that repeating it is harmless), or `refused`.
 * A sale whose closing time has passed counts as closed here as everywhere.
 */
export function afterOperation(
  sale: Pick<Sale, 'storedPhase' | 'closesAtMs'>,
  operation: SaleOperation,
  nowMs: number,
): { outcome: 'changed' | 'already'; phase: StoredPhase } | { outcome: 'refused'; phase: StoredPhase } {
  const selling = sale.storedPhase === 'warmed' || sale.storedPhase === 'paused';
  const phase: StoredPhase = selling && nowMs >= sale.closesAtMs ? 'closed' : sale.storedPhase;
  const { from, to } = OPERATIONS[operation];
  if ((from as readonly StoredPhase[]).includes(phase)) return { outcome: 'changed', phase: to };
  if (phase === to) return { outcome: 'already', phase };
  return { outcome: 'refused', phase };
}

/** What everybody sees of a sale at a moment: the stored phase, the clock and whether stock has run out. */
export function phaseAt(
  sale: Pick<Sale, 'storedPhase' | 'opensAtMs' | 'closesAtMs'>,
  soldOut: boolean,
  nowMs: number,
): Phase {
  const { storedPhase } = sale;
  if (storedPhase !== 'warmed' && storedPhase !== 'paused') return storedPhase;
  if (nowMs >= sale.closesAtMs) return 'closed';
  if (storedPhase === 'paused') return 'paused';
  if (nowMs < sale.opensAtMs) return 'warmed';
  return soldOut ? 'sold_out' : 'open';
}

/** How much is left, in the only grain that shoppers are told: below a tenth of the allotment it is low. */
export function stockLevelOf(free: number, allotment: number): 'plenty' | 'low' | 'none' {
  if (free <= 0) return 'none';
  return free * 10 < allotment ? 'low' : 'plenty';
}

/** Spreads an allotment over buckets as evenly as whole units allow; the first buckets get the remainder. */
export function splitAllotment(allotment: number, bucketCount: number): number[] {
  const share = Math.floor(allotment / bucketCount);
  const rest = allotment % bucketCount;
  return Array.from({ length: bucketCount }, (_, bucket) => share + (bucket < rest ? 1 : 0));
}

const POLL_AFTER_MIN_MS = 500;
const POLL_AFTER_MAX_MS = 10_000;

/** How long somebody in a line has to wait, as far as one can tell, and when to ask again. @param position 1 is next */
export function waitOf(
  position: number,
  admitPerSecond: number,
): { readonly estimatedWaitSeconds: number; readonly pollAfterMs: number } {
  const waitMs = (position * 1_000) / Math.max(1, admitPerSecond);
  return {
    estimatedWaitSeconds: Math.ceil(waitMs / 1_000),
    pollAfterMs: Math.round(Math.min(POLL_AFTER_MAX_MS, Math.max(POLL_AFTER_MIN_MS, waitMs / 4))),
  };
}
