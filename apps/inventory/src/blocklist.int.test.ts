import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { BLOCKLIST_FEED } from '@flash-sale/contracts';
import { Database } from '@flash-sale/database';
import { connectRedis, type RedisClient } from '@flash-sale/redis';
import { Blocklist, type BlockOutcome } from './blocklist.js';
import { redisUrl } from './fixtures/redis-under-test.js';
import { openTestDatabase } from './fixtures/test-inventory.js';

/** On a MySQL database of its own and on Redis' database 7, where no other test keeps a list. */
let redis: RedisClient;
let database: Database;
let closeDatabase: () => Promise<void>;
let one: Blocklist;
let other: Blocklist;

beforeAll(async () => {
  redis = await connectRedis({
    url: new URL('/7', redisUrl()).href,
    name: 'blocklist-test',
    commandTimeoutMs: 5_000,
  });
  ({ database, close: closeDatabase } = await openTestDatabase());
  one = new Blocklist(redis, database, 5);
  other = new Blocklist(redis, database, 5);
}, 60_000);
afterAll(async () => {
  await redis.del(BLOCKLIST_FEED.list);
  redis.disconnect();
  await closeDatabase();
});
beforeEach(async () => {
  await database.change('DELETE FROM blocked_shopper');
  await database.change('UPDATE blocklist SET shoppers = 0, version = version + 1');
  await database.change('DELETE FROM operator_log');
  await one.keepTold();
});

async function told(): Promise<{ version: string | undefined; shoppers: string[] }> {
  const { [BLOCKLIST_FEED.version]: version, ...shoppers } = await redis.hgetall(BLOCKLIST_FEED.list);
  return { version, shoppers: Object.keys(shoppers).sort() };
}
const stored = async () => {
  const [row] = await database.query('SELECT version, shoppers FROM blocklist');
  return { version: String(row?.['version']), count: Number(row?.['shoppers']) };
};
const word = (outcome: BlockOutcome) =>
  'problem' in outcome ? outcome.problem : outcome.blocked ? 'blocked' : 'free';

describe('Blocklist', () => {
  it('blocks and unblocks: MySQL, the operators log and Redis say the same', async () => {
    expect(await one.block('alice', 'olga', 'resells')).toMatchObject({
      blocked: { shopperId: 'alice', reason: 'resells', operator: 'olga', at: expect.any(Date) },
    });
    expect(await other.find('alice')).toMatchObject({ blocked: { reason: 'resells' } });
    expect(await told()).toEqual({ version: (await stored()).version, shoppers: ['alice'] });
    expect(word(await other.unblock('alice', 'oscar', 'a mistake'))).toBe('free');
    expect([word(await one.find('alice')), word(await one.unblock('alice', 'olga', 'again'))]).toEqual([
      'not_found',
      'not_found',
    ]);
    expect(await told()).toEqual({ version: (await stored()).version, shoppers: [] });
    const rows = await database.query(
      'SELECT operator, operation, before_phase, after_phase, detail FROM operator_log ORDER BY at, entry_id',
    );
    expect(rows.map((row) => Object.values(row).join(' '))).toEqual([
      'olga block free blocked {"shopperId":"alice","reason":"resells"}',
      'oscar unblock blocked free {"shopperId":"alice","reason":"a mistake","reasonBefore":"resells"}',
    ]);
  });

  it('does and records a repeated call once; another reason replaces the one before', async () => {
    await one.block('alice', 'olga', 'resells');
    const before = await stored();
    expect(word(await other.block('alice', 'oscar', 'resells'))).toBe('blocked');
    expect(await one.block('alice', 'oscar', 'resells a lot')).toMatchObject({
      blocked: { reason: 'resells a lot', operator: 'oscar' },
    });
    // The list is the same: gateways have nothing to learn.
    expect(await stored()).toEqual(before);
    expect(await database.query('SELECT entry_id FROM operator_log')).toHaveLength(2);
  });

  it('counts right when many are blocked at once, and refuses more than there may be', async () => {
    const outcomes = await Promise.all(
      Array.from({ length: 8 }, (_, i) => (i % 2 ? one : other).block(`s${i}`, 'olga', 'a bot')),
    );
    expect(outcomes.map(word).sort()).toEqual([
      ...Array.from({ length: 5 }, () => 'blocked'),
      ...Array.from({ length: 3 }, () => 'blocklist_full'),
    ]);
    expect((await stored()).count).toBe(5);
    await one.keepTold();
    expect((await told()).shoppers).toHaveLength(5);
    const [first] = (await told()).shoppers;
    await one.unblock(first ?? '', 'olga', 'room');
    expect(word(await one.block('late', 'olga', 'a bot'))).toBe('blocked');
  });

  it('tells everything again when Redis has lost it, or has another list', async () => {
    await one.block('alice', 'olga', 'resells');
    const whole = await told();
    await redis.del(BLOCKLIST_FEED.list);
    await other.keepTold();
    expect(await told()).toEqual(whole);
    // As a promoted replica that has missed the last changes would have it.
    await redis.hset(BLOCKLIST_FEED.list, BLOCKLIST_FEED.version, '17', 'mallory', '1');
    await redis.hdel(BLOCKLIST_FEED.list, 'alice');
    await one.keepTold();
    expect(await told()).toEqual(whole);
    // A change meets a list that is not the one before it.
    await redis.del(BLOCKLIST_FEED.list);
    await one.block('bob', 'olga', 'resells');
    expect(await told()).toEqual({ version: (await stored()).version, shoppers: ['alice', 'bob'] });
  });

  it('says unavailable where a store is away, and what stands nevertheless', async () => {
    const noMysql = new Database({
      url: 'mysql://root@127.0.0.1:1/test_nowhere',
      poolSize: 2,
      acquireTimeoutMs: 200,
    });
    expect(word(await new Blocklist(redis, noMysql).block('alice', 'olga', 'x'))).toBe('unavailable');
    await noMysql.close();
    const gone = await connectRedis({ url: new URL('/7', redisUrl()).href, name: 'blocklist-test' });
    gone.disconnect();
    const outcome = await new Blocklist(gone, database).block('alice', 'olga', 'x');
    expect(outcome).toMatchObject({
      problem: 'unavailable',
      detail: expect.stringContaining('alice is blocked now'),
    });
    expect(word(await one.find('alice'))).toBe('blocked');
    await one.keepTold();
    expect((await told()).shoppers).toEqual(['alice']);
  });

  it('refuses what cannot be a shopper', async () => {
    expect(word(await one.block('*', 'olga', 'x'))).toBe('invalid');
    expect(word(await one.find('*'))).toBe('not_found');
  });
});
