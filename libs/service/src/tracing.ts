import { register as registerAsynchronously } from 'node:module';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-proto';
import { GrpcInstrumentation } from '@opentelemetry/instrumentation-grpc';
import { HttpInstrumentation } from '@opentelemetry/instrumentation-http';
import { IORedisInstrumentation } from '@opentelemetry/instrumentation-ioredis';
import { KafkaJsInstrumentation } from '@opentelemetry/instrumentation-kafkajs';
import { MySQL2Instrumentation } from '@opentelemetry/instrumentation-mysql2';
import { PinoInstrumentation } from '@opentelemetry/instrumentation-pino';
import type { Resource } from '@opentelemetry/resources';
import { NodeSDK } from '@opentelemetry/sdk-node';
import { BatchSpanProcessor, ParentBasedSampler, TraceIdRatioBasedSampler } from '@opentelemetry/sdk-trace';
import { register, supportsSyncHooks } from 'import-in-the-middle/register-hooks.mjs';

/**
 * Our code is ES modules: without a hook only HTTP, which is built in, would be seen. The list keeps the hook away from all
 * other modules.
 */
const HOOKED = {
  include: ['http', 'https', '@grpc/grpc-js', 'ioredis', 'kafkajs', 'mysql2', 'mysql2/promise', 'pino'],
};

const isProbe = (url: string | undefined) => /^\/(healthz|readyz|metrics|edge)\b/.test(url ?? '');

/**
 * Sends the spans of this process to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names. Must run before what it
 * instruments is imported.
 *
 * @param sampledShare of the traces that begin here, from 0 to 1
 * @returns sends what is left, as far as that is possible
 */
export function startTracing(resource: Resource, sampledShare: number): () => Promise<void> {
  // Elsewhere than in this thread, each import waits for another thread: on busy processors that takes seconds.
  if (supportsSyncHooks()) register(HOOKED);
  else registerAsynchronously('@opentelemetry/instrumentation/hook.mjs', import.meta.url, { data: HOOKED });
  const sdk = new NodeSDK({
    resource,
    // The resource says it all already; metrics are measured without this too, and log lines are not sent anywhere.
    autoDetectResources: false,
    metricReaders: [],
    logRecordProcessors: [],
    sampler: new ParentBasedSampler({ root: new TraceIdRatioBasedSampler(sampledShare) }),
    // With a dead collector spans are dropped, from a queue that cannot grow.
    spanProcessors: [
      new BatchSpanProcessor({
        exporter: new OTLPTraceExporter({ timeoutMillis: 2_000 }),
        maxQueueSize: 8_192,
        maxExportBatchSize: 512,
        scheduledDelayMillis: 1_000,
      }),
    ],
    // The span of a batch has a link for each of its items.
    spanLimits: { linkCountLimit: 512 },
    instrumentations: [
      new HttpInstrumentation({ ignoreIncomingRequestHook: (request) => isProbe(request.url) }),
      new GrpcInstrumentation(),
      // A Redis or SQL command of a background loop is no trace of its own.
      new IORedisInstrumentation({ requireParentSpan: true }),
      new KafkaJsInstrumentation(),
      new MySQL2Instrumentation(),
      // Log lines get the trace id; they are not sent anywhere themselves.
      new PinoInstrumentation({ disableLogSending: true }),
    ],
  });
  sdk.start();
  return () => sdk.shutdown();
}
