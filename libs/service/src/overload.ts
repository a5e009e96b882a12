import { setTimeout as delay } from 'node:timers/promises';
import { status } from '@grpc/grpc-js';
import type { CallHandler, ExecutionContext, NestInterceptor } from '@nestjs/common';
import { RpcException } from '@nestjs/microservices';
import { BATCHED_METHODS, ConcurrencyLimit, type BatchedMethod } from '@flash-sale/contracts';
import { from, lastValueFrom, type Observable } from 'rxjs';
import { meter } from './telemetry.js';

/** The part of a gRPC call that a handler may ask: Nest runs it to its end even if the caller has gone. */
export interface CallInfo {
  readonly cancelled: boolean;
  getDeadline?(): Date | number;
}

/** When the caller stops to wait, on the `performance.now()` scale, ms; Infinity if it never does. */
export function callDeadlineMs(call: CallInfo): number {
  const deadline = call.getDeadline?.() ?? Number.POSITIVE_INFINITY;
  return performance.now() + Number(deadline) - Date.now();
}

/** When the caller of each item stops to wait, on the same scale. An item that does not say so waits as long as the call. */
export function itemDeadlinesMs(
  { items, waitsMs }: { readonly items: readonly unknown[]; readonly waitsMs: readonly number[] },
  call: CallInfo,
): number[] {
  const callMs = callDeadlineMs(call);
  const nowMs = performance.now();
  return items.map((_, index) => Math.min(callMs, nowMs + (waitsMs[index] ?? Number.POSITIVE_INFINITY)));
}

/** Whether the answer would reach nobody: ask before anything that is hard to undo. */
export function isAbandoned(call: CallInfo): boolean {
  return call.cancelled || callDeadlineMs(call) <= performance.now();
}

const BEAT_EVERY_MS = 50;
const LONG_PAUSE_MS = 250;
const SETTLES_AFTER_MS = 100;

/**
 * Notices that this process stood still for a while. Then calls lie unread in its sockets, and behind them the cancellations of
 * those whose callers have given up meanwhile; gRPC counts a call's time from its being read, so nothing else tells. Timers
 * run before sockets are read: what is read after a pause is read later than this knows of it.
 */
class Pauses {
  private lastBeatMs = performance.now();
  private settledMs = 0;

  constructor() {
    setInterval(() => {
      const nowMs = performance.now();
      if (nowMs - this.lastBeatMs > LONG_PAUSE_MS) this.settledMs = nowMs + SETTLES_AFTER_MS;
      this.lastBeatMs = nowMs;
    }, BEAT_EVERY_MS).unref();
  }

  /** How long to wait until cancellations that had come before are known, ms; 0 unless there was a pause just now. */
  settlesInMs(): number {
    return this.settledMs === 0 ? 0 : Math.max(0, this.settledMs - performance.now());
  }
}

/** A server knows more callers than one client does, so before it has learned anything it lets more in. */
const INITIAL_ITEMS = 4_000;
/** Calls of a method that comes one by one; services that can do less have bounds of their own. */
const MAX_CALLS = 512;

interface BatchRequest {
  items: readonly unknown[];
}
interface BatchReply {
  results: object[];
}
type PathOfCall = CallInfo & { getPath(): string };

/**
 * The door of every gRPC server: what nobody waits for any more is dropped before it costs anything, and what is beyond the
 * method's adaptive limit is refused at once. Of a batch the first items are let in as far as there is room; the others are
 * answered as unavailable, in their places. Measures how long calls take: gRPC's instrumentation makes spans but no metrics.
 */
export class OverloadDoor implements NestInterceptor {
  private readonly limits = new Map<string, ConcurrencyLimit>();
  private readonly callsUnderWay = new Map<string, number>();
  private readonly pauses = new Pauses();
  private readonly durations = meter().createHistogram('rpc.server.duration', {
    unit: 's',
    description: 'How long calls took, by service and method',
  });
  private readonly refusedItems = meter().createCounter('rpc.server.refused', {
    description: 'Items and calls that were dropped or refused, by method and reason',
  });

  constructor() {
    meter()
      .createObservableGauge('rpc.server.limit', { description: 'Items of a method worked on at once' })
      .addCallback((result) => {
        for (const [method, limit] of this.limits) result.observe(limit.current, { method });
      });
  }

  intercept(execution: ExecutionContext, next: CallHandler): Observable<unknown> {
    const request = execution.getArgByIndex<BatchRequest>(0);
    const call = execution.getArgByIndex<PathOfCall>(2);
    const labels = { 'rpc.service': execution.getClass().name, 'rpc.method': execution.getHandler().name };
    const serve = async () => {
      const startedMs = performance.now();
      let outcome = 'error';
      try {
        const reply = await this.serve(request, call, () => lastValueFrom<BatchReply>(next.handle()));
        outcome = 'ok';
        return reply;
      } finally {
        const tookMs = performance.now() - startedMs;
        this.durations.record(tookMs / 1_000, { ...labels, 'rpc.outcome': outcome });
      }
    };
    return from(serve());
  }

  private async serve(request: BatchRequest, call: PathOfCall, handle: () => Promise<BatchReply>) {
    // flashsale.Stock is Stock, /flashsale.Stock/Grant Stock.Grant.
    const method = call
      .getPath()
      .replace(/^\/(?:.*\.)?/, '')
      .replace('/', '.');
    const settlesInMs = this.pauses.settlesInMs();
    if (settlesInMs > 0) await delay(settlesInMs);
    if (isAbandoned(call)) {
      this.refusedItems.add(1, { method, reason: 'abandoned' });
      throw new RpcException({ code: status.CANCELLED, message: 'nobody waits for the answer any more' });
    }
    const batched = BATCHED_METHODS.get(method);
    return batched ? this.serveBatch(method, batched, request, call, handle) : this.serveOne(method, handle);
  }

  private async serveBatch(
    method: string,
    { room, refused }: BatchedMethod,
    request: BatchRequest,
    call: PathOfCall,
    handle: () => Promise<BatchReply>,
  ): Promise<BatchReply> {
    const limit = this.limitOf(method, room);
    const wanted = request.items.length;
    const admitted = limit.enter(wanted);
    if (admitted < wanted) {
      this.refusedItems.add(wanted - admitted, { method, reason: 'limit' });
      request.items = request.items.slice(0, admitted);
    }
    const startedMs = performance.now();
    let results: object[] = [];
    try {
      if (admitted > 0) results = (await handle()).results;
    } finally {
      const nowMs = performance.now();
      limit.leave(admitted, nowMs - startedMs, nowMs, !isAbandoned(call));
    }
    for (let place = admitted; place < wanted; place += 1) results.push(refused);
    return { results };
  }

  private async serveOne(method: string, handle: () => Promise<BatchReply>): Promise<BatchReply> {
    const underWay = this.callsUnderWay.get(method) ?? 0;
    if (underWay >= MAX_CALLS) {
      this.refusedItems.add(1, { method, reason: 'limit' });
      throw new RpcException({
        code: status.RESOURCE_EXHAUSTED,
        message: `${underWay} calls of ${method} are under way already; try again later`,
      });
    }
    this.callsUnderWay.set(method, underWay + 1);
    try {
      return await handle();
    } finally {
      this.callsUnderWay.set(method, (this.callsUnderWay.get(method) ?? 1) - 1);
    }
  }

  private limitOf(method: string, room: BatchedMethod['room']): ConcurrencyLimit {
    const known = this.limits.get(method);
    if (known) return known;
    const limit = new ConcurrencyLimit({ ...room, initial: INITIAL_ITEMS });
    this.limits.set(method, limit);
    return limit;
  }
}
