import { setTimeout as delay } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { silentLog, type AdapterLog } from './adapter-log.js';
import { connectionOptions, nodesOf, type RedisAddress } from './connect.js';

export interface SubscribeOptions extends RedisAddress {
  /** Shows in `CLIENT LIST`. */
  readonly name: string;
  readonly channels: readonly string[];
  readonly onMessage: (channel: string, payload: string) => void;
  /**
   * Called after each (re)subscription, the first too. Redis keeps no messages for who was away, so this is the moment to
   * read what may have been missed.
   */
  readonly onSubscribed: () => void;
  readonly log?: AdapterLog;
}

export interface Subscription {
  /** Whether the subscription stands now. */
  isConnected(): boolean;
  close(): void;
}

/** A dead peer says nothing, as a quiet channel does; so the connection is asked this often whether it lives. */
const PING_EVERY_MS = 2_000;
const RETRY_MS = 250;

/**
 * Listens on a connection of its own and subscribes again, for ever, whenever that is lost: on the next node if there are
 * several (in a cluster every node passes on every message). Returns at once; does not fail.
 */
export function subscribe(options: SubscribeOptions): Subscription {
  const nodes = nodesOf(options);
  const stop = new AbortController();
  const state = { connected: false };
  const log = options.log ?? silentLog;

  const run = async () => {
    for (let attempt = 0; !stop.signal.aborted; attempt += 1) {
      const node = nodes[attempt % nodes.length];
      if (!node) return;
      try {
        await listen(node, options, state, stop.signal);
      } catch (error) {
        if (stop.signal.aborted) return;
        if (state.connected || attempt === 0) {
          log.warn(
            { redis: options.name, node: node.host, reason: String(error) },
            'a Redis subscription was lost',
          );
        }
      } finally {
        state.connected = false;
      }
      await delay(RETRY_MS, undefined, { signal: stop.signal }).catch(() => {});
    }
  };
  void run();
  return { isConnected: () => state.connected, close: () => stop.abort() };
}

/** One connection's life; ends by throwing when the connection is lost or silent. */
async function listen(
  node: URL,
  options: SubscribeOptions,
  state: { connected: boolean },
  stop: AbortSignal,
): Promise<void> {
  const connection = new Redis(node.href, {
    ...connectionOptions(options.name, 1_000),
    // The loop around this function reconnects, so that it can choose another node and say that messages may be missing.
    retryStrategy: () => null,
    lazyConnect: true,
  });
  const lost = new Promise<never>((_, reject) => {
    connection.on('error', reject);
    connection.on('close', () => reject(new Error('the connection closed')));
  });
  lost.catch(() => {});
  connection.on('message', options.onMessage);
  const over = new AbortController();
  const hangUp = () => {
    over.abort();
    connection.disconnect();
  };
  stop.addEventListener('abort', hangUp);
  try {
    await connection.connect();
    await connection.subscribe(...options.channels);
    state.connected = true;
    options.onSubscribed();
    for (;;) {
      await Promise.race([lost, delay(PING_EVERY_MS, undefined, { signal: over.signal })]);
      await connection.ping();
    }
  } finally {
    stop.removeEventListener('abort', hangUp);
    hangUp();
  }
}
