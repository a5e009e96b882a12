import { BLOCKLIST_FEED, BlocklistChange } from '@flash-sale/contracts';
import type { ShopperId } from '@flash-sale/domain';
import type { RedisClient } from '@flash-sale/redis';
import type { Log } from '@flash-sale/service';

/**
 * Who may not take part, in memory. Single changes come by subscription within milliseconds; {@link read} compares the version
 * with that in Redis and reads the list where they differ, so a missed change costs no longer than the time between reads.
 *
 * While Redis cannot be read or has lost the list, what was known last holds on. Where nothing was ever known, nobody counts
 * as blocked: the list keeps nuisance out, while stock and limits hold without it, and to refuse everybody for want of it
 * would turn buyers away.
 */
export class Blocklist {
  private shoppers = new Set<string>();
  private version: number | undefined;
  private reading: Promise<void> | undefined;
  /** Whether something may have changed since the read under way began. */
  private isOutdated = false;

  constructor(
    private readonly redis: RedisClient,
    private readonly log: Log,
  ) {}

  has(shopperId: ShopperId): boolean {
    return this.shoppers.has(shopperId);
  }

  /** Takes a message of {@link BLOCKLIST_FEED.channel}. */
  apply(message: string): void {
    let told: BlocklistChange;
    try {
      told = BlocklistChange.parse(JSON.parse(message));
    } catch (error) {
      this.log.error({ err: error }, 'a change of the blocklist was published that this gateway cannot read');
      return;
    }
    if (told.version === this.version) return;
    if (told.before !== this.version || !told.change) {
      // The whole list is new, or a change before this one was missed.
      this.read().catch((error: unknown) => this.log.warn({ err: error }, 'the blocklist cannot be read'));
      return;
    }
    const { shopperId, blocked } = told.change;
    if (blocked) this.shoppers.add(shopperId);
    else this.shoppers.delete(shopperId);
    this.version = told.version;
    // What is being read at this moment may be from before this change.
    this.isOutdated = true;
  }

  /** Takes over what Redis has, if that is another list. Rejects while Redis does not answer. */
  read(): Promise<void> {
    this.isOutdated = true;
    this.reading ??= this.readWhileOutdated().finally(() => (this.reading = undefined));
    return this.reading;
  }

  private async readWhileOutdated(): Promise<void> {
    while (this.isOutdated) {
      this.isOutdated = false;
      await this.readNow();
    }
  }

  private async readNow(): Promise<void> {
    const { list, version } = BLOCKLIST_FEED;
    const there = await this.redis.hget(list, version);
    if (there === null || Number(there) === this.version) return;
    const { [version]: read, ...shoppers } = await this.redis.hgetall(list);
    if (read === undefined) return;
    this.shoppers = new Set(Object.keys(shoppers));
    this.version = Number(read);
  }
}
