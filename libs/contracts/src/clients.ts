import { Coalescer } from './coalescer.js';
import type * as inventory from './gen/flashsale/inventory.js';
import type * as order from './gen/flashsale/order.js';
import type * as token from './gen/flashsale/token.js';
import { GrpcChannel } from './grpc.js';

/** How long a caller waits for an answer of another service, unless it says otherwise. */
export const DEFAULT_CALL_TIMEOUT_MS = 1_500;

interface Batch<Item> {
  readonly items: readonly Item[];
}
interface Results<Result> {
  readonly results: readonly Result[];
}

/** One batched method: items of one turn travel in one RPC. */
type ItemCall<Item, Result> = (item: Item, timeoutMs?: number) => Promise<Result>;

function itemCall<Item, Result>(
  channel: GrpcChannel,
  service: string,
  method: string,
): ItemCall<Item, Result> {
  const coalescer = new Coalescer<Item, Result>(
    async (items, deadlineMs) => {
      const reply = await channel.call<Batch<Item>, Results<Result>>(method, { items }, deadlineMs);
      return reply.results;
    },
    { name: `${service}.${method}` },
  );
  return (item, timeoutMs = DEFAULT_CALL_TIMEOUT_MS) => coalescer.call(item, performance.now() + timeoutMs);
}

type UnaryCall<Request, Reply> = (request: Request, timeoutMs?: number) => Promise<Reply>;

function unaryCall<Request, Reply>(channel: GrpcChannel, method: string): UnaryCall<Request, Reply> {
  return (request, timeoutMs = DEFAULT_CALL_TIMEOUT_MS) =>
    channel.call<Request, Reply>(method, request, performance.now() + timeoutMs);
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

  constructor(address: string) {
    this.channel = new GrpcChannel('Stock', address);
    this.grant = itemCall(this.channel, 'Stock', 'Grant');
    this.findHold = itemCall(this.channel, 'Stock', 'FindHolds');
    this.release = itemCall(this.channel, 'Stock', 'Release');
    this.queue = itemCall(this.channel, 'Stock', 'Queue');
    this.recordOffsets = unaryCall(this.channel, 'RecordOffsets');
    this.applyEffects = unaryCall(this.channel, 'ApplyEffects');
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
    this.create = unaryCall(this.channel, 'Create');
    this.change = unaryCall(this.channel, 'Change');
    this.report = unaryCall(this.channel, 'Report');
    this.list = unaryCall(this.channel, 'List');
  }
  close(): void {
    this.channel.close();
  }
}

/** The line and its entries, item by item. */
export class LineClient {
  private readonly channel: GrpcChannel;
  readonly enter: ItemCall<token.EnterItem, token.Entry>;
  readonly findEntry: ItemCall<token.FindEntryItem, token.Entry>;
  readonly leave: ItemCall<token.LeaveItem, token.LeaveResult>;
  readonly createChallenge: UnaryCall<token.CreateChallengeRequest, token.CreateChallengeReply>;

  constructor(address: string) {
    this.channel = new GrpcChannel('Line', address);
    this.enter = itemCall(this.channel, 'Line', 'Enter');
    this.findEntry = itemCall(this.channel, 'Line', 'FindEntries');
    this.leave = itemCall(this.channel, 'Line', 'Leave');
    this.createChallenge = unaryCall(this.channel, 'CreateChallenge');
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
  readonly place: ItemCall<order.PlaceItem, order.PlaceResult>;
  readonly find: ItemCall<order.FindOrderItem, order.OrderReply>;
  readonly list: UnaryCall<order.ListOrdersRequest, order.ListOrdersReply>;
  readonly pay: UnaryCall<order.PayRequest, order.PayReply>;
  readonly cancel: UnaryCall<order.CancelRequest, order.OrderReply>;
  readonly settlePayment: UnaryCall<order.SettlePaymentRequest, order.SettlePaymentReply>;

  constructor(address: string) {
    this.channel = new GrpcChannel('Orders', address);
    this.place = itemCall(this.channel, 'Orders', 'Place');
    this.find = itemCall(this.channel, 'Orders', 'FindOrders');
    this.list = unaryCall(this.channel, 'ListOrders');
    this.pay = unaryCall(this.channel, 'Pay');
    this.cancel = unaryCall(this.channel, 'Cancel');
    this.settlePayment = unaryCall(this.channel, 'SettlePayment');
  }
  ready(withinMs: number): Promise<void> {
    return this.channel.ready(withinMs);
  }
  close(): void {
    this.channel.close();
  }
}
