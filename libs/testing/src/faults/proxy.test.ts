// The server behind the proxy is a few lines that answer every request with its number, so that each test can say exactly
// which bytes must arrive. That real clients and servers get on with the proxy is shown by every row of the fault suite.
import { afterEach, describe, expect, it } from '@jest/globals';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { until } from '../waiting.js';
import { framing, type Protocol } from './proxy-frames.js';
import { FaultProxy } from './proxy.js';

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).toReversed()) await cleanUp();
});

/** What a server of the protocol would say to the n-th request. */
const SPEECH: Readonly<
  Record<Protocol, { request: (name: string, n: number) => Buffer; reply: (n: number) => Buffer }>
> = {
  redis: {
    request: (name, n) => Buffer.from(`*2\r\n$${name.length}\r\n${name}\r\n$${`k${n}`.length}\r\nk${n}\r\n`),
    reply: (n) => Buffer.from(`*2\r\n$5\r\nreply\r\n:${n}\r\n`),
  },
  kafka: {
    request: (name, n) => {
      const frame = Buffer.alloc(14);
      frame.writeInt32BE(10, 0);
      frame.writeInt16BE(name === 'PRODUCE' ? 0 : 3, 4);
      frame.writeInt32BE(n, 8);
      return frame;
    },
    reply: (n) => {
      const frame = Buffer.alloc(10, n);
      frame.writeInt32BE(6, 0);
      frame.writeInt32BE(n, 4);
      return frame;
    },
  },
  mysql: {
    request: (name) => Buffer.from([name.length + 1, 0, 0, 0, 3, ...Buffer.from(name)]),
    reply: (n) => Buffer.from([7, 0, 0, 1, 0, n, 0, 2, 0, 0, 0]),
  },
  bytes: { request: (name) => Buffer.from(name), reply: (n) => Buffer.from([n]) },
};

/** A proxy before a server that answers, and notes what it was asked. */
async function behind(protocol: Protocol) {
  const asked: string[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
    const { requests } = framing(protocol, () => undefined);
    let count = 0;
    socket.on('data', (chunk) => {
      for (const { name } of requests.push(chunk)) {
        count += 1;
        asked.push(name);
        socket.write(SPEECH[protocol].reply(count));
      }
    });
  });
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  cleanUps.push(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  const proxy = await FaultProxy.start({ protocol, target: { host: '127.0.0.1', port } });
  cleanUps.push(() => proxy.stop());
  return { proxy, asked, openAtServer: () => [...sockets].filter(({ destroyed }) => !destroyed).length };
}

/** A client that keeps everything it hears. */
function dial(proxy: FaultProxy) {
  const socket = connect(proxy.port, '127.0.0.1');
  cleanUps.push(() => socket.destroy());
  const client = {
    heard: Buffer.alloc(0),
    closed: false,
    say: (bytes: Buffer) => void socket.write(bytes),
    socket,
  };
  socket.on('error', () => undefined);
  socket.on('data', (chunk) => (client.heard = Buffer.concat([client.heard, chunk])));
  socket.on('close', () => (client.closed = true));
  return client;
}

const hears = (client: { heard: Buffer }, bytes: Buffer) =>
  until('the client to hear it', 5_000, async () => client.heard.length >= bytes.length).then(() =>
    expect(client.heard).toEqual(bytes),
  );

describe.each(['redis', 'kafka', 'mysql'] as const)('a fault proxy for %s', (protocol) => {
  const { request, reply } = SPEECH[protocol];
  const command = { redis: 'EVALSHA', kafka: 'PRODUCE', mysql: 'COMMIT' }[protocol];
  const replies = (...numbers: number[]) => Buffer.concat(numbers.map(reply));

  it('passes everything on, however the bytes are cut', async () => {
    const { proxy, asked } = await behind(protocol);
    const client = dial(proxy);
    for (const byte of request(command, 1)) client.say(Buffer.from([byte]));
    await hears(client, replies(1));
    client.say(Buffer.concat([request(command, 2), request(command, 3)]));
    await hears(client, replies(1, 2, 3));
    expect(asked).toEqual([command, command, command]);
    expect(proxy.figures()).toMatchObject({
      requests: { [command]: 3 },
      lost: 0,
      unreadable: 0,
      connections: 1,
    });
  });

  it('loses the reply of the n-th request: the server did it, the client cannot know', async () => {
    const { proxy, asked } = await behind(protocol);
    const client = dial(proxy);
    proxy.lose({ request: command, nth: 2, part: 'reply', connection: 'cut' });
    client.say(request('SELECT', 1));
    client.say(request(command, 2));
    await hears(client, replies(1, 2));
    client.say(request(command, 3));
    await until('the cut', 5_000, async () => client.closed);
    expect(client.heard).toEqual(replies(1, 2));
    expect(asked.filter((name) => name === command)).toHaveLength(2);
    expect(proxy.figures().lost).toBe(1);
  });

  it('loses a request: the server never hears of it', async () => {
    const { proxy, asked } = await behind(protocol);
    const client = dial(proxy);
    proxy.lose({ request: command, part: 'request', connection: 'cut' });
    client.say(request(command, 1));
    await until('the cut', 5_000, async () => client.closed);
    expect([asked, client.heard.length]).toEqual([[], 0]);
  });

  it('cuts in the middle of a reply', async () => {
    const { proxy } = await behind(protocol);
    const client = dial(proxy);
    proxy.lose({ request: command, part: 'half of the reply', connection: 'cut' });
    client.say(request(command, 1));
    await until('the cut', 5_000, async () => client.closed);
    expect(client.heard).toEqual(reply(1).subarray(0, Math.ceil(reply(1).length / 2)));
  });

  it('silences what is connected for good, while new connections work', async () => {
    const { proxy, openAtServer } = await behind(protocol);
    const old = dial(proxy);
    old.say(request(command, 1));
    await hears(old, replies(1));
    proxy.silenceEstablished();
    old.say(request(command, 2));
    const fresh = dial(proxy);
    fresh.say(request(command, 1));
    await hears(fresh, replies(1));
    expect([old.heard, old.closed]).toEqual([replies(1), false]);
    // Nobody tells the server that its client has given up.
    old.socket.destroy();
    await until('the client to be gone', 5_000, async () => old.closed);
    expect(openAtServer()).toBe(2);
    proxy.pass();
    await until('the server to be rid of it', 5_000, async () => openAtServer() === 1);
  });

  it('delivers what was stalled afterwards, in order, even of a client that has gone', async () => {
    const { proxy, asked } = await behind(protocol);
    const patient = dial(proxy);
    patient.say(request(command, 1));
    await hears(patient, replies(1));
    proxy.stall(true);
    const hasty = dial(proxy);
    hasty.say(request(command, 1));
    patient.say(request('SELECT', 2));
    patient.say(request(command, 3));
    await until(
      'both to have written',
      5_000,
      async () => hasty.socket.writableLength + patient.socket.writableLength === 0,
    );
    hasty.socket.end();
    expect([asked.length, patient.heard]).toEqual([1, replies(1)]);
    proxy.stall(false);
    await hears(patient, replies(1, 2, 3));
    await until('the late request', 5_000, async () => asked.length === 4);
  });

  it('delays both ways without changing the order', async () => {
    const { proxy } = await behind(protocol);
    const client = dial(proxy);
    proxy.delay(200);
    const sentAtMs = performance.now();
    client.say(request(command, 1));
    client.say(request(command, 2));
    await hears(client, replies(1, 2));
    expect(performance.now() - sentAtMs).toBeGreaterThan(195);
    proxy.delay(0);
    client.say(request(command, 3));
    await hears(client, replies(1, 2, 3));
  });

  it('refuses and cuts while the server is said to be gone, and passes again afterwards', async () => {
    const { proxy } = await behind(protocol);
    const before = dial(proxy);
    before.say(request(command, 1));
    await hears(before, replies(1));
    proxy.refuse(true);
    const during = dial(proxy);
    await until('both to be closed', 5_000, async () => before.closed && during.closed);
    proxy.pass();
    const after = dial(proxy);
    after.say(request(command, 1));
    await hears(after, replies(1));
  });
});

describe('a fault proxy', () => {
  it('can lose one reply of Kafka and go on, as each reply names its request', async () => {
    const { request, reply } = SPEECH.kafka;
    const { proxy } = await behind('kafka');
    const client = dial(proxy);
    proxy.lose({ request: 'PRODUCE', part: 'reply', connection: 'go on' });
    client.say(request('PRODUCE', 1));
    client.say(request('PRODUCE', 2));
    await hears(client, reply(2));
    expect(proxy.figures().lost).toBe(1);
  });

  it('will not leave a single frame out where the next reply would be taken for the missing one', async () => {
    const { proxy } = await behind('redis');
    expect(() => proxy.lose({ request: 'GET', part: 'reply', connection: 'go on' })).toThrow(
      'cut or silence',
    );
  });

  it('counts only requests that contain what was said', async () => {
    const { request, reply } = SPEECH.redis;
    const { proxy } = await behind('redis');
    const client = dial(proxy);
    proxy.lose({ request: 'EVALSHA', containing: 'k2', part: 'reply', connection: 'cut' });
    client.say(request('EVALSHA', 1));
    await hears(client, reply(1));
    client.say(request('EVALSHA', 2));
    await until('the cut', 5_000, async () => client.closed);
  });

  it('passes on what it cannot read, and says so', async () => {
    const { request, reply } = SPEECH.redis;
    const { proxy, asked } = await behind('redis');
    const odd = await FaultProxy.start({
      protocol: 'kafka',
      target: { host: '127.0.0.1', port: proxy.port },
    });
    cleanUps.push(() => odd.stop());
    const client = dial(odd);
    client.say(request('GET', 1));
    await hears(client, reply(1));
    expect([asked, odd.figures().unreadable > 0]).toEqual([['GET'], true]);
  });

  it('resets a connection to where nobody listens', async () => {
    const { proxy } = await behind('bytes');
    proxy.retarget({ host: '127.0.0.1', port: 1 });
    const client = dial(proxy);
    await until('the reset', 5_000, async () => client.closed);
  });
});
