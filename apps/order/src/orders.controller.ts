import { Controller, Inject, Module, type DynamicModule } from '@nestjs/common';
import { GrpcMethod } from '@nestjs/microservices';
import { NotSent, type ProblemCode, type order } from '@flash-sale/contracts';
import { DatabaseError } from '@flash-sale/database';
import { callDeadlineMs, itemDeadlinesMs, type CallInfo, type Log } from '@flash-sale/service';
import type { OrderEnder } from './end-orders.js';
import { Overloaded, Rarely, type Gate } from './load.js';
import { OperatorParts, OperatorsController } from './operators.controller.js';
import type { Payments } from './payments.js';
import type { OrderPlacer } from './place-orders.js';
import type { OrderReader, OrderRow } from './read-orders.js';

export interface OrdersParts {
  readonly placer: OrderPlacer;
  readonly reader: OrderReader;
  readonly ender: OrderEnder;
  readonly payments: Payments;
  /** Bound how many of the calls that come one by one are worked on at once, each kind by itself. */
  readonly gates: { readonly payments: Gate; readonly endings: Gate; readonly lists: Gate };
  readonly operators: OperatorParts;
  readonly log: Log;
}

const PARTS = Symbol('OrdersParts');
/** No call is worked on for longer than this, whatever its caller says. */
const MAX_CALL_MS = 15_000;

/** Wire ↔ domain for `Orders`. */
@Controller()
class OrdersController {
  private readonly complaint = new Rarely();

  constructor(@Inject(PARTS) private readonly parts: OrdersParts) {}

  @GrpcMethod('Orders', 'Place')
  async place(request: order.PlaceRequest, _metadata: unknown, call: CallInfo): Promise<order.PlaceReply> {
    const deadlinesMs = itemDeadlinesMs(request, call);
    const results = await Promise.all(
      request.items.map(async (item, index): Promise<order.PlaceResult> => {
        const placed = await this.parts.placer.place(item, workUntilMs(deadlinesMs[index]));
        return placed.outcome === 'placed'
          ? { problem: '', orderId: placed.orderId, state: placed.state }
          : { problem: placed.problem, orderId: '', state: '' };
      }),
    );
    return { results };
  }

  @GrpcMethod('Orders', 'FindOrders')
  async findOrders(
    request: order.FindOrdersRequest,
    _metadata: unknown,
    call: CallInfo,
  ): Promise<order.FindOrdersReply> {
    const deadlinesMs = itemDeadlinesMs(request, call);
    const results = await Promise.all(
      request.items.map((item, index) =>
        this.orUnavailable(async (): Promise<order.OrderReply> => {
          const untilMs = workUntilMs(deadlinesMs[index]);
          const found = await this.parts.reader.find(item.orderId, item.shopperId, untilMs);
          return found.outcome === 'found'
            ? { problem: '', order: onWire(found.order) }
            : refusal(found.problem);
        }, refusal('unavailable')),
      ),
    );
    return { results };
  }

  @GrpcMethod('Orders', 'ListOrders')
  listOrders(
    request: order.ListOrdersRequest,
    _metadata: unknown,
    call: CallInfo,
  ): Promise<order.ListOrdersReply> {
    const none = (problem: ProblemCode) => ({ problem, orders: [], nextCursor: '' });
    return this.inTurn(
      this.parts.gates.lists,
      call,
      async () => {
        const page = await this.parts.reader.list(request.shopperId, request.cursor, request.limit);
        return page
          ? { problem: '', orders: page.rows.map(onWire), nextCursor: page.nextCursor ?? '' }
          : none('invalid');
      },
      none('unavailable'),
    );
  }

  @GrpcMethod('Orders', 'Pay')
  pay(request: order.PayRequest, _metadata: unknown, call: CallInfo): Promise<order.PayReply> {
    const none = (problem: ProblemCode) => ({ problem, pending: false, order: undefined });
    return this.inTurn(
      this.parts.gates.payments,
      call,
      async (deadlineMs) => {
        const paid = await this.parts.payments.pay(request, deadlineMs);
        return paid.outcome === 'problem'
          ? none(paid.problem)
          : { problem: '', pending: paid.outcome === 'pending', order: onWire(paid.order) };
      },
      none('unavailable'),
    );
  }

  @GrpcMethod('Orders', 'Cancel')
  cancel(request: order.CancelRequest, _metadata: unknown, call: CallInfo): Promise<order.OrderReply> {
    return this.inTurn(
      this.parts.gates.endings,
      call,
      async (deadlineMs) => {
        const { orderId, shopperId } = request;
        const cancelled = await this.parts.ender.cancel(orderId, shopperId, deadlineMs);
        return cancelled.outcome === 'cancelled'
          ? { problem: '', order: onWire(cancelled.order) }
          : refusal(cancelled.problem);
      },
      refusal('unavailable'),
    );
  }

  @GrpcMethod('Orders', 'SettlePayment')
  settlePayment(
    request: order.SettlePaymentRequest,
    _metadata: unknown,
    call: CallInfo,
  ): Promise<order.SettlePaymentReply> {
    const settle = async () => {
      const { eventId, paymentId, result } = request;
      if (result !== 'captured' && result !== 'declined') return { problem: 'invalid' };
      const known = await this.parts.payments.settleByEvent(eventId, paymentId, result);
      return { problem: known ? '' : 'not_found' };
    };
    return this.inTurn(this.parts.gates.endings, call, settle, { problem: 'unavailable' });
  }

  private inTurn<Reply>(
    gate: Gate,
    call: CallInfo,
    work: (deadlineMs: number) => Promise<Reply>,
    unavailable: Reply,
  ): Promise<Reply> {
    const deadlineMs = workUntilMs(callDeadlineMs(call));
    return this.orUnavailable(() => gate.run(() => work(deadlineMs), deadlineMs), unavailable);
  }

  /** A database that cannot answer now, or not in time, is an expected outcome; anything else is a defect and stays one. */
  private async orUnavailable<Reply>(work: () => Promise<Reply>, unavailable: Reply): Promise<Reply> {
    try {
      return await work();
    } catch (error) {
      const isExpected = error instanceof Overloaded || error instanceof NotSent;
      if (!isExpected && !(error instanceof DatabaseError && error.retriable)) throw error;
      this.complaint.say((unsaid) => {
        this.parts.log.warn(
          { err: error, unsaid },
          'calls are refused, because the database does not keep up',
        );
      });
      return unavailable;
    }
  }
}

@Module({})
export class OrdersModule {
  static with(parts: OrdersParts): DynamicModule {
    return {
      module: OrdersModule,
      controllers: [OrdersController, OperatorsController],
      providers: [
        { provide: PARTS, useValue: parts },
        { provide: OperatorParts, useValue: parts.operators },
      ],
    };
  }
}

function workUntilMs(deadlineMs = Number.POSITIVE_INFINITY): number {
  return Math.min(deadlineMs, performance.now() + MAX_CALL_MS);
}

function refusal(problem: ProblemCode): order.OrderReply {
  return { problem, order: undefined };
}

function onWire(row: OrderRow): order.Order {
  return {
    orderId: row.orderId,
    saleId: row.saleId,
    skuId: row.skuId,
    quantity: row.quantity,
    unitPrice: row.unitPrice,
    amount: row.unitPrice * row.quantity,
    currency: row.currency,
    state: row.state,
    reason: row.reason ?? '',
    payBeforeMs: row.payBefore?.getTime() ?? 0,
    createdAtMs: row.createdAt.getTime(),
    updatedAtMs: row.updatedAt.getTime(),
  };
}
