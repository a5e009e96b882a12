import { createRequire } from 'node:module';
import net from 'node:net';
import tls from 'node:tls';
import { Kafka, logLevel, type LogEntry, type RetryOptions } from 'kafkajs';
import { silentLog, type AdapterLog } from './adapter-log.js';

export interface KafkaOptions {
  /** `host:port` of some brokers; the others are discovered from them. */
  readonly brokers: readonly string[];
  /** Shows in the brokers' logs and quotas, e.g. `order-writer`. */
  readonly clientId: string;
  /** A request without an answer for this long fails; what it asked for may have happened all the same. */
  readonly requestTimeoutMs?: number;
  readonly connectionTimeoutMs?: number;
  readonly log?: AdapterLog;
  /** Where to connect instead of where the brokers say they are, e.g. through a tunnel. */
  readonly route?: (broker: { host: string; port: number }) => { host: string; port: number };
}

export const DEFAULT_REQUEST_TIMEOUT_MS = 2_000;

/**
 * One kafkajs client with the sockets it opened. kafkajs gives up a request that is not answered, but keeps the dead
 * connection and asks it again for up to a quarter of an hour (measured); whoever throws a client away must therefore be
 * able to cut its sockets, and to be sure that it opens no new ones.
 */
export interface KafkaHandle {
  readonly kafka: Kafka;
  /** Cuts every socket and refuses new ones. */
  destroy(): void;
}

/** Opens nothing yet; each producer, consumer and admin gets a handle of its own. */
export function openKafka(options: KafkaOptions): KafkaHandle {
  const sockets = new Set<net.Socket>();
  let destroyed = false;
  const retry: RetryOptions = {
    initialRetryTime: 100,
    maxRetryTime: 1_000,
    retries: 3,
    // kafkajs restarts a crashed consumer only for some errors and then for ever; our own runner does it for all.
    restartOnFailure: () => Promise.resolve(false),
  };
  const kafka = new Kafka({
    brokers: [...options.brokers],
    clientId: options.clientId,
    requestTimeout: options.requestTimeoutMs ?? DEFAULT_REQUEST_TIMEOUT_MS,
    enforceRequestTimeout: true,
    connectionTimeout: options.connectionTimeoutMs ?? 2_000,
    retry,
    logLevel: logLevel.INFO,
    logCreator: () => logTo(options.log ?? silentLog),
    socketFactory: ({ host, port, ssl, onConnect }) => {
      if (destroyed) throw new Error('this Kafka client was thrown away');
      const target = options.route?.({ host, port }) ?? { host, port };
      const socket = ssl
        ? tls.connect({ ...target, servername: net.isIP(host) ? '' : host, ...ssl }, onConnect)
        : net.connect(target, onConnect);
      // A small produce request must not wait for the acknowledgement of the one before it.
      socket.setNoDelay(true);
      socket.setKeepAlive(true, 10_000);
      sockets.add(socket);
      socket.once('close', () => sockets.delete(socket));
      return socket;
    },
  });
  return {
    kafka,
    destroy() {
      destroyed = true;
      for (const socket of sockets) socket.destroy();
    },
  };
}

/**
 * Ends a client in the background's time, not in the caller's: lets `disconnect` try, then cuts the sockets in any case.
 */
export async function discard(
  handle: KafkaHandle,
  disconnect: () => Promise<void>,
  withinMs: number,
): Promise<void> {
  await settledWithin(disconnect(), withinMs);
  handle.destroy();
}

/** Waits until the promise has settled either way, at most so long. Whether it had. */
export async function settledWithin(promise: Promise<unknown>, withinMs: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<false>((resolve) => {
    timer = setTimeout(resolve, withinMs, false);
  });
  const settled = promise.then(
    () => true,
    () => true,
  );
  try {
    return await Promise.race([settled, limit]);
  } finally {
    clearTimeout(timer);
  }
}

const REPEAT_AFTER_MS = 5_000;
const MAX_REMEMBERED = 200;

/** kafkajs says the same on every retry of every client; one line in five seconds and a count say as much. */
function logTo(log: AdapterLog): (entry: LogEntry) => void {
  const said = new Map<string, { atMs: number; suppressed: number }>();
  return (entry) => {
    const { message, timestamp: _, logger: __, stack: ___, ...fields } = entry.log;
    const key = `${entry.namespace} ${message}`;
    const last = said.get(key);
    const nowMs = performance.now();
    if (last && nowMs - last.atMs < REPEAT_AFTER_MS) {
      last.suppressed += 1;
      return;
    }
    if (said.size >= MAX_REMEMBERED) said.clear();
    said.set(key, { atMs: nowMs, suppressed: 0 });
    const line = {
      ...fields,
      kafkajs: entry.namespace,
      ...(last?.suppressed && { suppressed: last.suppressed }),
    };
    // What it calls an error is one failed try; whether that matters is said by our own code, which knows.
    if (entry.level <= logLevel.WARN) log.warn(line, message);
    else log.debug(line, message);
  };
}

/** What is used here of a class that kafkajs does not export. */
interface RequestQueue {
  /** Requests that wait for others to be answered, or for a broker that throttles us. */
  readonly pending: readonly unknown[];
  scheduleCheckPendingRequests: (this: RequestQueue) => void;
}

/**
 * kafkajs looks a thousand times a second, on each connection, for requests that wait, also where none does: a timer with a negative
 * delay that always sets the next one. It is set whenever a request has to wait, so nothing is missed without the others.
 */
function checkOnlyWhatWaits(): void {
  const { prototype } = createRequire(import.meta.url)('kafkajs/src/network/requestQueue') as {
    prototype: RequestQueue;
  };
  const schedule = prototype.scheduleCheckPendingRequests;
  prototype.scheduleCheckPendingRequests = function () {
    if (this.pending.length > 0) schedule.call(this);
  };
}
checkOnlyWhatWaits();
