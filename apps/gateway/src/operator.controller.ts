import { Controller, Get, HttpCode, Inject, Post } from '@nestjs/common';
import { SaleReport, SalesClient, type inventory } from '@flash-sale/contracts';
import { LineSettings, Phase, SaleId, SkuId, StoredPhase } from '@flash-sale/domain';
import { uuidV7 } from '@flash-sale/service';
import type { z } from 'zod';
import { BodyOf } from './http.js';
import { AccessFor, IdInPath, WhoCalls } from './caller.guard.js';
import type { Caller } from './identity.js';
import { Refusal, answerOf, refuseProblem } from './problems.js';
import { EmptyBody, NewSaleBody, instantOf, type OperatorSale } from './schemas.js';

/** Loading a thousand buckets, or comparing three stores, is not done in the time a shopper waits. */
const OPERATION_WITHIN_MS = 15_000;

/** Operators run sales. Served on a port of its own that shoppers cannot reach. */
@Controller('v1/operator/sales')
@AccessFor('operator')
export class OperatorController {
  constructor(@Inject(SalesClient) private readonly sales: SalesClient) {}

  @Get()
  async list() {
    const { sales } = await answerOf(this.sales.list({}, OPERATION_WITHIN_MS));
    return { sales: sales.map(answerFor) };
  }

  @Post()
  @HttpCode(201)
  async create(
    @BodyOf(NewSaleBody) body: z.output<typeof NewSaleBody>,
    @WhoCalls() caller: Caller,
  ): Promise<OperatorSale> {
    const sale: inventory.SaleSpec = {
      saleId: body.saleId ?? `s-${uuidV7()}`,
      title: body.title,
      skuId: body.skuId,
      allotment: body.allotment,
      unitPrice: body.unitPrice,
      currency: body.currency,
      opensAtMs: Date.parse(body.opensAt),
      closesAtMs: Date.parse(body.closesAt),
      limitPerShopper: body.limitPerShopper,
      buckets: body.buckets,
      holdMs: body.holdSeconds * 1_000,
      payMs: body.paySeconds * 1_000,
      challenge: body.challenge ?? '',
      lineMode: body.line.mode,
      admitPerSecond: body.line.admitPerSecond,
      overbook: body.line.overbook,
    };
    return answerFor(
      await answerOf(this.sales.create({ sale, operator: caller.shopperId }, OPERATION_WITHIN_MS)),
    );
  }

  @Get(':saleId')
  async read(@IdInPath('saleId') id: string): Promise<OperatorSale> {
    const { sales } = await answerOf(this.sales.list({}, OPERATION_WITHIN_MS));
    const found = sales.find(({ sale }) => sale?.saleId === id);
    if (!found) throw new Refusal('not_found');
    return answerFor(found);
  }

  @Post(':saleId/warm-up')
  @HttpCode(200)
  warmUp(@IdInPath('saleId') id: string, @BodyOf(EmptyBody) _body: unknown, @WhoCalls() caller: Caller) {
    return this.change(id, 'warm-up', caller);
  }

  @Post(':saleId/pause')
  @HttpCode(200)
  pause(@IdInPath('saleId') id: string, @BodyOf(EmptyBody) _body: unknown, @WhoCalls() caller: Caller) {
    return this.change(id, 'pause', caller);
  }

  @Post(':saleId/resume')
  @HttpCode(200)
  resume(@IdInPath('saleId') id: string, @BodyOf(EmptyBody) _body: unknown, @WhoCalls() caller: Caller) {
    return this.change(id, 'resume', caller);
  }

  @Post(':saleId/close')
  @HttpCode(200)
  close(@IdInPath('saleId') id: string, @BodyOf(EmptyBody) _body: unknown, @WhoCalls() caller: Caller) {
    return this.change(id, 'close', caller);
  }

  @Post(':saleId/settle')
  @HttpCode(200)
  settle(@IdInPath('saleId') id: string, @BodyOf(EmptyBody) _body: unknown, @WhoCalls() caller: Caller) {
    return this.change(id, 'settle', caller);
  }

  @Get(':saleId/report')
  async report(@IdInPath('saleId') id: string): Promise<SaleReport> {
    const reply = await answerOf(this.sales.report({ saleId: saleIdIn(id) }, OPERATION_WITHIN_MS));
    refuseProblem(reply.problem, reply.detail);
    return SaleReport.parse(JSON.parse(reply.reportJson));
  }

  private async change(id: string, operation: string, caller: Caller): Promise<OperatorSale> {
    const request = { saleId: saleIdIn(id), operation, operator: caller.shopperId };
    return answerFor(await answerOf(this.sales.change(request, OPERATION_WITHIN_MS)));
  }
}

function saleIdIn(id: string): SaleId {
  const parsed = SaleId.safeParse(id);
  if (!parsed.success) throw new Refusal('not_found');
  return parsed.data;
}

function answerFor(reply: inventory.SaleReply): OperatorSale {
  refuseProblem(reply.problem, reply.detail);
  const { sale } = reply;
  if (!sale) throw new Error('inventory answered without a problem and without a sale');
  return {
    saleId: SaleId.parse(sale.saleId),
    title: sale.title,
    skuId: SkuId.parse(sale.skuId),
    allotment: sale.allotment,
    unitPrice: sale.unitPrice,
    currency: sale.currency,
    opensAt: instantOf(sale.opensAtMs),
    closesAt: instantOf(sale.closesAtMs),
    limitPerShopper: sale.limitPerShopper,
    buckets: sale.buckets,
    holdSeconds: sale.holdMs / 1_000,
    paySeconds: sale.payMs / 1_000,
    challenge: sale.challenge === 'proof_of_work' ? 'proof_of_work' : null,
    line: LineSettings.parse({
      mode: sale.lineMode,
      admitPerSecond: sale.admitPerSecond,
      overbook: sale.overbook,
    }),
    storedPhase: StoredPhase.parse(reply.storedPhase),
    phase: Phase.parse(reply.phase),
    epoch: reply.epoch,
  };
}
