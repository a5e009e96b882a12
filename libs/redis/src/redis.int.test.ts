// Against a real Redis (REDIS_URL). What a dead network does is shown with a proxy that stops passing bytes on.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import { connectRedis, redisTimeMs, type RedisClient } from './connect.js';
import { UnexpectedReply, isRedisError, redisFailureOf } from './failure.js';
import { defineScript } from './script.js';
import { subscribe } from './subscriber.js';

const url = process.env['REDIS_URL'] ?? 'redis://127.0.0.1:6379';
const key = (name: string) => `test:redis-lib:${process.pid}:{${name}}`;

const folders: string[] = [];
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true });
});

function scriptFile(text: string, name = 'count.lua'): string {
  const folder = mkdtempSync(join(tmpdir(), 'flash-sale-lua-'));
  folders.push(folder);
  const file = join(folder, name);
  writeFileSync(file, text);
  return file;
}

const number = (reply: unknown): number => {
  if (typeof reply !== 'number') throw new Error('not a number');
  return reply;
};

/**
 * Passes bytes on until it is told to drop those of one direction; `cut` closes all connections, `silenceExisting` leaves them
 * open and drops everything on them.
 */
async function openProxy() {
  const target = new URL(url);
  const state = { dropReplies: false };
  const sockets = new Set<net.Socket>();
  const silent = new Set<net.Socket>();
  const server = net.createServer((near) => {
    const far = net.connect(Number(target.port), target.hostname);
    for (const socket of [near, far]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        near.destroy();
        far.destroy();
        sockets.delete(socket);
      });
    }
    near.on('data', (bytes) => silent.has(near) || far.write(bytes));
    far.on('data', (bytes) => state.dropReplies || silent.has(near) || near.write(bytes));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const cut = () => {
    for (const socket of sockets) socket.destroy();
  };
  const close = () => {
    server.close();
    cut();
  };
  leftOver.push(close);
  return {
    url: `redis://127.0.0.1:${(server.address() as AddressInfo).port}${target.pathname}`,
    state,
    silenceExisting: () => {
      for (const socket of sockets) silent.add(socket);
    },
    cut,
    close,
  };
}

async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 10_000;
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`still not: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** What a test opened, closed after it however it ended. */
const leftOver: (() => void)[] = [];
afterEach(() => {
  for (const close of leftOver.splice(0)) close();
});

async function connectThrough(url: string, commandTimeoutMs = 250): Promise<RedisClient> {
  const connection = await connectRedis({ url, name: 'test-proxied', commandTimeoutMs });
  leftOver.push(() => connection.disconnect());
  return connection;
}

let client: RedisClient;
beforeAll(async () => {
  client = await connectRedis({ url, name: 'test' });
});
afterAll(async () => {
  await client.del(key('a'), key('lost'), key('cut'));
  client.disconnect();
});

describe('defineScript', () => {
  test('runs a script, also after the server forgot it', async () => {
    const script = defineScript(scriptFile("return redis.call('INCRBY', KEYS[1], ARGV[1])"), {
      keys: 1,
      decode: number,
    });
    expect(await script.run(client, [key('a')], [2])).toBe(2);
    await client.script('FLUSH');
    expect(await script.run(client, [key('a')], [3])).toBe(5);
    const known = (await client.script('EXISTS', script.sha1)) as number[];
    expect(known).toEqual([1]);
  });

  test('runs each of many concurrent calls once when the script is not known yet', async () => {
    const script = defineScript(
      scriptFile(`-- ${Math.random()}\nreturn redis.call('INCRBY', KEYS[1], ARGV[1])`),
      { keys: 1, decode: number },
    );
    await client.set(key('a'), 0);
    const replies = await Promise.all(Array.from({ length: 50 }, () => script.run(client, [key('a')], [1])));
    expect(replies.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 50 }, (_, index) => index + 1));
  });

  test('throws on a reply that the decoder does not know', async () => {
    const script = defineScript(scriptFile("return 'surprise'"), { keys: 0, decode: number });
    await expect(script.run(client, [], [])).rejects.toThrow(UnexpectedReply);
    await expect(script.run(client, [], [])).rejects.toThrow('count.lua answered "surprise"');
  });

  test('refuses a wrong number of keys before anything is sent', async () => {
    const script = defineScript(scriptFile('return 1'), { keys: 2, decode: number });
    await expect(script.run(client, [key('a')], [])).rejects.toThrow('takes 2 keys, got 1');
  });

  test('names the file and line of a failing script', async () => {
    const file = scriptFile('--@include "inner.lua"\nreturn fail()', 'outer.lua');
    writeFileSync(join(file, '..', 'inner.lua'), '-- why\nlocal function fail() return nil + 1 end');
    const script = defineScript(file, { keys: 0, decode: number });
    const error = await script.run(client, [], []).catch((cause: unknown) => cause);
    expect(isRedisError(error)).toBe(true);
    expect(String(error)).toContain('inner.lua:2');
  });
});

describe('a connection', () => {
  test('does not repeat a command whose reply was lost', async () => {
    const proxy = await openProxy();
    const unlucky = await connectThrough(proxy.url, 100);
    await client.set(key('lost'), 100);
    proxy.state.dropReplies = true;
    const error = await unlucky.decr(key('lost')).catch((cause: unknown) => cause);
    expect(error).toBeInstanceOf(Error);
    expect(isRedisError(error)).toBe(false);
    proxy.state.dropReplies = false;
    proxy.cut();
    await until('cut off', () => unlucky.status !== 'ready');
    await until('connected again', () => unlucky.status === 'ready');
    expect(await unlucky.get(key('lost'))).toBe('99');
  });

  test('rejects at once, and keeps nothing for later, while there is no connection', async () => {
    const proxy = await openProxy();
    const cutOff = await connectThrough(proxy.url);
    await client.set(key('cut'), 0);
    proxy.close();
    await until('cut off', () => cutOff.status !== 'ready');
    await expect(cutOff.incr(key('cut'))).rejects.toThrow("Stream isn't writeable");
    expect(await client.get(key('cut'))).toBe('0');
  });

  test('gets a fresh connection when the old one goes silent, and rejects in time until then', async () => {
    const proxy = await openProxy();
    const unlucky = await connectThrough(proxy.url, 100);
    proxy.silenceExisting();
    const reasons = new Set<string>();
    await until('answered again', () =>
      unlucky.get(key('a')).then(
        () => true,
        (error: unknown) => {
          reasons.add(redisFailureOf(error));
          return false;
        },
      ),
    );
    expect([...reasons]).toEqual(['no_answer']);
  });

  test('says where it looked when nothing is there', async () => {
    const nowhere = connectRedis({
      url: 'redis://user:secret@127.0.0.1:1',
      name: 'test',
      readyWithinMs: 200,
    });
    const error = await nowhere.catch((cause: unknown) => cause);
    expect(String(error)).toContain('no usable Redis at 127.0.0.1:1 within 200 ms');
    expect(String(error)).toContain('REDIS_URL');
    expect(String(error)).not.toContain('secret');
  });

  test('tells the time of the server', async () => {
    expect(Math.abs((await redisTimeMs(client)) - Date.now())).toBeLessThan(60_000);
  });
});

describe('subscribe', () => {
  test('hears messages, and subscribes again after the connection broke or went silent', async () => {
    const proxy = await openProxy();
    const heard: string[] = [];
    let subscriptions = 0;
    const subscription = subscribe({
      url: proxy.url,
      name: 'test-subscriber',
      channels: [key('news')],
      onMessage: (_channel, payload) => heard.push(payload),
      onSubscribed: () => {
        subscriptions += 1;
      },
    });
    leftOver.push(() => subscription.close());
    await until('subscribed', () => subscriptions === 1);
    await client.publish(key('news'), 'one');
    await until('heard one', () => heard.length === 1);
    proxy.cut();
    await until('subscribed again', () => subscriptions === 2);
    await client.publish(key('news'), 'two');
    await until('heard two', () => heard.length === 2);
    proxy.silenceExisting();
    await until('subscribed once more', () => subscriptions === 3);
    await client.publish(key('news'), 'three');
    await until('heard three', () => heard.length === 3);
    expect(heard).toEqual(['one', 'two', 'three']);
    subscription.close();
    await until('closed', () => !subscription.isConnected());
  });
});
