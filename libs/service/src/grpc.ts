import type { DynamicModule, INestMicroservice, Type } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { Transport, type GrpcOptions as NestGrpcOptions } from '@nestjs/microservices';
import { GRPC_PACKAGE, LOADER_OPTIONS, MAX_MESSAGE_BYTES, PROTO_FILES } from '@flash-sale/contracts';
import { nestLog, type Log } from './log.js';
import { OverloadDoor } from './overload.js';

export interface GrpcOptions {
  /** Its controllers' `@GrpcMethod`s are the services that are offered. */
  readonly module: Type | DynamicModule;
  readonly host: string;
  readonly port: number;
}

/** Starts the gRPC side of a service with the limits every one of ours has. */
export async function startGrpc(options: GrpcOptions, log: Log): Promise<INestMicroservice> {
  const app = await NestFactory.createMicroservice<NestGrpcOptions>(options.module, {
    logger: nestLog(log),
    abortOnError: false,
    transport: Transport.GRPC,
    options: {
      url: `${options.host}:${options.port}`,
      package: GRPC_PACKAGE,
      protoPath: PROTO_FILES,
      loader: LOADER_OPTIONS,
      maxReceiveMessageLength: MAX_MESSAGE_BYTES,
      maxSendMessageLength: MAX_MESSAGE_BYTES,
      // Without it Nest ends calls that are under way.
      gracefulShutdown: true,
      channelOptions: {
        // A client looks for new addresses only when it reconnects; so that it finds new instances, it must now and then.
        'grpc.max_connection_age_ms': 30_000,
        'grpc.max_connection_age_grace_ms': 10_000,
        'grpc.keepalive_time_ms': 20_000,
        'grpc.keepalive_timeout_ms': 5_000,
        'grpc.keepalive_permit_without_calls': 1,
      },
    },
  });
  app.useGlobalInterceptors(new OverloadDoor());
  await app.listen();
  log.info({ host: options.host, port: options.port }, 'listening for gRPC');
  return app;
}
