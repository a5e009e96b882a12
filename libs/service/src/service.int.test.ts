// Starts test/stoppable-service.mjs, a service on the built chassis, as a process of its own, and sends it real signals.
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { createServer as createHttpServer } from 'node:http';
import { createServer, type AddressInfo } from 'node:net';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterEach, describe, expect, test } from '@jest/globals';
import { SalesClient } from '@flash-sale/contracts';

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
  const deadline = performance.now() + 20_000;
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
      import { createLog } from ${JSON.stringify(here('../dist/index.js'))};
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
