import type { Departure, Figures } from './figures.js';
import type { Dice, Intention } from './seeded.js';

/** What a shopper asks the gateway. */
export type ShopperRequest =
  | { readonly kind: 'entry'; readonly key: string }
  | { readonly kind: 'line'; readonly entryId: string; readonly ticket: string | undefined }
  | { readonly kind: 'order'; readonly entryId: string; readonly purchaseToken: string }
  | { readonly kind: 'order_status'; readonly orderId: string }
  | { readonly kind: 'payment'; readonly orderId: string; readonly key: string; readonly card: string };

/** What came back. `http` 0 means that nothing did; `code` then says `timeout` or `cut`. */
export interface Answer {
  readonly http: number;
  /** The problem's code, empty for a success. */
  readonly code: string;
  readonly body: Readonly<Record<string, unknown>>;
  readonly retryAfterMs: number;
}

/** What the shopper does next. */
export type Step =
  | { readonly do: 'send'; readonly request: ShopperRequest; readonly afterMs: number }
  /** Refused for now: ask again, at a pace that is everybody's together. */
  | { readonly do: 'ask_again'; readonly request: ShopperRequest; readonly afterMs: number }
  | { readonly do: 'leave'; readonly how: Departure };

/** Test cards of the payment provider: one pays, one does not. */
export const GOOD_CARD = '4242424242424242';
export const DECLINED_CARD = '4000000000000002';

/** Tries of one order or one payment, or looks at one order, before a shopper gives up: minutes, at the pauses below. */
const MOST_TRIES = 120;
const ASK_AGAIN_MS = { least: 2_000, spread: 3_000 };

/**
 * One person's visit, as a state machine without clocks or sockets: an answer goes in, the next step comes out. Everyone
 * wants one unit. Whoever is refused asks again with a new key, because the old key was answered for good; whoever got no
 * answer, or "unknown", repeats the very same request, because it may have been acted upon.
 */
export class Shopper {
  #attempt = 0;
  #tries = 0;
  #granted = false;
  #paying = false;
  #seenWritten = false;
  #refusal: string | undefined;
  #ticket: string | undefined;

  constructor(
    readonly id: string,
    readonly intention: Intention,
    private readonly figures: Figures,
    private readonly dice: Dice,
  ) {}

  /** The idempotency key of the latest entry. */
  get entryKey(): string {
    return `visit-${this.#attempt}`;
  }

  /** The first step. */
  arrive(): Step {
    this.figures.arrived += 1;
    return { do: 'send', request: this.#newEntry(), afterMs: 0 };
  }

  /** The doors closed while this shopper was waiting to ask again. */
  sendHome(): Step {
    return this.#leave('refused', this.#refusal ?? 'sale_closed');
  }

  next(request: ShopperRequest, answer: Answer): Step {
    switch (request.kind) {
      case 'entry':
        return this.#afterEntry(request, answer);
      case 'line':
        return this.#afterLine(request, answer);
      case 'order':
        return this.#afterOrder(request, answer);
      case 'order_status':
        return this.#afterStatus(request, answer);
      case 'payment':
        return this.#afterPayment(request, answer);
      default:
        return request satisfies never;
    }
  }

  #afterEntry(request: ShopperRequest & { kind: 'entry' }, answer: Answer): Step {
    if (isSuccess(answer)) return this.#inState(answer);
    if (isUnknown(answer)) {
      this.#refuse(answer.code);
      return { do: 'ask_again', request, afterMs: Math.max(answer.retryAfterMs, this.#pause()) };
    }
    switch (answer.code) {
      case 'in_progress':
        return { do: 'ask_again', request, afterMs: this.#pause() };
      case 'sold_out':
      case 'not_enough_left':
      case 'rate_limited':
      case 'sale_not_open':
      case 'sale_paused':
        return this.#askAgain(answer.code, answer.retryAfterMs);
      default:
        return this.#leave('refused', answer.code);
    }
  }

  /** What an entry's state means, whether the entry call or a later look told it. */
  #inState(answer: Answer): Step {
    const { state, purchaseToken, ticket, pollAfterMs } = answer.body;
    const entryId = text(answer.body['entryId']);
    if (state === 'granted' && typeof purchaseToken === 'string' && purchaseToken !== '')
      return this.#receive(entryId, purchaseToken);
    if (typeof ticket === 'string') this.#ticket = ticket;
    switch (state) {
      case 'waiting':
      case 'granted': {
        // Granted without a token: the hold is being taken back or confirmed; a moment later it is known which.
        const afterMs = typeof pollAfterMs === 'number' ? pollAfterMs : this.#pause();
        return { do: 'send', request: { kind: 'line', entryId, ticket: this.#ticket }, afterMs };
      }
      case 'ordered':
        return this.#watch(entryId, 0);
      case 'expired':
        return this.#askAgain('hold_expired', answer.retryAfterMs);
      case 'released':
      case 'sold_out':
        return this.#askAgain(text(state), answer.retryAfterMs);
      default:
        return this.#leave('refused', 'protocol_error');
    }
  }

  #afterLine(request: ShopperRequest & { kind: 'line' }, answer: Answer): Step {
    if (isSuccess(answer)) return this.#inState(answer);
    if (isUnknown(answer) || answer.code === 'rate_limited') {
      return { do: 'send', request, afterMs: Math.max(answer.retryAfterMs, this.#pause()) };
    }
    return this.#askAgain(answer.code, answer.retryAfterMs);
  }

  #receive(entryId: string, purchaseToken: string): Step {
    if (!this.#granted) this.figures.granted += 1;
    this.#granted = true;
    this.#refuse(undefined);
    this.#tries = 0;
    if (this.intention === 'leave_after_grant') return this.#leave('walked_away');
    return { do: 'send', request: { kind: 'order', entryId, purchaseToken }, afterMs: 0 };
  }

  #afterOrder(request: ShopperRequest & { kind: 'order' }, answer: Answer): Step {
    if (isSuccess(answer)) {
      this.figures.ordered += 1;
      return this.#watch(text(answer.body['orderId']), 100);
    }
    if (isUnknown(answer) || answer.code === 'in_progress' || answer.code === 'rate_limited') {
      return this.#repeat(request, answer);
    }
    // The hold ran out before the order reached it: nothing is lost but the place, so the shopper starts over.
    if (answer.code === 'token_expired') return this.#askAgain('hold_expired', answer.retryAfterMs);
    return this.#leave('refused', answer.code);
  }

  #watch(orderId: string, afterMs: number): Step {
    this.#tries = 0;
    return { do: 'send', request: { kind: 'order_status', orderId }, afterMs };
  }

  #afterStatus(request: ShopperRequest & { kind: 'order_status' }, answer: Answer): Step {
    if (answer.http !== 200) return this.#repeat(request, answer);
    const { state } = answer.body;
    if (state === 'queued') return this.#repeat(request, answer);
    if (!this.#seenWritten) this.figures.written += 1;
    this.#seenWritten = true;
    switch (state) {
      case 'awaiting_payment':
        return this.#pay(request);
      case 'paid':
        return this.#leave('paid');
      case 'rejected':
      case 'expired':
        return this.#leave('rejected');
      case 'unpaid':
      case 'cancelled':
      case 'refunding':
      case 'refunded':
        return this.#leave(this.intention === 'buy' ? 'too_late' : 'walked_away');
      default:
        return this.#leave('undecided');
    }
  }

  #pay(seen: ShopperRequest & { kind: 'order_status' }): Step {
    if (this.intention === 'leave_after_order') return this.#leave('walked_away');
    // A payment that is pending was made already: wait for what becomes of it.
    if (this.#paying) return this.#repeat(seen, NO_ANSWER);
    this.#paying = true;
    this.#tries = 0;
    const card = this.intention === 'pay_with_declined_card' ? DECLINED_CARD : GOOD_CARD;
    const request: ShopperRequest = { kind: 'payment', orderId: seen.orderId, key: 'payment-1', card };
    return { do: 'send', request, afterMs: 0 };
  }

  #afterPayment(request: ShopperRequest & { kind: 'payment' }, answer: Answer): Step {
    if (answer.http === 200)
      return answer.body['state'] === 'paid' ? this.#leave('paid') : this.#watch(request.orderId, 100);
    if (answer.http === 202) return this.#watch(request.orderId, 200);
    if (isUnknown(answer) || answer.code === 'in_progress' || answer.code === 'rate_limited') {
      return this.#repeat(request, answer);
    }
    if (answer.code === 'payment_declined') return this.#leave('declined');
    return this.#leave('too_late');
  }

  #newEntry(): ShopperRequest {
    this.#attempt += 1;
    this.#tries = 0;
    return { kind: 'entry', key: this.entryKey };
  }

  #askAgain(reason: string, retryAfterMs: number): Step {
    this.#refuse(reason);
    const afterMs = Math.max(retryAfterMs, ASK_AGAIN_MS.least) + this.dice() * ASK_AGAIN_MS.spread;
    return { do: 'ask_again', request: this.#newEntry(), afterMs };
  }

  #repeat(request: ShopperRequest, answer: Answer): Step {
    if (this.#tries >= MOST_TRIES) return this.#leave('undecided');
    return { do: 'send', request, afterMs: Math.max(answer.retryAfterMs, this.#pause()) };
  }

  /** A pause that grows with each try, to 1.5 s, and is never the same for two shoppers. */
  #pause(): number {
    this.#tries += 1;
    return Math.min(1_000, 100 * 1.5 ** Math.min(this.#tries, 10)) * (0.5 + this.dice());
  }

  #refuse(reason: string | undefined): void {
    this.figures.moveRefusal(this.#refusal, reason);
    this.#refusal = reason;
  }

  #leave(how: Departure, reason?: string): Step {
    if (how === 'paid') this.figures.paid += 1;
    if (how === 'refused') this.#refuse(reason);
    this.figures.depart(how, this.#granted);
    return { do: 'leave', how };
  }
}

const NO_ANSWER: Answer = { http: 0, code: 'pending', body: {}, retryAfterMs: 0 };

function isSuccess(answer: Answer): boolean {
  return answer.http >= 200 && answer.http < 300;
}

/** The request may have been acted upon or may not: only the same request again can tell. */
function isUnknown(answer: Answer): boolean {
  return answer.http === 0 || answer.http >= 500;
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : '';
}
