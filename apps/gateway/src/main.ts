import { runMain } from '@flash-sale/service';
import { readGatewayEnv } from './env.js';
import { startGateway } from './gateway.module.js';

const env = readGatewayEnv();
await runMain('gateway', env.LOG_LEVEL, (log) => startGateway(env, log));
