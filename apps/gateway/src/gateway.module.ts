import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Module, type DynamicModule, type Provider, type Type } from '@nestjs/common';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import {
  BlocklistClient,
  LineClient,
  OperatorsClient,
  OrdersClient,
  SalesClient,
} from '@flash-sale/contracts';
import { connectRedis } from '@flash-sale/redis';
import { meter, startService, type Log, type RunningService } from '@flash-sale/service';
import { Admissions } from './admission.js';
import { CallerGuard } from './caller.guard.js';
import { EntriesController } from './entries.controller.js';
import { Degradation } from './degradation.js';
import { Door, refuseEntries } from './door.js';
import { EdgeController } from './edge.controller.js';
import type { GatewayEnv } from './env.js';
import { EventStreams } from './event-streams.js';
import { answerUnroutable, configureHttp } from './http.js';
import { AccessTokens, type KeySource } from './identity.js';
import { serveDocument } from './openapi-page.js';
import { OperatorBlocklistController } from './operator-blocklist.controller.js';
import { OperatorDeadLettersController } from './operator-dead-letters.controller.js';
import { DegradationLog, OperatorDegradationController } from './operator-degradation.controller.js';
import { OperatorController } from './operator.controller.js';
import { OrdersController, WebhookSecret } from './orders.controller.js';
import { RateLimits } from './rate-limits.js';
import { RouteTable } from './route-table.js';
import { DevLogin, SalesController } from './sales.controller.js';
import { SalesFeed } from './sales-feed.js';

@Module({})
class ShopperModule {}

@Module({})
class OperatorModule {}

@Module({})
class EdgeModule {}

/** A running gateway; `routes` is what it serves, for the test of the document. */
export interface Gateway extends RunningService {
  readonly routes: { readonly shopper: RouteTable; readonly operator: RouteTable };
}

/**
 * Composes the gateway from its environment and starts it.
 *
 * @param exit ends the process; a test passes something else
 * @throws when Redis cannot be reached, a key cannot be read or a port cannot be had
 */
export async function startGateway(
  env: GatewayEnv,
  log: Log,
  exit?: (code: number) => void,
): Promise<Gateway> {
  const address = { url: env.REDIS_URL, clusterNodes: env.REDIS_CLUSTER_NODES };
  const tokens = new AccessTokens({
    algorithm: env.JWT_ALGORITHM,
    keys: keySourceOf(env),
    audience: env.JWT_AUDIENCE,
    issuer: env.JWT_ISSUER,
    now: Date.now,
  });
  const redis = await connectRedis({ ...address, name: 'gateway', log });
  const calls = { coalesce: env.COALESCE };
  const line = new LineClient(env.TOKEN_URL, calls);
  const orders = new OrdersClient(env.ORDER_URL, calls);
  const sales = new SalesClient(env.INVENTORY_URL);
  const operators = new OperatorsClient(env.ORDER_URL);
  const blocklist = new BlocklistClient(env.INVENTORY_URL);
  const feed = new SalesFeed({ redis, address, log });
  await feed.start();
  const limits = new RateLimits({
    redis,
    perShopper: env.RATE_LIMIT_PER_SHOPPER_PER_SECOND,
    perAddress: env.RATE_LIMIT_PER_ADDRESS_PER_SECOND,
  });
  const door = new Door({ behind: [line, orders], entriesPerSecond: env.MAX_ENTRIES_PER_SECOND });
  const admissions = new Admissions(feed, limits, line, door);
  const degradation = new Degradation({ redis, refusals: () => door.refused, log });
  degradation.start();
  const streams = new EventStreams({
    maxStreams: env.MAX_EVENT_STREAMS,
    pollEveryMs: env.EVENT_POLL_MS,
    isOff: () => degradation.isDegraded('eventStreams'),
    onDefect: (error) => log.error({ err: error }, 'a stream met a defect'),
  });
  meter()
    .createObservableGauge('event_streams', { description: 'Event streams that are open' })
    .addCallback((result) => result.observe(streams.count));

  const guard = new CallerGuard(tokens, limits);
  const routes = { shopper: new RouteTable(), operator: new RouteTable() };
  const configure = (table: RouteTable) => async (app: NestFastifyApplication) => {
    configureHttp(app, table, log);
    app.getHttpServer().maxConnections = env.MAX_CONNECTIONS;
    app.useGlobalGuards(guard);
    if (env.DOCS) serveDocument(app.getHttpAdapter().getInstance());
    if (table === routes.shopper && env.WEB_ROOT !== undefined) await servePage(app, env.WEB_ROOT, log);
  };
  const common = { host: env.HOST, trustedProxyHops: env.TRUSTED_PROXY_HOPS, answerUnroutable };

  const edge = withProviders(EdgeModule, [EdgeController], [{ provide: Admissions, useValue: admissions }]);

  const service = await startService({
    log,
    ops: { port: env.OPS_PORT, module: edge },
    http: [
      {
        ...common,
        name: 'shoppers',
        port: env.PORT,
        module: withProviders(
          ShopperModule,
          [SalesController, EntriesController, OrdersController],
          [
            { provide: SalesFeed, useValue: feed },
            { provide: AccessTokens, useValue: tokens },
            { provide: DevLogin, useValue: new DevLogin(env.DEV_LOGIN, env.DEV_SESSION_MS) },
            { provide: LineClient, useValue: line },
            { provide: OrdersClient, useValue: orders },
            { provide: EventStreams, useValue: streams },
            { provide: Admissions, useValue: admissions },
            { provide: Degradation, useValue: degradation },
            { provide: WebhookSecret, useValue: new WebhookSecret(env.PAYMENT_WEBHOOK_SECRET) },
          ],
        ),
        configure: configure(routes.shopper),
        refuseEarly: refuseEntries(door, {
          needsRoom: (saleId) => admissions.mayAdmit(saleId),
          callerOf: (headers) => tokens.recallCaller(headers),
          refusalOfStranger: (saleId, shopperId) => admissions.refusalOfStranger(saleId, shopperId),
        }),
      },
      {
        ...common,
        name: 'operators',
        port: env.OPERATOR_PORT,
        module: withProviders(
          OperatorModule,
          [
            OperatorController,
            OperatorDeadLettersController,
            OperatorDegradationController,
            OperatorBlocklistController,
          ],
          [
            { provide: SalesClient, useValue: sales },
            { provide: OperatorsClient, useValue: operators },
            { provide: BlocklistClient, useValue: blocklist },
            { provide: Degradation, useValue: degradation },
            { provide: DegradationLog, useValue: new DegradationLog(log) },
          ],
        ),
        configure: configure(routes.operator),
      },
    ],
    // Without Redis the gateway still answers, and tells to come again; if every gateway left for that, nobody would.
    health: { ready: { sales: () => feed.isLoaded() } },
    drain: {
      waitMs: env.DRAIN_WAIT_MS,
      stop: [{ name: 'event streams', run: () => streams.close() }],
      close: [
        { name: 'sales feed', run: () => feed.close() },
        { name: 'degradation', run: () => degradation.close() },
        {
          name: 'services',
          run: () => {
            for (const client of [line, orders, sales, blocklist, operators]) client.close();
          },
        },
        { name: 'redis', run: () => redis.disconnect() },
      ],
    },
    ...(exit && { exit }),
  });
  return { ...service, routes };
}

function withProviders(module: Type, controllers: Type[], providers: Provider[]): DynamicModule {
  return { module, controllers, providers };
}

/** @throws when there is none; the rules of the environment see to it that there is exactly one */
function keySourceOf(env: GatewayEnv): KeySource {
  if (env.JWT_HS256_SECRET) return { kind: 'secret', secret: env.JWT_HS256_SECRET };
  if (env.JWT_PUBLIC_KEY !== undefined) return { kind: 'pem', pem: env.JWT_PUBLIC_KEY };
  if (env.JWT_JWKS !== undefined) return { kind: 'jwks', json: env.JWT_JWKS };
  if (env.JWT_JWKS_URL !== undefined) return { kind: 'jwks-url', url: env.JWT_JWKS_URL };
  throw new Error('there is no key for access tokens');
}

/** The built page: what has a hash in its name is kept for ever, the page itself is asked for each time. */
async function servePage(app: NestFastifyApplication, root: string, log: Log): Promise<void> {
  if (!existsSync(join(root, 'index.html'))) {
    log.warn({ root }, 'WEB_ROOT has no index.html: no page is served');
    return;
  }
  // Where another server has the page, no start loads what would serve it here.
  const { default: fastifyStatic } = await import('@fastify/static');
  await app.register(fastifyStatic, {
    root,
    // One route for each file, so that every other address is still answered as a problem.
    wildcard: false,
    decorateReply: false,
    cacheControl: false,
    setHeaders: (response, path) => {
      const isHashed = path.includes('/assets/');
      response.header('cache-control', isHashed ? 'public, max-age=31536000, immutable' : 'no-cache');
      response.header(
        'content-security-policy',
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
      );
    },
  });
}
