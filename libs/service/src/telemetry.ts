import type { IncomingMessage, ServerResponse } from 'node:http';
import {
  ROOT_CONTEXT,
  SpanStatusCode,
  context,
  metrics,
  propagation,
  trace,
  type Attributes,
  type Context,
  type Link,
  type Meter,
  type Span,
} from '@opentelemetry/api';

/** What the preloaded instrumentation leaves for the chassis. */
export interface Telemetry {
  /** Answers a scrape. */
  serveMetrics(request: IncomingMessage, response: ServerResponse): void;
  /** Sends what is left, as far as that is possible. */
  shutdown(): Promise<void>;
}

/** The instrumentation is loaded before, and possibly from another copy of, this module: the process has one place for it. */
const PLACE = Symbol.for('flash-sale.telemetry');

export function publishTelemetry(telemetry: Telemetry): void {
  (globalThis as Record<symbol, unknown>)[PLACE] = telemetry;
}

/** Undefined when the process was started without `--import @flash-sale/service/instrumentation`. */
export function findTelemetry(): Telemetry | undefined {
  return (globalThis as Record<symbol, unknown>)[PLACE] as Telemetry | undefined;
}

const SCOPE = 'flash-sale';

/** Where a service makes its own metrics; they appear under `/metrics` of its ops port. */
export function meter(): Meter {
  return metrics.getMeter(SCOPE);
}

/** The W3C `traceparent` of what runs now; undefined outside of any trace. */
export function currentTraceparent(): string | undefined {
  const carrier: Record<string, string> = {};
  propagation.inject(context.active(), carrier);
  return carrier['traceparent'];
}

/** A context whose parent span is the given `traceparent`; the root if there is none or it is malformed. */
export function contextFrom(traceparent: string | undefined): Context {
  return traceparent ? propagation.extract(ROOT_CONTEXT, { traceparent }) : ROOT_CONTEXT;
}

export interface SpanOptions {
  /** `traceparent` of the caller; without it the span belongs to what runs now. */
  readonly parent?: string | undefined;
  /** `traceparent`s of other traces that this work serves: a batch has many origins and only links can name them. */
  readonly links?: readonly (string | undefined)[];
  readonly attributes?: Attributes;
}

/** Runs `fn` inside a span of that name; a rejection marks the span as failed and is passed on. */
export function runInSpan<Result>(
  name: string,
  options: SpanOptions,
  fn: (span: Span) => Promise<Result>,
): Promise<Result> {
  const links = (options.links ?? []).flatMap((traceparent): Link[] => {
    const origin = traceparent === undefined ? undefined : trace.getSpanContext(contextFrom(traceparent));
    return origin ? [{ context: origin }] : [];
  });
  const parent = options.parent === undefined ? context.active() : contextFrom(options.parent);
  const spanOptions = { links, attributes: options.attributes ?? {} };
  return trace.getTracer(SCOPE).startActiveSpan(name, spanOptions, parent, async (span) => {
    try {
      return await fn(span);
    } catch (error) {
      span.setStatus({
        code: SpanStatusCode.ERROR,
        message: error instanceof Error ? error.message : String(error),
      });
      throw error;
    } finally {
      span.end();
    }
  });
}
