/**
 * Is the right kind of server there, and does it serve? An open port is not enough: Kafka and a
 * MySQL container accept connections long before they answer, and an address may simply be mixed up.
 * One packet of each protocol is all this needs, so no client library is loaded for it.
 */
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

export const serverNames = ['redis', 'kafka', 'mysql'] as const;
export type ServerName = (typeof serverNames)[number];

export interface Address {
  host: string;
  port: number;
}

/** `none` where the connection may be encrypted: then a connection is all that can be asked for. */
type Protocol = ServerName | 'none';

/** Size, API key 18 (ApiVersions), version 0, correlation id 7, no client id. */
const kafkaApiVersions = Buffer.from([0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff]);
const mysqlProtocolVersion = 10;

/** What is wrong with the server, in words; undefined when it serves. */
export function probe(protocol: Protocol, address: Address, timeoutMs: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const socket = connect(address);
    let received = Buffer.alloc(0);
    const finish = (fault: string | undefined) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(fault);
    };
    const timer = setTimeout(() => finish(`no answer within ${timeoutMs} ms`), timeoutMs);
    socket.once('error', (error: NodeJS.ErrnoException) => finish(error.code ?? error.message));
    socket.once('close', () => finish('the connection was closed'));
    socket.once('connect', () => {
      if (protocol === 'none') finish(undefined);
      else if (protocol === 'redis') socket.write('PING\r\n');
      else if (protocol === 'kafka') socket.write(kafkaApiVersions);
    });
    socket.on('data', (chunk: Buffer) => {
      received = Buffer.concat([received, chunk]);
      const verdict = judge(protocol, received);
      if (verdict !== 'incomplete') finish(verdict.fault);
    });
  });
}

function judge(protocol: Protocol, reply: Buffer): 'incomplete' | { fault: string | undefined } {
  if (protocol === 'redis') {
    const line = reply.toString('latin1');
    if (!line.includes('\r\n')) return reply.length > 512 ? { fault: 'it is not Redis' } : 'incomplete';
    // A password is the client's business; LOADING and the like mean that it does not serve yet.
    if (/^(\+PONG|-NOAUTH|-NOPERM)/.test(line)) return { fault: undefined };
    return { fault: line.startsWith('-') ? line.slice(1, line.indexOf('\r')) : 'it is not Redis' };
  }
  if (protocol === 'kafka') {
    if (reply.length < 10) return 'incomplete';
    return { fault: reply.readInt32BE(4) === 7 ? undefined : 'it is not Kafka' };
  }
  if (reply.length < 5) return 'incomplete';
  if (reply[4] === mysqlProtocolVersion) return { fault: undefined };
  return { fault: reply[4] === 0xff ? reply.subarray(7, 200).toString('latin1') : 'it is not MySQL' };
}

export interface WaitOptions {
  timeoutMs: number;
  signal: AbortSignal;
  /** Words for why waiting is pointless, e.g. that the process has ended. */
  givenUp?: () => string | undefined;
  /** Whether it is the expected process that listens there; by default any that answers is believed. */
  isExpected?: () => boolean;
}

/** Returns once the server serves; throws when it does not within the bound. */
export async function waitUntilServing(
  name: ServerName,
  address: Address,
  options: WaitOptions,
): Promise<void> {
  const deadline = Date.now() + options.timeoutMs;
  for (;;) {
    options.signal.throwIfAborted();
    const answer = await probe(name, address, 2_000);
    const isOther = answer === undefined && options.isExpected?.() === false;
    const fault = isOther ? 'another process listens on its port' : answer;
    if (fault === undefined) return;
    const ending = options.givenUp?.();
    if (ending !== undefined) throw new Error(`it ended while starting: ${ending}`);
    if (Date.now() >= deadline) {
      throw new Error(`it did not serve within ${Math.round(options.timeoutMs / 1_000)} s: ${fault}`);
    }
    await sleep(100);
  }
}
