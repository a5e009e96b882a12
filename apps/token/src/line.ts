import type { StockClient, inventory, token } from '@flash-sale/contracts';
import { CallFailed, NotSent } from '@flash-sale/contracts';
import {
  AttemptId,
  ShopperId,
  attemptIdFrom,
  saleIdOf,
  tailOf,
  waitOf,
  type SaleId,
  type SigningKeys,
} from '@flash-sale/domain';
import type { RedisClient } from '@flash-sale/redis';
import { entry, entryOfHold, refusal, signTicket } from './issue-token.js';
import { lineKeys } from './keys.js';
import {
  enterLine,
  findInLine,
  leaveLine,
  lineProgress,
  settleInLine,
  type EndState,
  type LineProgress,
  type Standing,
} from './line-scripts.js';
import type { ProofOfWork } from './proof-of-work.js';
import { endAfterWaiting, problemOfGrant, problemOfRelease } from './stock-outcomes.js';

/** The part of Stock that the line needs. */
export type StockForLine = Pick<StockClient, 'grant' | 'findHold' | 'release'>;

export interface LineOptions {
  readonly redis: RedisClient;
  readonly stock: StockForLine;
  readonly keys: SigningKeys;
  readonly proofOfWork: ProofOfWork;
  /** How long Stock may take; less than the gateway waits for us, so that it gets an answer. */
  readonly stockTimeoutMs: number;
}

/** What Stock said about an admitted entry, to be noted in the line. */
interface Note {
  readonly tail: string;
  readonly verb: 'end' | 'forget';
  readonly state: EndState;
  readonly reason: string;
}

/** What one batch learns about one sale. */
class Notes {
  readonly entries: Note[] = [];
  soldOut = false;
  stalled = false;
}

interface Item {
  readonly attemptId: AttemptId;
  readonly saleId: SaleId;
  readonly shopperId: ShopperId;
  readonly context: token.EnterItem['context'];
  /** When its caller stops to wait, on the `performance.now()` scale. */
  readonly deadlineMs: number;
}

/** What of the time that a caller waits is left for our answer to reach it. */
const ANSWER_TAKES_MS = 50;
/** For this long after Stock said `sold out` nobody is kept waiting; the next who is admitted asks again. */
const SOLD_OUT_FOR_MS = 1_000;
/** For this long after Stock said that the sale does not sell at the moment nobody is admitted. */
const STALLED_FOR_MS = 1_000;
/** An entry next to another one of the same shopper asks Stock once which of them lives; more means that it changes as we look. */
const MAX_ROUNDS = 3;

/**
 * The line before the counter. Without a line (`off`) every entry goes to Stock at once. With one (`fifo`) entries wait in
 * order of arrival and are let through at the sale's rate by Redis' clock; one that was let through is granted when it next
 * asks. From then on Stock is the truth about it; the line only remembers its number and its end. Every call is idempotent by
 * attempt, and in both modes a shopper has one live entry per sale: another key with the same quantity is another name for it.
 * `deadlinesMs` says of each item when its caller stops to wait, on the `performance.now()` scale: Stock is not asked after it.
 */
export class Line {
  constructor(private readonly options: LineOptions) {}

  /** Enters, or says where the entry stands. One answer for each item, in order. */
  enter(items: readonly token.EnterItem[], deadlinesMs: readonly number[] = []): Promise<token.Entry[]> {
    return this.perSale(items, deadlinesMs, async (saleId, group) => {
      const faults = await Promise.all(group.map((one) => this.challengeFault(one)));
      const notes = new Notes();
      const free = group.filter((_, index) => faults[index] === null);
      const standings = await this.join(saleId, free.filter(isFifo));
      const answers = await Promise.all(
        group.map(async (one, index) => {
          const fault = faults[index];
          if (fault) return this.knownOr(one, fault);
          const standing = standings.get(one);
          return standing ? this.answer(one, standing, notes) : this.grantAtOnce(one);
        }),
      );
      await this.note(saleId, notes);
      return answers;
    });
  }

  /** Where entries stand; one that was let through is granted here. `not_found` for what is not the shopper's. */
  find(items: readonly token.FindEntryItem[], deadlinesMs: readonly number[] = []): Promise<token.Entry[]> {
    return this.perSale(items, deadlinesMs, async (saleId, group) => {
      const notes = new Notes();
      const inLine = group.filter(isFifo);
      const found = inLine.length === 0 ? [] : await this.findStandings(saleId, inLine);
      const standings = new Map(inLine.map((one, index) => [one, found[index]]));
      const answers = await Promise.all(
        group.map((one) => {
          const standing = standings.get(one);
          return standing && standing.kind !== 'unknown'
            ? this.answer(one, standing, notes)
            : this.findHold(one);
        }),
      );
      await this.note(saleId, notes);
      return answers;
    });
  }

  /** How far a sale's line has come; moves it on by what time allows. */
  progress(saleId: SaleId, admitPerSecond: number): Promise<LineProgress> {
    return lineProgress.run(this.options.redis, keyList(saleId), [admitPerSecond]);
  }

  /** Gives up places and holds. Idempotent. */
  leave(
    items: readonly token.LeaveItem[],
    deadlinesMs: readonly number[] = [],
  ): Promise<token.LeaveResult[]> {
    return this.perSale<token.LeaveItem, token.LeaveResult>(items, deadlinesMs, async (saleId, group) => {
      const notes = new Notes();
      const inLine = group.filter(isFifo);
      const left =
        inLine.length === 0
          ? []
          : await leaveLine.run(
              this.options.redis,
              keyList(saleId),
              inLine.flatMap((one) => [tailOf(one.attemptId), one.shopperId]),
            );
      const standings = new Map(inLine.map((one, index) => [one, left[index]]));
      const results = await Promise.all(
        group.map(async (one) => {
          const standing = standings.get(one);
          if (standing?.kind === 'ended' && standing.state !== 'ordered') return { problem: '' };
          const admitted = standing?.kind === 'admitted' ? standing : null;
          const attemptId = admitted ? attemptIdFrom(saleId, admitted.tail) : one.attemptId;
          const outcome = await this.release(one, attemptId);
          if (admitted && (outcome === 'RELEASED' || outcome === 'UNKNOWN')) {
            notes.entries.push({ tail: admitted.tail, verb: 'end', state: 'released', reason: 'released' });
          }
          return { problem: admitted && outcome === 'UNKNOWN' ? '' : problemOfRelease(outcome) };
        }),
      );
      await this.note(saleId, notes);
      return results;
    });
  }

  /** Splits a batch by sale, because a script sees one sale; malformed items are refused alone. */
  private async perSale<One extends { readonly attemptId: string; readonly shopperId: string }, Answer>(
    items: readonly One[],
    deadlinesMs: readonly number[],
    work: (saleId: SaleId, group: readonly (One & Item)[]) => Promise<readonly Answer[]>,
  ): Promise<Answer[]> {
    const groups = new Map<SaleId, { one: One & Item; index: number }[]>();
    for (const [index, item] of items.entries()) {
      const attemptId = AttemptId.parse(item.attemptId);
      const one = {
        ...item,
        attemptId,
        shopperId: ShopperId.parse(item.shopperId),
        saleId: saleIdOf(attemptId),
        deadlineMs: deadlinesMs[index] ?? Number.POSITIVE_INFINITY,
      };
      const group = groups.get(one.saleId) ?? [];
      group.push({ one: one as unknown as One & Item, index });
      groups.set(one.saleId, group);
    }
    const answers: Answer[] = [];
    await Promise.all(
      [...groups].map(async ([saleId, group]) => {
        const results = await work(
          saleId,
          group.map(({ one }) => one),
        );
        for (const [place, { index }] of group.entries()) answers[index] = results[place] as Answer;
      }),
    );
    return answers;
  }

  private async challengeFault(one: token.EnterItem & Item): Promise<string | null> {
    if (one.challenge !== 'proof_of_work') return null;
    return this.options.proofOfWork.use(one.challengeSolution, one.saleId, one.shopperId, one.attemptId);
  }

  /** A known entry is answered whatever is wrong with its challenge: its sender solved one before. */
  private async knownOr(one: token.EnterItem & Item, fault: string): Promise<token.Entry> {
    const [known] = await this.find([one], [one.deadlineMs]);
    return known && known.problem !== 'not_found' ? known : refusal(fault);
  }

  private async join<One extends token.EnterItem & Item>(
    saleId: SaleId,
    group: readonly One[],
  ): Promise<Map<One, Standing>> {
    const standings = new Map<One, Standing>();
    const about = new Map<One, string>();
    let open = group;
    for (let round = 0; round < MAX_ROUNDS && open.length > 0; round += 1) {
      const replies = await enterLine.run(this.options.redis, keyList(saleId), [
        open[0]?.admitPerSecond ?? 1,
        ...open.flatMap((one) => [tailOf(one.attemptId), one.shopperId, one.quantity, about.get(one) ?? '']),
      ]);
      const asked = open.map(async (one, index) => {
        const standing = replies[index];
        if (!standing) throw new Error(`enter-line.lua answered ${replies.length} of ${open.length} items`);
        standings.set(one, standing);
        if (standing.kind === 'live') about.set(one, await this.isLive(one, standing.tail));
      });
      await Promise.all(asked);
      open = open.filter((one) => standings.get(one)?.kind === 'live' && about.get(one) !== '');
    }
    return standings;
  }

  /** `=tail` when the shopper's other entry lives (or has yet to be granted), `-tail` when it is over, '' when nobody knows. */
  private async isLive(one: Item, tail: string): Promise<string> {
    const attemptId = attemptIdFrom(one.saleId, tail);
    const found = await this.ask(() =>
      this.options.stock.findHold(
        { attemptId, shopperId: one.shopperId, context: one.context },
        this.stockTimeoutMs(one),
      ),
    );
    if (!found || found.outcome === 'UNAVAILABLE') return '';
    return found.outcome === 'CONFIRMED' || found.outcome === 'VOID' ? `-${tail}` : `=${tail}`;
  }

  private findStandings(saleId: SaleId, group: readonly (token.FindEntryItem & Item)[]): Promise<Standing[]> {
    return findInLine.run(this.options.redis, keyList(saleId), [
      group[0]?.admitPerSecond ?? 1,
      ...group.flatMap((one) => [tailOf(one.attemptId), one.shopperId]),
    ]);
  }

  private async answer(
    one: Item & { readonly admitPerSecond: number },
    standing: Standing,
    notes: Notes,
  ): Promise<token.Entry> {
    switch (standing.kind) {
      case 'waiting':
        return this.waiting(one, standing.tail, standing.position, standing.created, standing);
      case 'admitted':
        return this.grantAdmitted(one, standing, notes);
      case 'ended':
        return entry(attemptIdFrom(one.saleId, standing.tail), standing.state, { reason: standing.reason });
      case 'exists':
        return refusal('entry_exists');
      case 'reused':
        return refusal('idempotency_key_reused');
      case 'sold_out':
        return refusal('sold_out');
      case 'unknown':
        return refusal('not_found');
      case 'live':
        return refusal('unavailable');
    }
  }

  private waiting(
    one: Item & { readonly admitPerSecond: number },
    tail: string,
    position: number,
    created: boolean,
    place?: Pick<token.WaitingPlace, 'number' | 'bornMs' | 'admitted'>,
  ): token.Entry {
    const entryId = attemptIdFrom(one.saleId, tail);
    return entry(entryId, 'waiting', {
      created,
      position,
      ...waitOf(position, one.admitPerSecond),
      ticket: signTicket(entryId, one.shopperId, this.options.keys),
      ...(place && {
        place: { number: place.number, bornMs: place.bornMs, admitted: place.admitted },
      }),
    });
  }

  /** Without a line: Stock decides, and remembers nothing of what it refuses. */
  private async grantAtOnce(one: token.EnterItem & Item): Promise<token.Entry> {
    const result = await this.grant(one, one.attemptId, one.quantity);
    if (!result) return refusal('unavailable');
    return this.known(result.outcome, result.hold, result.created) ?? refusal(problemOfGrant(result.outcome));
  }

  private async grantAdmitted(
    one: Item & { readonly admitPerSecond: number },
    { tail, quantity, created }: Extract<Standing, { kind: 'admitted' }>,
    notes: Notes,
  ): Promise<token.Entry> {
    const entryId = attemptIdFrom(one.saleId, tail);
    const result = await this.grant(one, entryId, quantity);
    if (!result || result.outcome === 'UNAVAILABLE') return refusal('unavailable');
    const known = this.known(result.outcome, result.hold, created);
    if (known) {
      if (result.outcome === 'VOID') {
        notes.entries.push({ tail, verb: 'end', state: known.state as EndState, reason: known.reason });
      }
      return known;
    }
    const problem = problemOfGrant(result.outcome);
    notes.soldOut ||= result.outcome === 'SOLD_OUT';
    const stalled = result.outcome === 'PAUSED' || result.outcome === 'NOT_OPEN';
    notes.stalled ||= stalled;
    if (created) {
      // It has not waited for anything yet: the refusal is the whole answer, and the key may be used again.
      notes.entries.push({ tail, verb: 'forget', state: 'released', reason: problem });
      return refusal(problem);
    }
    // It keeps its place at the head until the sale goes on.
    if (stalled) return this.waiting(one, tail, 1, false);
    const state = endAfterWaiting(result.outcome);
    notes.entries.push({ tail, verb: 'end', state, reason: problem });
    return entry(entryId, state, { reason: problem });
  }

  private async findHold(one: Item): Promise<token.Entry> {
    const found = await this.ask(() =>
      this.options.stock.findHold(
        { attemptId: one.attemptId, shopperId: one.shopperId, context: one.context },
        this.stockTimeoutMs(one),
      ),
    );
    if (!found || found.outcome === 'UNAVAILABLE') return refusal('unavailable');
    return this.known(found.outcome, found.hold, false) ?? refusal('not_found');
  }

  private known(outcome: string, hold: inventory.Hold | undefined, created: boolean): token.Entry | null {
    switch (outcome) {
      case 'HELD':
      case 'QUEUED':
      case 'EXPIRING':
      case 'CONFIRMED':
      case 'VOID':
        if (!hold) throw new Error(`Stock answered ${outcome} without a hold`);
        return entryOfHold(outcome, hold, created && outcome === 'HELD', this.options.keys);
      default:
        return null;
    }
  }

  private grant(one: Item, attemptId: AttemptId, quantity: number): Promise<inventory.GrantResult | null> {
    return this.ask(() =>
      this.options.stock.grant(
        { attemptId, shopperId: one.shopperId, quantity, context: one.context },
        this.stockTimeoutMs(one),
      ),
    );
  }

  private async release(one: Item, attemptId: AttemptId): Promise<inventory.ReleaseResult['outcome']> {
    const result = await this.ask(() =>
      this.options.stock.release(
        { attemptId, shopperId: one.shopperId, context: one.context },
        this.stockTimeoutMs(one),
      ),
    );
    return result?.outcome ?? 'UNAVAILABLE';
  }

  private stockTimeoutMs({ deadlineMs }: Item): number {
    return Math.min(this.options.stockTimeoutMs, deadlineMs - performance.now() - ANSWER_TAKES_MS);
  }

  /** `null` when Stock gave no answer: what was asked for may have happened, and asking again is harmless. */
  private async ask<Result>(call: () => Promise<Result>): Promise<Result | null> {
    try {
      return await call();
    } catch (error) {
      if (error instanceof CallFailed || error instanceof NotSent) return null;
      throw error;
    }
  }

  private async note(saleId: SaleId, { entries, soldOut, stalled }: Notes): Promise<void> {
    if (entries.length === 0 && !soldOut && !stalled) return;
    await settleInLine.run(this.options.redis, keyList(saleId), [
      soldOut ? SOLD_OUT_FOR_MS : 0,
      stalled ? STALLED_FOR_MS : 0,
      ...entries.flatMap(({ tail, verb, state, reason }) => [tail, verb, state, reason]),
    ]);
  }
}

function isFifo(one: { readonly lineMode: string }): boolean {
  return one.lineMode === 'fifo';
}

function keyList(saleId: SaleId): string[] {
  const { gate, places, entries, shoppers } = lineKeys(saleId);
  return [gate, places, entries, shoppers];
}
