import { Controller, Get, Inject, Module, Req, Res, type DynamicModule } from '@nestjs/common';
import {
  HealthCheckService,
  HealthIndicatorService,
  TerminusModule,
  type HealthCheckResult,
  type HealthIndicatorResult,
} from '@nestjs/terminus';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { findTelemetry } from './telemetry.js';

/** Answers whether one thing is well; a rejection counts as no. */
export type HealthProbe = () => boolean | Promise<boolean>;

export interface HealthProbes {
  /** Must hold for the process to be left alive: only what a restart can mend. */
  readonly live?: Readonly<Record<string, HealthProbe>>;
  /** Must hold for the process to get requests. */
  readonly ready?: Readonly<Record<string, HealthProbe>>;
}

export interface OpsState extends HealthProbes {
  readonly isDraining: () => boolean;
}

const OPS_STATE = Symbol('OpsState');
const PROBE_WITHIN_MS = 1_000;

@Controller()
class OpsController {
  constructor(
    @Inject(OPS_STATE) private readonly state: OpsState,
    @Inject(HealthCheckService) private readonly health: HealthCheckService,
    @Inject(HealthIndicatorService) private readonly indicator: HealthIndicatorService,
  ) {}

  /** Whether the process should be left alive. That it answers at all shows that its event loop turns. */
  @Get('healthz')
  live(): Promise<HealthCheckResult> {
    return this.health.check(this.indicators(this.state.live));
  }

  /** Whether the process should get requests. */
  @Get('readyz')
  ready(): Promise<HealthCheckResult> {
    return this.health.check(
      this.indicators({ accepting: () => !this.state.isDraining(), ...this.state.ready }),
    );
  }

  @Get('metrics')
  metrics(@Req() request: FastifyRequest, @Res() reply: FastifyReply): void {
    reply.hijack();
    const telemetry = findTelemetry();
    if (telemetry) telemetry.serveMetrics(request.raw, reply.raw);
    else reply.raw.end('# the process was started without --import @flash-sale/service/instrumentation\n');
  }

  private indicators(probes: Readonly<Record<string, HealthProbe>> = {}) {
    return Object.entries(probes).map(([name, probe]) => (): Promise<HealthIndicatorResult> => {
      return Promise.resolve(
        this.indicator
          .check(name)
          .attempt(async () => {
            if (!(await probe())) throw new Error('not well');
          })
          .withTimeout(PROBE_WITHIN_MS),
      );
    });
  }
}

/** The ops port: `/healthz`, `/readyz`, `/metrics`. Never exposed to shoppers. */
@Module({})
export class OpsModule {
  static with(state: OpsState, more?: DynamicModule): DynamicModule {
    return {
      module: OpsModule,
      imports: [TerminusModule.forRoot({ logger: false }), ...(more ? [more] : [])],
      controllers: [OpsController],
      providers: [{ provide: OPS_STATE, useValue: state }],
    };
  }
}
