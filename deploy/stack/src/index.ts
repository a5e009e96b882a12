export { startStack, type EngineKind, type Stack, type StackOptions } from './stack.js';
export type { ServerName } from './probe.js';
export { startRedisCluster, type RedisCluster, type RedisClusterOptions } from './redis-cluster.js';
export { stackHome } from './state.js';
export { requireBrowser, requireFaketime, requireNginx } from './software.js';
export {
  startPrivateServer,
  type PrivateServer,
  type PrivateServerOptions,
  type ServerSettings,
} from './private-server.js';
export { chooseFreePort, chooseFreePorts } from './processes.js';
