// Starts test/stoppable-service.mjs, a service on the built chassis, as a process of its own, and sends it real signals.
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { Agent, createServer as createHttpServer, get as httpGet } from 'node:http';
import { createServer, type AddressInfo } from 'node:net';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterEach, describe, expect, jest, test } from '@jest/globals';
import { SalesClient } from '@flash-sale/contracts';

// Each test starts processes, and a busy machine takes seconds for each.
jest.setTimeout(180_000);

const here = (path: string) => fileURLToPath(new URL(path, `file://${import.meta.dirname}/`));

interface Line {
  readonly level: string;
  readonly message: string;
  readonly [field: string]: unknown;
}

interface Running {
  readonly child: ChildProcess;
  readonly lines: Line[];
  readonly exited: Promise<number | null>;
  readonly publicUrl: string;
  readonly opsUrl: string;
  readonly grpcAddress: string;
}

const started: ChildProcess[] = [];
afterEach(() => {
  for (const child of started.splice(0)) child.kill('SIGKILL');
});

async function until<Value>(what: string, find: () => Value | undefined | false): Promise<Value> {
  const deadline = performance.now() + 60_000;
  for (;;) {
    const found = find();
    if (found !== undefined && found !== false) return found;
    if (performance.now() > deadline) throw new Error(`still not: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  return port;
}

async function startStoppable(variables: Record<string, string> = {}): Promise<Running> {
  const grpcPort = await freePort();
  const child = spawn(
    process.execPath,
    ['--import', here('../dist/instrumentation.js'), here('../test/stoppable-service.mjs')],
    {
      env: {
        PATH: process.env['PATH'],
        SERVICE_NAME: 'stoppable',
        OPS_PORT: '0',
        GRPC_HOST: '127.0.0.1',
        GRPC_PORT: String(grpcPort),
        DRAIN_WAIT_MS: '300',
        ...variables,
      },
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  started.push(child);
  const lines: Line[] = [];
  createInterface({ input: child.stdout }).on('line', (line) => lines.push(JSON.parse(line) as Line));
  const exited = once(child, 'close').then(([code]) => code as number | null);
  const portOf = (name: string) =>
    until(`${name} listens`, () => lines.find((line) => line['http'] === name)?.['port']);
  const [publicPort, opsPort] = await Promise.all([portOf('public'), portOf('ops')]);
  return {
    child,
    lines,
    exited,
    publicUrl: `http://127.0.0.1:${String(publicPort)}`,
    opsUrl: `http://127.0.0.1:${String(opsPort)}`,
    grpcAddress: `127.0.0.1:${grpcPort}`,
  };
}

describe('a service', () => {
  test('is alive and ready, and shows its metrics by route', async () => {
    const service = await startStoppable();
    expect((await fetch(`${service.opsUrl}/healthz`)).status).toBe(200);
    const ready = await fetch(`${service.opsUrl}/readyz`);
    expect([ready.status, await ready.json()]).toMatchObject([
      200,
      { status: 'ok', details: { accepting: { status: 'up' }, redis: { status: 'up' } } },
    ]);
    await fetch(`${service.publicUrl}/things/42/slow`);
    const sales = new SalesClient(service.grpcAddress);
    await sales.list({}, 5_000);
    sales.close();
    const metrics = await (await fetch(`${service.opsUrl}/metrics`)).text();
    expect(metrics).toMatch(/http_server_request_duration_count\{[^}]*http_route="\/things\/:id\/slow"/);
    expect(metrics).toMatch(/rpc_server_duration_count\{[^}]*rpc_method="list"/);
    expect(metrics).toContain('build_info{');
    expect(metrics).toContain('nodejs_eventloop_delay');
    expect(metrics).not.toContain('things/42');
  });

  test('gives each request an id, and hides secrets and long texts in its log', async () => {
    const service = await startStoppable();
    const given = await fetch(`${service.publicUrl}/fail`, { headers: { 'x-request-id': 'shopper-1' } });
    expect(given.headers.get('x-request-id')).toBe('shopper-1');
    const bad = await fetch(`${service.publicUrl}/fail`, { headers: { 'x-request-id': 'no spaces!' } });
    expect(bad.headers.get('x-request-id')).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab]/);
    const failed = await until('logged', () =>
      service.lines.find((line) => line.message === 'a request failed'),
    );
    expect(failed).toMatchObject({
      requestId: 'shopper-1',
      route: '/fail',
      status: 500,
      service: 'stoppable',
    });
    const about = service.lines.find((line) => line.message === 'about to fail');
    expect(about).toMatchObject({ requestId: 'request-1', token: '[hidden]' });
    expect(String(about?.['text'])).toHaveLength(257);
  });

  test('on SIGTERM finishes what it has, then flushes, then closes, and exits with 0', async () => {
    const service = await startStoppable();
    const slow = fetch(`${service.publicUrl}/things/1/slow`);
    const sales = new SalesClient(service.grpcAddress);
    const call = sales.list({}, 5_000);
    await until('both are under way', () =>
      ['slow request begun', 'slow call begun'].every((message) =>
        service.lines.some((line) => line.message === message),
      ),
    );
    service.child.kill('SIGTERM');
    await until('draining', () => service.lines.some((line) => line.message.startsWith('stopping')));
    expect((await fetch(`${service.opsUrl}/readyz`)).status).toBe(503);
    expect((await fetch(`${service.opsUrl}/healthz`)).status).toBe(200);
    const answer = await slow;
    expect([answer.status, await answer.json(), answer.headers.get('connection')]).toEqual([
      200,
      { answer: 'slow' },
      'close',
    ]);
    expect(await call).toEqual({ sales: [] });
    sales.close();
    expect(await service.exited).toBe(0);
    const done = service.lines.filter((line) => line.message === 'step').map((line) => line['done']);
    expect(done).toEqual(['consumer', 'producer', 'redis']);
    expect(service.lines.at(-1)?.message).toBe('stopped');
  });

  test('on a second signal exits at once', async () => {
    const service = await startStoppable({ DRAIN_WAIT_MS: '60000' });
    service.child.kill('SIGTERM');
    await until('draining', () => service.lines.some((line) => line.message.startsWith('stopping')));
    service.child.kill('SIGTERM');
    expect(await service.exited).toBe(1);
  });

  test('has written every line of its log, in their order, when it exits', async () => {
    const program = `
      import { createLog } from ${JSON.stringify(here('../dist/log.js'))};
      const log = createLog('brief');
      for (let line = 0; line < 300; line++) {
        log.info({ line }, 'a line');
        if (line % 100 === 50) await new Promise((resolve) => setImmediate(resolve));
      }
      process.exit(0);`;
    // Ten times, because it is a race that a log written later loses now and then.
    for (let round = 0; round < 10; round++) {
      const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program]);
      const lines = stdout.trimEnd().split('\n');
      expect(lines.map((line) => (JSON.parse(line) as { line: number }).line)).toEqual([
        ...Array(300).keys(),
      ]);
    }
  });

  test('goes on while nobody reads its log, then says how many lines are missing, and still ends', async () => {
    const lines = 40_000;
    const program = `
      import { setTimeout as delay } from 'node:timers/promises';
      import { createLog } from ${JSON.stringify(here('../dist/log.js'))};
      const log = createLog('talkative');
      for (let line = 0; line < ${lines}; line++) {
        log.info({ line, text: 'x'.repeat(200) }, 'a line');
        if (line % 500 === 0) await delay(1);
      }
      process.stderr.write('said all');
      setInterval(() => {}, 1_000);
      await new Promise((resolve) => process.once('SIGUSR2', resolve));
      log.info({ line: 'last' }, 'a line');
      process.exit(0);`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    started.push(child);
    // Nobody has begun to read stdout; with a log that waits for its reader this would never come.
    await once(child.stderr, 'data');
    const read: Line[] = [];
    const input = createInterface({ input: child.stdout });
    input.on('line', (line) => read.push(JSON.parse(line) as Line));
    const gap = await until('it says what is missing', () =>
      read.find((line) => line.message.startsWith('the reader of this log stood still')),
    );
    child.kill('SIGUSR2');
    expect((await once(child, 'close'))[0]).toBe(0);
    const numbers = read.filter(({ message }) => message === 'a line').map(({ line }) => line);
    const kept = numbers.length - 1;
    expect(numbers).toEqual([...Array(kept).keys(), 'last']);
    expect(kept + Number(gap['lines'])).toBe(lines);
  });

  test('ends in time though nobody reads its log', async () => {
    const program = `
      import { createLog } from ${JSON.stringify(here('../dist/log.js'))};
      const log = createLog('unheard');
      for (let line = 0; line < 5_000; line++) log.info({ text: 'x'.repeat(200) }, 'a line');
      process.exit(3);`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    started.push(child);
    expect((await once(child, 'exit'))[0]).toBe(3);
  });

  test('after an error that nobody handled drains and exits with 1', async () => {
    const service = await startStoppable({ DRAIN_WAIT_MS: '0' });
    await fetch(`${service.publicUrl}/neglect`, { method: 'POST' });
    expect(await service.exited).toBe(1);
    expect(service.lines.find((line) => line.level === 'fatal')).toMatchObject({
      err: { message: 'nobody waits for this' },
    });
    expect(service.lines.some((line) => line['done'] === 'redis')).toBe(true);
  });

  test('sends spans of HTTP and gRPC to a collector, and continues the trace of its caller', async () => {
    let received = '';
    const collector = createHttpServer((request, response) => {
      request.on('data', (bytes: Buffer) => (received += bytes.toString('latin1')));
      request.on('end', () => response.end());
    }).listen(0, '127.0.0.1');
    await once(collector, 'listening');
    const service = await startStoppable({
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${(collector.address() as AddressInfo).port}`,
      DRAIN_WAIT_MS: '0',
    });
    const traceId = '0af7651916cd43dd8448eb211c80319c';
    await fetch(`${service.publicUrl}/things/1/slow`, {
      headers: { traceparent: `00-${traceId}-b7ad6b7169203331-01` },
    });
    const sales = new SalesClient(service.grpcAddress);
    await sales.list({}, 5_000);
    sales.close();
    service.child.kill('SIGTERM');
    expect(await service.exited).toBe(0);
    collector.close();
    for (const name of ['GET /things/:id/slow', 'slow work', 'grpc.flashsale.Sales/List', 'stoppable']) {
      expect(received).toContain(name);
    }
    expect(received).toContain(Buffer.from(traceId, 'hex').toString('latin1'));
    // What was imported is instrumented as well: a line of the log says to which trace it belongs.
    expect(service.lines.find(({ message }) => message === 'slow request begun')).toMatchObject({
      trace_id: traceId,
    });
  });

  test('loads what makes spans only where somebody will see them', async () => {
    const program = `
      import { registerHooks } from 'node:module';
      registerHooks({ load: (url, context, next) => (console.log(url), next(url, context)) });
      await import(${JSON.stringify(here('../dist/instrumentation.js'))});
      process.exit();`;
    const loadedWith = async (variables: Record<string, string>) => {
      const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
        env: { PATH: process.env['PATH'], ...variables },
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      started.push(child);
      let loaded = '';
      child.stdout.on('data', (bytes: Buffer) => (loaded += bytes.toString()));
      expect((await once(child, 'close'))[0]).toBe(0);
      return loaded;
    };
    const instrumentation = '@opentelemetry/instrumentation-grpc/';
    expect(await loadedWith({ OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:1' })).toContain(
      instrumentation,
    );
    expect(await loadedWith({})).not.toContain(instrumentation);
  });

  test('runs as usual with a collector that is not there', async () => {
    const service = await startStoppable({
      OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:1',
      DRAIN_WAIT_MS: '0',
    });
    expect((await fetch(`${service.publicUrl}/things/1/slow`)).status).toBe(200);
    service.child.kill('SIGTERM');
    expect(await service.exited).toBe(0);
  });

  test('names all faults of its environment at once and exits with 2', async () => {
    const child = spawn(process.execPath, [here('../test/stoppable-service.mjs')], {
      env: { PATH: process.env['PATH'], OPS_PORT: 'http', LOG_LEVEL: 'loud' },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    started.push(child);
    let said = '';
    child.stderr.on('data', (bytes) => (said += String(bytes)));
    expect((await once(child, 'close'))[0]).toBe(2);
    expect(said).toContain('OPS_PORT: must be a whole number (it is "http"), e.g. OPS_PORT=9090');
    expect(said).toContain('LOG_LEVEL: must be trace');
    expect(said).toContain('GRPC_PORT is missing, e.g. GRPC_PORT=9000');
  });
});

describe('two instances that are restarted in turn', () => {
  /** Restarts each on the ports that it has, under the load, and says what became of the load's requests. */
  async function restartUnder(
    variables: Record<string, string>,
    load: (
      instances: readonly Running[],
      isOver: () => boolean,
      tally: (failure?: string) => void,
    ) => Promise<void>,
  ) {
    const instances = await Promise.all([startStoppable(variables), startStoppable(variables)]);
    const failures: string[] = [];
    let answered = 0;
    let over = false;
    const tally = (failure?: string) => {
      if (failure === undefined) answered += 1;
      else failures.push(failure);
      over ||= failures.length > 100;
    };
    const running = load(instances, () => over, tally);
    const answersAfter = async (more: number) => {
      const enough = answered + more;
      await until(`${more} more answers`, () => answered >= enough || failures.length > 0);
    };
    await answersAfter(50);
    for (const [index, instance] of instances.entries()) {
      instance.child.kill('SIGTERM');
      expect(await instance.exited).toBe(0);
      await answersAfter(20);
      const [, grpcPort = ''] = instance.grpcAddress.split(':');
      const ports = { GRPC_PORT: grpcPort, HTTP_PORT: new URL(instance.publicUrl).port };
      instances[index] = await startStoppable({ ...variables, ...ports });
      await answersAfter(50);
    }
    over = true;
    await running;
    return { failures, answered };
  }

  const reasonOf = (error: unknown) => (error instanceof Error ? error.message : String(error));

  test('cut no gRPC call', async () => {
    // The wait is longer than a client lets pass before it looks whether a server is back that was away.
    const { failures } = await restartUnder({ DRAIN_WAIT_MS: '2000' }, async (instances, isOver, tally) => {
      const sales = new SalesClient(instances.map(({ grpcAddress }) => grpcAddress).join(','));
      await Promise.all(
        Array.from({ length: 16 }, async (_, client) => {
          while (!isOver()) {
            // One of them is slow, so that there is always a call under way when a server stops.
            const call = client === 0 ? sales.list({}, 10_000) : sales.report({ saleId: 'any' }, 10_000);
            await call.then(
              () => tally(),
              (error: unknown) => tally(reasonOf(error)),
            );
            await new Promise((resolve) => setTimeout(resolve, 5));
          }
        }),
      );
      sales.close();
    });
    expect(failures.slice(0, 5)).toEqual([]);
  });

  test('cut no HTTP request of a load balancer that asks who is ready', async () => {
    const { failures } = await restartUnder({ DRAIN_WAIT_MS: '2000' }, async (instances, isOver, tally) => {
      const ready = new Set<number>([0, 1]);
      const watch = async (index: number) => {
        while (!isOver()) {
          const isReady = await fetch(`${instances[index]?.opsUrl}/readyz`).then(
            ({ ok }) => ok,
            () => false,
          );
          if (isReady) ready.add(index);
          else ready.delete(index);
          await new Promise((resolve) => setTimeout(resolve, 50));
        }
      };
      // As a load balancer's, connections stay open between requests.
      const agent = new Agent({ keepAlive: true, maxSockets: 16 });
      const ask = (url: string) =>
        new Promise<number>((resolve, reject) => {
          const asked = httpGet(url, { agent, timeout: 10_000 }, (response) => {
            response.resume().on('end', () => resolve(response.statusCode ?? 0));
          });
          asked.on('error', reject);
          asked.on('timeout', () => asked.destroy(new Error('no answer')));
        });
      let turn = 0;
      const client = async (path: string) => {
        while (!isOver()) {
          const among = [...ready];
          const instance = instances[among[(turn += 1) % among.length] ?? -1];
          if (!instance) tally('nobody is ready');
          else {
            await ask(`${instance.publicUrl}${path}`).then(
              (status) => tally(status === 200 ? undefined : `HTTP ${status}`),
              (error: unknown) => tally(reasonOf(error)),
            );
          }
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
      };
      const clients = Array.from({ length: 8 }, (_, index) =>
        client(index === 0 ? '/things/1/slow' : '/things/1/fast'),
      );
      await Promise.all([...clients, watch(0), watch(1)]);
      agent.destroy();
    });
    expect(failures.slice(0, 5)).toEqual([]);
  });
});
