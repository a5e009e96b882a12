import { randomUUID } from 'node:crypto';
import { DEAD_LETTER_HEADERS, type ProblemCode } from '@flash-sale/contracts';
import { isOlderThan, type SqlRow } from '@flash-sale/database';
import { saleIdOf, type AttemptId, type SigningKeys } from '@flash-sale/domain';
import { SendFailed, type SupervisedProducer } from '@flash-sale/kafka';
import { meter, type Log } from '@flash-sale/service';
import type { OrderDatabase } from './load.js';
import { readNewestFirst, type Page } from './newest-first.js';
import { recordOperation, type Operation } from './operator-log.js';
import { claimsIn, reject } from './reject-order.js';
import { transact } from './repeat.js';

/** What a letter may be asked for by; `replaying` is a pending one. */
export const STORED_STATES = ['pending', 'replayed', 'dropped'] as const;
export type StoredState = (typeof STORED_STATES)[number];

/** A record of the topic of orders that the writer could not decide. */
export interface DeadLetter {
  readonly letterId: string;
  readonly topic: string;
  readonly partition: number;
  readonly offset: number;
  /** Null where the record's key is no attempt's id: such a letter stands for no order. */
  readonly orderId: AttemptId | null;
  readonly cause: string;
  /** What the record claims; empty where it claims nothing. */
  readonly schemaVersion: string;
  /**
   * `pending`: an operator has to decide. `replaying`: it was produced again a moment ago. `replayed`: the writer has had the
   * replay; where it could not decide that either, the replay is a letter of its own. `dropped`: given up.
   */
  readonly state: StoredState | 'replaying';
  /** Whether a replay could be decided: its record can be read, and its key is an attempt's. */
  readonly replayable: boolean;
  readonly at: Date;
  readonly replayAt: Date | null;
  readonly closedAt: Date | null;
  /** The state of the order's row; null where there is none. */
  readonly orderState: string | null;
}

export type LetterOutcome =
  | { readonly outcome: 'done'; readonly letter: DeadLetter }
  | { readonly outcome: 'problem'; readonly problem: ProblemCode; readonly detail: string };

export interface DeadLettersOptions {
  readonly database: OrderDatabase;
  readonly producer: Pick<SupervisedProducer, 'enqueue'>;
  /** The topic of orders. */
  readonly topic: string;
  readonly keys: SigningKeys;
  readonly log: Log;
  /** A replay is given this long to be decided before it may be repeated, or the letter dropped, ms. */
  readonly replayWithinMs?: number;
}

const REPLAY_WITHIN_MS = 30_000;
const BEGIN_WITHIN_MS = 3_000;

/**
 * What operators do about dead letters. A letter is open until the writer has had its replay, or until it is dropped; as long
 * as it is, the sweeper leaves its attempt alone. Both calls may be repeated by anybody at any time: a replay produces a
 * record that the writer knows by its key, and a drop's row is either the first of its attempt or none.
 */
export class DeadLetters {
  private readonly replayWithinMs: number;
  private readonly metrics = deadLetterMetrics();

  constructor(private readonly options: DeadLettersOptions) {
    this.replayWithinMs = options.replayWithinMs ?? REPLAY_WITHIN_MS;
  }

  /**
   * A page of letters, newest first.
   *
   * @param state undefined: all of them
   * @returns undefined where the cursor is none of ours
   */
  list(state: StoredState | undefined, cursor: string, limit: number): Promise<Page<DeadLetter> | undefined> {
    return readNewestFirst(
      { cursor, limit, timeColumn: 'dead_letter.at', idColumn: 'letter_id' },
      async (where, tail, values) => {
        const condition = state === undefined ? where : `dead_letter.state = ? AND ${where}`;
        const rows = await this.options.database.query<LetterRow & SqlRow>(
          `${this.selectLetters()} WHERE ${condition} ${tail}`,
          state === undefined ? values : [state, ...values],
        );
        return rows.map((row) => letterFrom(row));
      },
      ({ at, letterId }) => ({ at, id: letterId }),
    );
  }

  /**
   * Produces the letter's record once more, under its key. The writer then decides it, or finds that its attempt has a row, or
   * makes the replay a dead letter of its own. A letter that is being replayed, or was, is answered as it is.
   */
  async replay(letterId: string, operator: string): Promise<LetterOutcome> {
    const found = await this.find(letterId);
    if (!found) return problem('not_found', 'there is no dead letter with this id');
    const { letter, record } = found;
    if (letter.state === 'replaying' || letter.state === 'replayed') return { outcome: 'done', letter };
    if (letter.state === 'dropped') {
      return problem('dead_letter_closed', 'this dead letter was dropped: its order, if any, is rejected');
    }
    if (!record) {
      return problem(
        'not_replayable',
        `nothing could be decided from this record (${letter.cause}): drop it`,
      );
    }
    // Two operators at once produce one record: whoever marks the letter.
    if (await this.mark(letter, operator)) {
      const unsent = await this.produce(letter, record);
      if (unsent) return unsent;
      this.metrics.replays.add(1);
    }
    return this.asItIs(letterId);
  }

  /**
   * Gives the letter up. Where its token can be read, its order gets the row of a rejection (`poison`), unless it has a row
   * already. Where it cannot, nobody but Redis knows what was held: the sweeper ends the hold then, as rejected too.
   */
  async drop(letterId: string, operator: string, reason: string): Promise<LetterOutcome> {
    const found = await this.find(letterId);
    if (!found) return problem('not_found', 'there is no dead letter with this id');
    const { letter, record } = found;
    if (letter.state === 'dropped') return { outcome: 'done', letter };
    if (letter.state === 'replayed') {
      return problem('dead_letter_closed', 'this dead letter was replayed: there is nothing left to drop');
    }
    if (letter.state === 'replaying') {
      return problem('in_progress', 'this dead letter is being replayed: look at it again in a moment');
    }
    const claims =
      letter.orderId && record ? claimsIn(record.value, letter.orderId, this.options.keys) : null;
    const entryId = randomUUID();
    const dropped = await transact(this.options.database, async (statements) => {
      const { rejected } = claims
        ? await reject(statements, claims, record?.value ?? null)
        : { rejected: false };
      const closed = await statements.change(
        `UPDATE dead_letter SET state = 'dropped', closed_at = NOW(3), record_value = NULL, record_headers = NULL
          WHERE letter_id = ? AND state = 'pending' AND ${NOT_REPLAYING}`,
        [letterId, this.replayWithinMs * 1_000],
      );
      // Somebody else was first: then nothing of this may stand, the row least of all.
      if (closed === 0) throw new LetterChanged();
      await recordOperation(statements, entryId, entryOf(letter, operator, 'dropped', reason));
      return { rejected };
    }).catch((error: unknown) => {
      if (error instanceof LetterChanged) return null;
      throw error;
    });
    if (!dropped) return this.asItIs(letterId, 'dropped');
    this.metrics.drops.add(1);
    this.options.log.warn(
      { letterId, orderId: letter.orderId, operator, cause: letter.cause, rejected: dropped.rejected },
      'a dead letter was dropped',
    );
    return this.asItIs(letterId, 'dropped');
  }

  private async find(letterId: string) {
    const [found] = await this.options.database.query<FullLetterRow & SqlRow>(
      `${this.selectLetters(', record_value AS recordValue, record_headers AS recordHeaders')}
        WHERE letter_id = ?`,
      [letterId],
    );
    if (!found) return undefined;
    const { recordValue: value, recordHeaders: headers, ...row } = found;
    const record: StoredRecord | null = value && {
      value,
      headers: JSON.parse(headers ?? '{}') as Record<string, string>,
    };
    return { letter: letterFrom(row), record };
  }

  /** The letter as it is now; a problem where it did not become what its caller was to make of it. */
  private async asItIs(letterId: string, wanted?: StoredState): Promise<LetterOutcome> {
    const found = await this.find(letterId);
    if (!found) return problem('not_found', 'there is no dead letter with this id');
    const { letter } = found;
    if (wanted === undefined || letter.state === wanted) return { outcome: 'done', letter };
    return letter.state === 'replayed'
      ? problem('dead_letter_closed', 'this dead letter was replayed meanwhile')
      : problem('in_progress', 'somebody else is at this dead letter: look at it again in a moment');
  }

  /** Notes who replays the letter and when. False where somebody else has just done so, or has closed it. */
  private async mark(letter: DeadLetter, operator: string): Promise<boolean> {
    const entryId = randomUUID();
    return transact(this.options.database, async (statements) => {
      // A transaction whose commit was not answered may have marked it.
      const [mine] = await statements.query('SELECT 1 FROM operator_log WHERE entry_id = ?', [entryId]);
      if (mine) return true;
      const marked = await statements.change(
        `UPDATE dead_letter SET replay_at = NOW(3) WHERE letter_id = ? AND state = 'pending' AND ${NOT_REPLAYING}`,
        [letter.letterId, this.replayWithinMs * 1_000],
      );
      if (marked === 0) return false;
      await recordOperation(statements, entryId, entryOf(letter, operator, 'replaying', ''));
      return true;
    });
  }

  /** @returns a problem where Kafka did not acknowledge the record */
  private async produce(letter: DeadLetter, record: StoredRecord): Promise<LetterOutcome | undefined> {
    const { database, producer, topic, log } = this.options;
    const { letterId, orderId } = letter;
    try {
      const message = {
        key: orderId ?? '',
        value: record.value,
        headers: {
          ...record.headers,
          [DEAD_LETTER_HEADERS.topic]: letter.topic,
          [DEAD_LETTER_HEADERS.partition]: String(letter.partition),
          [DEAD_LETTER_HEADERS.offset]: String(letter.offset),
        },
      };
      const sent = await producer.enqueue(topic, message, performance.now() + BEGIN_WITHIN_MS);
      log.info(
        { letterId, orderId, partition: sent.partition, offset: String(sent.offset) },
        'a dead letter was produced once more',
      );
      return undefined;
    } catch (error) {
      if (!(error instanceof SendFailed)) throw error;
      log.warn({ err: error, letterId, orderId }, 'a dead letter could not be produced once more');
      // Whether it arrived is not known; either way it may be pressed again at once.
      await database.change(
        `UPDATE dead_letter SET replay_at = NULL WHERE letter_id = ? AND state = 'pending'`,
        [letterId],
      );
      return problem(
        'unavailable',
        'Kafka did not acknowledge the record: replay it again, one that did arrive is recognised',
      );
    }
  }

  private selectLetters(more = ''): string {
    return `SELECT letter_id AS letterId, topic, partition_number AS \`partition\`, record_offset AS \`offset\`,
        dead_letter.order_id AS orderId, cause, schema_version AS schemaVersion,
        CASE WHEN dead_letter.state = 'pending' AND replay_at IS NOT NULL
            AND NOT ${isOlderThan('replay_at', this.replayWithinMs * 1_000)}
          THEN 'replaying' ELSE dead_letter.state END AS state,
        record_value IS NOT NULL AS replayable, at, replay_at AS replayAt, closed_at AS closedAt,
        orders.state AS orderState${more}
      FROM dead_letter LEFT JOIN orders ON orders.order_id = dead_letter.order_id`;
  }
}

/** Takes the time that a replay has, in µs. */
const NOT_REPLAYING = `(replay_at IS NULL OR ${isOlderThan('replay_at')})`;

/** Ends a transaction without a trace. */
class LetterChanged extends Error {
  override readonly name = 'LetterChanged';
}

/** A letter as the database gives it; BIGINT and what is reckoned may come as text. */
interface LetterRow extends Omit<DeadLetter, 'offset' | 'replayable'> {
  readonly offset: string;
  readonly replayable: string | number;
}

interface FullLetterRow extends LetterRow {
  readonly recordValue: Buffer | null;
  readonly recordHeaders: string | null;
}

/** The record as it lay in the topic, under the letter's key. */
interface StoredRecord {
  readonly value: Buffer;
  readonly headers: Readonly<Record<string, string>>;
}

function letterFrom(row: LetterRow): DeadLetter {
  return { ...row, offset: Number(row.offset), replayable: Number(row.replayable) === 1 };
}

function problem(code: ProblemCode, detail: string): LetterOutcome {
  return { outcome: 'problem', problem: code, detail };
}

function entryOf(
  letter: DeadLetter,
  operator: string,
  after: 'replaying' | 'dropped',
  reason: string,
): Operation {
  const { letterId, topic, partition, offset, orderId, cause } = letter;
  return {
    operator,
    operation: after === 'dropped' ? 'dead-letter-drop' : 'dead-letter-replay',
    saleId: orderId === null ? '' : saleIdOf(orderId),
    before: letter.state,
    after,
    detail: JSON.stringify({ letterId, topic, partition, offset, orderId, cause, ...(reason && { reason }) }),
  };
}

function deadLetterMetrics() {
  const of = meter();
  return {
    replays: of.createCounter('orders.dead_letters.replayed', { description: 'Dead letters produced again' }),
    drops: of.createCounter('orders.dead_letters.dropped', { description: 'Dead letters given up' }),
  };
}
