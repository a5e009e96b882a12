import { PROBLEM_CODES, problemOf, type ProblemCode } from '@flash-sale/contracts';
import { z } from 'zod';
import { CALLS, HEADERS, INCOMING, NAMED, PUBLIC_CALLS, type Call } from './openapi-calls.js';

/**
 * The OpenAPI document (3.1), plain JSON, made from the table of calls, the schemas that check the requests and the table of
 * problems. A test holds it against the routes that exist, in both directions.
 */
export function openApiDocument() {
  const paths: Record<string, Record<string, unknown>> = {};
  for (const call of CALLS) {
    const [method = '', path = ''] = call.call.split(' ');
    paths[path] = { ...paths[path], [method]: operationOf(call, path) };
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Flash sale',
      version: '1',
      description:
        'Sells a limited quantity at a fixed moment. Errors are RFC 9457 problem documents with a stable `code`. ' +
        'Operators are served on a port of their own.',
    },
    tags: ['Sales', 'Entries', 'Orders', 'Payment provider', 'Operators'].map((name) => ({ name })),
    paths,
    components: {
      schemas: Object.fromEntries(
        Object.entries(NAMED).map(([name, schema]) => [name, jsonSchemaOf(name, schema)]),
      ),
      securitySchemes: {
        accessToken: {
          type: 'http',
          scheme: 'bearer',
          bearerFormat: 'JWT',
          description: '`sub` is the shopper; operators have `role: operator`.',
        },
      },
    },
  };
}

function jsonSchemaOf(name: string, schema: z.ZodType): Record<string, unknown> {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, {
    io: INCOMING.has(name) ? 'input' : 'output',
    unrepresentable: 'any',
  });
  return rest;
}

function operationOf(call: Call, path: string) {
  const isPublic = PUBLIC_CALLS.has(call.id);
  const parameters = [
    ...[...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => ({
      in: 'path',
      name,
      required: true,
      schema: { type: 'string', pattern: '^[A-Za-z0-9_-]{1,64}$' },
    })),
    ...Object.entries(call.query ?? {}).map(([name, description]) => ({
      in: 'query',
      name,
      required: false,
      description,
      schema: { type: 'string' },
    })),
    ...(call.headers ?? []).map((name) => ({ in: 'header', name, ...HEADERS[name] })),
  ];
  return {
    operationId: call.id,
    summary: call.summary,
    tags: [call.tag],
    security: isPublic ? [] : [{ accessToken: [] }],
    parameters,
    ...(call.body === undefined
      ? {}
      : {
          requestBody: { required: true, content: { 'application/json': { schema: reference(call.body) } } },
        }),
    responses: {
      ...Object.fromEntries(
        Object.entries(call.answers).map(([status, answer]) => [status, answerOf(answer)]),
      ),
      ...problemResponses(problemsOf(call, isPublic)),
    },
  };
}

/** What a call may end with, in the table's order. */
function problemsOf(call: Call, isPublic: boolean): ProblemCode[] {
  const all = new Set<ProblemCode>([
    'malformed',
    'method_not_allowed',
    'unsupported_media_type',
    'invalid',
    'headers_too_large',
    'rate_limited',
    'internal',
    'unavailable',
    ...(call.problems ?? []),
  ]);
  if (call.body !== undefined) all.add('too_large');
  if (!isPublic) all.add('unauthenticated');
  if (call.tag === 'Operators') all.add('forbidden');
  return PROBLEM_CODES.filter((code) => all.has(code));
}

function answerOf([description, schema]: Call['answers'][number]) {
  if (schema === undefined) return { description };
  if (schema === 'EventStream')
    return { description, content: { 'text/event-stream': { schema: { type: 'string' } } } };
  return { description, content: { 'application/json': { schema: reference(schema) } } };
}

function problemResponses(codes: readonly ProblemCode[]): Record<string, unknown> {
  const responses: Record<string, unknown> = {};
  for (const status of new Set(codes.map((code) => problemOf(code).status))) {
    const ofStatus = codes.map(problemOf).filter((problem) => problem.status === status);
    responses[status] = {
      description: ofStatus.map(({ code, title }) => `\`${code}\`: ${title}`).join(' '),
      ...(status === 429 || status === 503
        ? {
            headers: {
              'Retry-After': {
                required: true,
                description: 'Seconds',
                schema: { type: 'integer', minimum: 1 },
              },
            },
          }
        : {}),
      content: {
        'application/problem+json': {
          schema: {
            allOf: [
              reference('Problem'),
              { properties: { code: { enum: ofStatus.map(({ code }) => code) } } },
            ],
          },
          examples: Object.fromEntries(
            ofStatus.map(({ code, title }) => [
              code,
              {
                value: {
                  type: `urn:flash-sale:problem:${code}`,
                  title,
                  status,
                  code,
                  requestId: 'example-request',
                },
              },
            ]),
          ),
        },
      },
    };
  }
  return responses;
}

function reference(name: keyof typeof NAMED) {
  return { $ref: `#/components/schemas/${name}` };
}
