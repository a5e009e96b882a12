import { createServer, type Server } from 'node:http';
import { gunzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { z } from 'zod';
import { until } from '../waiting.js';
import { World } from '../world.js';

/**
 * One purchase is one trace, from the HTTP request to the writer's transaction. The services export to a small OTLP sink
 * in this process. Batches have many origins, so the transaction itself is reached by a link: the span of the one order's
 * decision lies in the shopper's trace and points to the chunk that carried it.
 */

interface Span {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId: string;
  readonly name: string;
  readonly service: string;
  readonly links: readonly { readonly traceId: string; readonly spanId: string }[];
}

describe('tracing', () => {
  let world: World;
  let sink: Server;
  const spans: Span[] = [];

  beforeAll(async () => {
    sink = createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        const body = Buffer.concat(chunks);
        if (request.url === '/v1/traces') {
          spans.push(...readSpans(request.headers['content-encoding'] === 'gzip' ? gunzipSync(body) : body));
        }
        response.writeHead(200, { 'content-type': 'application/x-protobuf' }).end();
      });
    });
    await new Promise<void>((listening) => sink.listen(0, '127.0.0.1', listening));
    const { port } = z.object({ port: z.number() }).parse(sink.address());
    world = await World.start({
      env: {
        OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}`,
        OTEL_TRACES_SAMPLER_ARG: '1',
        OTEL_BSP_SCHEDULE_DELAY: '200',
      },
    });
  }, 60_000);
  afterAll(async () => {
    await world?.stop();
    sink.closeAllConnections();
    await new Promise((closed) => sink.close(closed));
  }, 60_000);

  it('follows one order from POST /v1/orders to the writer, and on to its transaction by a link', async () => {
    const saleId = await world.openSale();
    const shopper = world.shopper('traced');
    const traceId = '4bf92f3577b34da6a3ce929d0e0e4736';
    const entry = await shopper.expect(
      201,
      'POST',
      `/v1/sales/${saleId}/entries`,
      { quantity: 1 },
      { 'idempotency-key': 'k' },
    );
    const ordered = await shopper.persist(() =>
      shopper.call(
        'POST',
        '/v1/orders',
        { purchaseToken: entry['purchaseToken'], delivery: { name: 'A', phone: '12345', address: 'B' } },
        { traceparent: `00-${traceId}-00f067aa0ba902b7-01`, 'x-request-id': 'request-of-the-traced' },
      ),
    );
    expect(ordered.status).toBe(202);
    await shopper.orderIn(String(entry['entryId']), ['awaiting_payment']);

    // The logs of two services name the same request: it travelled by HTTP, gRPC and Kafka.
    for (const [service, message] of [
      ['order', 'order accepted'],
      ['order-writer', 'order decided'],
    ] as const) {
      const said = () =>
        world
          .logOf(service)
          .split('\n')
          .find((line) => line.includes(message));
      await until(`${service} to say "${message}"`, 5_000, async () => said() !== undefined);
      expect(JSON.parse(said() ?? '{}')).toMatchObject({
        orderId: entry['entryId'],
        requestId: 'request-of-the-traced',
      });
    }

    const ours = () => spans.filter((span) => span.traceId === traceId);
    const decision = () => ours().find((span) => span.name === 'order.decide');
    // Upwards: every parent is in the same trace until the HTTP request of the gateway. Each service exports by itself.
    const servicesAbove = () => {
      const services: string[] = [];
      for (let span = decision(); span; span = ours().find((other) => other.spanId === span?.parentSpanId)) {
        services.push(span.service);
      }
      return services;
    };
    await until('the spans to arrive', 20_000, async () => servicesAbove().at(-1) === 'gateway').catch(
      () => undefined,
    );
    expect(servicesAbove()[0]).toBe('order-writer');
    expect(servicesAbove()).toContain('order');
    expect(servicesAbove().at(-1)).toBe('gateway');

    // Sideways: the link leads to the chunk's span, below which lies the transaction in MySQL.
    const chunkSpan = () =>
      spans.find((span) => decision()?.links.some((link) => link.spanId === span.spanId));
    await until('the chunk’s span to arrive', 15_000, async () => chunkSpan() !== undefined);
    const chunk = chunkSpan();
    expect(chunk?.service).toBe('order-writer');
    await until('the transaction’s spans to arrive', 15_000, async () => {
      const below = new Set([chunk?.spanId ?? '']);
      for (let grew = true; grew;) {
        const found = spans.filter((span) => below.has(span.parentSpanId) && !below.has(span.spanId));
        for (const span of found) below.add(span.spanId);
        grew = found.length > 0;
      }
      return spans.some((span) => below.has(span.spanId) && /insert/i.test(span.name));
    });
  }, 60_000);
});

/**
 * Reads spans out of an OTLP trace request: enough of protobuf's wire format for the fields that the test looks at.
 * See opentelemetry/proto/trace/v1/trace.proto for the numbers.
 */
function readSpans(body: Buffer): Span[] {
  return fieldsOf(body, 1).flatMap((resourceSpans) => {
    const attributes = fieldsOf(resourceSpans, 1).flatMap((resource) => fieldsOf(resource, 1));
    const service = attributes.find((attribute) => text(attribute, 1) === 'service.name');
    const serviceName = service ? text(fieldsOf(service, 2)[0] ?? Buffer.alloc(0), 1) : '';
    return fieldsOf(resourceSpans, 2).flatMap((scopeSpans) =>
      fieldsOf(scopeSpans, 2).map((span) => ({
        traceId: hex(span, 1),
        spanId: hex(span, 2),
        parentSpanId: hex(span, 4),
        name: text(span, 5),
        service: serviceName,
        links: fieldsOf(span, 13).map((link) => ({ traceId: hex(link, 1), spanId: hex(link, 2) })),
      })),
    );
  });
}

const text = (message: Buffer, field: number) => fieldsOf(message, field)[0]?.toString('utf8') ?? '';
const hex = (message: Buffer, field: number) => fieldsOf(message, field)[0]?.toString('hex') ?? '';

/** The values of a length-delimited field. */
function fieldsOf(message: Buffer, wanted: number): Buffer[] {
  const found: Buffer[] = [];
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = message[at];
      if (byte === undefined) throw new Error('the message ends within a number');
      at += 1;
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < message.length) {
    const key = varint();
    const wire = key & 7;
    if (wire === 0) varint();
    else if (wire === 1) at += 8;
    else if (wire === 5) at += 4;
    else if (wire === 2) {
      const length = varint();
      if (key >>> 3 === wanted) found.push(message.subarray(at, at + length));
      at += length;
    } else throw new Error(`wire type ${wire} is not used by OTLP`);
  }
  return found;
}
