import type { inventory } from '@flash-sale/contracts';
import { SaleId, phaseAt } from '@flash-sale/domain';
import { Controller, Inject } from '@nestjs/common';
import { GrpcMethod } from '@nestjs/microservices';
import { Reports } from './report.js';
import { SaleBook, type KnownSale } from './sale-book.js';
import { SaleState } from './sale-state.js';
import { Sales, type SaleOutcome } from './sales.js';
import { isStoreAway } from './store-away.js';

/** The wire's side of sales: words and shapes, nothing else. */
@Controller()
export class SalesController {
  constructor(
    @Inject(Sales) private readonly sales: Sales,
    @Inject(Reports) private readonly reports: Reports,
    @Inject(SaleBook) private readonly book: SaleBook,
    @Inject(SaleState) private readonly state: SaleState,
  ) {}

  @GrpcMethod('Sales', 'Create')
  async create(request: inventory.CreateSaleRequest): Promise<inventory.SaleReply> {
    const outcome = await this.sales.create(settingsFromWire(request.sale), request.operator);
    return this.reply(outcome);
  }

  @GrpcMethod('Sales', 'Change')
  async change(request: inventory.ChangeSaleRequest): Promise<inventory.SaleReply> {
    return this.reply(await this.sales.change(request.saleId, request.operation, request.operator));
  }

  @GrpcMethod('Sales', 'List')
  async list(): Promise<inventory.ListSalesReply> {
    const sales = await this.sales.list();
    return { sales: await Promise.all(sales.map((sale) => this.reply({ sale }))) };
  }

  @GrpcMethod('Sales', 'Report')
  async report({ saleId }: inventory.ReportRequest): Promise<inventory.ReportReply> {
    try {
      const id = SaleId.safeParse(saleId);
      const sale = id.success ? await this.book.reload(id.data) : undefined;
      if (!sale) return { problem: 'not_found', detail: 'there is no such sale', reportJson: '' };
      return { problem: '', detail: '', reportJson: JSON.stringify(await this.reports.report(sale)) };
    } catch (error) {
      if (!isStoreAway(error)) throw error;
      const detail = `a store does not answer: ${error instanceof Error ? error.message : String(error)}`;
      return { problem: 'unavailable', detail, reportJson: '' };
    }
  }

  private async reply(outcome: SaleOutcome): Promise<inventory.SaleReply> {
    const { sale } = outcome;
    const problem = 'problem' in outcome ? outcome.problem : '';
    const detail = 'problem' in outcome ? outcome.detail : '';
    if (!sale) return { problem, detail, sale: undefined, storedPhase: '', phase: '', epoch: 0 };
    const selling = sale.storedPhase === 'warmed';
    const state = selling ? await this.state.read(sale).catch(() => 'unavailable' as const) : 'unavailable';
    const soldOut = state !== 'unavailable' && state.soldOut;
    return {
      problem,
      detail,
      sale: specOf(sale),
      storedPhase: sale.storedPhase,
      phase: phaseAt(sale, soldOut, Date.now()),
      epoch: sale.epoch,
    };
  }
}

/** Protobuf's zero values stand for "not said". What they must be is judged by the schema. */
function settingsFromWire(spec: inventory.SaleSpec | undefined): unknown {
  if (!spec) return undefined;
  const { saleId, buckets, challenge, lineMode, admitPerSecond, overbook, ...same } = spec;
  return {
    ...same,
    ...(saleId !== '' && { saleId }),
    bucketCount: buckets || 8,
    holdMs: spec.holdMs || 120_000,
    payMs: spec.payMs || 900_000,
    challenge: challenge === '' ? null : challenge,
    line: { mode: lineMode || 'off', admitPerSecond: admitPerSecond || 1_000, overbook },
  };
}

function specOf(sale: KnownSale): inventory.SaleSpec {
  const { saleId, title, skuId, allotment, unitPrice, currency, opensAtMs, closesAtMs } = sale;
  return {
    saleId,
    title,
    skuId,
    allotment,
    unitPrice,
    currency,
    opensAtMs,
    closesAtMs,
    limitPerShopper: sale.limitPerShopper,
    buckets: sale.bucketCount,
    holdMs: sale.holdMs,
    payMs: sale.payMs,
    challenge: sale.challenge ?? '',
    lineMode: sale.line.mode,
    admitPerSecond: sale.line.admitPerSecond,
    overbook: sale.line.overbook,
  };
}
