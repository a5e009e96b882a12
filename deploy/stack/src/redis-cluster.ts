/** A Redis Cluster of masters only, for tests: three small processes in a temporary folder. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  chooseFreePorts,
  endingSignals,
  lastLines,
  launch,
  listensOn,
  loopback,
  signalProcess,
  stopProcess,
  type ProcessIdentity,
} from './processes.js';
import { waitUntilServing } from './probe.js';
import { findProgram, requirePrograms, runQuietly, type Log } from './software.js';

export interface RedisCluster {
  /** As URLs: redis://127.0.0.1:PORT */
  nodes: string[];
  /** The system's numbers of their processes. */
  pids: number[];
  stop(): Promise<void>;
}

export interface RedisClusterOptions {
  /** At least three; fewer can never agree that one has failed. */
  masters: number;
  log?: Log;
}

const slotCount = 16_384;
const startTimeoutMs = 20_000;
const stopGraceMs = 5_000;
/** A signal ends the nodes at once, so there is nothing to interrupt step by step. */
const neverAborted = new AbortController().signal;

export async function startRedisCluster(options: RedisClusterOptions): Promise<RedisCluster> {
  if (!Number.isInteger(options.masters) || options.masters < 3) {
    throw new RangeError(`a Redis Cluster has at least 3 masters, not ${options.masters}`);
  }
  const log = options.log ?? ((line) => process.stderr.write(`stack: ${line}\n`));
  await requirePrograms(['redisServer', 'redisCli'], { log, signal: neverAborted });

  const folder = mkdtempSync(join(tmpdir(), 'flash-sale-redis-cluster-'));
  const running: ProcessIdentity[] = [];
  // Nothing in it is worth an orderly end.
  const onExit = () => {
    for (const node of running) signalProcess(node, 'SIGKILL');
    rmSync(folder, { recursive: true, force: true });
  };
  const onSignal = (signal: NodeJS.Signals) => {
    onExit();
    unhook();
    process.kill(process.pid, signal);
  };
  const unhook = () => {
    process.off('exit', onExit);
    for (const signal of endingSignals) process.off(signal, onSignal);
  };
  process.on('exit', onExit);
  for (const signal of endingSignals) process.on(signal, onSignal);
  const stop = async () => {
    await Promise.all(running.map((node) => stopProcess(node, stopGraceMs)));
    rmSync(folder, { recursive: true, force: true });
    unhook();
  };

  try {
    const free = await chooseFreePorts(2 * options.masters);
    const nodes = Array.from({ length: options.masters }, () => ({
      port: free.pop() ?? 0,
      clusterPort: free.pop() ?? 0,
    }));
    // All settled: one that appears after a failure elsewhere has to be stopped too.
    const starts = await Promise.allSettled(nodes.map((node) => startNode(folder, node, running)));
    for (const start of starts) if (start.status === 'rejected') throw start.reason;
    await formCluster(nodes);
    return {
      nodes: nodes.map(({ port }) => `redis://${loopback}:${port}`),
      pids: running.map(({ pid }) => pid),
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

interface Node {
  port: number;
  /** Where the other nodes reach it. */
  clusterPort: number;
}

async function startNode(
  parent: string,
  { port, clusterPort }: Node,
  running: ProcessIdentity[],
): Promise<void> {
  const folder = join(parent, String(port));
  mkdirSync(folder);
  const settings = [
    `bind ${loopback}`,
    `port ${port}`,
    // Stated, because the default of port + 10000 may be taken or above the last port.
    `cluster-port ${clusterPort}`,
    'cluster-enabled yes',
    'cluster-node-timeout 5000',
    `dir ${JSON.stringify(folder)}`,
    'appendonly no',
    'save ""',
    'maxmemory-policy noeviction',
  ];
  const config = join(folder, 'redis.conf');
  writeFileSync(config, `${settings.join('\n')}\n`);
  const logFile = join(folder, 'server.log');
  const node = await launch({
    command: findProgram('redisServer') ?? 'redis-server',
    args: [config],
    logFile,
  });
  running.push(node.identity);
  try {
    await waitUntilServing(
      'redis',
      { host: loopback, port },
      {
        timeoutMs: startTimeoutMs,
        signal: neverAborted,
        givenUp: node.ending,
        isExpected: () => listensOn(node.identity, port),
      },
    );
  } catch (error) {
    throw new Error(`a cluster node did not start: ${(error as Error).message}\n${lastLines(logFile, 10)}`, {
      cause: error,
    });
  }
}

/**
 * Shares out the slots, introduces the nodes, and returns only once every node agrees: until then some
 * would still answer CLUSTERDOWN. Redis itself makes that last two seconds. (`redis-cli --cluster create`
 * does the same, but sleeps in steps of seconds.)
 */
async function formCluster(nodes: readonly Node[]): Promise<void> {
  const [first] = nodes;
  for (const [index, node] of nodes.entries()) {
    const from = Math.floor((index * slotCount) / nodes.length);
    const to = Math.floor(((index + 1) * slotCount) / nodes.length) - 1;
    await ask(node, ['CLUSTER', 'ADDSLOTSRANGE', `${from}`, `${to}`]);
    // Distinct from the start, or the nodes would first have to settle a conflict.
    await ask(node, ['CLUSTER', 'SET-CONFIG-EPOCH', `${index + 1}`]);
    if (first && node !== first) {
      await ask(node, ['CLUSTER', 'MEET', loopback, `${first.port}`, `${first.clusterPort}`]);
    }
  }
  const deadline = Date.now() + startTimeoutMs;
  for (const node of nodes) {
    while (!isWhole(await ask(node, ['CLUSTER', 'INFO']), nodes.length)) {
      if (Date.now() >= deadline) throw new Error('the Redis Cluster did not form in time');
      await sleep(50);
    }
  }
}

function isWhole(info: string, masters: number): boolean {
  return info.includes('cluster_state:ok') && info.includes(`cluster_known_nodes:${masters}`);
}

function ask(node: Node, command: readonly string[]): Promise<string> {
  const cli = findProgram('redisCli') ?? 'redis-cli';
  return runQuietly(cli, ['-e', '-h', loopback, '-p', `${node.port}`, ...command], {
    timeoutMs: 5_000,
    whatFails: command.join(' '),
    context: { signal: neverAborted },
  });
}
