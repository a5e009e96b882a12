export * from './blocklist-feed.js';
export { Circuit } from './circuit.js';
export { Coalescer, NotSent, type CoalescerOptions } from './coalescer.js';
export { ConcurrencyLimit, type ConcurrencyLimitOptions } from './concurrency-limit.js';
export {
  BACKGROUND_SHARE,
  BATCHED_METHODS,
  BlocklistClient,
  DEFAULT_CALL_TIMEOUT_MS,
  LineClient,
  OperatorsClient,
  OrdersClient,
  SalesClient,
  StockClient,
  type BatchedMethod,
  type CallOptions,
} from './clients.js';
export {
  CallFailed,
  GRPC_PACKAGE,
  GrpcChannel,
  LOADER_OPTIONS,
  MAX_MESSAGE_BYTES,
  PROTO_DIR,
  PROTO_FILES,
  grpcTarget,
} from './grpc.js';
export * from './order-event.js';
export * from './problem.js';
export * from './sale-feed.js';
export type * as inventory from './gen/flashsale/inventory.js';
export type * as item from './gen/flashsale/item.js';
export type * as operators from './gen/flashsale/operators.js';
export type * as order from './gen/flashsale/order.js';
export type * as token from './gen/flashsale/token.js';
