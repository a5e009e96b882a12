export type { AdapterLog } from './adapter-log.js';
export {
  connectRedis,
  describeAddress,
  redisTimeMs,
  type RedisAddress,
  type RedisClient,
  type RedisConnectOptions,
} from './connect.js';
export { UnexpectedReply, isRedisError, redisFailureOf, type RedisFailure } from './failure.js';
export { defineScript, type RedisScript, type ScriptContract } from './script.js';
export { subscribe, type SubscribeOptions, type Subscription } from './subscriber.js';
export {
  RedisWatch,
  type RedisServer,
  type RedisServerChange,
  type RedisServerStatus,
  type RedisWatchOptions,
} from './watch.js';
