import type { Socket } from 'node:net';
import { Body, StandardSchemaValidationPipe } from '@nestjs/common';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import { problemForStatus, problemOf } from '@flash-sale/contracts';
import { requestIdFrom, type Log } from '@flash-sale/service';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { z } from 'zod';
import { CALLS } from './openapi-calls.js';
import {
  PLAIN_HEADERS,
  ProblemFilter,
  Refusal,
  problemDocument,
  sendProblem,
  type FieldFault,
} from './problems.js';
import { readJson } from './read-json.js';
import type { RouteTable } from './route-table.js';

declare module 'fastify' {
  interface FastifyRequest {
    /** The body as it came, for signatures over it. */
    rawBody?: Buffer;
  }
}

/** The largest body of ours, a delivery in a script of four bytes a character, has about 5 kB. */
const MAX_BODY_BYTES = 16 * 1024;
const MAX_FIELD_FAULTS = 20;
/** A token in an address ends up in logs and histories; it is refused wherever it seems to be one. */
const SECRET_PARAMETERS = new Set([
  'access_token',
  'accesstoken',
  'token',
  'jwt',
  'authorization',
  'bearer',
  'purchasetoken',
  'ticket',
]);
/** The parameters that each call takes, by `METHOD /pattern` as the router has it. */
const KNOWN_PARAMETERS: ReadonlyMap<string, readonly string[]> = new Map(
  CALLS.map(({ call, query = {} }) => {
    const [method = '', path = ''] = call.split(' ');
    return [`${method.toUpperCase()} ${path.replaceAll(/\{(\w+)\}/g, ':$1')}`, Object.keys(query)];
  }),
);

/**
 * What holds for every request before a handler sees it and for every answer: how a body must look, which headers are set,
 * and that every error, whoever makes it, is a problem document. There is no CORS: pages of other origins get nothing.
 */
export function configureHttp(app: NestFastifyApplication, routes: RouteTable, log: Log): void {
  const fastify = app.getHttpAdapter().getInstance();
  routes.watch(fastify);
  app.useGlobalFilters(new ProblemFilter(routes, log));
  app.useBodyParser('application/json', { bodyLimit: MAX_BODY_BYTES }, parseBody);
  fastify.addHook('onRequest', (request, reply, done) => {
    void reply.headers(PLAIN_HEADERS);
    done(faultOf(request) ?? undefined);
  });
  const server = app.getHttpServer();
  server.removeAllListeners('clientError');
  server.on('clientError', answerBrokenRequest);
}

/** What is wrong with a request before its body is read; `null` for nothing. */
function faultOf(request: FastifyRequest): Refusal | null {
  const { headers } = request;
  const encoding = headers['content-encoding'];
  if (encoding !== undefined && encoding !== 'identity') {
    return new Refusal('unsupported_media_type', { detail: 'Bodies are not taken compressed.' });
  }
  const hasBody = headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0;
  const type = headers['content-type'];
  if ((hasBody || type !== undefined) && !isJson(type)) return new Refusal('unsupported_media_type');
  return parameterFault(request);
}

function isJson(type: string | undefined): boolean {
  return type !== undefined && /^application\/json[ \t]*(;[ \t]*charset="?utf-8"?[ \t]*)?$/i.test(type);
}

function parameterFault(request: FastifyRequest): Refusal | null {
  const query = request.query as Record<string, string | string[]>;
  const method = request.method === 'HEAD' ? 'GET' : request.method;
  const known = KNOWN_PARAMETERS.get(`${method} ${request.routeOptions.url}`) ?? [];
  for (const [name, value] of Object.entries(query)) {
    if (Array.isArray(value)) return new Refusal('malformed', { detail: 'A parameter is given twice.' });
    if (SECRET_PARAMETERS.has(name.toLowerCase().replaceAll('-', ''))) {
      return new Refusal('malformed', { detail: 'Tokens belong into headers, never into an address.' });
    }
    if (request.url.startsWith('/v1/') && !known.includes(name)) {
      return new Refusal('invalid', { detail: 'There is a parameter that is not known.' });
    }
  }
  return null;
}

/** For Nest's `useBodyParser`; keeps the bytes too. */
function parseBody(
  request: unknown,
  body: unknown,
  done: (error: Error | null, value?: unknown) => void,
): void {
  const bytes = body as Buffer;
  (request as FastifyRequest).rawBody = bytes;
  if (bytes.length === 0) {
    done(null, undefined);
    return;
  }
  const read = readJson(bytes);
  if (read.outcome === 'ok') done(null, read.value);
  else done(new Refusal(read.outcome === 'forbidden' ? 'invalid' : 'malformed', { detail: read.detail }));
}

interface Issue {
  readonly message: string;
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined;
}

function fieldFaultOf({ message, path = [] }: Issue): FieldFault {
  const field = path.map((part) => String(typeof part === 'object' ? part.key : part)).join('.');
  return { field: field.slice(0, 100), message: message.slice(0, 200) };
}

const validation = new StandardSchemaValidationPipe({
  exceptionFactory: (issues) =>
    new Refusal('invalid', { fields: issues.slice(0, MAX_FIELD_FAULTS).map(fieldFaultOf) }),
});

/**
 * The body as its schema reads it; anything else is refused, field by field. Instead of Nest's `@Body({ schema })`, which ignores
 * the schema without a pipe; and a pipe for the whole application would pass every other parameter through promises too.
 */
export const BodyOf = (schema: z.ZodType) => Body({ schema, pipes: [validation] });

/** Requests that node could not even read have no route and no reply object: the socket is answered and closed. */
function answerBrokenRequest(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || socket.destroyed || !socket.writable) {
    socket.destroy();
    return;
  }
  const status = error.code === 'HPE_HEADER_OVERFLOW' ? 431 : 400;
  const code = problemForStatus(status);
  const requestId = requestIdFrom(undefined);
  const body = JSON.stringify(problemDocument(code, requestId));
  socket.end(
    [
      `HTTP/1.1 ${problemOf(code).status} ${status === 431 ? 'Request Header Fields Too Large' : 'Bad Request'}`,
      'content-type: application/problem+json; charset=utf-8',
      `content-length: ${Buffer.byteLength(body)}`,
      'x-content-type-options: nosniff',
      `x-request-id: ${requestId}`,
      'connection: close',
      '',
      body,
    ].join('\r\n'),
  );
}

/** An address that cannot be decoded, or a part of it that is longer than any id. */
export function answerUnroutable(request: FastifyRequest, reply: FastifyReply): void {
  void reply.header('x-request-id', request.id).headers(PLAIN_HEADERS);
  sendProblem(request, reply, 'malformed', { detail: 'The address cannot be read.' });
}
