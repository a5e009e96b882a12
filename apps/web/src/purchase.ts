import { Refused, type Delivery, type Entry, type Order, type Shop } from './shop.js';

/** What the page shows; each is a view of its own. */
export type Step =
  | { readonly name: 'ready' }
  | { readonly name: 'sending' }
  | { readonly name: 'waiting'; readonly entry: Entry }
  | { readonly name: 'granted'; readonly entry: Entry; readonly notice?: string }
  | { readonly name: 'accepted'; readonly orderId: string }
  | { readonly name: 'unpaid'; readonly order: Order; readonly notice?: string }
  | { readonly name: 'done'; readonly order: Order }
  | {
      readonly name: 'refused';
      readonly code: string;
      readonly title: string;
      readonly mayTryAgain: boolean;
    };

interface Kept {
  key: string;
  entryId?: string;
  orderId?: string;
}

const MAX_REPEATS = 40;
const POLL_MS = 700;
const MAX_POLLS = 900;
const FINAL_ORDER_STATES = ['paid', 'cancelled', 'unpaid', 'expired', 'rejected', 'refunding', 'refunded'];

/**
 * One shopper's purchase in one sale, from the click to the paid order. What is needed to come back after a reload is
 * kept in storage before the first request leaves, so the same attempt goes on.
 */
export class Purchase {
  private kept: Kept;
  private readonly storageKey: string;
  private running = false;

  constructor(
    private readonly shop: Shop,
    private readonly saleId: string,
    private readonly storage: Storage,
    private readonly show: (step: Step) => void,
  ) {
    this.storageKey = `flash-sale:${saleId}`;
    this.kept = JSON.parse(storage.getItem(this.storageKey) ?? 'null') ?? { key: randomId() };
  }

  get attempt(): string {
    return this.kept.orderId ?? this.kept.entryId ?? '';
  }

  /** Goes on where an earlier visit left off. */
  async resume(): Promise<void> {
    if (this.kept.orderId) return this.once(() => this.followOrder(this.kept.orderId ?? ''));
    if (this.kept.entryId) return this.once(() => this.followEntry());
    this.show({ name: 'ready' });
  }

  buy(): Promise<void> {
    return this.once(async () => {
      this.show({ name: 'sending' });
      this.keep({});
      await this.arrive(await this.persist(() => this.shop.enter(this.saleId, this.kept.key)));
    });
  }

  placeOrder(entry: Entry, delivery: Delivery): Promise<void> {
    return this.once(async () => {
      this.show({ name: 'sending' });
      const order = await this.persist(() => this.shop.order(entry.purchaseToken ?? '', delivery));
      this.keep({ orderId: order.orderId });
      await this.followOrder(order.orderId);
    });
  }

  pay(order: Order, card: string): Promise<void> {
    return this.once(async () => {
      this.show({ name: 'sending' });
      const key = `${this.kept.key}-${card.slice(-4)}`;
      try {
        await this.persist(() => this.shop.pay(order.orderId, card, key));
      } catch (error) {
        if (!(error instanceof Refused) || error.code !== 'payment_declined') throw error;
        this.show({ name: 'unpaid', order, notice: 'The card was declined. Another card may work.' });
        return;
      }
      await this.followOrder(order.orderId, true);
    });
  }

  giveUp(entry: Entry): Promise<void> {
    return this.once(async () => {
      await this.persist(() => this.shop.giveUp(entry.entryId));
      this.startOver();
    });
  }

  startOver(): void {
    this.kept = { key: randomId() };
    this.storage.removeItem(this.storageKey);
    this.show({ name: 'ready' });
  }

  private async arrive(entry: Entry): Promise<void> {
    this.keep({ entryId: entry.entryId });
    if (entry.state === 'waiting') return this.followEntry(entry);
    if (entry.state === 'granted') return this.show({ name: 'granted', entry });
    if (entry.state === 'ordered') return this.followOrder(entry.entryId);
    const title =
      entry.state === 'expired'
        ? 'The time to order was over before the order came.'
        : entry.state === 'released'
          ? 'You gave this place up.'
          : 'Everything was sold before it was your turn.';
    this.show({ name: 'refused', code: entry.state, title, mayTryAgain: true });
  }

  private async followEntry(known?: Entry): Promise<void> {
    let entry = known ?? (await this.persist(() => this.shop.entry(this.kept.entryId ?? '')));
    for (let polls = 0; entry.state === 'waiting' && polls < MAX_POLLS; polls += 1) {
      this.show({ name: 'waiting', entry });
      await pause(entry.pollAfterMs ?? 1_000);
      const { ticket } = entry;
      entry = await this.persist(() => this.shop.entry(entry.entryId, ticket));
    }
    if (entry.state !== 'waiting') await this.arrive(entry);
  }

  private async followOrder(orderId: string, paying = false): Promise<void> {
    this.keep({ orderId });
    this.show({ name: 'accepted', orderId });
    for (let polls = 0; polls < MAX_POLLS; polls += 1) {
      const order = await this.persist(() => this.shop.readOrder(orderId));
      if (FINAL_ORDER_STATES.includes(order.state)) return this.show({ name: 'done', order });
      if (order.state === 'awaiting_payment' && !paying) return this.show({ name: 'unpaid', order });
      await pause(POLL_MS);
    }
  }

  /** Repeats a call whose outcome is not known, or that asks to be repeated, with the same key and a bound. */
  private async persist<T>(call: () => Promise<T>): Promise<T> {
    for (let repeats = 0; ; repeats += 1) {
      try {
        return await call();
      } catch (error) {
        const passing =
          !(error instanceof Refused) ||
          error.status === 503 ||
          error.status === 429 ||
          error.code === 'in_progress';
        if (!passing || repeats >= MAX_REPEATS) throw error;
        await pause(
          (error instanceof Refused ? error.retryAfterSeconds : 1) * 1_000 * (0.8 + Math.random() * 0.4),
        );
      }
    }
  }

  /** However often a button is clicked, one thing runs at a time; what it throws becomes a view. */
  private async once(work: () => Promise<void>): Promise<void> {
    if (this.running) return;
    this.running = true;
    try {
      await work();
    } catch (error) {
      const refused =
        error instanceof Refused ? error : new Refused('offline', 'The shop cannot be reached.', 0, 1);
      this.show({
        name: 'refused',
        code: refused.code,
        title: refused.title,
        mayTryAgain: refused.code !== 'limit_reached',
      });
    } finally {
      this.running = false;
    }
  }

  private keep(change: Partial<Kept>): void {
    this.kept = { ...this.kept, ...change };
    this.storage.setItem(this.storageKey, JSON.stringify(this.kept));
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** 128 random bits; `crypto.randomUUID` would be absent on a page that is not served over TLS. */
export function randomId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
    byte.toString(16).padStart(2, '0'),
  ).join('');
}
