import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { fileURLToPath } from 'node:url';
import { afterEach, describe, expect, it } from '@jest/globals';
import { status } from '@grpc/grpc-js';
import { Controller, Module, type INestMicroservice } from '@nestjs/common';
import { GrpcMethod, RpcException } from '@nestjs/microservices';
import {
  CallFailed,
  GrpcChannel,
  LineClient,
  NotSent,
  OrdersClient,
  type order,
  type token,
} from '@flash-sale/contracts';
import { startGrpc } from './grpc.js';
import { createLog } from './log.js';
import { itemDeadlinesMs, type CallInfo } from './overload.js';

/** How: real gRPC servers and clients in this process; what the servers do is set by each test. */
const behaviour: {
  enter: (items: readonly token.EnterItem[], deadlinesMs: readonly number[]) => Promise<token.Entry[]>;
  pay: () => Promise<order.PayReply>;
} = { enter: async () => [], pay: async () => ({ problem: '', pending: true, order: undefined }) };

@Controller()
class TestController {
  @GrpcMethod('Line', 'Enter')
  async enter(request: token.EnterRequest, _: unknown, call: CallInfo): Promise<token.EnterReply> {
    return { results: await behaviour.enter(request.items, itemDeadlinesMs(request, call)) };
  }
  @GrpcMethod('Line', 'FindEntries')
  findEntries({ items }: token.FindEntriesRequest): token.FindEntriesReply {
    return { results: items.map(({ attemptId }) => entryOf(attemptId, 'waiting')) };
  }
  @GrpcMethod('Orders', 'Pay')
  pay(): Promise<order.PayReply> {
    return behaviour.pay();
  }
}
@Module({ controllers: [TestController] })
class TestModule {}

let server: INestMicroservice | undefined;
let closables: { close(): void }[] = [];
afterEach(async () => {
  for (const one of closables) one.close();
  closables = [];
  await server?.close();
  server = undefined;
});

async function start(): Promise<string> {
  const port = await freePort();
  server = await startGrpc({ module: TestModule, host: '127.0.0.1', port }, createLog('test', 'silent'));
  return `127.0.0.1:${port}`;
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const probe = createServer().listen(0, '127.0.0.1', () => {
      const address = probe.address();
      probe.close(() => resolve(typeof address === 'object' && address ? address.port : 0));
    });
  });
}

const keep = <One extends { close(): void }>(one: One): One => {
  closables.push(one);
  return one;
};
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

function entryOf(entryId: string, state: string): token.Entry {
  return {
    problem: '',
    entryId,
    state,
    created: true,
    purchaseToken: '',
    expiresAtMs: 0,
    position: 0,
    estimatedWaitSeconds: 0,
    pollAfterMs: 0,
    ticket: '',
    reason: '',
    place: undefined,
  };
}
function wish(attemptId: string): token.EnterItem {
  return {
    attemptId,
    shopperId: 'alice',
    quantity: 1,
    challengeSolution: '',
    challenge: '',
    lineMode: 'off',
    admitPerSecond: 1,
    context: undefined,
  };
}
const PAYMENT: order.PayRequest = {
  orderId: 'o',
  shopperId: 'alice',
  idempotencyKey: 'k',
  method: 'test-card',
  card: '4242',
  context: undefined,
};

describe('a gRPC server', () => {
  it('works on as much of a batch as there is room for, and answers the rest as unavailable in their places', async () => {
    let worked = 0;
    behaviour.enter = async (items) => {
      worked += items.length;
      return items.map(({ attemptId }) => entryOf(attemptId, 'granted'));
    };
    const channel = keep(new GrpcChannel('Line', await start()));
    const items = Array.from({ length: 5_000 }, (_, n) => wish(`e${n}`));
    const reply = await channel.call<object, token.EnterReply>(
      'Enter',
      { items, waitsMs: [] },
      performance.now() + 30_000,
    );
    expect(reply.results).toHaveLength(5_000);
    const admitted = reply.results.findIndex(({ problem }) => problem === 'unavailable');
    expect(worked).toBe(admitted);
    expect(reply.results.slice(0, admitted).map(({ entryId }) => entryId)).toEqual(
      items.slice(0, admitted).map(({ attemptId }) => attemptId),
    );
    expect(reply.results.slice(admitted).every(({ problem }) => problem === 'unavailable')).toBe(true);
  });

  it('never begins what nobody waits for any more when it was stopped and goes on', async () => {
    const port = await freePort();
    const program = `
      import 'reflect-metadata';
      import { Controller, Module } from '@nestjs/common';
      import { GrpcMethod } from '@nestjs/microservices';
      import { createLog, startService } from ${JSON.stringify(import.meta.resolve('../dist/index.js'))};
      const begun = [];
      class Line {
        enter({ items }) {
          begun.push(...items.map(({ attemptId }) => attemptId));
          return { results: items.map(() => ({ state: 'granted', reason: begun.join() })) };
        }
      }
      GrpcMethod('Line', 'Enter')(Line.prototype, 'enter', Object.getOwnPropertyDescriptor(Line.prototype, 'enter'));
      Controller()(Line);
      class Program {}
      Module({ controllers: [Line] })(Program);
      await startService({
        log: createLog('stopped', 'silent'),
        ops: { port: 0, host: '127.0.0.1' },
        grpc: { module: Program, host: '127.0.0.1', port: ${port} },
      });
      process.stderr.write('listening');`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
      cwd: fileURLToPath(new URL('..', import.meta.url)),
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    keep({ close: () => child.kill('SIGKILL') });
    expect(String(await once(child.stderr, 'data'))).toBe('listening');
    const line = keep(new LineClient(`127.0.0.1:${port}`));
    await line.enter(wish('first'), 10_000);
    child.kill('SIGSTOP');
    await expect(line.enter(wish('late'), 300)).rejects.toThrow('DEADLINE_EXCEEDED');
    child.kill('SIGCONT');
    expect((await line.enter(wish('last'), 10_000)).reason).toBe('first,last');
  });

  it('hears of each item how long its caller waits', async () => {
    let left: number[] = [];
    behaviour.enter = async (items, deadlinesMs) => {
      left = deadlinesMs.map((deadlineMs) => deadlineMs - performance.now());
      return items.map(({ attemptId }) => entryOf(attemptId, 'granted'));
    };
    const line = keep(new LineClient(await start()));
    await line.enter(wish('warm'), 10_000);
    await Promise.all([line.enter(wish('short'), 5_000), line.enter(wish('long'), 20_000)]);
    expect(left[0]).toBeLessThanOrEqual(5_000);
    expect(left[1]).toBeGreaterThan(5_000);
    expect(left[1]).toBeLessThanOrEqual(20_000);
  });
});

describe('a client', () => {
  it('goes on answering as many as the server can take when ten times as many come, and the others know at once', async () => {
    // A real bottleneck: one entry after another, what nobody waits for any more refused as it is by services.
    const EACH_MS = 10;
    let line: Promise<void> = Promise.resolve();
    behaviour.enter = (items, deadlinesMs) =>
      Promise.all(
        items.map((item, index) => {
          const done = line.then(async () => {
            if (performance.now() >= (deadlinesMs[index] ?? 0))
              return { ...entryOf(item.attemptId, ''), problem: 'unavailable' };
            await pause(EACH_MS);
            return entryOf(item.attemptId, 'granted');
          });
          line = done.then(() => {});
          return done;
        }),
      );
    const client = keep(new LineClient(await start()));
    await client.enter(wish('warm'), 10_000);
    // What it can do on this machine at this moment, without any pressure.
    const measuredFromMs = performance.now();
    for (let n = 0; n < 40; n += 1) await client.enter(wish(`m${n}`), 10_000);
    const perMs = 40 / (performance.now() - measuredFromMs);

    const refusedAfterMs: number[] = [];
    const servedAfterMs: number[] = [];
    const found: Promise<boolean>[] = [];
    let sent = 0;
    const startedMs = performance.now();
    const all: Promise<void>[] = [];
    for (let nowMs = startedMs; nowMs < startedMs + 5_000; nowMs = performance.now()) {
      // Ten times what it could do on a machine of its own, so that it is too much on any.
      const due = Math.floor(((nowMs - startedMs) * 10) / EACH_MS);
      for (; sent < due; sent += 1) {
        const askedMs = performance.now();
        const answered = ({ problem }: token.Entry) => {
          (problem === '' ? servedAfterMs : refusedAfterMs).push(performance.now() - askedMs);
        };
        const refused = (error: unknown) => {
          if (!(error instanceof NotSent || error instanceof CallFailed)) throw error;
          refusedAfterMs.push(performance.now() - askedMs);
        };
        all.push(client.enter(wish(`e${sent}`)).then(answered, refused));
        // Those who are inside already are asked after by another method, which has room of its own.
        if (sent % 10 === 0) found.push(isFound(client, `e${sent}`));
      }
      await pause(2);
    }
    await Promise.all(all);
    // How close it comes to all it can is for the fault suite to say; here it must not break down.
    expect(servedAfterMs.length).toBeGreaterThanOrEqual(0.5 * perMs * 5_000);
    expect(refusedAfterMs.length).toBeGreaterThan(servedAfterMs.length);
    expect(medianOf(refusedAfterMs)).toBeLessThan(medianOf(servedAfterMs));
    expect(await Promise.all(found)).not.toContain(false);
  }, 60_000);

  const medianOf = (values: readonly number[]) =>
    values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;

  const isFound = (client: LineClient, attemptId: string): Promise<boolean> =>
    client
      .findEntry(
        { attemptId, shopperId: 'alice', lineMode: 'off', admitPerSecond: 1, context: undefined },
        10_000,
      )
      .then(({ state }) => state === 'waiting');

  it('repeats once what found nobody, within a budget, and then leaves a dead service alone', async () => {
    let calls = 0;
    behaviour.pay = async () => {
      calls += 1;
      throw new RpcException({ code: status.UNAVAILABLE, message: 'gone' });
    };
    const orders = keep(new OrdersClient(await start()));
    await expect(orders.pay(PAYMENT, 5_000)).rejects.toBeInstanceOf(CallFailed);
    expect(calls).toBe(2);
    let asked = 1;
    let open: unknown;
    while (!(open instanceof NotSent) && asked < 50) {
      asked += 1;
      open = await orders.pay(PAYMENT, 5_000).catch((error: unknown) => error);
    }
    expect(open).toBeInstanceOf(NotSent);
    // Five failures open the circuit; the repetitions were a few of them, not of each.
    expect(asked).toBeLessThanOrEqual(6);
    expect(calls).toBeLessThanOrEqual(2 * 5);

    behaviour.pay = async () => ({ problem: '', pending: true, order: undefined });
    const giveUpAtMs = performance.now() + 15_000;
    for (;;) {
      const answer = await orders.pay(PAYMENT, 5_000).catch((error: unknown) => error);
      if (!(answer instanceof Error)) break;
      if (performance.now() > giveUpAtMs) throw answer;
      await pause(20);
    }
  });

  it('repeats nothing that a server has answered', async () => {
    let calls = 0;
    behaviour.pay = async () => {
      calls += 1;
      throw new RpcException({ code: status.INTERNAL, message: 'a defect' });
    };
    const orders = keep(new OrdersClient(await start()));
    await expect(orders.pay(PAYMENT, 5_000)).rejects.toThrow('INTERNAL');
    expect(calls).toBe(1);
  });

  it('has no more calls under way than its bulkhead takes, and refuses the others at once', async () => {
    let finish: () => void = () => {};
    const held = new Promise<void>((resolve) => (finish = resolve));
    behaviour.pay = () => held.then(() => ({ problem: '', pending: true, order: undefined }));
    const orders = keep(new OrdersClient(await start()));
    const calls = Array.from({ length: 300 }, () =>
      orders.pay(PAYMENT, 20_000).then(
        () => 'answered',
        (error: unknown) => (error instanceof NotSent ? 'refused' : String(error)),
      ),
    );
    expect(await Promise.race(calls.slice(-1))).toBe('refused');
    finish();
    const outcomes = await Promise.all(calls);
    expect(outcomes.filter((outcome) => outcome === 'answered')).toHaveLength(256);
    expect(outcomes.filter((outcome) => outcome === 'refused')).toHaveLength(44);
  });
});
