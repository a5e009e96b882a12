import { ShopperId } from '@flash-sale/domain';
import { z } from 'zod';

/**
 * What inventory tells every gateway about who may not take part. Published on a Redis channel for speed and kept in a hash
 * for whoever was not listening: a gateway compares versions when it (re)connects and once a second, and reads the list only
 * where they differ.
 */
export const BLOCKLIST_FEED = {
  /** Hash: shopper id → 1, and {@link BLOCKLIST_FEED.version}. Without that field Redis has lost the list. */
  list: 'fs:blocklist',
  /** The field with the list's version; no shopper's id is spelled so. */
  version: '*',
  /** Channel of single changes. */
  channel: 'fs:blocklist:changes',
} as const;

/**
 * As many shoppers as are blocked at most: about 1 MB in each gateway's memory, and Redis is busy for some 10 ms while
 * the whole list is written. More are no list of people but an attack, which limits and challenges are for.
 */
export const MAX_BLOCKED_SHOPPERS = 10_000;

/** A change of the list. Who knows the version before it knows the one after it; everybody else reads the list. */
export const BlocklistChange = z.object({
  before: z.int(),
  version: z.int(),
  /** Absent where the whole list was written. */
  change: z.object({ shopperId: ShopperId, blocked: z.boolean() }).optional(),
});
export type BlocklistChange = z.infer<typeof BlocklistChange>;
