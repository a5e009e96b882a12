import { Delivery, SaleReport } from '@flash-sale/contracts';
import {
  LineSettings,
  NewSale,
  ORDER_STATES,
  Phase,
  SaleId,
  ShopperId,
  SkuId,
  StoredPhase,
} from '@flash-sale/domain';
import { z } from 'zod';
import { DegradationMode, DegradationModes } from './degradation.js';

/**
 * What goes in and out over HTTP, one schema per body. Bodies that come in are strict objects: an unknown field is refused.
 * The same schemas check requests and make the OpenAPI document.
 */
const instant = z.iso
  .datetime({ precision: 3 })
  .meta({ description: 'ISO 8601, UTC, with milliseconds', examples: ['2026-11-11T12:00:00.000Z'] });
const id = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/);

// ── In ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

export const SessionBody = z
  .strictObject({ shopperId: ShopperId })
  .meta({ examples: [{ shopperId: 'alice' }] });

/** No sale allows one shopper more than 1,000 units. */
export const EntryBody = z
  .strictObject({
    quantity: z.int().min(1).max(1_000),
    challenge: z
      .string()
      .min(1)
      .max(4_096)
      .optional()
      .meta({ description: "The solution, as ALTCHA's widget gives it: base64 of JSON" }),
  })
  .meta({ examples: [{ quantity: 1 }] });

export const OrderBody = z
  .strictObject({ purchaseToken: z.string().min(1).max(1_024), delivery: Delivery })
  .meta({
    examples: [
      {
        purchaseToken: 'v1.k1.eyJhIjoi….c2lnbmF0dXJl',
        delivery: { name: 'Li Wei', phone: '+86 138 0000 0000', address: '1 Example Road, Shanghai' },
      },
    ],
  });

export const PaymentBody = z
  .strictObject({
    method: z.literal('test-card'),
    card: z.string().regex(/^[0-9]{12,19}$/, '12 to 19 digits'),
  })
  .meta({ examples: [{ method: 'test-card', card: '4242424242424242' }] });

export const WebhookBody = z
  .strictObject({
    eventId: z.string().regex(/^[A-Za-z0-9_-]{1,128}$/),
    paymentId: z.string().regex(/^[A-Za-z0-9_-]{1,128}$/),
    result: z.enum(['captured', 'declined']),
  })
  .meta({ examples: [{ eventId: 'evt-1', paymentId: 'pay-1', result: 'captured' }] });

export const NewSaleBody = NewSale.meta({
  examples: [
    {
      title: 'The phone of the year',
      skuId: 'phone-1',
      allotment: 1000,
      unitPrice: 199900,
      currency: 'CNY',
      opensAt: '2026-11-11T12:00:00.000Z',
      closesAt: '2026-11-11T13:00:00.000Z',
      limitPerShopper: 1,
    },
  ],
});

/** Operations that say everything by their address. */
export const EmptyBody = z.strictObject({}).optional();

/** Why an operator does what cannot be undone, or what somebody will ask about. */
export const ReasonBody = z
  .strictObject({
    reason: z.string().max(500).regex(/\S/, 'must say why').meta({ description: "For the operators' log" }),
  })
  .meta({ examples: [{ reason: 'Made by a test of the provider; the shopper was told' }] });

// ── Out ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

export const TimeAnswer = z.object({ now: instant });
export const SessionAnswer = z.object({ accessToken: z.string(), expiresAt: instant });

export const SaleAnswer = z
  .object({
    saleId: SaleId,
    title: z.string(),
    skuId: SkuId,
    unitPrice: z.int().meta({ description: 'Minor units of the currency' }),
    currency: z.string(),
    opensAt: instant,
    closesAt: instant,
    phase: Phase,
    limitPerShopper: z.int(),
    stockLevel: z.enum(['plenty', 'low', 'none']),
    challenge: z.enum(['proof_of_work']).nullable(),
    serverTime: instant,
  })
  .meta({
    examples: [
      {
        saleId: 'phone-2026',
        title: 'The phone of the year',
        skuId: 'phone-1',
        unitPrice: 199900,
        currency: 'CNY',
        opensAt: '2026-11-11T12:00:00.000Z',
        closesAt: '2026-11-11T13:00:00.000Z',
        phase: 'open',
        limitPerShopper: 1,
        stockLevel: 'plenty',
        challenge: null,
        serverTime: '2026-11-11T12:00:01.000Z',
      },
    ],
  });
export type SaleAnswer = z.infer<typeof SaleAnswer>;
export const SalesAnswer = z.object({ serverTime: instant, sales: z.array(SaleAnswer) });

/** ALTCHA's challenge, version 2; see its documentation for what a solver does with it. */
export const ChallengeAnswer = z.looseObject({
  parameters: z.looseObject({ algorithm: z.string() }),
  signature: z.string(),
});

export const GrantedEntry = z
  .object({ entryId: id, state: z.literal('granted'), purchaseToken: z.string(), expiresAt: instant })
  .meta({
    examples: [
      {
        entryId: 'phone-2026-3q2-7wEjRWeJq83vASNFZw',
        state: 'granted',
        purchaseToken: 'v1.k1.eyJhIjoi….c2lnbmF0dXJl',
        expiresAt: '2026-11-11T12:02:01.000Z',
      },
    ],
  });
export const WaitingEntry = z
  .object({
    entryId: id,
    state: z.literal('waiting'),
    ticket: z.string(),
    position: z.int().meta({ description: '1 is next' }),
    estimatedWaitSeconds: z.int(),
    pollAfterMs: z.int(),
  })
  .meta({
    examples: [
      {
        entryId: 'phone-2026-3q2-7wEjRWeJq83vASNFZw',
        state: 'waiting',
        ticket: 't1.k1.eyJlIjoi….c2lnbmF0dXJl',
        position: 1204,
        estimatedWaitSeconds: 3,
        pollAfterMs: 602,
      },
    ],
  });
export const OverEntry = z.object({
  entryId: id,
  state: z.enum(['ordered', 'expired', 'released', 'sold_out']),
  reason: z.string().nullable().meta({ description: 'Why it ended so; null where the state says it all' }),
});
export const EntryAnswer = z.union([GrantedEntry, WaitingEntry, OverEntry]);
export type EntryAnswer = z.infer<typeof EntryAnswer>;

export const PlacedOrder = z
  .object({ orderId: id, state: z.enum(ORDER_STATES) })
  .meta({ examples: [{ orderId: 'phone-2026-3q2-7wEjRWeJq83vASNFZw', state: 'queued' }] });
export const OrderAnswer = z
  .object({
    orderId: id,
    saleId: SaleId,
    skuId: SkuId,
    quantity: z.int(),
    unitPrice: z.int(),
    amount: z.int(),
    currency: z.string(),
    state: z.enum(ORDER_STATES),
    reason: z.string().nullable(),
    payBefore: instant.nullable(),
    createdAt: instant,
    updatedAt: instant,
  })
  .meta({
    examples: [
      {
        orderId: 'phone-2026-3q2-7wEjRWeJq83vASNFZw',
        saleId: 'phone-2026',
        skuId: 'phone-1',
        quantity: 1,
        unitPrice: 199900,
        amount: 199900,
        currency: 'CNY',
        state: 'awaiting_payment',
        reason: null,
        payBefore: '2026-11-11T12:17:02.000Z',
        createdAt: '2026-11-11T12:00:02.000Z',
        updatedAt: '2026-11-11T12:00:02.000Z',
      },
    ],
  });
export type OrderAnswer = z.infer<typeof OrderAnswer>;
export const OrdersAnswer = z.object({ orders: z.array(OrderAnswer), nextCursor: z.string().nullable() });
export const PendingPayment = z.object({ state: z.literal('pending') });

export const OperatorSale = z.object({
  saleId: SaleId,
  title: z.string(),
  skuId: SkuId,
  allotment: z.int(),
  unitPrice: z.int(),
  currency: z.string(),
  opensAt: instant,
  closesAt: instant,
  limitPerShopper: z.int(),
  buckets: z.int(),
  holdSeconds: z.number(),
  paySeconds: z.number(),
  challenge: z.enum(['proof_of_work']).nullable(),
  line: LineSettings,
  storedPhase: StoredPhase,
  phase: Phase,
  epoch: z.int(),
});
export type OperatorSale = z.infer<typeof OperatorSale>;
export const OperatorSales = z.object({ sales: z.array(OperatorSale) });
export { SaleReport };

export const DeadLetterState = z.enum(['pending', 'replaying', 'replayed', 'dropped']);
export const DeadLetterAnswer = z
  .object({
    deadLetterId: id,
    topic: z.string(),
    partition: z.int(),
    offset: z.int(),
    orderId: id.nullable().meta({ description: "Null where the record's key is no order's id" }),
    orderState: z
      .enum(ORDER_STATES)
      .nullable()
      .meta({ description: "Of the order's row; null where there is none" }),
    cause: z.string().meta({ description: 'Why it could not be decided' }),
    schemaVersion: z.string().nullable().meta({ description: 'What the record claims' }),
    state: DeadLetterState.meta({
      description:
        '`pending`: replay or drop it. `replaying`: its replay is under way. `replayed`: the replay was read; where it could ' +
        'not be decided either, it is a dead letter of its own. `dropped`: given up.',
    }),
    replayable: z.boolean(),
    at: instant,
    replayedAt: instant.nullable(),
    closedAt: instant.nullable(),
  })
  .meta({
    examples: [
      {
        deadLetterId: 'c63ed48c7a2d99e67cf2233d',
        topic: 'orders.v1',
        partition: 3,
        offset: 1204,
        orderId: 'phone-2026-3q2-7wEjRWeJq83vASNFZw',
        orderState: null,
        cause: 'unknown_version',
        schemaVersion: '2',
        state: 'pending',
        replayable: true,
        at: '2026-11-11T12:00:02.000Z',
        replayedAt: null,
        closedAt: null,
      },
    ],
  });
export type DeadLetterAnswer = z.infer<typeof DeadLetterAnswer>;
export const DeadLettersAnswer = z.object({
  deadLetters: z.array(DeadLetterAnswer),
  nextCursor: z.string().nullable(),
});
export type DeadLettersAnswer = z.infer<typeof DeadLettersAnswer>;

export const BlockedShopperAnswer = z.object({
  shopperId: ShopperId,
  reason: z.string(),
  operator: z.string(),
  at: instant,
});
export type BlockedShopperAnswer = z.infer<typeof BlockedShopperAnswer>;

export const AuditLogAnswer = z
  .object({
    entries: z.array(
      z.object({
        entryId: id,
        at: instant,
        operator: z.string(),
        operation: z.string(),
        saleId: z.string().nullable(),
        before: z.string().nullable().meta({ description: 'The phase or state that it changed' }),
        after: z.string().nullable(),
        detail: z.string(),
      }),
    ),
    nextCursor: z.string().nullable(),
  })
  .meta({
    examples: [
      {
        entries: [
          {
            entryId: '7f1c6f0e-2c2b-4a55-9e0e-0f4f3d6f5b1a',
            at: '2026-11-11T11:58:00.000Z',
            operator: 'olga',
            operation: 'pause',
            saleId: 'phone-2026',
            before: 'warmed',
            after: 'paused',
            detail: '',
          },
        ],
        nextCursor: null,
      },
    ],
  });
export type AuditLogAnswer = z.infer<typeof AuditLogAnswer>;

/** What operators change; at least one of the two. */
export const DegradationBody = DegradationModes.partial()
  .refine(
    (changes) => Object.keys(changes).length > 0,
    'name at least one of eventStreams and productDetails',
  )
  .meta({ examples: [{ eventStreams: 'degraded' }] });
const degradationState = z.object({
  mode: DegradationMode,
  degraded: z
    .boolean()
    .meta({ description: 'Whether the gateway that answers does without it at the moment' }),
});
export const DegradationAnswer = z
  .object({
    eventStreams: degradationState,
    productDetails: degradationState,
    recorded: z
      .boolean()
      .optional()
      .meta({ description: 'After a change: false where the operator log could not be reached' }),
  })
  .meta({
    examples: [
      {
        eventStreams: { mode: 'degraded', degraded: true },
        productDetails: { mode: 'automatic', degraded: false },
        recorded: true,
      },
    ],
  });
export type DegradationAnswer = z.infer<typeof DegradationAnswer>;

export const ProblemAnswer = z.object({
  type: z.string(),
  title: z.string(),
  status: z.int(),
  code: z.string().meta({ description: 'Stable; programs decide by it' }),
  detail: z.string().optional(),
  errors: z.array(z.object({ field: z.string(), message: z.string() })).optional(),
  requestId: z.string(),
});

/** ISO 8601 with milliseconds. */
export function instantOf(ms: number): string {
  return new Date(ms).toISOString();
}
