export { CommitProxy } from './commit-proxy.js';
export {
  Caller,
  DELIVERY,
  World,
  sleep,
  until,
  type Answer,
  type ServiceName,
  type Verdict,
  type WorldOptions,
} from './world.js';
