import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { checkGiven, givenAddresses } from './given.js';
import { chooseFreePort } from './processes.js';
import { startStack } from './stack.js';

const servers: Server[] = [];
afterAll(() => {
  for (const server of servers) server.close();
});

/** A server that says this much, at once or in reply to anything. */
function listenAndSay(greeting: Buffer | undefined, reply?: Buffer): Promise<number> {
  const server = createServer((socket: Socket) => {
    socket.on('error', () => undefined);
    if (greeting) socket.write(greeting);
    socket.on('data', () => reply && socket.write(reply));
  });
  servers.push(server);
  return new Promise((resolve) =>
    server.listen(0, '127.0.0.1', () => resolve((server.address() as { port: number }).port)),
  );
}

let redisPort = 0;
let mysqlPort = 0;
let silentPort = 0;
let closedPort = 0;
beforeAll(async () => {
  redisPort = await listenAndSay(undefined, Buffer.from('-NOAUTH Authentication required.\r\n'));
  mysqlPort = await listenAndSay(Buffer.from([1, 0, 0, 0, 10, 0]));
  silentPort = await listenAndSay(undefined);
  closedPort = await chooseFreePort();
});

describe('given addresses', () => {
  it('are those of the variables that are set and not blank', () => {
    const env = { REDIS_URL: 'redis://a', KAFKA_BROKERS: ' ', MYSQL_URL: 'mysql://b ' };
    expect(givenAddresses(env)).toEqual({ redis: 'redis://a', mysql: 'mysql://b' });
  });

  it('are used as they are when the servers answer', async () => {
    const env = {
      REDIS_URL: `redis://:secret@127.0.0.1:${redisPort}/3`,
      KAFKA_BROKERS: `127.0.0.1:${closedPort},127.0.0.1:${silentPort}`,
      MYSQL_URL: `mysql://user:secret@127.0.0.1:${mysqlPort}/sale`,
    };
    const home = join(mkdtempSync(join(tmpdir(), 'flash-sale-stack-test-')), 'never-made');
    const stack = await startStack({ env, home });
    expect(stack).toMatchObject({
      redisUrl: env.REDIS_URL,
      kafkaBrokers: env.KAFKA_BROKERS,
      mysqlUrl: env.MYSQL_URL,
      engine: { redis: 'given', kafka: 'given', mysql: 'given' },
    });
    await stack.stop();
    expect(existsSync(home)).toBe(false);
    rmSync(join(home, '..'), { recursive: true });
  });

  it('fail all together, each with its variable and reason, before anything is started', async () => {
    const env = { REDIS_URL: `redis://127.0.0.1:${closedPort}`, KAFKA_BROKERS: `localhost:${closedPort}` };
    const start = startStack({ env, home: '/nowhere/writable' });
    await expect(start).rejects.toThrow(/REDIS_URL is set, but .*ECONNREFUSED[^]*KAFKA_BROKERS is set, but/);
  });

  it.each([
    ['redis', 'not a url', 'it is not a URL such as redis://127.0.0.1:6379'],
    ['redis', 'mysql://127.0.0.1', 'its scheme is mysql: instead of redis: or rediss:'],
    ['mysql', 'mysql:///sale', 'it names no host'],
    ['kafka', 'a:1,b', '"b" is not of the form host:port'],
    ['kafka', 'kafka://a:1', '"kafka://a:1" is not of the form host:port'],
    ['kafka', 'a:70000', '"a:70000" is not of the form host:port'],
  ])('%s=%s is refused: %s', async (name, value, message) => {
    await expect(checkGiven({ [name]: value })).rejects.toThrow(message);
  });

  it('never repeat a password in an error', async () => {
    const value = `redis://:hunter2@127.0.0.1:${closedPort}`;
    const message = await checkGiven({ redis: value }).catch((error: Error) => error.message);
    expect(message).toContain('REDIS_URL');
    expect(message).not.toContain('hunter2');
  });

  it('of another kind of server are noticed', async () => {
    await expect(checkGiven({ redis: `redis://127.0.0.1:${mysqlPort}` }, 300)).rejects.toThrow();
    await expect(checkGiven({ mysql: `mysql://127.0.0.1:${redisPort}` }, 300)).rejects.toThrow(
      'no answer within 300 ms',
    );
    await expect(checkGiven({ redis: `redis://127.0.0.1:${silentPort}` }, 300)).rejects.toThrow(
      'no answer within 300 ms',
    );
  });
});
