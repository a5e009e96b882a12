export { FaultProxy, type Loss, type ProxyFigures, type ProxyOptions } from './faults/proxy.js';
export type { Protocol } from './faults/proxy-frames.js';
export { Caller, DELIVERY, type Answer } from './caller.js';
export { sleep, until } from './waiting.js';
export { World, type ServiceName, type Verdict, type WorldOptions } from './world.js';
