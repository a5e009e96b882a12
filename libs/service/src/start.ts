import 'reflect-metadata';
import type { DynamicModule } from '@nestjs/common';
import { Drain, type DrainStep } from './drain.js';
import { startGrpc, type GrpcOptions } from './grpc.js';
import { startHttp, type HttpOptions, type HttpServer } from './http.js';
import { createLog, type Log } from './log.js';
import { OpsModule, type HealthProbes } from './ops.js';
import { findTelemetry } from './telemetry.js';

export interface ServiceOptions {
  readonly log: Log;
  readonly ops: {
    readonly port: number;
    readonly host?: string;
    /** What else is served there, to those inside the cluster. */
    readonly module?: DynamicModule;
  };
  readonly http?: readonly HttpOptions[];
  readonly grpc?: GrpcOptions;
  readonly health?: HealthProbes;
  /** What has to happen on the way down, besides the servers that this started. */
  readonly drain?: {
    readonly waitMs: number;
    /** Consumers, timers, event streams: stop taking work, resolve when that in flight is finished. Run side by side. */
    readonly stop?: readonly DrainStep[];
    /** Producers: send what is left. */
    readonly flush?: readonly DrainStep[];
    /** Redis, MySQL, Kafka. */
    readonly close?: readonly DrainStep[];
  };
  /** Ends the process. */
  readonly exit?: (code: number) => void;
}

export interface RunningService {
  readonly opsPort: number;
  /** By the name in the options. */
  readonly http: ReadonlyMap<string, HttpServer>;
  /** Stops as on SIGTERM. */
  stop(reason: string): Promise<void>;
}

/**
 * Starts a service on connections that exist already: first its gRPC and HTTP servers, then the ops port, so that whoever
 * sees `/readyz` answer can call at once. From then on signals drain it.
 *
 * @throws when a port cannot be had
 */
export async function startService(options: ServiceOptions): Promise<RunningService> {
  const { log } = options;
  const servers: HttpServer[] = [];
  const steps: DrainStep[] = [];
  const lastSteps: DrainStep[] = [
    ...(options.drain?.close ?? []),
    { name: 'telemetry', run: () => findTelemetry()?.shutdown() },
  ];
  const isDraining = () => drain.isDraining;

  const drain = new Drain(
    {
      waitMs: options.drain?.waitMs ?? 0,
      // These arrays are filled below, as servers start.
      stop: steps,
      flush: options.drain?.flush ?? [],
      close: lastSteps,
    },
    log,
    options.exit,
  );
  drain.listen();
  steps.push(...(options.drain?.stop ?? []));

  if (options.grpc) {
    const grpc = await startGrpc(options.grpc, log);
    steps.push({ name: 'grpc', run: () => grpc.close() });
  }
  for (const http of options.http ?? []) {
    const server = await startHttp(http, log, isDraining);
    servers.push(server);
    steps.push({ name: `http ${http.name}`, run: () => server.close() });
  }
  // Stays up until the end: who drains must be able to say that it is alive and not ready.
  const ops = await startHttp(
    {
      name: 'ops',
      module: OpsModule.with({ ...options.health, isDraining }, options.ops.module),
      port: options.ops.port,
      ...(options.ops.host !== undefined && { host: options.ops.host }),
    },
    log,
    isDraining,
  );
  lastSteps.push({ name: 'http ops', run: () => ops.close() });
  return {
    opsPort: ops.port,
    http: new Map(servers.map((server) => [server.name, server])),
    stop: (reason) => drain.run(reason, 0),
  };
}

/**
 * The outermost call of a service's `main.ts`. If starting fails, says why in one log line and exits with code 1.
 *
 * @param start connects and calls {@link startService}
 */
export async function runMain(
  name: string,
  level: Parameters<typeof createLog>[1],
  start: (log: Log) => Promise<unknown>,
): Promise<void> {
  const log = createLog(name, level);
  try {
    await start(log);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    log.fatal({ err: error }, `${name} cannot start: ${reason}`);
    process.exit(1);
  }
}
