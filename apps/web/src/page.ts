import { LitElement, html, nothing, type TemplateResult } from 'lit';
import { Purchase, randomId, type Step } from './purchase.js';
import { Shop, type Order, type Sale } from './shop.js';

/** How often the sale itself is read again, ms: a moved opening shows within one poll. */
const SALE_POLL_MS = 2_000;

const ORDER_TEXT: Readonly<Record<string, string>> = {
  paid: 'It is yours. Thank you.',
  cancelled: 'You cancelled this order.',
  unpaid: 'The time to pay was over; the unit went back on sale.',
  expired: 'This order could not be decided; nothing was charged.',
  rejected: 'Everything was sold before this order was decided. Nothing was charged.',
  refunding: 'Your payment is on its way back.',
  refunded: 'Your payment has been returned.',
};

class FlashSalePage extends LitElement {
  private readonly shop = new Shop(shopperId());
  private sales: readonly Sale[] = [];
  private sale: Sale | null = null;
  private purchase: Purchase | null = null;
  private step: Step = { name: 'ready' };
  private problem = '';
  private readonly chosen = new URLSearchParams(location.search).get('sale');

  /** No shadow root: one stylesheet serves the whole page. */
  protected override createRenderRoot(): HTMLElement {
    return this;
  }

  override connectedCallback(): void {
    super.connectedCallback();
    void this.start();
    setInterval(() => this.requestUpdate(), 250);
  }

  private async start(): Promise<void> {
    try {
      await this.shop.signIn();
      await this.shop.setClock();
      await this.readSales();
      if (this.sale) {
        this.purchase = new Purchase(this.shop, this.sale.saleId, localStorage, (step) =>
          this.showStep(step),
        );
        void this.purchase.resume();
      }
    } catch {
      this.problem = 'The shop cannot be reached at the moment. This page keeps trying.';
      setTimeout(() => void this.start(), 3_000);
      this.requestUpdate();
      return;
    }
    this.problem = '';
    setInterval(() => void this.readSales().catch(() => undefined), SALE_POLL_MS);
  }

  private async readSales(): Promise<void> {
    if (this.chosen) this.sale = await this.shop.sale(this.chosen);
    else {
      this.sales = await this.shop.sales();
      this.sale = this.sales.length === 1 ? (this.sales[0] ?? null) : null;
    }
    this.requestUpdate();
  }

  private showStep(step: Step): void {
    const changed = step.name !== this.step.name;
    this.step = step;
    this.requestUpdate();
    // Focus follows the view, so that a keyboard or a screen reader is where the news is.
    if (changed) void this.updateComplete.then(() => this.querySelector<HTMLElement>('h2')?.focus());
  }

  protected override render(): TemplateResult {
    return html`
      <header class="top"><span>Flash sale · 限时抢购</span><span>${shopperId()}</span></header>
      ${this.problem ? html`<p class="notice warn" role="status">${this.problem}</p>` : nothing}
      <main>${this.sale ? this.salePage(this.sale) : this.salesList()}</main>
    `;
  }

  private salesList(): TemplateResult {
    if (this.sales.length === 0) return html`<h1>No sale at the moment</h1>`;
    return html`
      <h1>Sales</h1>
      <ul class="sales">
        ${this.sales.map(
          (sale) =>
            html`<li class="card">
              <a href="?sale=${sale.saleId}"
                ><strong>${sale.title}</strong><span>${this.phaseText(sale)}</span></a
              >
            </li>`,
        )}
      </ul>
    `;
  }

  private salePage(sale: Sale): TemplateResult {
    return html`
      <h1>${sale.title}</h1>
      <div class="price">${money(sale.unitPrice, sale.currency)}</div>
      <div class="facts">
        <span>${this.phaseText(sale)}</span>
        <span
          >${{ plenty: 'In stock', low: 'Almost gone', none: 'None free right now' }[sale.stockLevel]}</span
        >
        <span>At most ${sale.limitPerShopper} each</span>
      </div>
      <section class="card" aria-live="polite" data-step=${this.step.name}>
        ${this.stepView(sale, this.step)}
      </section>
      ${this.purchase?.attempt ? html`<p class="support">Reference ${this.purchase.attempt}</p>` : nothing}
    `;
  }

  private stepView(sale: Sale, step: Step): TemplateResult {
    switch (step.name) {
      case 'ready':
        return this.readyView(sale);
      case 'sending':
        return html`<h2 tabindex="-1">Sending… 发送中</h2>
          <p>One moment. You can leave this page open; your attempt is kept.</p>`;
      case 'waiting':
        return html`<h2 tabindex="-1">You are in the line</h2>
          <div class="big">${step.entry.position}</div>
          <p>
            About ${Math.max(1, step.entry.estimatedWaitSeconds ?? 1)} s. Reloading does not lose your place.
          </p>
          <button class="plain" @click=${() => this.purchase?.giveUp(step.entry)}>Leave the line</button>`;
      case 'granted':
        return this.grantedView(step);
      case 'accepted':
        return html`<h2 tabindex="-1">Accepted</h2>
          <p>Your order has been taken and is being written. This page shows the result by itself.</p>`;
      case 'unpaid':
        return this.paymentView(step.order, step.notice);
      case 'done':
        return html`<h2 tabindex="-1" class=${step.order.state === 'paid' ? 'good' : 'warn'}>
            ${step.order.state === 'paid' ? 'Paid' : 'Not bought'}
          </h2>
          <p>${ORDER_TEXT[step.order.state] ?? step.order.state}</p>
          ${step.order.state === 'paid' ? nothing : this.againButton()}`;
      case 'refused':
        return html`<h2 tabindex="-1">Not this time</h2>
          <p>${step.title}</p>
          ${step.mayTryAgain ? this.againButton() : nothing}
          <p class="support">${step.code}</p>`;
    }
  }

  private readyView(sale: Sale): TemplateResult {
    const opensInMs = Date.parse(sale.opensAt) - this.shop.now();
    const open = sale.phase === 'open' || (sale.phase === 'warmed' && opensInMs <= 0);
    const maySell = open || sale.phase === 'sold_out';
    return html`<h2 tabindex="-1">${maySell ? 'Buy one' : this.phaseText(sale)}</h2>
      ${sale.phase === 'warmed' && opensInMs > 0 ? html`<div class="big" role="timer">${countdown(opensInMs)}</div>` : nothing}
      ${
        sale.phase === 'sold_out'
          ? html`<p>
              Everything is sold or held at the moment. Units that are not paid for come back, so trying is
              worth it.
            </p>`
          : html`<p>One click is enough: however often you press, it is one attempt.</p>`
      }
      <button aria-disabled=${String(!maySell)} @click=${() => maySell && this.purchase?.buy()}>
        Buy now · 立即抢购
      </button>`;
  }

  private grantedView(step: Extract<Step, { name: 'granted' }>): TemplateResult {
    const left = Date.parse(step.entry.expiresAt ?? '') - this.shop.now();
    const submit = (event: SubmitEvent) => {
      event.preventDefault();
      const fields = new FormData(event.currentTarget as HTMLFormElement);
      const text = (name: string) => textOf(fields, name);
      void this.purchase?.placeOrder(step.entry, {
        name: text('name'),
        phone: text('phone'),
        address: text('address'),
      });
    };
    return html`<h2 tabindex="-1" class="good">A unit is set aside for you</h2>
      <p>Order within <span role="timer">${countdown(Math.max(0, left))}</span>.</p>
      <form @submit=${submit}>
        <label
          >Name <input name="name" autocomplete="name" required maxlength="100" value="Alice Example"
        /></label>
        <label
          >Phone <input name="phone" autocomplete="tel" required maxlength="24" value="+86 138 0000 0000"
        /></label>
        <label
          >Address
          <input name="address" autocomplete="street-address" required maxlength="500" value="1 Example Road"
        /></label>
        <div class="row">
          <button>Place the order</button>
          <button class="plain" type="button" @click=${() => this.purchase?.giveUp(step.entry)}>
            Give it back
          </button>
        </div>
      </form>`;
  }

  private paymentView(order: Order, notice = ''): TemplateResult {
    const left = Date.parse(order.payBefore ?? '') - this.shop.now();
    const submit = (event: SubmitEvent) => {
      event.preventDefault();
      const fields = new FormData(event.currentTarget as HTMLFormElement);
      void this.purchase?.pay(order, textOf(fields, 'card'));
    };
    return html`<h2 tabindex="-1" class="good">Ordered. Pay to keep it</h2>
      ${notice ? html`<p class="warn" role="alert">${notice}</p>` : nothing}
      <p>
        ${money(order.amount ?? 0, order.currency ?? 'CNY')}, within
        <span role="timer">${countdown(Math.max(0, left))}</span>.
      </p>
      <form @submit=${submit}>
        <label
          >Test card
          <select name="card">
            <option value="4242424242424242">4242 … 4242 — approves</option>
            <option value="4000000000000002">4000 … 0002 — declines</option>
            <option value="4000000000000259">4000 … 0259 — answers late</option>
          </select></label
        >
        <button>Pay</button>
      </form>`;
  }

  private againButton(): TemplateResult {
    return html`<button @click=${() => this.purchase?.startOver()}>Try again</button>`;
  }

  private phaseText(sale: Sale): string {
    const opens = new Date(sale.opensAt);
    switch (sale.phase) {
      case 'open':
        return 'On sale now';
      case 'sold_out':
        return 'Sold out for the moment';
      case 'paused':
        return 'Paused';
      case 'closed':
      case 'settled':
        return 'Ended';
      case 'draft':
      case 'warming':
      case 'warmed':
        return `Opens ${opens.toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'long' })}`;
    }
  }
}

customElements.define('flash-sale-page', FlashSalePage);

/** A demo's shopper: made up once per browser. */
function shopperId(): string {
  const kept = localStorage.getItem('flash-sale:shopper');
  if (kept) return kept;
  const made = `web-${randomId().slice(0, 8)}`;
  localStorage.setItem('flash-sale:shopper', made);
  return made;
}

function money(minorUnits: number, currency: string): string {
  const format = new Intl.NumberFormat(undefined, { style: 'currency', currency });
  return format.format(minorUnits / 10 ** (format.resolvedOptions().maximumFractionDigits ?? 2));
}

/** From what is left, never from counting ticks. */
function countdown(ms: number): string {
  const seconds = Math.ceil(ms / 1_000);
  const parts = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60), seconds % 60];
  return (parts[0] === 0 ? parts.slice(1) : parts).map((part) => String(part).padStart(2, '0')).join(':');
}

function textOf(fields: FormData, name: string): string {
  const value = fields.get(name);
  return typeof value === 'string' ? value.trim() : '';
}
