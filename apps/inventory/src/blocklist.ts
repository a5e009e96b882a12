import {
  BLOCKLIST_FEED,
  MAX_BLOCKED_SHOPPERS,
  type BlocklistChange,
  type ProblemCode,
} from '@flash-sale/contracts';
import type { Database, SqlRow, Statements } from '@flash-sale/database';
import { ShopperId } from '@flash-sale/domain';
import type { RedisClient } from '@flash-sale/redis';
import { asciiOf, logOperation } from './operator-log.js';
import { scripts } from './scripts.js';
import { isStoreAway, orUnavailable } from './store-away.js';

/** A shopper who may not take part. */
export interface BlockedShopper {
  readonly shopperId: ShopperId;
  readonly reason: string;
  /** Who said so last, and when. */
  readonly operator: string;
  readonly at: Date;
}

/** The shopper's block, `null` for none, or why that cannot be said or done, in words an operator can act on. */
export type BlockOutcome =
  | { readonly blocked: BlockedShopper | null }
  | { readonly problem: ProblemCode; readonly detail: string };

const MAX_REASON = 500;

/**
 * Who may not take part. MySQL first, with a line in the operators' log; then Redis, which tells the gateways. Redis is only
 * ever brought from the version that was read there to the one that MySQL has, so a list that it has lost, or kept from
 * an earlier life, is put right by {@link keepTold}, whatever was missed in between.
 */
export class Blocklist {
  constructor(
    private readonly redis: RedisClient,
    private readonly database: Database,
    private readonly maxShoppers = MAX_BLOCKED_SHOPPERS,
  ) {}

  find(shopperId: string): Promise<BlockOutcome> {
    return orUnavailable(async () => {
      const id = ShopperId.safeParse(shopperId);
      const blocked = id.success ? await readBlocked(this.database, id.data, '') : null;
      return blocked ? { blocked } : notBlocked(shopperId);
    });
  }

  /** Blocks a shopper. Repeating it is harmless; another reason replaces the one before. */
  block(shopperId: string, operator: string, reason: string): Promise<BlockOutcome> {
    return orUnavailable(async () => {
      const id = ShopperId.safeParse(shopperId);
      if (!id.success) return { problem: 'invalid', detail: 'this is no id of a shopper' };
      const said = { reason: reason.slice(0, MAX_REASON), operator: asciiOf(operator) };
      const outcome = await this.database.transaction(
        async (statements): Promise<BlockOutcome & { readonly told?: BlocklistChange }> => {
          const list = await lockList(statements);
          const known = await readBlocked(statements, id.data, 'FOR UPDATE');
          if (known?.reason === said.reason) return { blocked: known };
          if (!known && list.shoppers >= this.maxShoppers) {
            const detail = `${list.shoppers} shoppers are blocked, which is the most there may be; unblock some first`;
            return { problem: 'blocklist_full', detail };
          }
          await statements.change(
            `INSERT INTO blocked_shopper (shopper_id, reason, operator, at) VALUES (?, ?, ?, NOW(3))
             ON DUPLICATE KEY UPDATE reason = VALUES(reason), operator = VALUES(operator), at = VALUES(at)`,
            [id.data, said.reason, said.operator],
          );
          await log(statements, id.data, 'block', known, said);
          const told = known ? undefined : await changeList(statements, list, id.data, true);
          return { blocked: await readBlocked(statements, id.data, ''), ...(told && { told }) };
        },
      );
      return this.tell(outcome, `${id.data} is blocked now`);
    });
  }

  /** Lets a shopper take part again. */
  unblock(shopperId: string, operator: string, reason: string): Promise<BlockOutcome> {
    return orUnavailable(async () => {
      const id = ShopperId.safeParse(shopperId);
      if (!id.success) return notBlocked(shopperId);
      const outcome = await this.database.transaction(
        async (statements): Promise<BlockOutcome & { readonly told?: BlocklistChange }> => {
          const list = await lockList(statements);
          const known = await readBlocked(statements, id.data, 'FOR UPDATE');
          if (!known) return notBlocked(id.data);
          await statements.change('DELETE FROM blocked_shopper WHERE shopper_id = ?', [id.data]);
          await log(statements, id.data, 'unblock', known, { reason, operator });
          return { blocked: null, told: await changeList(statements, list, id.data, false) };
        },
      );
      return this.tell(outcome, `${id.data} is not blocked any more`);
    });
  }

  /** Brings Redis to the list that MySQL has, if it has another one or none. */
  async keepTold(): Promise<void> {
    // Redis first: what is read of MySQL afterwards is at least as new, or Redis has what MySQL has lost.
    const there = await this.redis.hget(BLOCKLIST_FEED.list, BLOCKLIST_FEED.version);
    const [list] = await this.database.query('SELECT version FROM blocklist WHERE id = 1');
    if (String(list?.['version']) === there) return;
    // In one statement, so that version and shoppers are of one moment.
    const rows = await this.database.query(
      'SELECT version, shopper_id FROM blocklist LEFT JOIN blocked_shopper ON TRUE WHERE id = 1',
    );
    const version = Number(rows[0]?.['version']);
    const shoppers = rows.flatMap((row) => (row['shopper_id'] === null ? [] : [String(row['shopper_id'])]));
    // Where somebody else was faster this changes nothing, and the next look compares again.
    await this.write(there ?? '', { before: Number(there ?? 0), version }, 'all', shoppers);
  }

  private async tell(
    { told, ...outcome }: BlockOutcome & { readonly told?: BlocklistChange },
    done: string,
  ): Promise<BlockOutcome> {
    if ('problem' in outcome) return outcome;
    try {
      const isTold =
        told?.change !== undefined &&
        (await this.write(String(told.before), told, told.change.blocked ? 'add' : 'remove', [
          told.change.shopperId,
        ]));
      // Nothing new, or something was missed before: either way all that counts is what Redis has in the end.
      if (!isTold) await this.keepTold();
      return outcome;
    } catch (error) {
      if (!isStoreAway(error)) throw error;
      const detail = `${done}, but Redis could not be told; gateways will know as soon as it answers`;
      return { problem: 'unavailable', detail };
    }
  }

  private async write(
    expected: string,
    change: BlocklistChange,
    verb: 'all' | 'add' | 'remove',
    shoppers: readonly string[],
  ): Promise<boolean> {
    const { list, version, channel } = BLOCKLIST_FEED;
    const reply = await scripts.tellBlocklist.run(
      this.redis,
      [list],
      [version, expected, change.version, channel, JSON.stringify(change), verb, ...shoppers],
    );
    return reply === 'told';
  }
}

interface List {
  readonly version: number;
  readonly shoppers: number;
}

async function lockList(statements: Statements): Promise<List> {
  const [row] = await statements.query('SELECT version, shoppers FROM blocklist WHERE id = 1 FOR UPDATE');
  if (!row) throw new Error('the row of the blocklist has vanished from MySQL');
  return { version: Number(row['version']), shoppers: Number(row['shoppers']) };
}

/** Notes in the locked list that a shopper has come or gone. */
async function changeList(
  statements: Statements,
  { version: before }: List,
  shopperId: ShopperId,
  blocked: boolean,
): Promise<BlocklistChange> {
  await statements.change(
    `UPDATE blocklist SET version = GREATEST(version + 1, ROUND(UNIX_TIMESTAMP(NOW(3)) * 1000)), shoppers = shoppers + ?
     WHERE id = 1`,
    [blocked ? 1 : -1],
  );
  const { version } = await lockList(statements);
  return { before, version, change: { shopperId, blocked } };
}

async function readBlocked(
  statements: Statements,
  shopperId: ShopperId,
  lock: '' | 'FOR UPDATE',
): Promise<BlockedShopper | null> {
  const [row] = await statements.query<SqlRow & { reason: string; operator: string; at: Date }>(
    `SELECT reason, operator, at FROM blocked_shopper WHERE shopper_id = ? ${lock}`,
    [shopperId],
  );
  return row ? { shopperId, reason: row.reason, operator: row.operator, at: row.at } : null;
}

function log(
  statements: Statements,
  shopperId: ShopperId,
  operation: 'block' | 'unblock',
  known: BlockedShopper | null,
  { operator, reason }: { readonly operator: string; readonly reason: string },
): Promise<void> {
  const word = (isBlocked: boolean) => (isBlocked ? 'blocked' : 'free');
  return logOperation(statements, {
    saleId: '',
    operator,
    operation,
    before: word(known !== null),
    after: word(operation === 'block'),
    detail: JSON.stringify({ shopperId, reason, ...(known && { reasonBefore: known.reason }) }),
  });
}

function notBlocked(shopperId: string): BlockOutcome {
  return { problem: 'not_found', detail: `${shopperId.slice(0, 64)} is not blocked` };
}
