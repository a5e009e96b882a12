import { createHmac, timingSafeEqual } from 'node:crypto';
import { Body, Controller, Delete, Get, HttpCode, Inject, Post, Query, Req, Res } from '@nestjs/common';
import { BACKGROUND_SHARE, OrdersClient, type item, type order } from '@flash-sale/contracts';
import {
  AttemptId,
  ORDER_STATES,
  SaleId,
  SkuId,
  attemptIdIn,
  type IdempotencyKey,
  type ShopperId,
} from '@flash-sale/domain';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { z } from 'zod';
import { Admissions } from './admission.js';
import { BodyOf } from './http.js';
import { AccessFor, IdInPath, Origin, RetryKey, WhoCalls } from './caller.guard.js';
import { headersOf, noStream, unlessRefused } from './entries.controller.js';
import { EventStreams, type Look } from './event-streams.js';
import type { Caller } from './identity.js';
import { Refusal, answerOf, refuseProblem } from './problems.js';
import { OrderBody, PaymentBody, WebhookBody, instantOf, type OrderAnswer } from './schemas.js';

/** The payment provider's secret. */
export class WebhookSecret {
  constructor(readonly secret: string) {}
}

/** A produce may take its time; beyond this the shopper is told that it is not known. */
const PLACE_WITHIN_MS = 5_000;
const PAY_WITHIN_MS = 5_000;
const ORDERS_PER_PAGE = 50;
const CURSOR = /^[A-Za-z0-9_.:=-]{1,200}$/;
/** How old an event of the provider may be, or how far its clock ahead. */
const WEBHOOK_TOLERANCE_MS = 5 * 60_000;
/** States that an order does not leave by itself; a refund is an operator's and rare enough to be asked for. */
const FINAL_STATES = new Set(['paid', 'cancelled', 'unpaid', 'expired', 'rejected', 'refunded']);

/** Orders and their payment. */
@Controller('v1')
export class OrdersController {
  constructor(
    @Inject(Admissions) private readonly admissions: Admissions,
    @Inject(OrdersClient) private readonly orders: OrdersClient,
    @Inject(EventStreams) private readonly streams: EventStreams,
    @Inject(WebhookSecret) private readonly webhook: WebhookSecret,
  ) {}

  @Post('orders')
  @HttpCode(202)
  async place(
    @BodyOf(OrderBody) body: z.infer<typeof OrderBody>,
    @WhoCalls() { shopperId }: Caller,
    @Origin() context: item.ItemContext,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const { purchaseToken, delivery } = body;
    if (this.admissions.isBlocked(shopperId)) await this.refuseNewOrder(purchaseToken, shopperId, context);
    const placed = await answerOf(
      this.orders.place({ purchaseToken, shopperId, delivery, context }, PLACE_WITHIN_MS),
      'enqueue_unknown',
    );
    refuseProblem(placed.problem);
    this.admissions.noteOrder(placed.orderId);
    void reply.header('location', `/v1/orders/${placed.orderId}`);
    return { orderId: placed.orderId, state: placed.state };
  }

  @Get('orders')
  async list(@Query('cursor') cursor: string | undefined, @WhoCalls() { shopperId }: Caller) {
    if (cursor !== undefined && !CURSOR.test(cursor))
      throw new Refusal('malformed', { detail: 'cursor: take it from an answer.' });
    const page = await answerOf(
      this.orders.list({ shopperId, cursor: cursor ?? '', limit: ORDERS_PER_PAGE }),
    );
    refuseProblem(page.problem);
    return {
      orders: page.orders.map(answerFor),
      nextCursor: page.nextCursor === '' ? null : page.nextCursor,
    };
  }

  @Get('orders/:orderId')
  async read(
    @IdInPath('orderId') id: string,
    @WhoCalls() caller: Caller,
    @Origin() context: item.ItemContext,
  ): Promise<OrderAnswer> {
    return answerFor(orderIn(await this.find(id, caller, context)));
  }

  @Get('orders/:orderId/events')
  async watch(
    @IdInPath('orderId') id: string,
    @WhoCalls() caller: Caller,
    @Origin() context: item.ItemContext,
    @Res() reply: FastifyReply,
  ): Promise<void> {
    if (!this.streams.hasRoom(caller.shopperId)) throw noStream();
    const first = orderIn(await this.find(id, caller, context));
    reply.hijack();
    this.streams.start(reply.raw, headersOf(reply), {
      event: 'order',
      shopperId: caller.shopperId,
      first: answerFor(first),
      endsAtMs: caller.expiresAtMs,
      look: async (): Promise<Look> => {
        const found = await this.find(id, caller, context, BACKGROUND_SHARE).catch(unlessRefused);
        if (!found?.order) return { outcome: found?.problem === 'not_found' ? 'gone' : 'unknown' };
        return {
          outcome: 'state',
          body: answerFor(found.order),
          isFinal: FINAL_STATES.has(found.order.state),
        };
      },
    });
    if (FINAL_STATES.has(first.state)) reply.raw.end();
  }

  @Delete('orders/:orderId')
  @HttpCode(200)
  async cancel(
    @IdInPath('orderId') id: string,
    @WhoCalls() { shopperId }: Caller,
    @Origin() context: item.ItemContext,
  ): Promise<OrderAnswer> {
    const orderId = orderIdIn(id);
    return answerFor(orderIn(await answerOf(this.orders.cancel({ orderId, shopperId, context }))));
  }

  @Post('orders/:orderId/payment')
  @HttpCode(200)
  async pay(
    @IdInPath('orderId') id: string,
    @RetryKey() key: IdempotencyKey,
    @BodyOf(PaymentBody) body: z.infer<typeof PaymentBody>,
    @WhoCalls() { shopperId }: Caller,
    @Origin() context: item.ItemContext,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const request = {
      orderId: orderIdIn(id),
      shopperId,
      idempotencyKey: key,
      method: body.method,
      card: body.card,
      context,
    };
    const paid = await answerOf(this.orders.pay(request, PAY_WITHIN_MS));
    refuseProblem(paid.problem);
    if (!paid.pending) return answerFor(orderIn(paid));
    void reply.status(202);
    return { state: 'pending' };
  }

  @Post('payments/webhook')
  @AccessFor('anybody')
  @HttpCode(204)
  async settlePayment(@Body() body: unknown, @Req() request: FastifyRequest): Promise<void> {
    // The signature before the shape: a stranger learns nothing about what is expected.
    if (!isSigned(request, this.webhook.secret)) throw new Refusal('unauthenticated');
    const event = WebhookBody.safeParse(body);
    if (!event.success) {
      const fields = event.error.issues.map(({ path, message }) => ({ field: path.join('.'), message }));
      throw new Refusal('invalid', { fields: fields.slice(0, 20) });
    }
    const settled = await answerOf(this.orders.settlePayment(event.data, PAY_WITHIN_MS));
    refuseProblem(settled.problem);
  }

  /** For a blocked shopper: the retry of an order that was taken before is answered as ever. */
  private async refuseNewOrder(
    purchaseToken: string,
    shopperId: ShopperId,
    context: item.ItemContext,
  ): Promise<void> {
    const orderId = attemptIdIn(purchaseToken);
    if (orderId === null) throw new Refusal('blocked');
    const { problem } = await answerOf(this.orders.find({ orderId, shopperId, context }));
    if (problem === 'not_found') throw new Refusal('blocked');
    refuseProblem(problem);
  }

  private find(
    id: string,
    { shopperId }: Caller,
    context: item.ItemContext,
    share = 1,
  ): Promise<order.OrderReply> {
    return answerOf(this.orders.find({ orderId: orderIdIn(id), shopperId, context }, undefined, share));
  }
}

function orderIdIn(id: string): string {
  if (!AttemptId.safeParse(id).success) throw new Refusal('not_found');
  return id;
}

function orderIn(reply: { readonly problem: string; readonly order: order.Order | undefined }): order.Order {
  refuseProblem(reply.problem);
  if (!reply.order) throw new Error('the order service answered without a problem and without an order');
  return reply.order;
}

function answerFor(found: order.Order): OrderAnswer {
  const state = ORDER_STATES.find((known) => known === found.state);
  if (!state) throw new Error(`the order service answered with an unknown state "${found.state}"`);
  return {
    orderId: found.orderId,
    saleId: SaleId.parse(found.saleId),
    skuId: SkuId.parse(found.skuId),
    quantity: found.quantity,
    unitPrice: found.unitPrice,
    amount: found.amount,
    currency: found.currency,
    state,
    reason: found.reason === '' ? null : found.reason,
    payBefore: found.payBeforeMs === 0 ? null : instantOf(found.payBeforeMs),
    createdAt: instantOf(found.createdAtMs),
    updatedAt: instantOf(found.updatedAtMs),
  };
}

/** `X-Payment-Signature` is the hex HMAC-SHA256 of `timestamp.body`; `X-Payment-Timestamp` its Unix seconds. */
function isSigned(request: FastifyRequest, secret: string): boolean {
  const timestamp = request.headers['x-payment-timestamp'];
  const signature = request.headers['x-payment-signature'];
  if (typeof timestamp !== 'string' || !/^[0-9]{1,12}$/.test(timestamp)) return false;
  if (typeof signature !== 'string' || !/^[0-9a-f]{64}$/.test(signature)) return false;
  if (Math.abs(Date.now() - Number(timestamp) * 1_000) > WEBHOOK_TOLERANCE_MS) return false;
  const hmac = createHmac('sha256', secret)
    .update(`${timestamp}.`)
    .update(request.rawBody ?? '');
  return timingSafeEqual(hmac.digest(), Buffer.from(signature, 'hex'));
}
