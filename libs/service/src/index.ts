export { Drain, type DrainPlan, type DrainStep } from './drain.js';
export * from './env.js';
export { type GrpcOptions } from './grpc.js';
export { type EarlyAnswer, type HttpOptions, type HttpServer } from './http.js';
export { createLog, nestLog, type Log } from './log.js';
export { type HealthProbe, type HealthProbes } from './ops.js';
export { callDeadlineMs, isAbandoned, itemDeadlinesMs, type CallInfo } from './overload.js';
export { requestIdFrom, uuidV7 } from './request-id.js';
export { runMain, startService, type RunningService, type ServiceOptions } from './start.js';
export {
  contextFrom,
  currentTraceparent,
  findTelemetry,
  meter,
  runInSpan,
  type SpanOptions,
} from './telemetry.js';
