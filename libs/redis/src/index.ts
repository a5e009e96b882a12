export type { AdapterLog } from './adapter-log.js';
export {
  connectRedis,
  describeAddress,
  redisTimeMs,
  type RedisAddress,
  type RedisClient,
  type RedisConnectOptions,
} from './connect.js';
export {
  UnexpectedReply,
  defineScript,
  isRedisError,
  type RedisScript,
  type ScriptContract,
} from './script.js';
export { subscribe, type SubscribeOptions, type Subscription } from './subscriber.js';
