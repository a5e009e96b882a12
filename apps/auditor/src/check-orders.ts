import type { LedgerLeg, Orphan, OrderRow, Sale, Slice } from './evidence.js';
import { bySlice, type Check, type Findings, type Invariant, type Witness } from './findings.js';
import { EDGES, LIVE, RETURNED } from './grammar.js';

function priceOfTheSale({ sale, orders, logged }: Slice, found: Findings): void {
  const { skuId, unitPrice, currency } = sale.mysql.sale;
  found.look(orders.length);
  for (const order of orders) {
    const witness = {
      order_id: order.orderId,
      unit_price: order.unitPrice,
      currency: order.currency,
      sku_id: order.skuId,
    };
    if (order.unitPrice !== unitPrice || order.currency !== currency) {
      found.breach(
        witness,
        `costs ${order.unitPrice} ${order.currency}, the sale's price is ${unitPrice} ${currency}`,
      );
    }
    if (order.skuId !== skuId) found.breach(witness, `is for ${order.skuId}, the sale sells ${skuId}`);
    const shown = logged?.get(order.orderId)?.unitPrice ?? null;
    if (shown !== null && shown !== unitPrice) {
      found.breach(
        { ...witness, shown },
        `was shown at ${shown} to its shopper, the sale's price is ${unitPrice}`,
      );
    }
    for (const { paymentId, amount, currency: paidIn } of order.payments) {
      const owed = order.unitPrice * order.quantity;
      if (amount === owed && paidIn === order.currency) continue;
      found.breach(
        { ...witness, payment_id: paymentId, amount },
        `was to be paid with ${amount} ${paidIn}, it costs ${owed} ${order.currency}`,
      );
    }
  }
}

function historyIsWhole(slice: Slice, found: Findings): void {
  orphans(slice, 'order_event', found);
  for (const { orderId, state, version, events } of slice.orders) {
    found.look(events.length);
    const witness = { order_id: orderId, state, version, events: events.map(({ to }) => to).join(' → ') };
    let at = 'queued';
    for (const [index, event] of events.entries()) {
      const broken = { ...witness, seq: event.seq, from: event.from, to: event.to };
      if (event.seq !== index + 1)
        found.breach(broken, `has event number ${event.seq} where ${index + 1} was due`);
      else if (event.from !== at) found.breach(broken, `was ${at}, but its next event leaves ${event.from}`);
      else if (!(EDGES[event.from] ?? []).includes(event.to)) {
        found.breach(broken, `went from ${event.from} to ${event.to}, which no order may`);
      }
      at = event.to;
    }
    if (events.length !== version)
      found.breach(witness, `has version ${version}, but ${events.length} events`);
    if (events.length > 0 && at !== state)
      found.breach(witness, `is ${state}, but its last event led to ${at}`);
  }
}

function paidOrTimedOut(slice: Slice, found: Findings): void {
  orphans(slice, 'payment', found);
  for (const order of slice.orders) {
    const { orderId, state, events, payments, payBeforeMs } = order;
    const ends = events.filter(({ from }) => from === 'awaiting_payment');
    const paid = events.find(({ to }) => to === 'paid');
    if (ends.length === 0 && payments.length === 0 && !LIVE.has(state) && !RETURNED.has(state)) continue;
    found.look();
    const witness = { order_id: orderId, state, payBeforeMs, ends: ends.map(({ to }) => to).join(' ') };
    if (ends.length > 1) found.breach(witness, `left awaiting_payment ${ends.length} times: ${witness.ends}`);
    if ((LIVE.has(state) || RETURNED.has(state)) && payBeforeMs === null)
      found.breach(witness, 'has no time to pay');
    if (paid && payBeforeMs !== null) {
      // The row's own time is that of the statement that won; the event was written some moments later.
      const paidAtMs = state === 'paid' ? Math.min(paid.atMs, order.updatedAtMs) : paid.atMs;
      if (paidAtMs >= payBeforeMs) {
        found.breach(
          { ...witness, paidAtMs },
          `was paid ${paidAtMs - payBeforeMs} ms after its time was over`,
        );
      }
    }
    const unpaid = ends.find(({ to }) => to === 'unpaid');
    if (unpaid && payBeforeMs !== null && unpaid.atMs < payBeforeMs) {
      found.breach({ ...witness, unpaidAtMs: unpaid.atMs }, 'was timed out before its time to pay was over');
    }
    checkMoney(order, { paid: paid !== undefined, witness }, found);
  }
}

/** Captured money has its order, or went back exactly once; and no order is paid with nothing. */
function checkMoney(
  order: OrderRow,
  { paid, witness }: { paid: boolean; witness: Witness },
  found: Findings,
): void {
  const { state, payments } = order;
  const captured = payments.filter((payment) => payment.state === 'captured');
  const kept = captured.filter(({ refund }) => refund === null);
  for (const { paymentId, state: paymentState, amount, refund } of payments) {
    if (!refund) continue;
    const of = { ...witness, payment_id: paymentId, payment: paymentState, refunded: refund.amount };
    if (paymentState !== 'captured')
      found.breach(of, `payment ${paymentId} was refunded, but never captured`);
    if (refund.amount !== amount)
      found.breach(of, `payment ${paymentId} of ${amount} was refunded with ${refund.amount}`);
  }
  if (state === 'paid') {
    if (kept.length === 1) return;
    found.breach(
      { ...witness, captured: captured.length, kept: kept.length },
      kept.length === 0
        ? 'is paid, but no captured payment of it was kept'
        : `is paid ${kept.length} times over`,
    );
    return;
  }
  for (const { paymentId } of kept) {
    found.breach(
      { ...witness, payment_id: paymentId },
      `payment ${paymentId} was captured, but its order is ${state} and nothing was refunded`,
    );
  }
  if (paid && captured.length === 0) found.breach(witness, 'was paid once, but has no captured payment');
}

interface Movement {
  readonly entryId: string;
  readonly legs: readonly LedgerLeg[];
}

/** The ledger entries of an order that moved units into `sold`, and out of it. */
function movementsOf(order: OrderRow, { ledger }: Slice): { sales: Movement[]; returns: Movement[] } {
  const entries = [...order.entryIds].map((entryId) => ({ entryId, legs: ledger.get(entryId) ?? [] }));
  const moving = (sign: 1 | -1) =>
    entries.filter(({ legs }) => legs.some(({ account, amount }) => account === 'sold' && amount * sign > 0));
  return { sales: moving(1), returns: moving(-1) };
}

/** What is wrong with an entry that should move `units` from one account to another; `null` for nothing. */
function whyNotMoved(
  { legs }: Movement,
  { from, to, units }: { from: string; to: string; units: number },
): string | null {
  const amounts = new Map(legs.map(({ account, amount }) => [account, amount]));
  if (legs.length === 2 && amounts.get(from) === -units && amounts.get(to) === units) return null;
  const has = [...amounts].map(([account, amount]) => `${account} ${amount}`).join(', ');
  return `should move ${units} units from ${from} to ${to}, but says: ${has}`;
}

function returnedOnce(slice: Slice, found: Findings): void {
  orphans(slice, 'effect', found);
  for (const order of slice.orders) {
    const { orderId, state, quantity } = order;
    const { returns } = movementsOf(order, slice);
    const voids = order.effects.filter(({ kind }) => kind === 'void');
    const returned = RETURNED.has(state);
    found.look();
    const witness = {
      order_id: orderId,
      state,
      returns: returns.map(({ entryId }) => entryId).join(' '),
      voids: voids.length,
    };
    if (returned && returns.length !== 1) {
      found.breach(witness, `gave its units back, but the ledger has ${returns.length} returns of them`);
    }
    if (!returned && returns.length > 0)
      found.breach(witness, `is ${state}, but the ledger says its units went back`);
    for (const entry of returns) {
      const fault = whyNotMoved(entry, { from: 'sold', to: 'free', units: quantity });
      if (fault !== null) found.breach({ ...witness, entry_id: entry.entryId }, `its return ${fault}`);
    }
    if ((returned || state === 'rejected') && voids.length !== 1) {
      found.breach(witness, `has ${voids.length} effects that tell Redis to free its units, not 1`);
    }
    if (LIVE.has(state) && voids.length > 0)
      found.breach(witness, 'counts as sold, but Redis is told to free its units');
  }
}

function ledgerAddsUp(sale: Sale, found: Findings): Check {
  const { saleId, mysql } = sale;
  const balances = new Map<string, number>();
  if (!sale.hasSnapshot)
    found.cannot('changes of the ledger: needs --snapshot FILE, made while the sale ran');
  return {
    slice: (slice) => {
      orphans(slice, 'ledger', found);
      for (const [entryId, legs] of slice.ledger) {
        found.look();
        checkEntry(entryId, legs, found);
        for (const { account, amount } of legs) balances.set(account, (balances.get(account) ?? 0) + amount);
      }
      for (const order of slice.orders) checkSale(order, slice, found);
      compareWithSnapshot(slice, found);
    },
    finish: () => {
      const { total, sold } = mysql.stock;
      const booked = balances.get('sold') ?? 0;
      if (booked !== sold) {
        found.breach(
          { sale_id: saleId, ledger: booked, sold },
          `the ledger's balance of sold is ${booked}, sale_stock.sold is ${sold}`,
        );
      }
      // An account's negative would be -0 where nothing was allotted.
      const allotted = 0 - (balances.get('allotment') ?? 0);
      if (allotted !== total) {
        found.breach(
          { sale_id: saleId, ledger: allotted, total },
          `the ledger allotted ${allotted} units, sale_stock.total is ${total}`,
        );
      }
    },
  };
}

const describeLegs = (legs: readonly LedgerLeg[]) =>
  legs.map(({ account, amount }) => `${account} ${amount}`).join(', ');

function checkEntry(entryId: string, legs: readonly LedgerLeg[], found: Findings): void {
  const sum = legs.reduce((total, { amount }) => total + amount, 0);
  if (sum === 0) return;
  const says = describeLegs(legs);
  found.breach(
    { entry_id: entryId, legs: says, sum },
    `the legs of this entry add up to ${sum}, not 0: ${says}`,
  );
}

function checkSale(order: OrderRow, slice: Slice, found: Findings): void {
  const { orderId, state, quantity } = order;
  const { sales } = movementsOf(order, slice);
  const wanted = LIVE.has(state) || RETURNED.has(state) ? 1 : 0;
  const witness = { order_id: orderId, state, entries: sales.map(({ entryId }) => entryId).join(' ') };
  if (sales.length !== wanted) {
    found.breach(witness, `is ${state} and should have ${wanted} sale in the ledger, it has ${sales.length}`);
  }
  for (const entry of sales) {
    const fault = whyNotMoved(entry, { from: 'held', to: 'sold', units: quantity });
    if (fault !== null) found.breach({ ...witness, entry_id: entry.entryId }, `its sale ${fault}`);
  }
}

/** The ledger is only ever appended to: whatever it said in the middle of the sale it says still. */
function compareWithSnapshot({ ledger, snapshot }: Slice, found: Findings): void {
  for (const [entryId, before] of snapshot) {
    found.look();
    const now = ledger.get(entryId) ?? [];
    for (const leg of before) {
      const same = now.some(
        ({ account, amount, orderId, atMs }) =>
          account === leg.account && amount === leg.amount && orderId === leg.orderId && atMs === leg.atMs,
      );
      if (same) continue;
      found.breach(
        { entry_id: entryId, account: leg.account, before: leg.amount, now: describeLegs(now) || null },
        `a leg of the ledger was changed or removed since the snapshot: ${leg.account} ${leg.amount}`,
      );
    }
  }
}

function orphans(slice: Slice, table: Orphan['table'], found: Findings): void {
  for (const orphan of slice.orphans) {
    if (orphan.table !== table) continue;
    found.breach(
      { table, order_id: orphan.orderId },
      `${table} has a row of an attempt that has no order row`,
    );
  }
}

/** I17 to I21: prices, history, money and books. */
export const ORDER_INVARIANTS: readonly Invariant[] = [
  { id: 'I17', says: 'every order has the price of its sale', begin: bySlice(priceOfTheSale) },
  {
    id: 'I18',
    says: 'every order took allowed edges, and all are on record',
    begin: bySlice(historyIsWhole),
  },
  {
    id: 'I19',
    says: 'paid in time or timed out, and no money without an order',
    begin: bySlice(paidOrTimedOut),
  },
  { id: 'I20', says: 'units of an ended order went back exactly once', begin: bySlice(returnedOnce) },
  { id: 'I21', says: 'every order is in the ledger, and the ledger adds up', begin: ledgerAddsUp },
];
