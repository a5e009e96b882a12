import { LineSettings, Phase, SaleId, SkuId, StoredPhase } from '@flash-sale/domain';
import { z } from 'zod';

/**
 * What inventory tells every gateway about a sale, so that pages and refusals come from memory. Published on a Redis
 * channel for speed and kept in a hash for whoever was not listening: a gateway reads the hash when it (re)connects and
 * once a second. Of two snapshots of one sale the one with the higher (epoch, version) is true.
 */
export const SALE_FEED = {
  /** Hash: sale id → snapshot, and {@link SALE_FEED.complete}. */
  snapshots: 'fs:sales',
  /**
   * The field of the hash that is there when all sales are. Without it Redis has lost the hash: what is missing is not known
   * then, and what is known may hold no more.
   */
  complete: '*',
  /** Channel of single snapshots. */
  channel: 'fs:sales:changes',
  /** The holder filter of a sale: the buckets' bitmaps, one after another. */
  holders: (saleId: string) => `fs:sales:holders:${saleId}`,
} as const;

export const SaleSnapshot = z.object({
  saleId: SaleId,
  title: z.string(),
  skuId: SkuId,
  allotment: z.int(),
  unitPrice: z.int(),
  currency: z.string(),
  opensAtMs: z.int(),
  closesAtMs: z.int(),
  limitPerShopper: z.int(),
  bucketCount: z.int(),
  challenge: z.enum(['proof_of_work']).nullable(),
  line: LineSettings,
  storedPhase: StoredPhase,
  epoch: z.int(),
  /** Grows with each change of this sale's snapshot within an epoch. */
  version: z.int(),
  soldOut: z.boolean(),
  stockLevel: z.enum(['plenty', 'low', 'none']),
  /** Bits of one bucket's holder bitmap; 0 while no filter is published. */
  filterBits: z.int(),
  /** Changes when the published filter does. */
  filterVersion: z.int(),
});
export type SaleSnapshot = z.infer<typeof SaleSnapshot>;

export function encodeSnapshot(snapshot: SaleSnapshot): string {
  return JSON.stringify(snapshot);
}

/** Throws on anything that is not a snapshot: feed and gateway are deployed from the same contracts. */
export function decodeSnapshot(text: string): SaleSnapshot {
  return SaleSnapshot.parse(JSON.parse(text));
}

/** Whether `next` replaces `current`. */
export function isNewer(next: SaleSnapshot, current: SaleSnapshot | undefined): boolean {
  if (!current || next.epoch !== current.epoch) return !current || next.epoch > current.epoch;
  return next.version > current.version;
}

/** The reconciliation of one sale, as operators read it: what each store says, and whether they agree. */
export const SaleReport = z.object({
  saleId: SaleId,
  phase: Phase,
  allotment: z.int(),
  redis: z.object({
    available: z.boolean(),
    free: z.int(),
    held: z.int(),
    queued: z.int(),
    sold: z.int(),
    openTransfers: z.int(),
    buckets: z.array(
      z.object({
        bucket: z.int(),
        initial: z.int(),
        free: z.int(),
        held: z.int(),
        queued: z.int(),
        sold: z.int(),
        in: z.int(),
        out: z.int(),
      }),
    ),
  }),
  kafka: z.object({ endOffset: z.int(), committed: z.int(), lag: z.int() }),
  mysql: z.object({
    total: z.int(),
    sold: z.int(),
    /** Units of paid orders. */
    paid: z.int(),
    /** Units that were sold and came back. */
    returned: z.int(),
    ordersByState: z.record(z.string(), z.int()),
    rejectedByReason: z.record(z.string(), z.int()),
    unappliedEffects: z.int(),
  }),
  /** Each difference in one sentence; empty when the stores agree. */
  differences: z.array(z.string()),
  /** `settling` while holds, orders, lag or effects are open: differences then mean nothing. */
  verdict: z.enum(['balanced', 'settling', 'differs']),
});
export type SaleReport = z.infer<typeof SaleReport>;
