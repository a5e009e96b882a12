/**
 * Loaded before everything else by `node --import @flash-sale/service/instrumentation`: what is loaded earlier cannot be
 * instrumented. Reads SERVICE_NAME, OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_SAMPLER_ARG; a service's own variables
 * are read later, by its own schema.
 */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { metrics } from '@opentelemetry/api';
import { PrometheusExporter } from '@opentelemetry/exporter-prometheus';
import {
  defaultResource,
  detectResources,
  envDetector,
  hostDetector,
  osDetector,
  processDetector,
  resourceFromAttributes,
  serviceInstanceIdDetector,
} from '@opentelemetry/resources';
import {
  AggregationType,
  MeterProvider,
  createAllowListAttributesProcessor,
} from '@opentelemetry/sdk-metrics';
import { publishTelemetry } from './telemetry.js';

/** Seconds; they fit the objectives, and every service has the same, so that they can be added up. */
const DURATION_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10];

/** Only what is known to have few values may be a label; the host a client claims to call is not. */
function durationView(instrumentName: string, labels: string[]) {
  return {
    instrumentName,
    attributesProcessors: [createAllowListAttributesProcessor(labels)],
    aggregation: {
      type: AggregationType.EXPLICIT_BUCKET_HISTOGRAM as const,
      options: { boundaries: DURATION_BUCKETS },
    },
  };
}

/** The chassis measures requests itself, since this instrumentation is not always there. */
const viewOfHttpInstrumentation = {
  meterName: '@opentelemetry/instrumentation-http',
  aggregation: { type: AggregationType.DROP as const },
};

const givenRatio = Number(process.env['OTEL_TRACES_SAMPLER_ARG'] ?? '1');
const ratio = Number.isFinite(givenRatio) ? Math.min(1, Math.max(0, givenRatio)) : 1;
const exporter = new PrometheusExporter({ preventServerStart: true });
const resource = defaultResource()
  .merge(
    detectResources({
      detectors: [serviceInstanceIdDetector, processDetector, hostDetector, osDetector, envDetector],
    }),
  )
  .merge(resourceFromAttributes({ 'service.name': process.env['SERVICE_NAME'] ?? 'unnamed' }));

const meterProvider = new MeterProvider({
  resource,
  readers: [exporter],
  views: [
    viewOfHttpInstrumentation,
    durationView('http.server.request.duration', [
      'http.request.method',
      'http.response.status_code',
      'http.route',
      'error.type',
    ]),
    durationView('rpc.server.duration', ['rpc.service', 'rpc.method', 'rpc.outcome']),
  ],
});
metrics.setGlobalMeterProvider(meterProvider);
// Measured: instrumentation doubles what a request costs, even if no span is recorded, and loading it a service's start.
// So only if somebody will see the spans.
const stopTracing = process.env['OTEL_EXPORTER_OTLP_ENDPOINT']
  ? (await import('./tracing.js')).startTracing(resource, ratio)
  : undefined;
measureProcess();
publishTelemetry({
  serveMetrics: (request, response) => exporter.getMetricsRequestHandler(request, response),
  shutdown: async () => {
    await Promise.all([stopTracing?.(), meterProvider.shutdown()]);
  },
});

/** What every Node process tells about itself: whether its one thread keeps up, what it uses, and what it is. */
function measureProcess(): void {
  const meter = metrics.getMeter('flash-sale');
  const delay = monitorEventLoopDelay({ resolution: 10 });
  delay.enable();
  const quantiles = meter.createObservableGauge('nodejs.eventloop.delay', {
    unit: 's',
    description: 'How late timers fire, since the last scrape',
  });
  const utilization = meter.createObservableGauge('nodejs.eventloop.utilization', {
    unit: '1',
    description: 'Share of time the event loop was busy, since the last scrape',
  });
  const memory = meter.createObservableGauge('process.memory.usage', { unit: 'By' });
  const cpu = meter.createObservableCounter('process.cpu.time', { unit: 's' });
  const build = meter.createObservableGauge('build.info', {
    description: 'Always 1; the labels tell what runs',
  });
  let idle = performance.eventLoopUtilization();
  meter.addBatchObservableCallback(
    (result) => {
      for (const percentile of [50, 90, 99]) {
        result.observe(quantiles, delay.percentile(percentile) / 1e9, { quantile: String(percentile / 100) });
      }
      delay.reset();
      const now = performance.eventLoopUtilization();
      result.observe(utilization, performance.eventLoopUtilization(now, idle).utilization);
      idle = now;
      const { rss, heapUsed } = process.memoryUsage();
      result.observe(memory, rss, { kind: 'rss' });
      result.observe(memory, heapUsed, { kind: 'heap' });
      const { user, system } = process.cpuUsage();
      result.observe(cpu, (user + system) / 1e6);
      result.observe(build, 1, {
        version: process.env['SERVICE_VERSION'] ?? 'dev',
        node: process.versions.node,
      });
    },
    [quantiles, utilization, memory, cpu, build],
  );
}
