import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ProxyThread, type ProxyControl } from './proxy-thread.js';
import type { ProxyOptions } from './proxy.js';
import { RigKafka } from './rig-kafka.js';
import { RigMysql, SUITE_USER } from './rig-mysql.js';
import { RigRedis } from './rig-redis.js';
import type { RigServer } from './rig-server.js';

/** Addresses of the servers, as the services get them. */
export interface Addresses {
  readonly redisUrl: string;
  readonly kafkaBrokers: string;
  /** Ends with `/`; a database's name comes after it. */
  readonly mysqlUrl: string;
}

export interface RigOptions {
  /** Progress, one line at a time; none by default. */
  readonly log?: (line: string) => void;
}

const HEAL_WITHIN_MS = 120_000;

/**
 * A Redis, a Kafka and a MySQL of one's own, to be killed, starved, stalled and lied to: private processes in a scratch
 * folder, each behind a fault proxy. They are the same programs that everything else here runs on.
 */
export class Rig {
  /** Through the proxies: what a suite under test is given. */
  readonly addresses: Addresses;
  /** Without them, where the servers are now. Kafka's clients are sent to its proxy all the same, by Kafka itself. */
  get direct(): Addresses {
    return addressesOf(this.redis.directPort, this.kafka.port, this.mysql.port);
  }
  private constructor(
    private readonly folder: string,
    private readonly proxies: ProxyThread,
    readonly redis: RigRedis,
    readonly kafka: RigKafka,
    readonly mysql: RigMysql,
  ) {
    for (const signal of ENDING_SIGNALS) process.on(signal, this.onSignal);
    this.addresses = addressesOf(redis.proxy.port, kafka.proxy.port, mysql.proxy.port);
  }

  /** Starts all three side by side; takes as long as Kafka does. */
  static async start({ log = () => undefined }: RigOptions = {}): Promise<Rig> {
    const folder = mkdtempSync(join(tmpdir(), 'flash-sale-rig-'));
    const proxies = ProxyThread.start();
    const started: RigServer[] = [];
    const keep = async <Server extends RigServer>(starting: Promise<Server>): Promise<Server> => {
      const server = await starting;
      started.push(server);
      return server;
    };
    const options = async (name: 'redis' | 'kafka' | 'mysql', diskMegabytes: number) => ({
      name,
      folder: join(folder, name),
      diskMegabytes,
      proxy: await proxies.proxy({ protocol: name }),
      log,
    });
    // All settled: one that starts after another has failed must be stopped too.
    const outcomes = await Promise.allSettled([
      keep(options('redis', 128).then((mine) => RigRedis.launch(mine, proxies))),
      keep(options('kafka', 512).then((mine) => RigKafka.launch(mine))),
      keep(options('mysql', 768).then((mine) => RigMysql.launch(mine))),
    ]);
    const [redis, kafka, mysql] = outcomes;
    if (redis.status === 'fulfilled' && kafka.status === 'fulfilled' && mysql.status === 'fulfilled') {
      return new Rig(folder, proxies, redis.value, kafka.value, mysql.value);
    }
    await Promise.allSettled(started.map((server) => server.stop()));
    await proxies.stop();
    rmSync(folder, { recursive: true, force: true });
    throw outcomes.find((outcome) => outcome.status === 'rejected')?.reason;
  }

  /** A proxy in front of anything else, e.g. between two services. Ends with the rig. */
  proxyTo(options: ProxyOptions): Promise<ProxyControl> {
    return this.proxies.proxy(options);
  }

  /**
   * Undoes every fault: proxies pass, processes run with their settings, disks have room. Resolves when all three serve.
   *
   * @throws when one of them does not come back
   */
  async heal(): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const limit = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(new Error(`the servers did not come back within ${HEAL_WITHIN_MS} ms`)),
        HEAL_WITHIN_MS,
      );
    });
    try {
      await Promise.race([Promise.all([this.redis.heal(), this.kafka.heal(), this.mysql.heal()]), limit]);
    } finally {
      clearTimeout(timer);
    }
  }

  async stop(): Promise<void> {
    for (const signal of ENDING_SIGNALS) process.off(signal, this.onSignal);
    await Promise.allSettled([this.redis.stop(), this.kafka.stop(), this.mysql.stop()]);
    await this.proxies.stop();
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** Interrupted: the processes end by themselves; what would stay behind are the disks. */
  private readonly onSignal = (signal: NodeJS.Signals) => {
    for (const each of ENDING_SIGNALS) process.off(each, this.onSignal);
    for (const server of [this.redis, this.kafka, this.mysql]) server.abandon();
    rmSync(this.folder, { recursive: true, force: true });
    process.kill(process.pid, signal);
  };
}

const ENDING_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

function addressesOf(redis: number, kafka: number, mysql: number): Addresses {
  return {
    redisUrl: `redis://127.0.0.1:${redis}`,
    kafkaBrokers: `127.0.0.1:${kafka}`,
    mysqlUrl: `mysql://${SUITE_USER}@127.0.0.1:${mysql}/`,
  };
}
