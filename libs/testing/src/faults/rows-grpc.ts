import { acceptsAgain } from './measure.js';
import type { ProxyControl } from './proxy-thread.js';
import type { Scenario } from './scenario.js';
import type { ServiceName } from '../world.js';

/** Faults of the connections between our own services. */
export const grpcRows: readonly Scenario[] = [
  {
    name: 'grpc-silent',
    row: 'established gRPC channels go silent',
    shopperSees: '503 for at most 5 s, then 202 again',
    async run(stage) {
      const { rig, world, undo } = stage;
      const addresses = world.environment;
      const proxies: ProxyControl[] = [];
      const through = async (variable: string) => {
        const [host = '', port] = (addresses[variable] ?? '').split(':');
        const proxy = await rig.proxyTo({ protocol: 'bytes', target: { host, port: Number(port) } });
        proxies.push(proxy);
        return `127.0.0.1:${proxy.port}`;
      };
      const restart = async (name: ServiceName, env: Readonly<Record<string, string>>) => {
        await world.terminate(name);
        await world.startService(name, 0, env);
      };
      // The services stay behind the proxies, which do nothing more; another restart would only be another fault.
      undo('let the channels pass', () => Promise.all(proxies.map((proxy) => proxy.pass())));
      await restart('order', { INVENTORY_URL: await through('INVENTORY_URL') });
      await restart('gateway', {
        ORDER_URL: await through('ORDER_URL'),
        TOKEN_URL: await through('TOKEN_URL'),
      });
      await acceptsAgain(stage, 10_000, 'the restart behind proxies');
      await Promise.all(proxies.map((proxy) => proxy.silenceEstablished()));
      stage.healed();
      await acceptsAgain(stage, 5_000, 'the silence');
    },
  },
];
