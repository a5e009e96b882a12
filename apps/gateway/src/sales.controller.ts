import { Body, Controller, Get, Header, HttpCode, Inject, Post } from '@nestjs/common';
import { LineClient, type SaleSnapshot } from '@flash-sale/contracts';
import { SaleId } from '@flash-sale/domain';
import { AccessFor, IdInPath, WhoCalls } from './caller.guard.js';
import { AccessTokens, type Caller } from './identity.js';
import { Refusal, answerOf } from './problems.js';
import { SalesFeed } from './sales-feed.js';
import { SessionBody, instantOf, type SaleAnswer } from './schemas.js';
import type { z } from 'zod';

/** Settings of the session call. */
export class DevLogin {
  constructor(
    /** Whether sessions are handed out at all. */
    readonly isAllowed: boolean,
    readonly sessionMs: number,
  ) {}
}

const CACHE_ONE_SECOND = 'public, max-age=1';

/** What needs no entry: the time, the sales, a session for demonstrations, a challenge. */
@Controller('v1')
export class SalesController {
  constructor(
    @Inject(SalesFeed) private readonly feed: SalesFeed,
    @Inject(AccessTokens) private readonly tokens: AccessTokens,
    @Inject(DevLogin) private readonly devLogin: DevLogin,
    @Inject(LineClient) private readonly line: LineClient,
  ) {}

  @Get('time')
  @AccessFor('anybody')
  time() {
    return { now: instantOf(this.feed.now()) };
  }

  @Post('sessions')
  @AccessFor('anybody')
  async createSession(@Body({ schema: SessionBody }) { shopperId }: z.infer<typeof SessionBody>) {
    if (!this.devLogin.isAllowed) throw new Refusal('not_found');
    const { accessToken, expiresAtMs } = await this.tokens.signSession(shopperId, this.devLogin.sessionMs);
    return { accessToken, expiresAt: instantOf(expiresAtMs) };
  }

  @Get('sales')
  @AccessFor('anybody')
  @Header('cache-control', CACHE_ONE_SECOND)
  list() {
    const nowMs = this.feed.now();
    return {
      serverTime: instantOf(nowMs),
      sales: this.feed.list().map((sale) => this.answerOf(sale, nowMs)),
    };
  }

  @Get('sales/:saleId')
  @AccessFor('anybody')
  @Header('cache-control', CACHE_ONE_SECOND)
  read(@IdInPath('saleId') id: string): SaleAnswer {
    const saleId = SaleId.safeParse(id);
    const known = saleId.success ? this.feed.find(saleId.data) : undefined;
    if (known) return this.answerOf(known.snapshot, this.feed.now());
    throw new Refusal(this.feed.isFresh() ? 'not_found' : 'unavailable');
  }

  @Post('sales/:saleId/challenge')
  @HttpCode(201)
  async createChallenge(@IdInPath('saleId') id: string, @WhoCalls() caller: Caller): Promise<unknown> {
    const saleId = SaleId.safeParse(id);
    if (!saleId.success || !this.feed.find(saleId.data)) throw new Refusal('not_found');
    const reply = await answerOf(
      this.line.createChallenge({ saleId: saleId.data, shopperId: caller.shopperId }),
    );
    return JSON.parse(reply.challengeJson);
  }

  private answerOf(sale: SaleSnapshot, nowMs: number): SaleAnswer {
    return {
      saleId: sale.saleId,
      title: sale.title,
      skuId: sale.skuId,
      unitPrice: sale.unitPrice,
      currency: sale.currency,
      opensAt: instantOf(sale.opensAtMs),
      closesAt: instantOf(sale.closesAtMs),
      phase: this.feed.phaseOf(sale),
      limitPerShopper: sale.limitPerShopper,
      stockLevel: sale.soldOut ? 'none' : sale.stockLevel,
      challenge: sale.challenge,
      serverTime: instantOf(nowMs),
    };
  }
}
