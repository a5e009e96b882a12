/**
 * The reference model of stock: one bucket, as plain and slow as can be. It keeps only what happened (the attempts, the
 * units that came and went) and derives every number from that by adding up, so that it shares no bookkeeping with the
 * scripts that it checks. Time is whatever the caller says.
 */

/** H held, Q queued, h and q expiring from these, C confirmed, V void. */
export type ModelState = 'H' | 'Q' | 'h' | 'q' | 'C' | 'V';

export interface ModelAttempt {
  readonly shopperId: string;
  readonly quantity: number;
  state: ModelState;
  deadlineMs: number;
  /** Empty until it is queued. */
  deliveryHash: string;
  /** Where in Kafka it lies; empty while that is not known. */
  offset: string;
  reason: string;
}

export interface ModelWish {
  readonly id: string;
  readonly shopperId: string;
  readonly quantity: number;
}

/** When and to whom the bucket grants. */
export interface ModelGate {
  readonly opensAtMs: number;
  readonly closesAtMs: number;
  readonly paused: boolean;
  readonly closed: boolean;
  readonly limit: number;
  readonly holdMs: number;
}

export type ModelGrant =
  | { readonly outcome: 'granted' | 'known'; readonly id: string; readonly state: ModelState }
  | { readonly outcome: 'mismatch' | 'not_open' | 'paused' | 'closed' | 'entry_exists' | 'limit' }
  | { readonly outcome: 'empty'; readonly free: number };

export type ModelQueue =
  | 'queued'
  | 'decided'
  | 'expiring'
  | 'token_expired'
  | 'other_delivery'
  | 'missing'
  | 'contradicts';

export type ModelEffect =
  | { readonly outcome: 'applied' | 'already' | 'missing' }
  | { readonly outcome: 'void_before'; readonly reason: string };

/** Ended before there was an order: behind every other reason stands a row of MySQL. */
const NEVER_ORDERED: ReadonlySet<string> = new Set(['hold_expired', 'released']);

export class StockModel {
  readonly attempts = new Map<string, ModelAttempt>();
  /** Another id of the same shopper's live attempt → that attempt. */
  readonly aliases = new Map<string, string>();
  private readonly departed = new Map<string, { readonly units: number; done: boolean }>();
  private readonly arrived = new Map<string, number>();
  private readonly corrected = new Map<string, number>();

  constructor(
    readonly initial: number,
    private gate: ModelGate,
  ) {}

  get in(): number {
    return [...this.arrived.values()].reduce((sum, units) => sum + units, 0);
  }
  get out(): number {
    return [...this.departed.values()].reduce((sum, { units }) => sum + units, 0);
  }
  get openTransfers(): number {
    return [...this.departed.values()].filter(({ done }) => !done).length;
  }
  get held(): number {
    return this.unitsIn('H', 'h');
  }
  get queued(): number {
    return this.unitsIn('Q', 'q');
  }
  get sold(): number {
    return this.unitsIn('C');
  }
  /** What lies in this bucket, whoever it is set aside for. */
  get units(): number {
    const corrections = [...this.corrected.values()].reduce((sum, units) => sum + units, 0);
    return this.initial + this.in - this.out + corrections;
  }
  get free(): number {
    return this.units - this.held - this.queued - this.sold;
  }

  /** Units of a shopper that count against the limit. */
  usedBy(shopperId: string): number {
    return this.of(shopperId)
      .filter(([, { state }]) => state !== 'V')
      .reduce((sum, [, { quantity }]) => sum + quantity, 0);
  }

  /** The one attempt of a shopper that is neither sold nor over; empty where there is none. */
  liveOf(shopperId: string): string {
    return this.of(shopperId).find(([, { state }]) => state !== 'V' && state !== 'C')?.[0] ?? '';
  }

  setGate(gate: ModelGate): void {
    this.gate = gate;
  }

  /** Decides wishes one after another: what an earlier one got is gone for a later one. */
  grant(wishes: readonly ModelWish[], nowMs: number): ModelGrant[] {
    return wishes.map((wish) => this.grantOne(wish, nowMs));
  }

  queue(wish: ModelWish & { readonly deliveryHash: string }, nowMs: number, aheadMs: number): ModelQueue {
    // The hold that the token was made of was forgotten: MySQL decides.
    if (this.aliases.has(wish.id)) return 'missing';
    const attempt = this.attempts.get(wish.id);
    if (!attempt) return 'missing';
    if (attempt.shopperId !== wish.shopperId || attempt.quantity !== wish.quantity) return 'contradicts';
    const { state } = attempt;
    if (state === 'h' || state === 'q') return 'expiring';
    if (state === 'H' && nowMs > attempt.deadlineMs) return 'token_expired';
    if (state === 'V' && NEVER_ORDERED.has(attempt.reason) && attempt.offset === '') return 'token_expired';
    if (attempt.deliveryHash !== '' && attempt.deliveryHash !== wish.deliveryHash) return 'other_delivery';
    if (state === 'C' || state === 'V') return 'decided';
    attempt.state = 'Q';
    attempt.deliveryHash = wish.deliveryHash;
    attempt.deadlineMs = Math.max(attempt.deadlineMs, nowMs + aheadMs);
    return 'queued';
  }

  recordOffset(id: string, offset: string, nowMs: number, aheadMs: number): void {
    const attempt = this.attempts.get(id);
    if (!attempt) return;
    attempt.offset = offset;
    if (attempt.state === 'Q') attempt.deadlineMs = Math.max(attempt.deadlineMs, nowMs + aheadMs);
  }

  release(id: string, shopperId: string): 'released' | 'already_ordered' | 'unknown' {
    const attempt = this.attempts.get(this.aliases.get(id) ?? id);
    if (!attempt || attempt.shopperId !== shopperId) return 'unknown';
    if (attempt.state === 'H') {
      attempt.state = 'h';
      attempt.reason = 'released';
      return 'released';
    }
    if (attempt.state === 'h') return 'released';
    const never = NEVER_ORDERED.has(attempt.reason) && attempt.offset === '';
    return attempt.state === 'V' && never ? 'released' : 'already_ordered';
  }

  /** A sweeper comes by: what is overdue and not acknowledged begins to expire. Returns all that it has to look at. */
  beginExpiry(nowMs: number): string[] {
    const due: string[] = [];
    for (const [id, attempt] of this.attempts) {
      const expiring = attempt.state === 'h' || attempt.state === 'q';
      const overdue = (attempt.state === 'H' || attempt.state === 'Q') && attempt.deadlineMs <= nowMs;
      if (!expiring && !overdue) continue;
      due.push(id);
      if (attempt.state === 'H') attempt.state = 'h';
      else if (attempt.state === 'Q' && attempt.offset === '') attempt.state = 'q';
      else continue;
      attempt.reason = 'hold_expired';
    }
    return due;
  }

  /** Kafka has lost an acknowledged order: it begins to expire, unless it was acknowledged anew in the meantime. */
  beginLost(id: string, offset: string): boolean {
    const attempt = this.attempts.get(id);
    if (attempt?.state !== 'Q' || attempt.offset !== offset) return false;
    attempt.state = 'q';
    attempt.reason = 'lost';
    return true;
  }

  apply(id: string, kind: 'confirm' | 'void', reason: string): ModelEffect {
    const attempt = this.attempts.get(id);
    if (!attempt) return { outcome: 'missing' };
    if (attempt.state === 'V') {
      return kind === 'void' ? { outcome: 'already' } : { outcome: 'void_before', reason: attempt.reason };
    }
    if (attempt.state === 'C' && kind === 'confirm') return { outcome: 'already' };
    attempt.state = kind === 'confirm' ? 'C' : 'V';
    attempt.reason = kind === 'confirm' ? '' : reason;
    return { outcome: 'applied' };
  }

  /** Units leave: what is needed and half of the rest. Zero where there are none. */
  transferOut(tid: string, needed: number): number {
    const known = this.departed.get(tid);
    if (known) return known.units;
    const { free } = this;
    if (free === 0) return 0;
    const units = Math.min(free, needed + Math.floor(Math.max(0, free - needed) / 2));
    this.departed.set(tid, { units, done: false });
    return units;
  }

  /** Units arrive, and the wishes that they were fetched for are granted at once. */
  transferIn(tid: string, units: number, wishes: readonly ModelWish[], nowMs: number): ModelGrant[] {
    if (!this.arrived.has(tid)) this.arrived.set(tid, units);
    return this.grant(wishes, nowMs);
  }

  transferDone(tid: string): 'done' | 'already' | 'unknown' {
    const transfer = this.departed.get(tid);
    if (!transfer) return 'unknown';
    if (transfer.done) return 'already';
    transfer.done = true;
    return 'done';
  }

  /** Transfers that have left here and are not known to have arrived. */
  departures(): { readonly tid: string; readonly units: number }[] {
    return [...this.departed].flatMap(([tid, { units, done }]) => (done ? [] : [{ tid, units }]));
  }

  hasArrived(tid: string): boolean {
    return this.arrived.has(tid);
  }

  /** The reconciler found units missing, or too many. Idempotent by id; units that are not free cannot be taken. */
  correct(id: string, units: number): 'corrected' | 'already' | 'not_free' {
    if (this.corrected.has(id)) return 'already';
    if (this.free + units < 0) return 'not_free';
    this.corrected.set(id, units);
    return 'corrected';
  }

  /** The same bucket as it is now, for a replica to keep. */
  clone(): StockModel {
    const copy = new StockModel(this.initial, this.gate);
    for (const [id, attempt] of this.attempts) copy.attempts.set(id, { ...attempt });
    for (const [id, liveId] of this.aliases) copy.aliases.set(id, liveId);
    for (const [tid, departure] of this.departed) copy.departed.set(tid, { ...departure });
    for (const [tid, units] of this.arrived) copy.arrived.set(tid, units);
    for (const [id, units] of this.corrected) copy.corrected.set(id, units);
    return copy;
  }

  private grantOne({ id, shopperId, quantity }: ModelWish, nowMs: number): ModelGrant {
    const knownId = this.aliases.get(id) ?? id;
    const known = this.attempts.get(knownId);
    if (known) {
      if (known.shopperId !== shopperId || known.quantity !== quantity) return { outcome: 'mismatch' };
      return { outcome: 'known', id: knownId, state: known.state };
    }
    const { opensAtMs, closesAtMs, paused, closed, limit, holdMs } = this.gate;
    if (closed || nowMs >= closesAtMs) return { outcome: 'closed' };
    if (paused) return { outcome: 'paused' };
    if (nowMs < opensAtMs) return { outcome: 'not_open' };
    const liveId = this.liveOf(shopperId);
    const live = this.attempts.get(liveId);
    if (live) {
      if (live.quantity !== quantity) return { outcome: 'entry_exists' };
      this.aliases.set(id, liveId);
      return { outcome: 'known', id: liveId, state: live.state };
    }
    if (quantity < 1 || this.usedBy(shopperId) + quantity > limit) return { outcome: 'limit' };
    if (this.free < quantity) return { outcome: 'empty', free: this.free };
    this.attempts.set(id, {
      shopperId,
      quantity,
      state: 'H',
      deadlineMs: nowMs + holdMs,
      deliveryHash: '',
      offset: '',
      reason: '',
    });
    return { outcome: 'granted', id, state: 'H' };
  }

  private of(shopperId: string): [string, ModelAttempt][] {
    return [...this.attempts].filter(([, attempt]) => attempt.shopperId === shopperId);
  }

  private unitsIn(...states: ModelState[]): number {
    return [...this.attempts.values()]
      .filter(({ state }) => states.includes(state))
      .reduce((sum, { quantity }) => sum + quantity, 0);
  }
}
