import { createHmac, randomBytes, randomUUID } from 'node:crypto';
import { connect } from 'node:net';
import { SALE_FEED, encodeSnapshot, type SaleSnapshot } from '@flash-sale/contracts';
import { SaleId, SkuId } from '@flash-sale/domain';
import { connectRedis, type RedisClient } from '@flash-sale/redis';
import { createLog, parseEnv } from '@flash-sale/service';
import { gatewayRules, gatewayVariables } from './env.js';
import { startGateway, type Gateway } from './gateway.js';

/**
 * A real gateway in this process on a real Redis (REDIS_URL, its database 3), with nobody behind it: what it answers by
 * itself can be asked, and everything else is `unavailable`.
 */
export class LoneGateway {
  readonly url: string;
  readonly operatorUrl: string;

  private constructor(
    readonly gateway: Gateway,
    readonly redis: RedisClient,
  ) {
    this.url = `http://127.0.0.1:${this.port}`;
    this.operatorUrl = `http://127.0.0.1:${gateway.http.get('operators')?.port}`;
  }

  static async start(variables: Readonly<Record<string, string>> = {}): Promise<LoneGateway> {
    const address = process.env['REDIS_URL'];
    if (!address)
      throw new Error('REDIS_URL is not set: run this test by `npm test`, or start a stack and name it');
    const url = new URL('/3', address).href;
    const parsed = parseEnv(
      gatewayVariables,
      {
        REDIS_URL: url,
        HOST: '127.0.0.1',
        PORT: '0',
        OPERATOR_PORT: '0',
        OPS_PORT: '0',
        DRAIN_WAIT_MS: '0',
        // Nobody listens on the discard port.
        TOKEN_URL: '127.0.0.1:9',
        INVENTORY_URL: '127.0.0.1:9',
        ORDER_URL: '127.0.0.1:9',
        JWT_HS256_SECRET: SECRET.toString('base64'),
        PAYMENT_WEBHOOK_SECRET: WEBHOOK_SECRET,
        DEV_LOGIN: 'true',
        RATE_LIMIT_PER_SHOPPER_PER_SECOND: '0',
        RATE_LIMIT_PER_ADDRESS_PER_SECOND: '0',
        ...variables,
      },
      gatewayRules,
    );
    if (parsed.outcome === 'faulty') throw new Error(parsed.faults.join('\n'));
    const redis = await connectRedis({ url, name: 'gateway-test' });
    const gateway = await startGateway(parsed.env, createLog('gateway', 'silent'), () => {});
    return new LoneGateway(gateway, redis);
  }

  get port(): number {
    return this.gateway.http.get('shoppers')?.port ?? 0;
  }

  async stop(): Promise<void> {
    await this.gateway.stop('the test is over');
    this.redis.disconnect();
  }

  /** Publishes a sale as inventory would, and waits until the gateway shows it. */
  async publish(changes: Partial<SaleSnapshot> = {}): Promise<SaleSnapshot> {
    const snapshot = saleOf(changes);
    await this.redis.hset(SALE_FEED.snapshots, snapshot.saleId, encodeSnapshot(snapshot));
    await this.redis.publish(SALE_FEED.channel, encodeSnapshot(snapshot));
    for (let look = 0; look < 200; look += 1) {
      if ((await fetch(`${this.url}/v1/sales/${snapshot.saleId}`)).status === 200) return snapshot;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    throw new Error('the gateway never showed the sale');
  }

  async unpublish({ saleId }: SaleSnapshot): Promise<void> {
    await this.redis.hdel(SALE_FEED.snapshots, saleId);
    await this.redis.del(SALE_FEED.holders(saleId));
  }

  /** Sends bytes as they are and gives what came back until the connection closed. */
  raw(text: string, withinMs = 3_000): Promise<string> {
    return new Promise((resolve) => {
      const socket = connect(this.port, '127.0.0.1');
      let answer = '';
      const timer = setTimeout(() => socket.destroy(), withinMs);
      socket.on('data', (chunk) => (answer += chunk.toString('latin1')));
      socket.on('error', () => {});
      socket.on('close', () => {
        clearTimeout(timer);
        resolve(answer);
      });
      socket.write(text, 'latin1');
    });
  }
}

export const SECRET = randomBytes(32);
export const WEBHOOK_SECRET = randomBytes(16).toString('hex');

/** An access token as the identity provider would sign it. */
export function accessToken(subject: string, changes: Readonly<Record<string, unknown>> = {}): string {
  const now = Math.floor(Date.now() / 1_000);
  const claims = {
    sub: subject,
    aud: 'flash-sale',
    iss: 'flash-sale',
    iat: now,
    exp: now + 600,
    jti: randomUUID(),
    ...changes,
  };
  const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const body = `${encode({ alg: 'HS256', typ: 'at+jwt' })}.${encode(claims)}`;
  return `${body}.${createHmac('sha256', SECRET).update(body).digest('base64url')}`;
}

/** A sale that is open, unless told otherwise. */
export function saleOf(changes: Partial<SaleSnapshot> = {}): SaleSnapshot {
  const now = Date.now();
  return {
    saleId: SaleId.parse(`t${randomBytes(6).toString('hex')}`),
    title: 'A test sale',
    skuId: SkuId.parse('sku-1'),
    allotment: 100,
    unitPrice: 1999,
    currency: 'CNY',
    opensAtMs: now - 60_000,
    closesAtMs: now + 600_000,
    limitPerShopper: 2,
    bucketCount: 4,
    challenge: null,
    line: { mode: 'off', admitPerSecond: 1_000, overbook: 0 },
    storedPhase: 'warmed',
    epoch: 1,
    version: 1,
    soldOut: false,
    stockLevel: 'plenty',
    filterBits: 0,
    filterVersion: 0,
    ...changes,
  };
}
