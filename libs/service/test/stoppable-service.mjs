// A small service on the built chassis, for service.int.test.ts. Plain JavaScript: decorators are called as functions.
import { setTimeout as delay } from 'node:timers/promises';
import { Controller, Get, Module, Post } from '@nestjs/common';
import { GrpcMethod } from '@nestjs/microservices';
import {
  chassisVariables,
  grpcVariables,
  portVariable,
  readEnv,
  runMain,
  runInSpan,
  startService,
} from '../dist/index.js';

const env = readEnv({ ...chassisVariables, ...grpcVariables, HTTP_PORT: portVariable.default(0) });

function decorate(type, method, ...decorators) {
  const descriptor = Object.getOwnPropertyDescriptor(type.prototype, method);
  for (const decorator of decorators) decorator(type.prototype, method, descriptor);
}

await runMain('stoppable', env.LOG_LEVEL, async (log) => {
  const step = (name) => ({ name, run: () => log.info({ done: name }, 'step') });

  class ShopperController {
    async slow() {
      log.info('slow request begun');
      await runInSpan('slow work', {}, () => delay(800));
      return { answer: 'slow' };
    }
    fast() {
      return { answer: 'fast' };
    }
    fail() {
      const fields = { requestId: 'request-1', token: 'top secret', text: 'x'.repeat(1_000) };
      log.info(fields, 'about to fail');
      throw new Error('a defect');
    }
    neglect() {
      void Promise.reject(new Error('nobody waits for this'));
      return {};
    }
  }
  Controller()(ShopperController);
  decorate(ShopperController, 'slow', Get('things/:id/slow'));
  decorate(ShopperController, 'fast', Get('things/:id/fast'));
  decorate(ShopperController, 'fail', Get('fail'));
  decorate(ShopperController, 'neglect', Post('neglect'));

  class SalesController {
    async list() {
      log.info('slow call begun');
      await delay(800);
      return { sales: [] };
    }
    async report() {
      await delay(5);
      return {};
    }
  }
  Controller()(SalesController);
  decorate(SalesController, 'list', GrpcMethod('Sales', 'List'));
  decorate(SalesController, 'report', GrpcMethod('Sales', 'Report'));

  class HttpModule {}
  Module({ controllers: [ShopperController] })(HttpModule);
  class GrpcModule {}
  Module({ controllers: [SalesController] })(GrpcModule);

  await startService({
    log,
    ops: { port: env.OPS_PORT, host: '127.0.0.1' },
    http: [{ name: 'public', module: HttpModule, port: env.HTTP_PORT, host: '127.0.0.1' }],
    grpc: { module: GrpcModule, host: env.GRPC_HOST, port: env.GRPC_PORT },
    health: { live: { consumer: () => true }, ready: { redis: () => true } },
    drain: {
      waitMs: env.DRAIN_WAIT_MS,
      stop: [{ name: 'consumer', run: () => delay(50).then(() => log.info({ done: 'consumer' }, 'step')) }],
      flush: [step('producer')],
      close: [{ name: 'broken', run: () => Promise.reject(new Error('was closed already')) }, step('redis')],
    },
  });
});
