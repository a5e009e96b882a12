import type { ProblemCode } from '@flash-sale/contracts';
import type { z } from 'zod';
import * as schemas from './schemas.js';

/** Every call of the HTTP contract, as the OpenAPI document describes it. */
export type Tag = 'Sales' | 'Entries' | 'Orders' | 'Payment provider' | 'Operators';

/** One call. */
export interface Call {
  readonly call: `${'get' | 'post' | 'put' | 'delete'} ${string}`;
  readonly id: string;
  readonly tag: Tag;
  readonly summary: string;
  /** The schema of the body that comes in; its name in {@link NAMED}. */
  readonly body?: keyof typeof NAMED;
  readonly headers?: readonly (keyof typeof HEADERS)[];
  readonly query?: Readonly<Record<string, string>>;
  /** Status → description and, where there is a body, the name of its schema. */
  readonly answers: Readonly<Record<number, readonly [string, (keyof typeof NAMED | 'EventStream')?]>>;
  /** Besides those that every call may end with. */
  readonly problems?: readonly ProblemCode[];
}

const EVENTS =
  'Events; read with fetch. When it ends, connect again; after `event: poll` (and after a 503) ask for the state itself every `pollAfterMs`';

/** The schemas by the names that the document gives them. */
export const NAMED = {
  Time: schemas.TimeAnswer,
  NewSession: schemas.SessionBody,
  Session: schemas.SessionAnswer,
  Sale: schemas.SaleAnswer,
  Sales: schemas.SalesAnswer,
  Challenge: schemas.ChallengeAnswer,
  NewEntry: schemas.EntryBody,
  Entry: schemas.EntryAnswer,
  GrantedEntry: schemas.GrantedEntry,
  WaitingEntry: schemas.WaitingEntry,
  NewOrder: schemas.OrderBody,
  PlacedOrder: schemas.PlacedOrder,
  Order: schemas.OrderAnswer,
  Orders: schemas.OrdersAnswer,
  NewPayment: schemas.PaymentBody,
  PendingPayment: schemas.PendingPayment,
  PaymentEvent: schemas.WebhookBody,
  NewSale: schemas.NewSaleBody,
  OperatorSale: schemas.OperatorSale,
  OperatorSales: schemas.OperatorSales,
  Report: schemas.SaleReport,
  DeadLetter: schemas.DeadLetterAnswer,
  DeadLetters: schemas.DeadLettersAnswer,
  Reason: schemas.ReasonBody,
  BlockedShopper: schemas.BlockedShopperAnswer,
  AuditLog: schemas.AuditLogAnswer,
  DegradationChange: schemas.DegradationBody,
  Degradation: schemas.DegradationAnswer,
  Problem: schemas.ProblemAnswer,
} as const satisfies Record<string, z.ZodType>;

/** Bodies that come in are described as they are sent, with defaults left out; the others as they arrive. */
export const INCOMING = new Set<string>([
  'NewSession',
  'NewEntry',
  'NewOrder',
  'NewPayment',
  'PaymentEvent',
  'NewSale',
  'Reason',
  'DegradationChange',
]);

/** Headers that calls take, as parameters. */
export const HEADERS = {
  'Idempotency-Key': {
    required: true,
    description: 'Made by the caller; repeating a call with the same key repeats nothing.',
    schema: { type: 'string', pattern: '^[A-Za-z0-9_.-]{1,128}$' },
    example: '0197f3c2-5d7e-7c1a-9a55-2f1d0f0c8a11',
  },
  'X-Entry-Ticket': {
    required: false,
    description: 'The ticket of a waiting entry.',
    schema: { type: 'string' },
    example: 't1.k1.eyJlIjoi….c2lnbmF0dXJl',
  },
  'X-Payment-Timestamp': {
    required: true,
    description: 'Unix seconds, at most five minutes away.',
    schema: { type: 'string', pattern: '^[0-9]{1,12}$' },
    example: '1794398400',
  },
  'X-Payment-Signature': {
    required: true,
    description: 'Hexadecimal HMAC-SHA256 of `<timestamp>.<body>` with the shared secret.',
    schema: { type: 'string', pattern: '^[0-9a-f]{64}$' },
    example: '5257a869e7ecebeda32affa62cdca3fa51cad7e77a0e56ff536d0ce8e108d8bd',
  },
} as const;

const OPERATIONS = {
  'warm-up': 'Loads the stock; the sale then opens by the clock',
  pause: 'No new grants; holds and orders run on',
  resume: 'Sells again',
  close: 'Ends selling for good; holds and orders run on',
  settle: 'Closes the books; refused while anything is unresolved',
} as const;

export const CALLS: readonly Call[] = [
  {
    call: 'get /v1/time',
    id: 'readTime',
    tag: 'Sales',
    summary: "The server's time",
    answers: { 200: ['The time', 'Time'] },
  },
  {
    call: 'post /v1/sessions',
    id: 'createSession',
    tag: 'Sales',
    summary: 'An access token for any name; only where DEV_LOGIN=true',
    body: 'NewSession',
    answers: { 201: ['A session', 'Session'] },
    problems: ['not_found'],
  },
  {
    call: 'get /v1/sales',
    id: 'listSales',
    tag: 'Sales',
    summary: 'All sales',
    answers: { 200: ['The sales; cacheable for a second', 'Sales'] },
  },
  {
    call: 'get /v1/sales/{saleId}',
    id: 'readSale',
    tag: 'Sales',
    summary: 'One sale',
    answers: { 200: ['The sale; cacheable for a second', 'Sale'] },
    problems: ['not_found'],
  },
  {
    call: 'post /v1/sales/{saleId}/challenge',
    id: 'createChallenge',
    tag: 'Entries',
    summary: 'A proof of work (ALTCHA), bound to the sale and the shopper; it can be used by one entry',
    answers: { 201: ['The challenge to solve', 'Challenge'] },
    problems: ['not_found', 'blocked'],
  },
  {
    call: 'post /v1/sales/{saleId}/entries',
    id: 'enterSale',
    tag: 'Entries',
    summary: 'Enters a sale: units are set aside at once, or the shopper waits in line',
    body: 'NewEntry',
    headers: ['Idempotency-Key', 'X-Entry-Ticket'],
    answers: {
      200: ["A known entry's present state", 'Entry'],
      201: ['Granted: order with the purchase token before it expires', 'GrantedEntry'],
      202: ['Waiting in line', 'WaitingEntry'],
    },
    problems: [
      'invalid_token',
      'not_found',
      'challenge_required',
      'challenge_used',
      'blocked',
      'sale_not_open',
      'sale_closed',
      'sale_paused',
      'limit_reached',
      'entry_exists',
      'not_enough_left',
      'in_progress',
      'sold_out',
      'idempotency_key_reused',
    ],
  },
  {
    call: 'get /v1/entries/{entryId}',
    id: 'readEntry',
    tag: 'Entries',
    summary: 'Where my entry stands',
    headers: ['X-Entry-Ticket'],
    answers: { 200: ['The entry', 'Entry'] },
    problems: ['not_found', 'blocked'],
  },
  {
    call: 'get /v1/entries/{entryId}/events',
    id: 'watchEntry',
    tag: 'Entries',
    summary:
      'My entry as server-sent events: `event: entry`, `data:` an Entry; ends with its last state, or with `event: poll` where it is better asked for',
    headers: ['X-Entry-Ticket'],
    answers: { 200: [EVENTS, 'EventStream'] },
    problems: ['not_found', 'blocked'],
  },
  {
    call: 'delete /v1/entries/{entryId}',
    id: 'leaveSale',
    tag: 'Entries',
    summary: 'Gives up the place or the units',
    answers: { 204: ['Given up; the units return once that is durable'] },
    problems: ['not_found', 'already_ordered'],
  },
  {
    call: 'post /v1/orders',
    id: 'placeOrder',
    tag: 'Orders',
    summary: 'Orders the units of a purchase token; the same token and delivery always answer the same order',
    body: 'NewOrder',
    answers: { 202: ['Taken, and never lost', 'PlacedOrder'] },
    problems: [
      'invalid_token',
      'forbidden',
      'blocked',
      'token_expired',
      'idempotency_key_reused',
      'enqueue_unknown',
    ],
  },
  {
    call: 'get /v1/orders',
    id: 'listOrders',
    tag: 'Orders',
    summary: 'My orders, newest first',
    query: { cursor: "From the previous page's `nextCursor`" },
    answers: { 200: ['A page of orders', 'Orders'] },
  },
  {
    call: 'get /v1/orders/{orderId}',
    id: 'readOrder',
    tag: 'Orders',
    summary: 'My order',
    answers: { 200: ['The order', 'Order'] },
    problems: ['not_found'],
  },
  {
    call: 'get /v1/orders/{orderId}/events',
    id: 'watchOrder',
    tag: 'Orders',
    summary:
      'My order as server-sent events: `event: order`, `data:` an Order; ends with its last state, or with `event: poll` where it is better asked for',
    answers: { 200: [EVENTS, 'EventStream'] },
    problems: ['not_found'],
  },
  {
    call: 'delete /v1/orders/{orderId}',
    id: 'cancelOrder',
    tag: 'Orders',
    summary: 'Cancels an order that is not paid',
    answers: { 200: ['The cancelled order', 'Order'] },
    problems: ['not_found', 'not_cancellable', 'in_progress'],
  },
  {
    call: 'post /v1/orders/{orderId}/payment',
    id: 'payOrder',
    tag: 'Orders',
    summary: 'Pays an order before its time is over',
    body: 'NewPayment',
    headers: ['Idempotency-Key'],
    answers: {
      200: ['The paid order', 'Order'],
      202: ['The provider has not answered yet: look at the order', 'PendingPayment'],
    },
    problems: [
      'payment_declined',
      'not_found',
      'order_expired',
      'not_payable',
      'in_progress',
      'idempotency_key_reused',
    ],
  },
  {
    call: 'post /v1/payments/webhook',
    id: 'receivePaymentEvent',
    tag: 'Payment provider',
    summary: 'An event of the payment provider, signed; idempotent by event id',
    body: 'PaymentEvent',
    headers: ['X-Payment-Timestamp', 'X-Payment-Signature'],
    answers: { 204: ['Taken'] },
    problems: ['unauthenticated', 'not_found'],
  },
  {
    call: 'get /v1/operator/sales',
    id: 'listOperatorSales',
    tag: 'Operators',
    summary: 'All sales with all settings',
    answers: { 200: ['The sales', 'OperatorSales'] },
  },
  {
    call: 'post /v1/operator/sales',
    id: 'createSale',
    tag: 'Operators',
    summary: 'Drafts a sale; repeating it with the same id and settings is harmless',
    body: 'NewSale',
    answers: { 201: ['The draft', 'OperatorSale'] },
    problems: ['sale_exists'],
  },
  {
    call: 'get /v1/operator/sales/{saleId}',
    id: 'readOperatorSale',
    tag: 'Operators',
    summary: 'One sale with all settings',
    answers: { 200: ['The sale', 'OperatorSale'] },
    problems: ['not_found'],
  },
  ...(['warm-up', 'pause', 'resume', 'close', 'settle'] as const).map((operation): Call => ({
    call: `post /v1/operator/sales/{saleId}/${operation}`,
    id: operation === 'warm-up' ? 'warmUpSale' : `${operation}Sale`,
    tag: 'Operators',
    summary: OPERATIONS[operation],
    answers: { 200: ['The sale; repeating the call is harmless', 'OperatorSale'] },
    problems: ['not_found', 'wrong_phase', ...(operation === 'settle' ? (['unresolved'] as const) : [])],
  })),
  {
    call: 'get /v1/operator/sales/{saleId}/report',
    id: 'reportSale',
    tag: 'Operators',
    summary: 'The reconciliation of Redis, Kafka and MySQL',
    answers: { 200: ['The report', 'Report'] },
    problems: ['not_found'],
  },
  {
    call: 'get /v1/operator/dead-letters',
    id: 'listDeadLetters',
    tag: 'Operators',
    summary: 'Records of the topic of orders that could not be decided, newest first',
    query: {
      state: 'One of `pending`, `replayed`, `dropped`; without it all of them',
      cursor: "From the previous page's `nextCursor`",
    },
    answers: { 200: ['A page of dead letters', 'DeadLetters'] },
  },
  {
    call: 'post /v1/operator/dead-letters/{deadLetterId}/replay',
    id: 'replayDeadLetter',
    tag: 'Operators',
    summary: 'Produces the record once more under its key, so that the order-writer decides it',
    answers: { 200: ['The dead letter as it is now; repeating the call is harmless', 'DeadLetter'] },
    problems: ['not_found', 'dead_letter_closed', 'not_replayable'],
  },
  {
    call: 'delete /v1/operator/dead-letters/{deadLetterId}',
    id: 'dropDeadLetter',
    tag: 'Operators',
    summary: 'Gives the record up: its order, if it has no row yet, ends as rejected (`poison`)',
    body: 'Reason',
    answers: { 200: ['The dropped letter; repeating the call is harmless', 'DeadLetter'] },
    problems: ['not_found', 'dead_letter_closed', 'in_progress'],
  },
  {
    call: 'get /v1/operator/blocklist/{shopperId}',
    id: 'readBlocked',
    tag: 'Operators',
    summary: 'Whether a shopper is blocked, and why',
    answers: { 200: ['The shopper is blocked', 'BlockedShopper'] },
    problems: ['not_found'],
  },
  {
    call: 'put /v1/operator/blocklist/{shopperId}',
    id: 'blockShopper',
    tag: 'Operators',
    summary:
      'Refuses a shopper entries and orders at once, on every gateway; what they ordered before they may still read, pay and cancel',
    body: 'Reason',
    answers: { 200: ['Blocked; repeating the call is harmless', 'BlockedShopper'] },
    problems: ['blocklist_full'],
  },
  {
    call: 'delete /v1/operator/blocklist/{shopperId}',
    id: 'unblockShopper',
    tag: 'Operators',
    summary: 'Lets a shopper take part again',
    body: 'Reason',
    answers: { 204: ['Not blocked any more'] },
    problems: ['not_found'],
  },
  {
    call: 'get /v1/operator/audit-log',
    id: 'readAuditLog',
    tag: 'Operators',
    summary: 'What operators did, newest first',
    query: {
      saleId: 'Only what was done to this sale',
      cursor: "From the previous page's `nextCursor`",
    },
    answers: { 200: ['A page of the log', 'AuditLog'] },
  },
  {
    call: 'get /v1/operator/degradation',
    id: 'readDegradation',
    tag: 'Operators',
    summary:
      'What gateways do without: event streams (clients poll), fresh product details (a copy of some seconds)',
    answers: { 200: ['The modes, and what holds on the gateway that answers', 'Degradation'] },
  },
  {
    call: 'put /v1/operator/degradation',
    id: 'changeDegradation',
    tag: 'Operators',
    summary: 'Switches by hand, on all gateways within a second, or back to automatic',
    body: 'DegradationChange',
    answers: { 200: ['The modes as they are now; repeating the call is harmless', 'Degradation'] },
  },
];

/** Calls that need no access token. */
export const PUBLIC_CALLS = new Set([
  'readTime',
  'createSession',
  'listSales',
  'readSale',
  'receivePaymentEvent',
]);
