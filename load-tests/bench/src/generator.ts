import type { ChildProcess } from 'node:child_process';
import { nextMessage, startChild } from './child.js';

/** A request that follows upon another's answer, on the same connection: `head`, then the body with a field of that answer in it. */
export interface SecondCall {
  /** By call: request line and headers, without the body's length and the empty line. */
  readonly heads: readonly string[];
  /** Which field of the first answer. */
  readonly field: string;
  readonly bodyBefore: string;
  readonly bodyAfter: string;
  readonly expected: number;
}

/** What the generator is to send. */
export interface Load {
  /** Where to, as `http://host:port`; connections are shared out evenly. */
  readonly origins: readonly string[];
  /** Each a whole HTTP/1.1 request, written as it is. They are made before: signing tokens costs as much as sending does. */
  readonly calls: readonly string[];
  readonly followUp?: SecondCall;
  /** The statuses that are as they should be. */
  readonly expected: readonly number[];
  /** Opened before the start. Requests take them in turn. */
  readonly connections: number;
  /**
   * Closed: the next call leaves when one is answered, so many are always under way; tells costs. Open: calls leave when they are
   * due, whatever is not answered yet; tells latencies.
   */
  readonly pace:
    | { readonly kind: 'closed'; readonly inFlight: number }
    | { readonly kind: 'open'; readonly perSecond: number };
  /**
   * Sent on each connection when it is opened. A server hangs up on whoever says nothing for some seconds, and with many
   * connections and few calls it takes long until each has its turn.
   */
  readonly greeting?: string;
  /** A field of each first answer that is wanted back. */
  readonly keep?: string;
}

export interface LoadResult {
  /** From the first call to the last answer. */
  readonly tookMs: number;
  /** By call, of both its requests together; in an open load from when it was due. */
  readonly latenciesMs: Float64Array;
  /** By call; empty strings where there was none. */
  readonly kept: readonly string[];
  /** Answers that were not as they should be, and one of them in words. */
  readonly unexpected: number;
  readonly example: string;
  /** How late calls were sent: 99th percentile, ms. It is part of the latency of an open load. */
  readonly latenessMs: number;
}

/** To the process. */
export type Order = { readonly prepare: Load } | 'go' | 'close';
/** From the process. */
export type Report = 'ready' | 'closed' | { readonly result: LoadResult } | { readonly fault: string };

/** A load that begins at once when it is told to: its connections are open. */
export interface ReadyLoad {
  run(): Promise<LoadResult>;
  /** Closes its connections. */
  close(): Promise<void>;
}

/** Sends requests from a process of its own, whose CPU time nobody counts. One load at a time. */
export class LoadGenerator {
  private constructor(private readonly child: ChildProcess) {}

  static start(): LoadGenerator {
    return new LoadGenerator(startChild('generator-process'));
  }

  async prepare(load: Load): Promise<ReadyLoad> {
    await this.order({ prepare: load });
    return {
      run: async () => {
        const report = await this.order('go');
        if (typeof report === 'string' || !('result' in report)) throw new Error('the load had no result');
        return report.result;
      },
      close: async () => void (await this.order('close')),
    };
  }

  stop(): void {
    this.child.kill('SIGKILL');
  }

  private async order(order: Order): Promise<Report> {
    const report = nextMessage<Report>(this.child);
    this.child.send(order);
    const said = await report;
    if (typeof said === 'object' && 'fault' in said) throw new Error(`load generator: ${said.fault}`);
    return said;
  }
}

/** The text of a request, as {@link Load.calls} wants it. */
export function requestText(
  method: 'GET' | 'POST',
  path: string,
  headers: Readonly<Record<string, string>>,
  body = '',
): string {
  const withBody = body === '' ? headers : { ...headers, 'content-length': String(Buffer.byteLength(body)) };
  return `${requestHead(method, path, withBody)}\r\n${body}`;
}

/** Without the empty line at its end. */
export function requestHead(
  method: 'GET' | 'POST',
  path: string,
  headers: Readonly<Record<string, string>>,
): string {
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  return `${method} ${path} HTTP/1.1\r\nhost: shop\r\n${lines.join('')}`;
}
