import { createHash } from 'node:crypto';
import type { LineClient, ProblemCode, item, token } from '@flash-sale/contracts';
import { readProblem } from '@flash-sale/contracts';
import {
  attemptIdOf,
  saleIdOf,
  type AttemptId,
  type IdempotencyKey,
  type SaleId,
  type ShopperId,
} from '@flash-sale/domain';
import type { Door } from './door.js';
import { FirstAnswers } from './first-answers.js';
import { answerOf } from './problems.js';
import type { RateLimits, RateVerdict } from './rate-limits.js';
import { WaitingPlaces } from './waiting-places.js';
import type { Holders, KnownSale, SalesFeed } from './sales-feed.js';

export interface EntryRequest {
  readonly saleId: SaleId;
  readonly shopperId: ShopperId;
  readonly address: string;
  readonly key: IdempotencyKey;
  readonly quantity: number;
  /** The solved challenge; empty for none. */
  readonly challenge: string;
  /** Whether the shopper shows a ticket: then there is a place in a line to be looked up. */
  readonly hasTicket: boolean;
  readonly context: item.ItemContext;
  /** What stood at the door for it. */
  readonly arrival: object;
}

export type Admission =
  | { readonly outcome: 'entry'; readonly entry: token.Entry }
  | { readonly outcome: 'refused'; readonly code: ProblemCode; readonly retryAfterSeconds?: number };

const BLOCKED: Admission = { outcome: 'refused', code: 'blocked' };

/** What everybody would be told who is not known to a sale. */
export interface StrangersRefusal {
  readonly saleId: SaleId;
  readonly code: ProblemCode;
  /** How long it is certain to hold from now on, ms; absent where only a change of the sale ends it. */
  readonly forMs?: number;
  /** Those who may be known, whom this is not for; absent where nobody can be. */
  readonly holders?: Holders;
}

/**
 * Near the moment of opening or closing the clocks' difference could refuse somebody wrongly; there Redis decides, which
 * looks at its own clock within the grant.
 */
const CLOCK_MARGIN_MS = 250;

/**
 * Who gets as far as the line. What memory knows is refused from memory, at the price of nothing; but a known attempt is
 * answered before phase, sold-out and rate, because its first answer may have been lost on the way. So whoever may be known
 * (the holder filter never misses one who is) is looked up before being refused.
 */
export class Admissions {
  /** A refusal is better asked for again: units may be back. */
  private readonly firstAnswers = new FirstAnswers<Admission>(({ outcome }) => outcome === 'entry');

  private readonly places: WaitingPlaces;

  constructor(
    private readonly feed: SalesFeed,
    private readonly limits: RateLimits,
    private readonly line: Pick<LineClient, 'enter' | 'findEntry' | 'leave' | 'progress'>,
    private readonly door: Pick<Door, 'pass' | 'leave' | 'retryAfterSeconds'>,
  ) {
    this.places = new WaitingPlaces(line);
  }

  /** Enters a sale. Idempotent by the shopper's key. */
  async enter(request: EntryRequest): Promise<Admission> {
    if (this.isBlocked(request.shopperId)) return BLOCKED;
    const sale = this.feed.find(request.saleId);
    if (!sale) return { outcome: 'refused', code: this.feed.isFresh() ? 'not_found' : 'unavailable' };
    const code = this.refusalOf(sale, request.quantity);
    // It costs no more than to count it, which may take a call to Redis.
    if (code !== null && !this.mayBeKnown(sale, request, code)) return { outcome: 'refused', code };
    const attemptId = attemptIdOf(request.saleId, request.shopperId, request.key);
    const body = bodyOf(request);
    const first = this.firstAnswers.find(attemptId, body);
    if (!first) return this.firstAnswers.keep(attemptId, body, this.decide(sale, attemptId, request, code));
    this.door.leave(request.arrival);
    return first;
  }

  /** @param code what memory says against the entry */
  private async decide(
    sale: KnownSale,
    attemptId: AttemptId,
    request: EntryRequest,
    code: ProblemCode | null,
  ): Promise<Admission> {
    const rate = await this.limits.take(request.address, request.shopperId);
    if (rate.outcome === 'beyond') {
      const mayBeAnswered = rate.slightly && this.mayBeKnown(sale, request, 'rate_limited');
      return mayBeAnswered ? this.knownOr(sale, attemptId, request, limited(rate)) : limited(rate);
    }
    if (code !== null) return this.knownOr(sale, attemptId, request, { outcome: 'refused', code });
    if (!this.door.pass(request.arrival)) {
      const retryAfterSeconds = this.door.retryAfterSeconds();
      return { outcome: 'refused', code: 'unavailable', retryAfterSeconds };
    }
    const { snapshot } = sale;
    const entry = await answerOf(
      this.line.enter({
        attemptId,
        shopperId: request.shopperId,
        quantity: request.quantity,
        challengeSolution: request.challenge,
        challenge: snapshot.challenge ?? '',
        lineMode: snapshot.line.mode,
        admitPerSecond: snapshot.line.admitPerSecond,
        context: request.context,
      }),
    );
    this.places.note(snapshot, attemptId, request.shopperId, entry);
    return asAdmission(entry);
  }

  /**
   * Where an entry stands; `null` where the shopper has no such entry.
   *
   * @param share of the room that looks of this importance may fill
   */
  async find(
    attemptId: AttemptId,
    saleId: SaleId,
    shopperId: ShopperId,
    context: item.ItemContext,
    share = 1,
  ): Promise<Admission> {
    const sale = this.feed.find(saleId);
    if (!sale) return { outcome: 'refused', code: this.feed.isFresh() ? 'not_found' : 'unavailable' };
    const { snapshot } = sale;
    if (snapshot.line.mode === 'fifo') {
      // A look at the head of a line sets units aside.
      if (this.isBlocked(shopperId)) return BLOCKED;
      const phase = this.feed.isFresh() ? this.feed.phaseOf(snapshot) : null;
      const mayWait = phase === 'open' || phase === 'paused';
      const known = mayWait ? this.places.find(snapshot, attemptId, shopperId) : undefined;
      if (known) return { outcome: 'entry', entry: known };
    }
    const entry = await this.lookUp(sale, attemptId, shopperId, context, share);
    this.places.note(snapshot, attemptId, shopperId, entry);
    // Whoever has seen their unit must not be told by a later click that they wait.
    this.firstAnswers.forget(attemptId);
    return asAdmission(entry);
  }

  /** Gives up a place or a hold; answers as {@link LineClient.leave} does. */
  async leave(
    attemptId: AttemptId,
    shopperId: ShopperId,
    context: item.ItemContext,
  ): Promise<token.LeaveResult> {
    const lineMode = this.modeOf(saleIdOf(attemptId));
    const left = await answerOf(this.line.leave({ attemptId, shopperId, lineMode, context }));
    this.firstAnswers.forget(attemptId);
    this.places.forget(attemptId);
    return left;
  }

  /** An entry has become an order: a later click must not be handed its purchase token as if it had not. */
  noteOrder(orderId: string): void {
    this.firstAnswers.forget(orderId);
  }

  /** Whether a shopper may begin nothing any more: no entry and no order. What they ordered stays theirs. */
  isBlocked(shopperId: ShopperId): boolean {
    return this.feed.blocklist.has(shopperId);
  }

  /** Whether a sale has a line; of a sale that is not known here, the answer that costs a look more. */
  private modeOf(saleId: SaleId): string {
    return this.feed.find(saleId)?.snapshot.line.mode ?? 'fifo';
  }

  /** Whether a new entry may get as far as the line; everybody else is answered from memory, or is looked up. */
  mayAdmit(saleId: string): boolean {
    const sale = this.feed.find(saleId as SaleId);
    return sale !== undefined && this.refusalOf(sale, 1) === null;
  }

  /** What memory says against an entry of somebody whom the sale is certain not to know; `null` for nothing. As {@link enter}. */
  refusalOfStranger(saleId: string, shopperId: ShopperId): ProblemCode | null {
    const sale = this.feed.find(saleId as SaleId);
    const code = sale ? this.refusalOf(sale, 1) : null;
    if (code && this.isBlocked(shopperId)) return 'blocked';
    return sale && code && !this.mayBeKnown(sale, { shopperId, hasTicket: false }, code) ? code : null;
  }

  /**
   * What may be said in front of this process, to everybody but those who show a ticket or may be among the holders. Nothing
   * of a sale whose line knows people whom no filter does, or whose filter is not here.
   */
  refusalsOfStrangers(): StrangersRefusal[] {
    return this.feed.list().flatMap((snapshot): StrangersRefusal[] => {
      const sale = this.feed.find(snapshot.saleId);
      const code = sale ? this.refusalOf(sale, 1) : null;
      if (!sale || code === null) return [];
      const { saleId, opensAtMs, line } = snapshot;
      if (code === 'sale_not_open') {
        const forMs = opensAtMs - CLOCK_MARGIN_MS - this.feed.now();
        return forMs > 0 ? [{ saleId, code, forMs }] : [];
      }
      const holders = line.mode === 'fifo' ? null : this.feed.holdersOf(sale);
      return holders ? [{ saleId, code, holders }] : [];
    });
  }

  /** What memory says against an entry; `null` for nothing. */
  private refusalOf({ snapshot }: KnownSale, quantity: number): ProblemCode | null {
    if (!this.feed.isFresh()) return null;
    const nowMs = this.feed.now();
    switch (this.feed.phaseOf(snapshot)) {
      case 'draft':
      case 'warming':
        return 'sale_not_open';
      case 'warmed':
        return nowMs < snapshot.opensAtMs - CLOCK_MARGIN_MS ? 'sale_not_open' : null;
      case 'paused':
        return 'sale_paused';
      case 'sold_out':
        return 'sold_out';
      case 'closed':
        return snapshot.storedPhase === 'closed' || nowMs >= snapshot.closesAtMs + CLOCK_MARGIN_MS
          ? 'sale_closed'
          : null;
      case 'settled':
        return 'sale_closed';
      case 'open':
        // Nobody should wait in a line for what will be refused at its head.
        return snapshot.line.mode === 'fifo' && quantity > snapshot.limitPerShopper ? 'limit_reached' : null;
    }
  }

  private mayBeKnown(
    sale: KnownSale,
    request: Pick<EntryRequest, 'shopperId' | 'hasTicket'>,
    code: ProblemCode,
  ): boolean {
    if (code === 'sale_not_open' || code === 'limit_reached') return false;
    return (
      request.hasTicket || sale.snapshot.line.mode === 'fifo' || this.feed.mayHold(sale, request.shopperId)
    );
  }

  private async knownOr(
    sale: KnownSale,
    attemptId: AttemptId,
    request: EntryRequest,
    refused: Admission,
  ): Promise<Admission> {
    const entry = await this.lookUp(sale, attemptId, request.shopperId, request.context);
    return entry.problem === 'not_found' ? refused : asAdmission(entry);
  }

  private lookUp(
    { snapshot }: KnownSale,
    attemptId: AttemptId,
    shopperId: ShopperId,
    context: item.ItemContext,
    share = 1,
  ): Promise<token.Entry> {
    const { mode, admitPerSecond } = snapshot.line;
    const wanted = { attemptId, shopperId, lineMode: mode, admitPerSecond, context };
    return answerOf(this.line.findEntry(wanted, undefined, share));
  }
}

/** What makes two entries with one key the same request. */
function bodyOf({ quantity, challenge }: EntryRequest): string {
  return challenge === ''
    ? String(quantity)
    : `${quantity} ${createHash('sha256').update(challenge).digest('base64')}`;
}

function limited(rate: RateVerdict & { outcome: 'beyond' }): Admission {
  return { outcome: 'refused', code: 'rate_limited', retryAfterSeconds: rate.retryAfterSeconds };
}

function asAdmission(entry: token.Entry): Admission {
  const code = readProblem(entry.problem);
  return code ? { outcome: 'refused', code } : { outcome: 'entry', entry };
}
