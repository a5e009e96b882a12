// Against a real broker (KAFKA_BROKERS). What a dead network does is shown with a proxy that stops passing bytes on; the
// clients are sent through it by `route`, since a broker tells its clients its own address.
import net from 'node:net';
import type { AddressInfo } from 'node:net';
import { afterAll, afterEach, beforeAll, describe, expect, jest, test } from '@jest/globals';
import { Kafka, logLevel } from 'kafkajs';
import { KafkaAdmin, hasPassed } from './admin.js';
import { BatchConsumer, type Chunk, type ConsumerOptions } from './consumer.js';
import { partitionOf } from './partition.js';
import { SendFailed, SupervisedProducer, type ProducerOptions } from './producer.js';

const brokers = (process.env['KAFKA_BROKERS'] ?? '127.0.0.1:9092').split(',');
const connection = { brokers, clientId: 'kafka-test' };
const admin = new KafkaAdmin(connection);
const run = `${process.pid}-${Date.now().toString(36)}`;
const madeTopics: string[] = [];

/** What a test opened, closed after it however it ended. */
const leftOver: (() => unknown)[] = [];
beforeAll(() => admin.logBounds(`warm-${run}`).catch(() => {}));
afterEach(async () => {
  await Promise.all(leftOver.splice(0).map((close) => close()));
});
afterAll(async () => {
  for (const topic of madeTopics) await admin.deleteTopic(topic);
  await admin.close();
});

async function newTopic(name: string, partitions: number): Promise<string> {
  const topic = `test-kafka-lib-${name}-${run}`;
  madeTopics.push(topic);
  const config = { 'message.timestamp.type': 'LogAppendTime' };
  const made = await admin.ensureTopic({ topic, partitions, config });
  expect(made).toEqual({ created: true, partitions });
  return topic;
}

async function newProducer(options: Partial<ProducerOptions> = {}): Promise<SupervisedProducer> {
  const producer = new SupervisedProducer({ ...connection, ...options });
  leftOver.push(() => producer.close(500));
  await producer.connect();
  return producer;
}

function newConsumer(topic: string, options: Partial<ConsumerOptions> & Pick<ConsumerOptions, 'handle'>) {
  const consumer = new BatchConsumer({
    ...connection,
    topic,
    groupId: `group-${topic}`,
    sessionTimeoutMs: 6_000,
    heartbeatMs: 200,
    maxWaitMs: 50,
    retryDelayMs: { first: 20, max: 100 },
    ...options,
  });
  leftOver.push(() => consumer.stop(3_000));
  consumer.start();
  return consumer;
}

async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 25_000;
  while (!(await holds())) {
    if (performance.now() > deadline) throw new Error(`still not: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const messages = (count: number, prefix = 'key') =>
  Array.from({ length: count }, (_, index) => ({ key: `${prefix}-${index}`, value: `value-${index}` }));

/** Passes bytes on until it is told to be silent: then the connections stay open and nothing comes through. */
async function openProxy() {
  const [host = '', port = ''] = (brokers[0] ?? '').split(':');
  const state = { refusing: false };
  const sockets = new Set<net.Socket>();
  const server = net.createServer((near) => {
    if (state.refusing) return void near.destroy();
    const far = net.connect(Number(port), host);
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from);
      from.on('error', () => {});
      from.on('close', () => to.destroy());
      from.on('data', (bytes) => stuck.has(near) || to.write(bytes));
    }
  });
  const stuck = new Set<net.Socket>();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  leftOver.push(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return {
    route: () => ({ host: '127.0.0.1', port: (server.address() as AddressInfo).port }),
    /** Closes every new connection at once, as where nobody listens. */
    refuse: (refusing: boolean) => {
      state.refusing = refusing;
    },
    /** Silences the connections that exist; new ones work. */
    silenceExisting: () => {
      for (const socket of sockets) stuck.add(socket);
    },
  };
}

describe('SupervisedProducer', () => {
  test('tells partition and offset of each message of many concurrent sends', async () => {
    const topic = await newTopic('offsets', 5);
    const producer = await newProducer({ maxBatch: 40 });
    const outgoing = messages(1_000);
    const sent = await Promise.all(
      outgoing.map(async (message, index) => {
        if (index % 7 === 0) await new Promise((resolve) => setTimeout(resolve, index % 50));
        return producer.enqueue(topic, message);
      }),
    );
    const read = new Map<string, { partition: number; offset: bigint }>();
    newConsumer(topic, {
      handle: async (chunk) => {
        for (const { key, offset } of chunk.messages)
          read.set(String(key), { partition: chunk.partition, offset });
      },
    });
    await until('all read', () => read.size === outgoing.length);
    sent.forEach((place, index) => {
      const key = outgoing[index]?.key ?? '';
      expect(read.get(key)).toEqual({ partition: place.partition, offset: place.offset });
      expect(place.partition).toBe(partitionOf(key, 5));
      expect(place.settledAtMs).toBeGreaterThanOrEqual(place.sentAtMs);
    });
  });

  test('sends the messages of one turn in one request', async () => {
    const topic = await newTopic('turn', 1);
    const producer = await newProducer();
    const sent = await producer.send(topic, messages(200));
    expect(new Set(sent.map(({ sentAtMs }) => sentAtMs)).size).toBe(1);
    expect(sent.map(({ offset }) => Number(offset))).toEqual(sent.map((_, index) => index));
  });

  test('never sends a message whose time to begin has passed', async () => {
    const topic = await newTopic('late', 1);
    const producer = await newProducer();
    const late = await producer
      .enqueue(topic, { key: 'k', value: 'v' }, performance.now() - 1)
      .catch((e) => e);
    expect(late).toBeInstanceOf(SendFailed);
    expect(late.sentAtMs).toBeUndefined();
    await producer.enqueue(topic, { key: 'k', value: 'v' });
    expect(await admin.endOffsets(topic)).toEqual(new Map([[0, 1n]]));
  });

  test('refuses more than may wait, and everything once closed', async () => {
    const topic = await newTopic('full', 1);
    const producer = await newProducer({ maxWaiting: 2 });
    const results = await Promise.allSettled(messages(3).map((message) => producer.enqueue(topic, message)));
    expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'fulfilled', 'rejected']);
    await producer.close();
    await expect(producer.enqueue(topic, { key: 'k', value: 'v' })).rejects.toThrow('the producer is closed');
  });

  test('says unknown, not no, when the topic does not exist, and does not make it', async () => {
    const producer = await newProducer();
    const missing = `test-kafka-lib-missing-${run}`;
    await expect(producer.enqueue(missing, { key: 'k', value: 'v' })).rejects.toThrow(
      'Kafka did not acknowledge',
    );
    await expect(admin.logBounds(missing)).rejects.toThrow();
  });

  test('is replaced when its connection goes silent, and works again', async () => {
    const topic = await newTopic('silent', 3);
    const proxy = await openProxy();
    const producer = await newProducer({
      route: proxy.route,
      requestTimeoutMs: 500,
      replaceAfterSilenceMs: 800,
    });
    await producer.enqueue(topic, { key: 'before', value: 'v' });
    proxy.silenceExisting();
    const stuck = await producer.enqueue(topic, { key: 'stuck', value: 'v' }).catch((error) => error);
    expect(stuck).toBeInstanceOf(SendFailed);
    expect(stuck.sentAtMs).toBeGreaterThan(0);
    let failures = 0;
    await until('a send succeeds', () =>
      producer.enqueue(topic, { key: 'after', value: 'v' }).then(
        () => true,
        () => {
          failures += 1;
          return false;
        },
      ),
    );
    expect(producer.generation).toBe(2);
    // Without the supervisor they fail for a quarter of an hour.
    expect(failures).toBeLessThan(20);
  });

  test('is replaced when its connection goes silent, though messages come one by one', async () => {
    const topic = await newTopic('silent-lone', 1);
    const proxy = await openProxy();
    const producer = await newProducer({
      route: proxy.route,
      requestTimeoutMs: 500,
      replaceAfterSilenceMs: 800,
      replaceAfterFailures: 1_000,
    });
    await producer.enqueue(topic, { key: 'before', value: 'v' });
    proxy.silenceExisting();
    // Each waits until the one before has failed, so that there are moments with nothing to send.
    await until('a send succeeds', () =>
      producer.enqueue(topic, { key: 'after', value: 'v' }).then(
        () => true,
        () => false,
      ),
    );
    expect(producer.generation).toBe(2);
  });

  test('is replaced after failures in a row', async () => {
    const topic = await newTopic('failing', 1);
    const proxy = await openProxy();
    const producer = await newProducer({
      route: proxy.route,
      requestTimeoutMs: 300,
      replaceAfterFailures: 2,
      replaceAfterSilenceMs: 60_000,
    });
    await producer.enqueue(topic, { key: 'before', value: 'v' });
    proxy.silenceExisting();
    await Promise.allSettled(
      Array.from({ length: 2 }, async (_, index) => {
        await new Promise((resolve) => setTimeout(resolve, index * 50));
        await producer.enqueue(topic, { key: 'stuck', value: 'v' });
      }),
    );
    await until('replaced', () => producer.generation === 2);
    await producer.enqueue(topic, { key: 'after', value: 'v' });
  });

  test('starts while there is no broker, and sends what still waits when there is one', async () => {
    const topic = await newTopic('started-without', 1);
    const proxy = await openProxy();
    proxy.refuse(true);
    const producer = new SupervisedProducer({ ...connection, route: proxy.route });
    leftOver.push(() => producer.close(500));
    producer.start();
    const late = await producer
      .enqueue(topic, { key: 'k', value: 'v' }, performance.now() + 300)
      .catch((e) => e);
    expect([late, late.sentAtMs]).toEqual([expect.any(SendFailed), undefined]);
    expect(producer.isConnected).toBe(false);
    const patient = producer.enqueue(topic, { key: 'k', value: 'v' }, performance.now() + 20_000);
    proxy.refuse(false);
    expect(await patient).toMatchObject({ offset: 0n });
    expect(producer.isConnected).toBe(true);
  });

  test('says where it looked when there is no broker', async () => {
    const producer = new SupervisedProducer({ brokers: ['127.0.0.1:1'], clientId: 'lost' });
    await expect(producer.connect()).rejects.toThrow('no Kafka broker answers at 127.0.0.1:1');
    await producer.close(0);
  });
});

test('a connection that nobody uses sets no timer again and again', async () => {
  const topic = await newTopic('idle', 1);
  const producer = await newProducer();
  await producer.send(topic, messages(1));
  const timers = jest.spyOn(globalThis, 'setTimeout');
  try {
    await new Promise((resolve) => setInterval(resolve, 500).unref());
    expect(timers.mock.calls.filter(([, delayMs = 0]) => delayMs < 0)).toEqual([]);
  } finally {
    timers.mockRestore();
  }
});

describe('BatchConsumer', () => {
  test('hands over chunks of bounded size and commits behind them', async () => {
    const topic = await newTopic('chunks', 2);
    const producer = await newProducer();
    await producer.send(topic, messages(95));
    const sizes: number[] = [];
    const consumer = newConsumer(topic, {
      maxChunk: 10,
      handle: async (chunk) => {
        sizes.push(chunk.messages.length);
      },
    });
    await until('all handled', () => sizes.reduce((sum, size) => sum + size, 0) === 95);
    expect(Math.max(...sizes)).toBe(10);
    const { ends, lows } = await admin.logBounds(topic);
    await until('committed', async () =>
      hasPassed(await admin.committedOffsets(`group-${topic}`, topic), ends, lows),
    );
    expect(consumer.figures()).toMatchObject({ assignedPartitions: 2, lagRecords: 0, oldestAgeMs: 0 });
    expect(consumer.isHealthy()).toBe(true);
  });

  test('commits what was handled in one turn with one request', async () => {
    const topic = await newTopic('one-commit', 6);
    const producer = await newProducer();
    await producer.send(topic, messages(60));
    let handleAll = () => {};
    const all = new Promise<void>((resolve) => (handleAll = resolve));
    const begun = new Set<number>();
    const consumer = newConsumer(topic, {
      concurrency: 6,
      handle: ({ partition }) => {
        begun.add(partition);
        if (begun.size === 6) handleAll();
        return all;
      },
    });
    const { ends, lows } = await admin.logBounds(topic);
    await until('committed', async () =>
      hasPassed(await admin.committedOffsets(`group-${topic}`, topic), ends, lows),
    );
    expect(consumer.figures()).toMatchObject({ handledRecords: 60, handledChunks: 6, commits: 1 });
  });

  test('gathers what comes one by one, and lets nobody wait for a first record', async () => {
    const topic = await newTopic('gathering', 1);
    const producer = await newProducer();
    const sizes: number[] = [];
    const consumer = newConsumer(topic, {
      gatherMs: 100,
      handle: async (chunk) => {
        sizes.push(chunk.messages.length);
      },
    });
    await until('joined', () => consumer.figures().assignedPartitions === 1);
    for (const message of messages(200)) {
      await producer.enqueue(topic, message);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    await until('all handled', () => consumer.figures().handledRecords === 200);
    expect(sizes[0]).toBe(1);
    expect(sizes.length).toBeLessThan(50);
  });

  test('tries a failing chunk again until it succeeds, skipping nothing, while other partitions go on', async () => {
    const topic = await newTopic('failing-chunk', 2);
    const producer = await newProducer();
    await producer.send(topic, messages(60));
    const attempts: number[] = [];
    const handled: string[] = [];
    const doneWhileFailing = new Set<number>();
    const consumer = newConsumer(topic, {
      maxChunk: 10,
      handle: async (chunk: Chunk) => {
        if (chunk.partition === 0 && attempts.length < 4) {
          attempts.push(chunk.attempt);
          throw new Error('the database is away');
        }
        if (attempts.length < 4) doneWhileFailing.add(chunk.partition);
        handled.push(...chunk.messages.map(({ key }) => String(key)));
      },
    });
    await until('all handled', () => handled.length >= 60);
    expect(attempts).toEqual([1, 2, 3, 4]);
    expect(handled.toSorted()).toEqual(
      messages(60)
        .map(({ key }) => key)
        .toSorted(),
    );
    expect([...doneWhileFailing]).toEqual([1]);
    expect(consumer.figures().failedChunks).toBe(4);
    expect(consumer.isHealthy()).toBe(true);
  });

  test('keeps its partitions during a handle longer than the session', async () => {
    const topic = await newTopic('long', 1);
    const producer = await newProducer();
    await producer.send(topic, messages(3));
    let calls = 0;
    newConsumer(topic, {
      handle: async () => {
        calls += 1;
        await new Promise((resolve) => setTimeout(resolve, 7_500));
      },
    });
    const { ends, lows } = await admin.logBounds(topic);
    await until('committed', async () =>
      hasPassed(await admin.committedOffsets(`group-${topic}`, topic), ends, lows),
    );
    expect(calls).toBe(1);
  });

  test('loses nothing when members come and go', async () => {
    const topic = await newTopic('rebalance', 6);
    const producer = await newProducer();
    const handled = new Map<string, number>();
    const handle = async (chunk: Chunk) => {
      await new Promise((resolve) => setTimeout(resolve, 15));
      for (const { key } of chunk.messages) handled.set(String(key), (handled.get(String(key)) ?? 0) + 1);
    };
    const first = newConsumer(topic, { maxChunk: 5, handle });
    await producer.send(topic, messages(300, 'a'));
    await until('begun', () => handled.size > 20);
    const second = newConsumer(topic, { maxChunk: 5, handle });
    await producer.send(topic, messages(300, 'b'));
    await until('both have partitions', () =>
      [first, second].every((member) => member.figures().assignedPartitions === 3),
    );
    await first.stop(5_000);
    await producer.send(topic, messages(300, 'c'));
    await until('all handled', () => handled.size === 900);
    const { ends, lows } = await admin.logBounds(topic);
    await until('committed', async () =>
      hasPassed(await admin.committedOffsets(`group-${topic}`, topic), ends, lows),
    );
  });

  test('finishes and commits the chunk under way when it is stopped', async () => {
    const topic = await newTopic('stop', 1);
    const producer = await newProducer();
    await producer.send(topic, messages(30));
    let begun = 0;
    let finished = 0;
    const consumer = newConsumer(topic, {
      maxChunk: 10,
      handle: async () => {
        begun += 1;
        await new Promise((resolve) => setTimeout(resolve, 300));
        finished += 1;
      },
    });
    await until('a chunk is under way', () => begun === 1);
    await consumer.stop();
    expect({ begun, finished }).toEqual({ begun: 1, finished: 1 });
    expect(await admin.committedOffsets(`group-${topic}`, topic)).toEqual(new Map([[0, 10n]]));
  });

  describe('with a name that outlives its process', () => {
    // Longer than a test: a group that waits for one that died never gets that far.
    const times = { sessionTimeoutMs: 60_000, rebalanceTimeoutMs: 60_000, joinWithinMs: 130_000 };

    /** A member that can be made dead for the group: then nothing that it says, not even a farewell, comes through. */
    async function newMortal(topic: string, options: Parameters<typeof newConsumer>[1]) {
      const proxy = await openProxy();
      const consumer = newConsumer(topic, { ...times, ...options, route: proxy.route });
      const die = () => {
        proxy.refuse(true);
        proxy.silenceExisting();
      };
      return { consumer, die };
    }

    const share = (member: BatchConsumer) => member.figures().assignedPartitions;

    test('does not wait for the session of its earlier life when it comes back', async () => {
      const topic = await newTopic('earlier-life', 2);
      const producer = await newProducer();
      const handledBy = new Map<string, string>();
      const reading = (instance: string) => ({
        ...times,
        instance,
        handle: async (chunk: Chunk) => {
          for (const { key } of chunk.messages) handledBy.set(String(key), instance);
        },
      });
      const lives = newConsumer(topic, reading('lives'));
      const { consumer: first, die } = await newMortal(topic, reading('dies'));
      await until('both have joined', () => share(lives) === 1 && share(first) === 1);
      die();
      const again = newConsumer(topic, reading('dies'));
      await until('both have joined again', () => share(lives) === 1 && share(again) === 1);
      await producer.send(topic, messages(20));
      await until('all handled', () => handledBy.size === 20);
      expect(new Set(handledBy.values())).toEqual(new Set(['lives', 'dies']));
    });

    test('does not wait for an earlier life that died while the group formed', async () => {
      const topic = await newTopic('died-joining', 2);
      const producer = await newProducer();
      let finish: (() => void) | undefined;
      const handled = new Set<string>();
      // As long as it handles it does not join again, so that the group goes on forming.
      const lives = newConsumer(topic, {
        ...times,
        instance: 'lives',
        handle: async ({ messages: [message] }) => {
          if (message?.key === 'long') await new Promise<void>((resolve) => (finish = resolve));
          handled.add(String(message?.key));
        },
        maxChunk: 1,
      });
      await producer.enqueue(topic, { key: 'long', value: 'v' });
      await until('one is busy', () => finish !== undefined);
      const handle = async (chunk: Chunk) => {
        for (const { key } of chunk.messages) handled.add(String(key));
      };
      const { die } = await newMortal(topic, { instance: 'dies', handle });
      const kafka = new Kafka({ ...connection, brokers: [...brokers], logLevel: logLevel.NOTHING }).admin();
      leftOver.push(() => kafka.disconnect());
      await kafka.connect();
      await until('another waits for the group', async () => {
        const { groups } = await kafka.describeGroups([`group-${topic}`]);
        const [group] = groups;
        return group?.state === 'PreparingRebalance' && group.members.length === 2;
      });
      die();
      const again = newConsumer(topic, { ...times, instance: 'dies', handle });
      finish?.();
      await until('both have joined', () => share(lives) === 1 && share(again) === 1);
      await producer.send(topic, messages(20));
      await until('all handled', () => handled.size === 21);
    });
  });

  test('gets a fresh connection when the old one goes silent', async () => {
    const topic = await newTopic('consumer-silent', 1);
    const proxy = await openProxy();
    const producer = await newProducer();
    const handled: string[] = [];
    newConsumer(topic, {
      route: proxy.route,
      requestTimeoutMs: 1_000,
      handle: async (chunk) => {
        handled.push(...chunk.messages.map(({ key }) => String(key)));
      },
    });
    await producer.enqueue(topic, { key: 'before', value: 'v' });
    await until('handled', () => handled.includes('before'));
    proxy.silenceExisting();
    await producer.enqueue(topic, { key: 'after', value: 'v' });
    await until('handled again', () => handled.includes('after'));
  });
});

describe('KafkaAdmin', () => {
  test('reads on a fresh connection when the old one goes silent', async () => {
    const topic = await newTopic('admin-silent', 2);
    const proxy = await openProxy();
    const proxied = new KafkaAdmin({ ...connection, route: proxy.route });
    leftOver.push(() => proxied.close());
    const { ends } = await proxied.logBounds(topic);
    proxy.silenceExisting();
    expect(await proxied.endOffsets(topic)).toEqual(ends);
    expect(await proxied.committedOffsets('nobody', topic)).toEqual(new Map());
  });

  test('makes topics in the background as soon as there is a broker', async () => {
    const topic = `test-kafka-lib-background-${run}`;
    madeTopics.push(topic);
    const proxy = await openProxy();
    proxy.refuse(true);
    const late = new KafkaAdmin({ ...connection, route: proxy.route });
    leftOver.push(() => late.close());
    const isThere = late.startEnsuring([{ topic, partitions: 2 }]);
    await expect(late.logBounds(topic)).rejects.toThrow('failed');
    expect(isThere()).toBe(false);
    proxy.refuse(false);
    await until('made', isThere);
    expect((await late.endOffsets(topic)).size).toBe(2);
  });

  test('lets a group read again what it has passed', async () => {
    const topic = await newTopic('rewind', 1);
    const producer = await newProducer();
    await producer.send(topic, messages(10));
    const read: string[] = [];
    const handle = async (chunk: Chunk) => {
      read.push(...chunk.messages.map(({ key }) => String(key)));
    };
    const first = newConsumer(topic, { handle });
    await until('all read', () => read.length === 10);
    await first.stop(5_000);
    await admin.rewind(`group-${topic}`, topic, new Map([[0, 7n]]));
    newConsumer(topic, { handle });
    await until('the last three read again', () => read.length === 13);
    expect(read.slice(10)).toEqual(['key-7', 'key-8', 'key-9']);
  });

  test('leaves a topic that exists as it is', async () => {
    const topic = await newTopic('exists', 3);
    expect(await admin.ensureTopic({ topic, partitions: 9 })).toEqual({ created: false, partitions: 3 });
  });

  test('knows no commits of a group that never was', async () => {
    const topic = await newTopic('group', 3);
    expect(await admin.committedOffsets('nobody', topic)).toEqual(new Map());
    const { ends, lows } = await admin.logBounds(topic);
    expect(hasPassed(new Map(), ends, lows)).toBe(true);
  });
});
