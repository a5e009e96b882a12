import { setTimeout as delay } from 'node:timers/promises';
import {
  Delivery,
  ORDER_EVENT_VERSION,
  ORDER_HEADERS,
  deliveryHashOf,
  encodeOrderEvent,
  type ProblemCode,
  type StockClient,
  type inventory,
  type order,
} from '@flash-sale/contracts';
import {
  verifyPurchaseToken,
  type OrderState,
  type PurchaseTokenClaims,
  type SigningKeys,
} from '@flash-sale/domain';
import type { SentMessage, SupervisedProducer } from '@flash-sale/kafka';
import { currentTraceparent, meter, runInSpan, type Log } from '@flash-sale/service';
import { Rarely } from './load.js';
import type { OrderReader, OrderRow } from './read-orders.js';
import type { WriterLag } from './writer-lag.js';

export type Placed =
  /** A promise: the record is durable in Kafka, or the row exists. */
  | { readonly outcome: 'placed'; readonly orderId: string; readonly state: OrderState }
  | { readonly outcome: 'problem'; readonly problem: ProblemCode };

export interface OrderPlacerOptions {
  readonly keys: SigningKeys;
  readonly stock: Pick<StockClient, 'queue' | 'recordOffsets'>;
  readonly reader: Pick<OrderReader, 'row'>;
  readonly lag: Pick<WriterLag, 'isWithinBound'>;
  readonly producer: Pick<SupervisedProducer, 'enqueue'>;
  readonly topic: string;
  /** A produce begins at most this long after the hold was queued. */
  readonly enqueueWindowMs: number;
  /** An acknowledgement handled later than this after its send promises nothing. */
  readonly ackWindowMs: number;
  readonly log: Log;
}

/** A genuine order of a shopper, before anybody was asked about it. */
interface Wanted {
  readonly claims: PurchaseTokenClaims;
  readonly token: string;
  readonly delivery: Delivery;
  readonly deliveryHash: string;
  readonly requestId: string;
  /** On the `performance.now()` scale. */
  readonly deadlineMs: number;
}

/**
 * Takes orders. "Placed" is said in two cases only: Kafka acknowledged the record in time, or MySQL has decided. Everything
 * that is not known is `enqueue_unknown`, and then no unit goes back: the record may be in the log, so only a durable row
 * can end the attempt. Repeating the call is safe and is what the shopper is asked to do.
 */
export class OrderPlacer {
  private readonly offsets: OffsetRecorder;
  private readonly complaint = new Rarely();
  private readonly placed = meter().createCounter('orders.placed', {
    description: 'Orders asked for, by how they were answered',
  });
  private readonly ackDuration = meter().createHistogram('orders.ack.duration', {
    unit: 's',
    description: 'From the send of an order to its acknowledgement',
  });

  constructor(private readonly options: OrderPlacerOptions) {
    this.offsets = new OffsetRecorder(options.stock, options.log);
  }

  /**
   * @param deadlineMs when the caller stops to wait, on the `performance.now()` scale; nothing is produced after it
   */
  async place(item: order.PlaceItem, deadlineMs: number): Promise<Placed> {
    const { context } = item;
    const placed = await runInSpan(
      'order.place',
      context?.traceparent ? { parent: context.traceparent } : {},
      async (span) => {
        const answer = await this.answer(item, deadlineMs);
        if (answer.outcome === 'placed') span.setAttribute('order.id', answer.orderId);
        else span.setAttribute('order.problem', answer.problem);
        return answer;
      },
    );
    this.placed.add(1, { answer: placed.outcome === 'placed' ? 'accepted' : placed.problem });
    return placed;
  }

  /** Resolves when the offsets of what was acknowledged have been passed on, as far as that is possible. */
  async drain(): Promise<void> {
    await this.offsets.drain();
  }

  private async answer(item: order.PlaceItem, deadlineMs: number): Promise<Placed> {
    const claims = verifyPurchaseToken(item.purchaseToken, this.options.keys);
    if (!claims) return problem('invalid_token');
    if (claims.shopperId !== item.shopperId) return problem('forbidden');
    const delivery = Delivery.safeParse(item.delivery);
    if (!delivery.success) return problem('invalid');
    const wanted: Wanted = {
      claims,
      token: item.purchaseToken,
      delivery: delivery.data,
      deliveryHash: deliveryHashOf(delivery.data),
      requestId: item.context?.requestId ?? '',
      deadlineMs,
    };
    try {
      return await this.queueAndProduce(wanted);
    } catch (error) {
      this.complaint.say((unsaid) => {
        this.options.log.warn(
          { err: error, orderId: claims.attemptId, requestId: wanted.requestId, unsaid },
          'it is not known whether an order was taken',
        );
      });
      return problem('enqueue_unknown');
    }
  }

  private async queueAndProduce(wanted: Wanted): Promise<Placed> {
    if (!this.options.lag.isWithinBound()) {
      // The writer is too far behind to promise more; what it has decided already can still be said.
      const row = await this.rowOf(wanted);
      return row ? answerRow(row, wanted) : problem('unavailable');
    }
    // Counted from before the call: Redis' own time of queueing is later, so the window is rather too short than too long.
    const askedAtMs = performance.now();
    const { outcome } = await this.queue(wanted);
    switch (outcome) {
      case 'QUEUED':
        return this.produce(wanted, askedAtMs);
      case 'MISSING': {
        const row = await this.rowOf(wanted);
        return row ? answerRow(row, wanted) : this.produce(wanted, askedAtMs);
      }
      case 'DECIDED': {
        const row = await this.rowOf(wanted);
        return row ? answerRow(row, wanted) : problem('enqueue_unknown');
      }
      case 'EXPIRING':
        return problem('enqueue_unknown');
      case 'TOKEN_EXPIRED':
        return problem('token_expired');
      case 'OTHER_DELIVERY':
        return problem('idempotency_key_reused');
      case 'UNAVAILABLE':
        return problem('unavailable');
      case 'UNSPECIFIED':
        throw new Error('inventory answered a queue call with nothing');
    }
  }

  private queue({ claims, deliveryHash, requestId, deadlineMs }: Wanted): Promise<inventory.QueueResult> {
    const { attemptId, shopperId, quantity, epoch } = claims;
    const context = { traceparent: currentTraceparent() ?? '', requestId };
    const item = { attemptId, shopperId, quantity, epoch, deliveryHash, context };
    return this.options.stock.queue(item, Math.min(1_500, Math.max(1, deadlineMs - performance.now())));
  }

  private async produce(wanted: Wanted, askedAtMs: number): Promise<Placed> {
    const { producer, topic, enqueueWindowMs, ackWindowMs } = this.options;
    const { claims, requestId } = wanted;
    const traceparent = currentTraceparent();
    const event = {
      v: ORDER_EVENT_VERSION,
      token: wanted.token,
      delivery: wanted.delivery,
      deliveryHash: wanted.deliveryHash,
    } as const;
    const sent = await producer.enqueue(
      topic,
      {
        key: claims.attemptId,
        value: encodeOrderEvent(event),
        headers: {
          [ORDER_HEADERS.schema]: String(ORDER_EVENT_VERSION),
          ...(requestId && { [ORDER_HEADERS.requestId]: requestId }),
          ...(traceparent && { [ORDER_HEADERS.traceparent]: traceparent }),
        },
      },
      Math.min(askedAtMs + enqueueWindowMs, wanted.deadlineMs),
    );
    // Read here and not taken from a timer: a process that slept must not believe in an acknowledgement of long ago.
    const tookMs = performance.now() - sent.sentAtMs;
    this.ackDuration.record(tookMs / 1_000);
    if (tookMs > ackWindowMs) return problem('enqueue_unknown');
    this.offsets.record(claims, sent);
    // The promise, on record where it is made.
    this.options.log.info({ orderId: claims.attemptId, requestId }, 'order accepted');
    return { outcome: 'placed', orderId: claims.attemptId, state: 'queued' };
  }

  private rowOf({ claims, deadlineMs }: Wanted): Promise<OrderRow | undefined> {
    return this.options.reader.row(claims.attemptId, deadlineMs);
  }
}

/** A decided order is the answer to each repetition of its placing, unless the repetition says something else. */
function answerRow(row: OrderRow, wanted: Wanted): Placed {
  if (row.shopperId !== wanted.claims.shopperId) return problem('forbidden');
  if (!row.wasOrdered) return problem('token_expired');
  if (row.deliveryHash !== null && row.deliveryHash !== wanted.deliveryHash) {
    return problem('idempotency_key_reused');
  }
  return { outcome: 'placed', orderId: row.orderId, state: row.state };
}

function problem(code: ProblemCode): Placed {
  return { outcome: 'problem', problem: code };
}

const MAX_OFFSETS_PER_CALL = 500;
const MAX_OFFSETS_WAITING = 20_000;
const OFFSETS_WITHIN_MS = 2_000;
/** Nobody waits for it, and larger batches cost inventory and Redis a fraction; still far below any deadline of an order. */
const GATHER_MS = 50;

/**
 * Tells inventory where in Kafka queued orders lie, without any shopper waiting for it. It may be lost: an order without a
 * known place is looked after by the sweeper all the same, only sooner.
 */
class OffsetRecorder {
  private readonly waiting: inventory.RecordOffsetItem[] = [];
  private sending: Promise<void> | undefined;
  private dropped = 0;

  constructor(
    private readonly stock: Pick<StockClient, 'recordOffsets'>,
    private readonly log: Log,
  ) {}

  record(claims: PurchaseTokenClaims, sent: SentMessage): void {
    if (this.waiting.length >= MAX_OFFSETS_WAITING) {
      this.dropped += 1;
      return;
    }
    const { attemptId, shopperId } = claims;
    const { partition, offset } = sent;
    this.waiting.push({ attemptId, shopperId, partition, offset: String(offset) });
    this.sending ??= this.begin();
  }

  async drain(): Promise<void> {
    while (this.sending) await this.sending;
  }

  private begin(): Promise<void> {
    return this.send().finally(() => {
      this.sending = this.waiting.length > 0 ? this.begin() : undefined;
    });
  }

  private async send(): Promise<void> {
    await delay(GATHER_MS);
    do {
      const items = this.waiting.splice(0, MAX_OFFSETS_PER_CALL);
      try {
        await this.stock.recordOffsets({ items }, OFFSETS_WITHIN_MS);
      } catch (error) {
        this.log.warn(
          { err: error, orders: items.length, dropped: this.dropped },
          'the places of queued orders were not recorded; the sweeper will look for them',
        );
        this.dropped = 0;
      }
    } while (this.waiting.length >= MAX_OFFSETS_PER_CALL);
  }
}
