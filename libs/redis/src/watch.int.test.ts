// On servers of its own, which are restarted, made replicas and cut off.
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from '@jest/globals';
import { connectRedis } from './connect.js';
import { redisFailureOf } from './failure.js';
import { hashSlot } from './hash-slot.js';
import { defineScript } from './script.js';
import { RedisWatch, type RedisServerChange } from './watch.js';

const leftOver: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of leftOver.splice(0).toReversed()) await close();
});

async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 20_000;
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`still not: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** A server that keeps its data in a folder, so that it can come back with them. */
class PrivateRedis {
  private readonly folder = mkdtempSync(join(tmpdir(), 'flash-sale-redis-'));
  private process: ChildProcess | undefined;
  private constructor(readonly port: number) {}

  static async start(): Promise<PrivateRedis> {
    const server = new PrivateRedis(await freePort());
    leftOver.push(async () => {
      await server.kill();
      rmSync(server.folder, { recursive: true, force: true });
    });
    server.launch();
    return server;
  }

  get url(): string {
    return `redis://127.0.0.1:${this.port}`;
  }

  launch(): void {
    const settings = { port: this.port, dir: this.folder, bind: '127.0.0.1', save: '', appendonly: 'yes' };
    const args = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)]);
    this.process = spawn('redis-server', args, { stdio: 'ignore' });
    this.process.once('error', () => {
      throw new Error('this test needs the program redis-server (Debian: apt-get install redis-server)');
    });
  }

  async kill(): Promise<void> {
    const running = this.process;
    this.process = undefined;
    if (!running || running.exitCode !== null || running.signalCode !== null) return;
    const ended = once(running, 'exit');
    running.kill('SIGKILL');
    await ended;
  }
}

/** One address behind which the server can be another one later, as behind the name of a primary. */
async function openAddress(first: PrivateRedis) {
  const state = { target: first.port };
  const sockets = new Set<net.Socket>();
  const server = net.createServer((near) => {
    const far = net.connect(state.target, '127.0.0.1');
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from);
      from.on('error', () => {});
      from.on('close', () => to.destroy());
      from.pipe(to);
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  leftOver.push(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return { url: `redis://127.0.0.1:${(server.address() as AddressInfo).port}`, state };
}

async function openWatch(url: string) {
  const client = await connectRedis({ url, name: 'watched', commandTimeoutMs: 2_000 });
  leftOver.push(() => client.disconnect());
  const changes: RedisServerChange[] = [];
  const watch = new RedisWatch(client, { everyMs: 50, onChange: (change) => changes.push(change) });
  leftOver.push(() => watch.stop());
  await watch.start();
  return { client, watch, changes, now: () => watch.serverOf('any') };
}

describe('RedisWatch', () => {
  test('says that a restarted server is another one, and counts it as away until it has looked', async () => {
    const server = await PrivateRedis.start();
    const { client, changes, now } = await openWatch(server.url);
    const before = now();
    expect(before).toMatchObject({ address: `127.0.0.1:${server.port}`, status: 'serving' });
    await client.set('kept', '1');
    await server.kill();
    await until('away', () => now().status === 'away');
    expect(now().incarnation).toBe(before.incarnation);
    server.launch();
    await until('serving', () => now().status === 'serving');
    expect(now().incarnation).not.toBe(before.incarnation);
    expect(changes.map(({ now: { status } }) => status)).toEqual(['serving', 'away', 'serving']);
  });

  test('says nothing new of a server whose connection broke and came back', async () => {
    const server = await PrivateRedis.start();
    const address = await openAddress(server);
    const { client, changes, now } = await openWatch(address.url);
    const { incarnation } = now();
    await client.call('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'no');
    await until('away and back', () => changes.length >= 3);
    expect(now()).toMatchObject({ status: 'serving', incarnation });
  });

  test('leaves a server that was demoted, and finds the primary that took its place', async () => {
    const [old, promoted] = [await PrivateRedis.start(), await PrivateRedis.start()];
    const address = await openAddress(old);
    const { client, now } = await openWatch(address.url);
    const before = now();
    const other = await connectRedis({ url: promoted.url, name: 'other', commandTimeoutMs: 2_000 });
    leftOver.push(() => other.disconnect());
    await client.replicaof('127.0.0.1', promoted.port);
    await until('demoted, or away while it looks for the primary', () => now().status !== 'serving');
    address.state.target = promoted.port;
    await until('serving', () => now().status === 'serving');
    expect(now().incarnation).not.toBe(before.incarnation);
    expect(await client.set('written', '1')).toBe('OK');
    expect(await other.get('written')).toBe('1');
  });

  test('says that a replica that was promoted is another one, in the same process too', async () => {
    const [primary, replica] = [await PrivateRedis.start(), await PrivateRedis.start()];
    const { client, now } = await openWatch(replica.url);
    const before = now();
    await client.replicaof('127.0.0.1', primary.port);
    await until('demoted', () => now().status !== 'serving');
    const direct = await connectRedis({ url: replica.url, name: 'direct', commandTimeoutMs: 2_000 });
    leftOver.push(() => direct.disconnect());
    await direct.replicaof('NO', 'ONE');
    await until('serving', () => now().status === 'serving');
    expect(now().incarnation?.split('/')[0]).toBe(before.incarnation?.split('/')[0]);
    expect(now().incarnation).not.toBe(before.incarnation);
  });
});

describe('redisFailureOf', () => {
  const script = defineScript(new URL('./fixtures/append.lua', `file://${import.meta.dirname}/`), {
    keys: 1,
    decode: (reply) => reply,
  });

  test('tells a replica, a full memory, a wrong type and a defect apart, of commands and of scripts', async () => {
    const server = await PrivateRedis.start();
    const client = await connectRedis({ url: server.url, name: 'failing', commandTimeoutMs: 2_000 });
    leftOver.push(() => client.disconnect());
    const failureOf = (work: Promise<unknown>) => work.then(() => 'none', redisFailureOf);
    const both = async () => [
      await failureOf(client.rpush('list', 'x')),
      await failureOf(script.run(client, ['list'], ['x'])),
    ];
    expect(await both()).toEqual(['none', 'none']);
    await client.config('SET', 'maxmemory', '1');
    expect(await both()).toEqual(['out_of_memory', 'out_of_memory']);
    await client.config('SET', 'maxmemory', '0');
    await client.config('SET', 'min-replicas-to-write', '1');
    expect(await both()).toEqual(['no_replicas', 'no_replicas']);
    await client.config('SET', 'min-replicas-to-write', '0');
    await client.set('text', 'x');
    expect(await failureOf(client.rpush('text', 'x'))).toBe('wrong_type');
    expect(await failureOf(script.run(client, ['text'], ['x']))).toBe('wrong_type');
    expect(await failureOf(client.call('NONSENSE'))).toBe('defect');
    await client.replicaof('127.0.0.1', 1);
    // The first answer makes the client look for the primary, so the second may find no connection.
    expect(await failureOf(script.run(client, ['list'], ['x']))).toBe('read_only');
    await server.kill();
    await until('no answer', async () => (await failureOf(client.get('text'))) === 'no_answer');
  });
});

describe('hashSlot', () => {
  test('is the slot that Redis Cluster computes', () => {
    expect(['123456789', 'foo', '{user1000}.following', 'foo{}{bar}', 'foo{{bar}}zap'].map(hashSlot)).toEqual(
      [12_739, 12_182, 3_443, 8_363, 4_015],
    );
  });
});
