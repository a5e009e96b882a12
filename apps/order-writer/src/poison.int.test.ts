import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { DEAD_LETTER_HEADERS, deliveryHashOf } from '@flash-sale/contracts';
import { Database, DatabaseError, type SqlRow } from '@flash-sale/database';
import {
  IdempotencyKey,
  SaleId,
  ShopperId,
  attemptIdOf,
  parseSigningKeys,
  signPurchaseToken,
} from '@flash-sale/domain';
import { FaultProxy } from '@flash-sale/testing';
import type { SourceRecord } from './dead-letters.js';
import {
  TOPIC,
  TestBooks,
  chunkOf,
  crowd,
  delivery,
  keys,
  recordOf,
  servers,
  skuId,
} from './fixtures/test-books.js';

/** What becomes of records that cannot be decided, and of those that operators have produced once more. */

const otherKeys = parseSigningKeys(`k1:${Buffer.alloc(32, 8).toString('base64')}`);
const token = (saleId: SaleId, signedBy = keys) => {
  const shopperId = ShopperId.parse('mallory');
  const attemptId = attemptIdOf(saleId, shopperId, IdempotencyKey.parse('one'));
  const claims = {
    attemptId,
    saleId,
    skuId,
    shopperId,
    quantity: 1,
    epoch: 1,
    issuedAtMs: 1,
    expiresAtMs: 2,
  };
  return signPurchaseToken(claims, signedBy);
};
const event = (fields: object) => Buffer.from(JSON.stringify({ v: 1, delivery, ...fields }));
const hash = deliveryHashOf(delivery);
const kinds: [string, string, (saleId: SaleId) => Partial<SourceRecord>][] = [
  ['without a value', 'empty', () => ({ value: null })],
  ['that is no JSON', 'not_json', () => ({ value: Buffer.from('{"v":1,') })],
  ['of another version', 'unknown_version', () => ({ value: event({ v: 2 }) })],
  ['of a version that is no number', 'unknown_version', () => ({ value: event({ v: '版本' }) })],
  ['of another shape', 'wrong_shape', () => ({ value: event({ token: 'x' }) })],
  ['that is huge', 'too_large', () => ({ value: Buffer.alloc(200_000, 'x') })],
  [
    'with a token signed by somebody else',
    'bad_signature',
    (saleId) => ({ value: event({ token: token(saleId, otherKeys), deliveryHash: hash }) }),
  ],
  [
    'under the key of another attempt',
    'wrong_key',
    (saleId) => ({
      key: recordOf({ saleId, shopper: 'victim' }).key,
      value: event({ token: token(saleId), deliveryHash: hash }),
    }),
  ],
  [
    'without a key',
    'wrong_key',
    (saleId) => ({ key: null, value: event({ token: token(saleId), deliveryHash: hash }) }),
  ],
  [
    'of a sale that nobody made',
    'unknown_sale',
    () => recordOf({ saleId: SaleId.parse('nowhere'), shopper: 'lost' }),
  ],
  // A signed epoch that the column cannot hold: only the database finds out.
  [
    'that the database refuses',
    'poison',
    (saleId) => recordOf({ saleId, shopper: 'poison', epoch: 3_000_000_000 }),
  ],
];

/** Its signed epoch fits no column: only the database finds out. */
const poisonOf = (saleId: SaleId, shopper: string) => recordOf({ saleId, shopper, epoch: 3_000_000_000 });

/** The record that an operator's replay of a dead letter makes. */
function replayed(letter: SourceRecord, changes: Partial<SourceRecord> = {}): SourceRecord {
  const { offset } = recordOf({ saleId: SaleId.parse('any'), shopper: 'any' });
  const headers = {
    ...letter.headers,
    [DEAD_LETTER_HEADERS.topic]: letter.topic,
    [DEAD_LETTER_HEADERS.partition]: String(letter.partition),
    [DEAD_LETTER_HEADERS.offset]: String(letter.offset),
  };
  return { ...letter, offset, headers, ...changes };
}

describe.each(servers)('dead letters on %s', (_, server) => {
  let books: TestBooks;

  beforeAll(async () => {
    books = await TestBooks.open(server);
  });
  afterAll(() => books.close());

  const lettersOf = (record: SourceRecord) =>
    books.database.query<SqlRow>(
      `SELECT record_offset AS \`offset\`, state, cause, record_value AS value, closed_at AS closedAt
        FROM dead_letter WHERE order_id = ? ORDER BY record_offset`,
      [record.key],
    );

  it.each(kinds)('keeps a record %s with its cause (%s), and the others go on', async (_, cause, spoil) => {
    const saleId = await books.addSale(100);
    const { writer, dead } = books.startWriter();
    const good = crowd(saleId, 8);
    const spoiled: SourceRecord = { ...recordOf({ saleId, shopper: 'spoiled' }), ...spoil(saleId) };
    await writer.handle(chunkOf([...good.slice(0, 5), spoiled, ...good.slice(5)]));
    expect(await books.statesOf(saleId)).toEqual({ awaiting_payment: 8 });
    expect(dead.map((record) => [record.source.offset, record.cause])).toEqual([[spoiled.offset, cause]]);
    const noted = await books.database.query(
      'SELECT topic, order_id, cause, state FROM dead_letter WHERE record_offset = ?',
      [spoiled.offset],
    );
    expect(noted).toEqual([{ topic: TOPIC, order_id: spoiled.key, cause, state: 'pending' }]);
    await books.expectConsistent(saleId);
  });

  it('writes nothing while the dead letter itself is not safe', async () => {
    const saleId = await books.addSale(10);
    const send = async () => Promise.reject(new Error('Kafka did not acknowledge'));
    const { writer } = books.startWriter({ deadLetters: { send } });
    const spoiled = { ...recordOf({ saleId, shopper: 'spoiled' }), value: null };
    await expect(writer.handle(chunkOf([...crowd(saleId, 3), spoiled]))).rejects.toThrow('Kafka');
    expect(await books.statesOf(saleId)).toEqual({});
    expect(
      await books.database.query('SELECT 1 FROM dead_letter WHERE record_offset = ?', [spoiled.offset]),
    ).toEqual([]);
  });

  it('finds each of several poisoned records among many', async () => {
    const saleId = await books.addSale(1_000);
    const { writer, dead } = books.startWriter();
    const poisoned = [17, 18, 99].map((n) => recordOf({ saleId, shopper: `x${n}`, epoch: 3_000_000_000 }));
    const good = crowd(saleId, 97);
    const all = [...good.slice(0, 40), ...poisoned.slice(0, 2), ...good.slice(40), ...poisoned.slice(2)];
    await writer.handle(chunkOf(all));
    expect(await books.statesOf(saleId)).toEqual({ awaiting_payment: 97 });
    expect(dead.map((record) => record.source.offset)).toEqual(poisoned.map((record) => record.offset));
    await books.expectConsistent(saleId);
  });

  it('holds nothing against a record while a table is missing', async () => {
    const saleId = await books.addSale(10);
    const { writer, dead } = books.startWriter();
    const records = crowd(saleId, 3);
    await books.database.change('RENAME TABLE effect TO effect_away');
    await expect(writer.handle(chunkOf(records))).rejects.toThrow(DatabaseError);
    await books.database.change('RENAME TABLE effect_away TO effect');
    expect([dead, await books.statesOf(saleId)]).toEqual([[], {}]);
    await writer.handle(chunkOf(records));
    expect(await books.statesOf(saleId)).toEqual({ awaiting_payment: 3 });
  });

  it('keeps a record with its letter where a replay could decide it, and only there', async () => {
    const saleId = await books.addSale(10);
    const { writer } = books.startWriter();
    const readable = poisonOf(saleId, 'readable');
    const huge = { ...recordOf({ saleId, shopper: 'huge' }), value: Buffer.alloc(100_000, 'x') };
    const keyless = { ...recordOf({ saleId, shopper: 'keyless' }), key: 'x', value: Buffer.from('y') };
    await writer.handle(chunkOf([readable, huge, keyless]));
    const kept = await books.database.query(
      'SELECT record_value AS value, record_headers AS headers FROM dead_letter WHERE record_offset IN (?) ORDER BY 1 DESC',
      [[readable, huge, keyless].map(({ offset }) => offset)],
    );
    expect(kept).toEqual([
      { value: readable.value, headers: '{"request-id":"request-readable"}' },
      { value: null, headers: null },
      { value: null, headers: null },
    ]);
  });

  it('looks for no poison twice, though the chunk comes again before its end was reached', async () => {
    const saleId = await books.addSale(1_000);
    const poisoned = Array.from({ length: 12 }, (__, n) => poisonOf(saleId, `x${n}`));
    const chunk = chunkOf(crowd(saleId, 24).flatMap((good, n) => [good, ...poisoned.slice(n, n + 1)]));
    const sent: bigint[] = [];
    const send = async (records: readonly { source: SourceRecord }[]) => {
      if (sent.length === 8) throw new Error('Kafka did not acknowledge');
      sent.push(...records.map(({ source }) => source.offset));
    };
    const first = books.startWriter({ deadLetters: { send } });
    await expect(first.writer.handle(chunk)).rejects.toThrow('Kafka');
    expect(sent).toEqual(poisoned.slice(0, 8).map(({ offset }) => offset));
    // Another process, which remembers nothing.
    const { writer, dead } = books.startWriter();
    await writer.handle(chunk);
    expect(dead.map(({ source }) => source.offset)).toEqual(poisoned.slice(8).map(({ offset }) => offset));
    expect(await books.statesOf(saleId)).toEqual({ awaiting_payment: 24 });
    // All of it is known now: nothing is halved any more.
    let tries = 0;
    const last = books.startWriter({ newBatchId: () => `again-${(tries += 1)}` });
    await last.writer.handle(chunk);
    expect([tries, last.dead]).toEqual([6, []]);
    await books.expectConsistent(saleId);
  });

  it('sends a dead letter to Kafka once, however long the database is away', async () => {
    const saleId = await books.addSale(10);
    const proxy = await FaultProxy.before('mysql', books.url);
    const proxied = new Database({ url: proxy.through(books.url), poolSize: 2, acquireTimeoutMs: 1_000 });
    try {
      const { writer, dead } = books.startWriter({ database: proxied });
      const spoiled = { ...recordOf({ saleId, shopper: 'spoiled' }), value: null };
      proxy.refuse(true);
      for (let n = 0; n < 3; n += 1) {
        await expect(writer.handle(chunkOf([spoiled]))).rejects.toThrow(DatabaseError);
      }
      proxy.refuse(false);
      await writer.handle(chunkOf([spoiled]));
      expect([dead.length, (await lettersOf(spoiled)).length]).toEqual([1, 1]);
    } finally {
      await proxied.close();
      await proxy.stop();
    }
  });

  const infrastructure: [number, string][] = [
    [1290, 'runs read-only'],
    [1836, 'is in read-only mode'],
    [1792, 'has begun a read-only transaction'],
    [1021, 'has no room on its disk'],
    [1114, 'has a full table'],
    [1205, 'waits for a lock'],
    [1213, 'has a deadlock'],
    [1053, 'shuts down'],
    [1180, 'cannot commit'],
    [1142, 'denies the right'],
    [3100, 'was stopped by its replication'],
  ];
  it.each(infrastructure)('blames no record for errno %d: a database that %s', async (errno) => {
    const saleId = await books.addSale(10);
    const { writer, dead } = books.startWriter();
    const records = crowd(saleId, 3);
    await books.database.change(
      `CREATE TRIGGER refuse BEFORE INSERT ON orders FOR EACH ROW
        SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = ${errno}, MESSAGE_TEXT = 'not now'`,
    );
    try {
      await expect(writer.handle(chunkOf(records))).rejects.toThrow('not now');
    } finally {
      await books.database.change('DROP TRIGGER refuse');
    }
    expect([dead, await books.statesOf(saleId)]).toEqual([[], {}]);
    await writer.handle(chunkOf(records));
    expect(await books.statesOf(saleId)).toEqual({ awaiting_payment: 3 });
  });

  describe('a replay', () => {
    it('is decided, and closes its letter in the same transaction', async () => {
      const saleId = SaleId.parse(`later${Date.now()}`);
      const { writer } = books.startWriter();
      const early = recordOf({ saleId, shopper: 'early' });
      await writer.handle(chunkOf([early]));
      expect(await lettersOf(early)).toMatchObject([
        { state: 'pending', cause: 'unknown_sale', value: early.value },
      ]);
      await books.addSale(10, 1, saleId);
      // As long as the replay is not decided, the letter is open.
      let atDecision: SqlRow[] = [];
      const replay = books.startWriter({
        newBatchId: () => {
          void lettersOf(early).then((letters) => (atDecision = letters));
          return 'replay';
        },
      });
      await replay.writer.handle(chunkOf([replayed(early)]));
      expect(atDecision).toMatchObject([{ state: 'pending' }]);
      expect(await books.statesOf(saleId)).toEqual({ awaiting_payment: 1 });
      expect(await lettersOf(early)).toMatchObject([
        { state: 'replayed', value: null, closedAt: expect.any(Date) },
      ]);
      await books.expectConsistent(saleId);
    });

    it('meets the row that another copy has made, and changes nothing', async () => {
      const saleId = await books.addSale(10);
      const { writer, effects } = books.startWriter();
      const good = recordOf({ saleId, shopper: 'twice' });
      const spoiled = { ...good, offset: good.offset + 1_000_000n, value: Buffer.from('{') };
      await writer.handle(chunkOf([good, spoiled]));
      await writer.handle(
        chunkOf([replayed(spoiled, { value: good.value }), replayed(spoiled, { value: good.value })]),
      );
      expect([await books.statesOf(saleId), effects.length]).toEqual([{ awaiting_payment: 1 }, 1]);
      expect(await lettersOf(good)).toMatchObject([{ state: 'replayed' }]);
      await books.expectConsistent(saleId);
    });

    it.each(['unreadable', 'refused by the database'])(
      'that is %s is a letter of its own, and its attempt is pending at every moment',
      async (kind) => {
        const saleId = await books.addSale(10);
        const { writer } = books.startWriter();
        const poison = poisonOf(saleId, 'again');
        const first = kind === 'unreadable' ? { ...poison, value: Buffer.from('{') } : poison;
        await writer.handle(chunkOf([first]));
        const second = replayed(first);
        await writer.handle(chunkOf([second]));
        expect(await lettersOf(first)).toMatchObject([
          { offset: String(first.offset), state: 'replayed', value: null },
          { offset: String(second.offset), state: 'pending', value: first.value },
        ]);
        expect(await books.statesOf(saleId)).toEqual({});
      },
    );

    it('closes no letter but its own', async () => {
      const saleId = await books.addSale(10);
      const { writer, dead } = books.startWriter();
      const poison = poisonOf(saleId, 'victim');
      await writer.handle(chunkOf([poison]));
      const other = recordOf({ saleId, shopper: 'other' });
      const place = replayed(poison).headers;
      await writer.handle(
        chunkOf([
          { ...other, headers: place },
          recordOf({ saleId, shopper: 'plain' }),
          {
            ...recordOf({ saleId, shopper: 'odd' }),
            headers: { ...place, [DEAD_LETTER_HEADERS.topic]: '主题' },
          },
          {
            ...recordOf({ saleId, shopper: 'odder' }),
            headers: { ...place, [DEAD_LETTER_HEADERS.offset]: '-1' },
          },
        ]),
      );
      expect(await lettersOf(poison)).toMatchObject([{ state: 'pending' }]);
      expect([dead.length, await books.statesOf(saleId)]).toEqual([1, { awaiting_payment: 4 }]);
    });
  });
});
