import type { RedisClient } from '@flash-sale/redis';
import { bucketKeys, stateKey, type Account } from './keys.js';
import type { KnownSale } from './sale-book.js';
import { scripts } from './scripts.js';

/** All buckets of a sale, each read at one moment, and what stood in the sale's state before the first was read. */
export interface SaleView {
  readonly credit: string;
  readonly soldOut: boolean;
  /** By bucket. */
  readonly accounts: readonly Account[];
  /** By bucket: the incarnation of the server on which it was last found whole; '' where that is not known. */
  readonly boots: readonly string[];
  /** Attempts and transfers that are not resolved. */
  readonly unresolved: number;
  readonly free: number;
  readonly openTransfers: number;
}

export type LookOutcome = SaleView | 'unavailable';

/**
 * Who may say "sold out". A unit that becomes free is credited on the sale's counter after the write to its bucket; so if
 * the counter has not moved since before every bucket was seen empty, with no transfer open, nothing is free. Whatever
 * becomes free later lifts it at once. A missing marker, account or another epoch is "unavailable", never "sold out".
 */
export class SaleState {
  private readonly looking = new Map<string, Promise<LookOutcome>>();

  constructor(private readonly redis: RedisClient) {}

  /** The sale's state alone. */
  async read(
    sale: KnownSale,
  ): Promise<{ readonly credit: string; readonly soldOut: boolean } | 'unavailable'> {
    const [epoch, boot, credit, soldOut] = await this.redis.hmget(
      stateKey(sale.saleId),
      'epoch',
      'boot',
      'credit',
      'soldOut',
    );
    if (epoch !== String(sale.epoch) || !boot || !credit) return 'unavailable';
    return { credit, soldOut: soldOut === '1' };
  }

  /**
   * Reads the counter, then every bucket. Calls for one sale at the same time share one look: what it claims holds at the
   * moment of the claim, whoever asked.
   */
  look(sale: KnownSale): Promise<LookOutcome> {
    const running = this.looking.get(sale.saleId);
    if (running) return running;
    const look = this.lookAfresh(sale).finally(() => this.looking.delete(sale.saleId));
    this.looking.set(sale.saleId, look);
    return look;
  }

  /**
   * Says "sold out" on the ground of a view without a free unit and without an open transfer.
   *
   * @returns `credited` where units became free since the view was begun: look again
   */
  async claimSoldOut(
    sale: KnownSale,
    view: SaleView,
  ): Promise<'set' | 'already' | 'credited' | 'unavailable'> {
    if (view.free > 0 || view.openTransfers > 0) {
      throw new Error(`${sale.saleId} is not sold out: ${view.free} free, ${view.openTransfers} on the way`);
    }
    const reply = await scripts.soldOut.run(this.redis, [stateKey(sale.saleId)], [sale.epoch, view.credit]);
    const { outcome } = reply;
    return outcome === 'set' || outcome === 'already' || outcome === 'credited' ? outcome : 'unavailable';
  }

  /** Units have become free in some bucket; call it after that write. Returns whether a "sold out" was lifted. */
  async credit(sale: KnownSale): Promise<boolean> {
    const reply = await scripts.credit.run(this.redis, [stateKey(sale.saleId)], [sale.epoch]);
    return reply.outcome === 'lifted';
  }

  /** The same, shared with nobody: everything that it sees was so after this call began. */
  async lookAfresh(sale: KnownSale): Promise<LookOutcome> {
    const state = await this.read(sale);
    if (state === 'unavailable') return 'unavailable';
    const replies = await Promise.all(
      Array.from({ length: sale.bucketCount }, (_, bucket) => {
        const keys = bucketKeys(sale.saleId, bucket);
        return scripts.snapshot.run(this.redis, [keys.account, keys.deadlines], [sale.epoch]);
      }),
    );
    const accounts: Account[] = [];
    const boots: string[] = [];
    let unresolved = 0;
    for (const reply of replies) {
      if (reply.outcome !== 'ok') return 'unavailable';
      accounts.push(reply.account);
      boots.push(reply.boot);
      unresolved += reply.unresolved;
    }
    return {
      ...state,
      accounts,
      boots,
      unresolved,
      free: accounts.reduce((sum, account) => sum + account.free, 0),
      openTransfers: accounts.reduce((sum, account) => sum + account.openTransfers, 0),
    };
  }
}
