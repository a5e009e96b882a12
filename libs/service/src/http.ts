import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { context, type Histogram } from '@opentelemetry/api';
import { RPCType, getRPCMetadata } from '@opentelemetry/core';
import { NestFactory } from '@nestjs/core';
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify';
import type { DynamicModule, Type } from '@nestjs/common';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { AddressInfo } from 'node:net';
import { nestLog, type Log } from './log.js';
import { requestIdFrom } from './request-id.js';
import { meter } from './telemetry.js';

export interface HttpOptions {
  /** For the log, e.g. `public`. */
  readonly name: string;
  readonly module: Type | DynamicModule;
  readonly port: number;
  readonly host?: string;
  /** How many proxies in front may tell the client's address by `X-Forwarded-For`. */
  readonly trustedProxyHops?: number;
  /** Pipes, filters, documents, plugins: what belongs to this application. Called before it listens. */
  readonly configure?: (app: NestFastifyApplication) => void | Promise<void>;
  /** Answers a request whose address the router cannot even read: no hook and no filter sees it. */
  readonly answerUnroutable?: (request: FastifyRequest, reply: FastifyReply) => void;
  /**
   * Looks at a request as soon as its headers are read: what can only be refused costs no router, no hook and no body. Null
   * lets it go on. Requests with a large body, or one of unknown length, always go on.
   */
  readonly refuseEarly?: (request: IncomingMessage, response: ServerResponse) => EarlyAnswer | null;
}

/** An answer that was made before; only its request id is not. */
export interface EarlyAnswer {
  readonly status: number;
  /** The pattern of the address, as a label of few values. */
  readonly route: string;
  /** Names and values in turn, without `x-request-id`, `content-length` and `connection`. */
  readonly headers: readonly string[];
  readonly body: (requestId: string) => string;
}

export interface HttpServer {
  readonly name: string;
  readonly app: NestFastifyApplication;
  /** The port it listens on. */
  readonly port: number;
  /** Takes no new connections; resolves when every request that had begun is answered. */
  close(): Promise<void>;
}

type Serve = (request: IncomingMessage, response: ServerResponse) => void;

const BODY_LIMIT_BYTES = 64 * 1024;
const MAX_HEADER_BYTES = 16 * 1024;
const HEADERS_TIMEOUT_MS = 5_000;
const REQUEST_TIMEOUT_MS = 10_000;
/** Longer than any load balancer keeps an idle connection, so that it is never we who close it under a request. */
const KEEP_ALIVE_TIMEOUT_MS = 65_000;

/** Starts one HTTP application with the limits every one of ours has. */
export async function startHttp(
  options: HttpOptions,
  log: Log,
  isDraining: () => boolean,
): Promise<HttpServer> {
  const durations = meter().createHistogram('http.server.request.duration', {
    unit: 's',
    description: 'How long requests took, by route and status',
  });
  const { refuseEarly, trustedProxyHops = 0 } = options;
  const adapter = new FastifyAdapter({
    bodyLimit: BODY_LIMIT_BYTES,
    serverFactory: (serve: Serve) =>
      createServer(
        {
          maxHeaderSize: MAX_HEADER_BYTES,
          headersTimeout: HEADERS_TIMEOUT_MS,
          requestTimeout: REQUEST_TIMEOUT_MS,
          keepAliveTimeout: KEEP_ALIVE_TIMEOUT_MS,
          // How often the two time-outs are looked at; by default only each 30 s.
          connectionsCheckingInterval: 1_000,
        },
        refuseEarly ? refusing(serve, refuseEarly, durations, isDraining) : serve,
      ),
    // Where no proxy is trusted, fastify need not go through a list of them for each request.
    trustProxy: trustedProxyHops > 0 && ((_address: string, hop: number) => hop < trustedProxyHops),
    genReqId: (request: { headers: Record<string, unknown> }) =>
      requestIdFrom(request.headers['x-request-id']),
    // While draining, a request on an open connection is still answered; only new connections are refused.
    return503OnClosing: false,
    forceCloseConnections: 'idle',
    ...(options.answerUnroutable && {
      frameworkErrors: (_error: Error, request: FastifyRequest, reply: FastifyReply) =>
        options.answerUnroutable?.(request, reply),
    }),
  });
  const app = await NestFactory.create<NestFastifyApplication>(options.module, adapter, {
    logger: nestLog(log),
    abortOnError: false,
  });
  observe(app, log, durations, isDraining);
  await options.configure?.(app);
  await app.listen(options.port, options.host ?? '0.0.0.0');
  const { port } = app.getHttpServer().address() as AddressInfo;
  log.info({ http: options.name, port }, 'listening for HTTP');
  return { name: options.name, app, port, close: () => app.close() };
}

/** What {@link HttpOptions.refuseEarly} refuses is answered here; everything else is served. */
function refusing(
  serve: Serve,
  refuse: NonNullable<HttpOptions['refuseEarly']>,
  durations: Histogram,
  isDraining: () => boolean,
) {
  return (request: IncomingMessage, response: ServerResponse): void => {
    const startedMs = performance.now();
    const answer = hasSmallBody(request) ? refuse(request, response) : null;
    if (!answer) {
      serve(request, response);
      return;
    }
    const requestId = requestIdFrom(request.headers['x-request-id']);
    const body = answer.body(requestId);
    const { status, route, headers } = answer;
    // Node reads what is left of the body once the answer is written, so the connection serves the next request.
    response.writeHead(status, [
      ...headers,
      'x-request-id',
      requestId,
      'content-length',
      String(Buffer.byteLength(body)),
      ...(isDraining() ? ['connection', 'close'] : []),
    ]);
    response.end(body);
    durations.record((performance.now() - startedMs) / 1_000, {
      'http.request.method': request.method ?? '',
      'http.route': route,
      'http.response.status_code': status,
    });
  };
}

function hasSmallBody({ headers }: IncomingMessage): boolean {
  return (
    headers['transfer-encoding'] === undefined && Number(headers['content-length'] ?? 0) <= BODY_LIMIT_BYTES
  );
}

/** Request id, route, duration, a log line for our own failures, and the end of connections while draining. */
function observe(
  app: NestFastifyApplication,
  log: Log,
  durations: Histogram,
  isDraining: () => boolean,
): void {
  const fastify = app.getHttpAdapter().getInstance();
  fastify.addHook('onRequest', (request, reply, done) => {
    reply.header('x-request-id', request.id);
    const rpc = getRPCMetadata(context.active());
    const route = request.routeOptions.url;
    // The pattern, not the address: it names the span, and it is a label of few values.
    if (rpc?.type === RPCType.HTTP && route) rpc.route = route;
    done();
  });
  fastify.addHook('onSend', (_request, reply, _payload, done) => {
    if (isDraining()) reply.header('connection', 'close');
    done();
  });
  fastify.addHook('onResponse', (request, reply, done) => {
    // How long an event stream was open says nothing about how fast we are.
    const isStream = String(reply.raw.getHeader('content-type')).startsWith('text/event-stream');
    if (!isStream)
      durations.record(reply.elapsedTime / 1_000, {
        'http.request.method': request.method,
        'http.route': request.routeOptions.url ?? 'unknown',
        'http.response.status_code': reply.statusCode,
      });
    // A refusal is an answer; only a defect is worth a line of its own. 503 is said by whoever knows the reason.
    if (reply.statusCode >= 500 && reply.statusCode !== 503) {
      log.error(
        {
          requestId: request.id,
          method: request.method,
          route: request.routeOptions.url ?? 'unknown',
          status: reply.statusCode,
          ms: Math.round(reply.elapsedTime),
        },
        'a request failed',
      );
    }
    done();
  });
}
