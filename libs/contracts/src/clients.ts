import { metrics } from '@opentelemetry/api';
import { BulkheadRejectedError, bulkhead } from 'cockatiel';
import { Coalescer, NotSent } from './coalescer.js';
import { ConcurrencyLimit, type ConcurrencyLimitOptions } from './concurrency-limit.js';
import type * as inventory from './gen/flashsale/inventory.js';
import type * as operators from './gen/flashsale/operators.js';
import type * as order from './gen/flashsale/order.js';
import type * as token from './gen/flashsale/token.js';
import { GrpcChannel } from './grpc.js';

/** How long a caller waits for an answer of another service, unless it says otherwise. */
export const DEFAULT_CALL_TIMEOUT_MS = 1_500;

// When a machine has too much to do, gives way first what begins something, last who holds something already.
const BEGINS: ConcurrencyLimitOptions = { goodMs: 250, badMs: 750 };
const CONTINUES: ConcurrencyLimitOptions = { goodMs: 500, badMs: 1_000 };
/** Kafka's acknowledgement is part of it, and its caller waits longer. */
const PLACES: ConcurrencyLimitOptions = { goodMs: 1_000, badMs: 2_000 };

const PROBLEM = { problem: 'unavailable' };
const OUTCOME = { outcome: 'UNAVAILABLE' };

/** How both ends bound the items of a batched method that are under way, and what an item beyond the bound is answered. */
export interface BatchedMethod {
  /** Each method has a limit of its own, so that none can use up another's room. */
  readonly room: ConcurrencyLimitOptions;
  readonly refused: object;
}

const METHODS = {
  'Line.Enter': { room: BEGINS, refused: PROBLEM },
  'Line.FindEntries': { room: CONTINUES, refused: PROBLEM },
  'Line.Leave': { room: CONTINUES, refused: PROBLEM },
  'Stock.Grant': { room: BEGINS, refused: OUTCOME },
  'Stock.FindHolds': { room: CONTINUES, refused: OUTCOME },
  'Stock.Release': { room: CONTINUES, refused: OUTCOME },
  'Stock.Queue': { room: CONTINUES, refused: OUTCOME },
  'Orders.Place': { room: PLACES, refused: PROBLEM },
  'Orders.FindOrders': { room: CONTINUES, refused: PROBLEM },
} as const satisfies Record<string, BatchedMethod>;
type MethodName = keyof typeof METHODS;

/** By `Service.Method`. */
export const BATCHED_METHODS: ReadonlyMap<string, BatchedMethod> = new Map(Object.entries(METHODS));

/** The share of the room for what nobody waits for, e.g. looks on behalf of an event stream. */
export const BACKGROUND_SHARE = 0.5;

interface Batch<Item> {
  readonly items: readonly Item[];
  readonly waitsMs: readonly number[];
}
interface Results<Result> {
  readonly results: readonly Result[];
}

/** How the calls of a client travel. */
export interface CallOptions {
  /** False: each item has an RPC to itself. Only to measure what it saves to let them travel together. */
  readonly coalesce?: boolean;
}

/** One batched method: items of one turn travel in one RPC. `share` is that of the room these items may fill. */
type ItemCall<Item, Result> = (item: Item, timeoutMs?: number, share?: number) => Promise<Result>;

function itemCall<Item, Result>(
  channel: GrpcChannel,
  name: MethodName,
  { coalesce = true }: CallOptions,
  limit = new ConcurrencyLimit(METHODS[name].room),
): ItemCall<Item, Result> {
  const method = name.slice(name.indexOf('.') + 1);
  observeLimit(name, limit);
  const coalescer = new Coalescer<Item, Result>(
    async (items, deadlineMs, deadlinesMs) => {
      const nowMs = performance.now();
      const waitsMs = deadlinesMs.map((each) => Math.ceil(each - nowMs));
      const reply = await channel.call<Batch<Item>, Results<Result>>(method, { items, waitsMs }, deadlineMs);
      return reply.results;
    },
    { name, limit, ...(coalesce ? {} : { maxBatch: 1, maxInFlight: Number.POSITIVE_INFINITY }) },
  );
  return (item, timeoutMs = DEFAULT_CALL_TIMEOUT_MS, share) =>
    coalescer.call(item, performance.now() + timeoutMs, share);
}

/** Calls under way at once of methods whose duration says nothing about load, e.g. because they wait for a provider. */
const CORE_CALLS = 256;
/** Operators, lists and reports: they wait, rather than payments. */
const OTHER_CALLS = 16;

type UnaryCall<Request, Reply> = (request: Request, timeoutMs?: number) => Promise<Reply>;

function unaryCall<Request, Reply>(
  channel: GrpcChannel,
  method: string,
  atOnce: number,
): UnaryCall<Request, Reply> {
  const places = bulkhead(atOnce, 0);
  return async (request, timeoutMs = DEFAULT_CALL_TIMEOUT_MS) => {
    const deadlineMs = performance.now() + timeoutMs;
    try {
      return await places.execute(() => channel.call<Request, Reply>(method, request, deadlineMs));
    } catch (error) {
      if (!(error instanceof BulkheadRejectedError)) throw error;
      throw new NotSent(`${channel.service}.${method}: ${atOnce} calls are under way already`);
    }
  };
}

const limits = metrics
  .getMeter('flash-sale')
  .createObservableGauge('calls.limit', { description: 'Items of a method that may be under way at once' });
const underWay = metrics
  .getMeter('flash-sale')
  .createObservableGauge('calls.under_way', { description: 'Items of a method that are under way' });

function observeLimit(method: string, limit: ConcurrencyLimit): void {
  limits.addCallback((result) => result.observe(limit.current, { method }));
  underWay.addCallback((result) => result.observe(limit.underWay, { method }));
}

/** Stock, item by item; calls of one event-loop turn share an RPC. All are idempotent by attempt. */
export class StockClient {
  private readonly channel: GrpcChannel;
  readonly grant: ItemCall<inventory.GrantItem, inventory.GrantResult>;
  readonly findHold: ItemCall<inventory.FindHoldItem, inventory.FindHoldResult>;
  readonly release: ItemCall<inventory.ReleaseItem, inventory.ReleaseResult>;
  readonly queue: ItemCall<inventory.QueueItem, inventory.QueueResult>;
  /** Batches that exist as such already. */
  readonly recordOffsets: UnaryCall<inventory.RecordOffsetsRequest, inventory.RecordOffsetsReply>;
  readonly applyEffects: UnaryCall<inventory.ApplyEffectsRequest, inventory.ApplyEffectsReply>;

  constructor(address: string, options: CallOptions = {}) {
    this.channel = new GrpcChannel('Stock', address);
    this.grant = itemCall(this.channel, 'Stock.Grant', options);
    this.findHold = itemCall(this.channel, 'Stock.FindHolds', options);
    this.release = itemCall(this.channel, 'Stock.Release', options);
    this.queue = itemCall(this.channel, 'Stock.Queue', options);
    this.recordOffsets = unaryCall(this.channel, 'RecordOffsets', CORE_CALLS);
    this.applyEffects = unaryCall(this.channel, 'ApplyEffects', CORE_CALLS);
  }
  ready(withinMs: number): Promise<void> {
    return this.channel.ready(withinMs);
  }
  close(): void {
    this.channel.close();
  }
}

/** The operator's side of inventory. */
export class SalesClient {
  private readonly channel: GrpcChannel;
  readonly create: UnaryCall<inventory.CreateSaleRequest, inventory.SaleReply>;
  readonly change: UnaryCall<inventory.ChangeSaleRequest, inventory.SaleReply>;
  readonly report: UnaryCall<inventory.ReportRequest, inventory.ReportReply>;
  readonly list: UnaryCall<inventory.ListSalesRequest, inventory.ListSalesReply>;

  constructor(address: string) {
    this.channel = new GrpcChannel('Sales', address);
    this.create = unaryCall(this.channel, 'Create', OTHER_CALLS);
    this.change = unaryCall(this.channel, 'Change', OTHER_CALLS);
    this.report = unaryCall(this.channel, 'Report', OTHER_CALLS);
    this.list = unaryCall(this.channel, 'List', OTHER_CALLS);
  }
  close(): void {
    this.channel.close();
  }
}

/** Who may not take part; inventory keeps the list. */
export class BlocklistClient {
  private readonly channel: GrpcChannel;
  readonly find: UnaryCall<inventory.FindBlockedRequest, inventory.BlockedReply>;
  readonly block: UnaryCall<inventory.ChangeBlockedRequest, inventory.BlockedReply>;
  readonly unblock: UnaryCall<inventory.ChangeBlockedRequest, inventory.BlockedReply>;

  constructor(address: string) {
    this.channel = new GrpcChannel('Blocklist', address);
    this.find = unaryCall(this.channel, 'Find', OTHER_CALLS);
    this.block = unaryCall(this.channel, 'Block', OTHER_CALLS);
    this.unblock = unaryCall(this.channel, 'Unblock', OTHER_CALLS);
  }
  close(): void {
    this.channel.close();
  }
}

/** The line and its entries, item by item. */
export class LineClient {
  private readonly channel: GrpcChannel;
  private readonly entering = new ConcurrencyLimit(METHODS['Line.Enter'].room);
  readonly enter: ItemCall<token.EnterItem, token.Entry>;
  readonly findEntry: ItemCall<token.FindEntryItem, token.Entry>;
  readonly leave: ItemCall<token.LeaveItem, token.LeaveResult>;
  readonly progress: UnaryCall<token.ProgressRequest, token.ProgressReply>;
  readonly createChallenge: UnaryCall<token.CreateChallengeRequest, token.CreateChallengeReply>;

  constructor(address: string, options: CallOptions = {}) {
    this.channel = new GrpcChannel('Line', address);
    this.enter = itemCall(this.channel, 'Line.Enter', options, this.entering);
    this.findEntry = itemCall(this.channel, 'Line.FindEntries', options);
    this.leave = itemCall(this.channel, 'Line.Leave', options);
    this.progress = unaryCall(this.channel, 'Progress', OTHER_CALLS);
    this.createChallenge = unaryCall(this.channel, 'CreateChallenge', CORE_CALLS);
  }
  /** Whether one more entry would be refused at this moment: asked before anything is spent on it. */
  isFull(): boolean {
    return this.entering.isFull();
  }
  ready(withinMs: number): Promise<void> {
    return this.channel.ready(withinMs);
  }
  close(): void {
    this.channel.close();
  }
}

/** Orders: placing and reading item by item, the rest one by one. */
export class OrdersClient {
  private readonly channel: GrpcChannel;
  private readonly placing = new ConcurrencyLimit(METHODS['Orders.Place'].room);
  readonly place: ItemCall<order.PlaceItem, order.PlaceResult>;
  readonly find: ItemCall<order.FindOrderItem, order.OrderReply>;
  readonly list: UnaryCall<order.ListOrdersRequest, order.ListOrdersReply>;
  readonly pay: UnaryCall<order.PayRequest, order.PayReply>;
  readonly cancel: UnaryCall<order.CancelRequest, order.OrderReply>;
  readonly settlePayment: UnaryCall<order.SettlePaymentRequest, order.SettlePaymentReply>;

  constructor(address: string, options: CallOptions = {}) {
    this.channel = new GrpcChannel('Orders', address);
    this.place = itemCall(this.channel, 'Orders.Place', options, this.placing);
    this.find = itemCall(this.channel, 'Orders.FindOrders', options);
    this.list = unaryCall(this.channel, 'ListOrders', OTHER_CALLS);
    this.pay = unaryCall(this.channel, 'Pay', CORE_CALLS);
    this.cancel = unaryCall(this.channel, 'Cancel', CORE_CALLS);
    this.settlePayment = unaryCall(this.channel, 'SettlePayment', CORE_CALLS);
  }
  /** Whether one more order would be refused at this moment. */
  isFull(): boolean {
    return this.placing.isFull();
  }
  ready(withinMs: number): Promise<void> {
    return this.channel.ready(withinMs);
  }
  close(): void {
    this.channel.close();
  }
}

/** What operators ask of the books; the order service answers. */
export class OperatorsClient {
  private readonly channel: GrpcChannel;
  readonly listDeadLetters: UnaryCall<operators.ListDeadLettersRequest, operators.ListDeadLettersReply>;
  readonly replayDeadLetter: UnaryCall<operators.ReplayDeadLetterRequest, operators.DeadLetterReply>;
  readonly dropDeadLetter: UnaryCall<operators.DropDeadLetterRequest, operators.DeadLetterReply>;
  readonly listAuditLog: UnaryCall<operators.ListAuditLogRequest, operators.ListAuditLogReply>;
  readonly record: UnaryCall<operators.RecordRequest, operators.RecordReply>;

  constructor(address: string) {
    this.channel = new GrpcChannel('Operators', address);
    this.listDeadLetters = unaryCall(this.channel, 'ListDeadLetters', OTHER_CALLS);
    this.replayDeadLetter = unaryCall(this.channel, 'ReplayDeadLetter', OTHER_CALLS);
    this.dropDeadLetter = unaryCall(this.channel, 'DropDeadLetter', OTHER_CALLS);
    this.listAuditLog = unaryCall(this.channel, 'ListAuditLog', OTHER_CALLS);
    this.record = unaryCall(this.channel, 'Record', OTHER_CALLS);
  }
  close(): void {
    this.channel.close();
  }
}
