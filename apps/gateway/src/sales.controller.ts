import { Controller, Get, HttpCode, Inject, Post, Res } from '@nestjs/common';
import { LineClient, type SaleSnapshot } from '@flash-sale/contracts';
import { SaleId } from '@flash-sale/domain';
import { BodyOf } from './http.js';
import { AccessFor, IdInPath, WhoCalls } from './caller.guard.js';
import { AccessTokens, type Caller } from './identity.js';
import type { FastifyReply } from 'fastify';
import { Degradation } from './degradation.js';
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
/** How old a copy may be that is served while product details are degraded, by us and by caches between. */
const COPY_FOR_MS = 5_000;
const CACHE_LONGER = 'public, max-age=5, stale-while-revalidate=30';

/** Answers as they were made some seconds ago, by address; thrown away together, so there are never more than sales. */
class Copies {
  private madeMs = Number.NEGATIVE_INFINITY;
  private readonly answers = new Map<string, { readonly body: Buffer; readonly madeMs: number }>();

  serve(address: string, make: () => object, reply: FastifyReply): void {
    const nowMs = performance.now();
    if (nowMs - this.madeMs > COPY_FOR_MS) {
      this.answers.clear();
      this.madeMs = nowMs;
    }
    const copy = this.answers.get(address) ?? { body: Buffer.from(JSON.stringify(make())), madeMs: nowMs };
    this.answers.set(address, copy);
    void reply
      .header('content-type', 'application/json; charset=utf-8')
      .header('cache-control', CACHE_LONGER)
      .header('age', String(Math.floor((nowMs - copy.madeMs) / 1_000)))
      .send(copy.body);
  }
}

/** What needs no entry: the time, the sales, a session for demonstrations, a challenge. */
@Controller('v1')
export class SalesController {
  private readonly copies = new Copies();

  constructor(
    @Inject(SalesFeed) private readonly feed: SalesFeed,
    @Inject(AccessTokens) private readonly tokens: AccessTokens,
    @Inject(DevLogin) private readonly devLogin: DevLogin,
    @Inject(LineClient) private readonly line: LineClient,
    @Inject(Degradation) private readonly degradation: Degradation,
  ) {}

  @Get('time')
  @AccessFor('anybody', 'here')
  time() {
    return { now: instantOf(this.feed.now()) };
  }

  @Post('sessions')
  @AccessFor('anybody')
  async createSession(@BodyOf(SessionBody) { shopperId }: z.infer<typeof SessionBody>) {
    if (!this.devLogin.isAllowed) throw new Refusal('not_found');
    const { accessToken, expiresAtMs } = await this.tokens.signSession(shopperId, this.devLogin.sessionMs);
    return { accessToken, expiresAt: instantOf(expiresAtMs) };
  }

  @Get('sales')
  @AccessFor('anybody', 'here')
  list(@Res() reply: FastifyReply): void {
    this.send('sales', reply, () => {
      const nowMs = this.feed.now();
      return {
        serverTime: instantOf(nowMs),
        sales: this.feed.list().map((sale) => this.answerOf(sale, nowMs)),
      };
    });
  }

  @Get('sales/:saleId')
  @AccessFor('anybody', 'here')
  read(@IdInPath('saleId') id: string, @Res() reply: FastifyReply): void {
    const saleId = SaleId.safeParse(id);
    const known = saleId.success ? this.feed.find(saleId.data) : undefined;
    if (!known) throw new Refusal(this.feed.isFresh() ? 'not_found' : 'unavailable');
    this.send(`sale ${id}`, reply, () => this.answerOf(known.snapshot, this.feed.now()));
  }

  @Post('sales/:saleId/challenge')
  @HttpCode(201)
  async createChallenge(@IdInPath('saleId') id: string, @WhoCalls() caller: Caller): Promise<unknown> {
    const saleId = SaleId.safeParse(id);
    if (!saleId.success || !this.feed.find(saleId.data)) throw new Refusal('not_found');
    if (this.feed.blocklist.has(caller.shopperId)) throw new Refusal('blocked');
    const reply = await answerOf(
      this.line.createChallenge({ saleId: saleId.data, shopperId: caller.shopperId }),
    );
    return JSON.parse(reply.challengeJson);
  }

  private send(address: string, reply: FastifyReply, make: () => object): void {
    if (this.degradation.isDegraded('productDetails')) this.copies.serve(address, make, reply);
    else void reply.header('cache-control', CACHE_ONE_SECOND).send(make());
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
