import { spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { chooseFreePorts } from '@flash-sale/stack';
import { StandInGateway, TestEdge } from './fixtures/stand-in-gateway.js';

/** How nginx is started, and what is made of the variables for it. */
const ROOT = resolve(import.meta.dirname, '../../..');

let gateway: StandInGateway;
beforeAll(async () => {
  gateway = await StandInGateway.start();
});
afterAll(() => gateway.stop());

describe('start.sh', () => {
  const start = (variables: Record<string, string>) =>
    spawnSync('sh', [join(ROOT, 'deploy/edge/start.sh'), '--check'], {
      env: { PATH: process.env['PATH'] ?? '', ...variables },
      encoding: 'utf8',
    });

  it('says everything that is wrong with its variables at once', () => {
    const { status, stderr } = start({
      GATEWAYS: 'gateway',
      RATE_LIMIT_PER_SHOPPER_PER_SECOND: '-1',
      TLS_PORT: '443',
    });
    expect(status).toBe(2);
    for (const name of [
      'GATEWAYS',
      'OPS_PORT',
      'RATE_LIMIT_PER_SHOPPER_PER_SECOND',
      'TLS_CERTIFICATE',
      'TLS_KEY',
    ])
      expect(stderr).toContain(name);
  });

  it('takes nothing into the configuration that could end a line of it', () => {
    const { status, stderr } = start({
      GATEWAYS: 'a:1',
      PORT: '1',
      OPS_PORT: '2',
      TRUSTED_BALANCERS: '10.0.0.1; include x',
    });
    expect(status).toBe(2);
    expect(stderr).toContain('TRUSTED_BALANCERS');
  });

  it('takes no variable of more than one line, though its first line is right', () => {
    const folder = mkdtempSync(join(tmpdir(), 'edge-test-\n'));
    for (const name of ['index.html', 'file.pem']) writeFileSync(join(folder, name), '');
    const right = {
      GATEWAYS: 'a:1',
      GATEWAY_FEEDS: 'a:2',
      RESOLVER: '10.0.0.1',
      PORT: '80',
      TLS_PORT: '443',
      OPS_PORT: '90',
      HOST: '10.0.0.1',
      OPS_HOST: '10.0.0.1',
      TRUSTED_BALANCERS: '10.0.0.1',
      RATE_LIMIT_PER_ADDRESS_PER_SECOND: '1',
      RATE_LIMIT_PER_SHOPPER_PER_SECOND: '1',
      CONNECTIONS_PER_ADDRESS: '1',
      HSTS_SECONDS: '1',
      WORKERS: '1',
      LOG_LEVEL: 'crit',
      EDGE_USER: 'root',
    };
    try {
      const { status, stderr } = start({
        ...Object.fromEntries(Object.entries(right).map(([name, value]) => [name, `${value}\ninclude x`])),
        TLS_CERTIFICATE: join(folder, 'file.pem'),
        TLS_KEY: join(folder, 'file.pem'),
        WEB_ROOT: folder,
        EDGE_HOME: join(folder, 'home'),
      });
      expect(status).toBe(2);
      const names = [...Object.keys(right), 'TLS_CERTIFICATE', 'TLS_KEY', 'WEB_ROOT', 'EDGE_HOME'];
      expect(names.filter((name) => !stderr.includes(`${name} has more than one line`))).toEqual([]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  /** What it writes into generated/ for these variables, by file. */
  async function generated(variables: Record<string, string>): Promise<(file: string) => string> {
    const [port = 0, tlsPort = 0, opsPort = 0] = await chooseFreePorts(3);
    const home = mkdtempSync(join(tmpdir(), 'edge-test-'));
    try {
      start({
        GATEWAYS: '127.0.0.1:1',
        PORT: String(port),
        TLS_PORT: String(tlsPort),
        TLS_CERTIFICATE: 'self-signed',
        OPS_PORT: String(opsPort),
        EDGE_HOME: home,
        EDGE_USER: 'root',
        ...variables,
      });
      const files = readdirSync(join(home, 'generated'));
      const texts = new Map(files.map((name) => [name, readFileSync(join(home, 'generated', name), 'utf8')]));
      return (file) => texts.get(file) ?? '';
    } finally {
      rmSync(home, { recursive: true });
    }
  }

  it('listens on addresses of both kinds, for those inside on this machine only unless it is told', async () => {
    const files = await generated({ HOST: '::', OPS_HOST: '::1', RESOLVER: 'fd00::53' });
    expect(files('listen.conf')).toMatch(/^listen \[::\]:\d+ backlog[^]*^listen \[::\]:\d+ ssl/m);
    expect(files('ops-listen.conf')).toMatch(/^listen \[::1\]:/);
    expect(files('http.conf')).toContain('resolver [fd00::53] ');
    expect((await generated({}))('ops-listen.conf')).toMatch(/^listen 127\.0\.0\.1:/);
  });

  it('does not serve a page that its processes may not read', () => {
    const folder = mkdtempSync(join(tmpdir(), 'edge-test-'));
    writeFileSync(join(folder, 'index.html'), '');
    try {
      const { stderr } = start({ GATEWAYS: '127.0.0.1:1', PORT: '1', OPS_PORT: '2', WEB_ROOT: folder });
      // Only root gives them to somebody else.
      const says = expect.stringMatching(/WEB_ROOT .*may not read/);
      expect(stderr).toEqual(process.getuid?.() === 0 ? says : expect.not.stringContaining('WEB_ROOT'));
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('says for how long TLS is a must, or does not', async () => {
    expect((await generated({}))('http.conf')).toContain('"max-age=300"');
    expect((await generated({ HSTS_SECONDS: '31536000' }))('http.conf')).toContain('"max-age=31536000"');
    expect((await generated({ HSTS_SECONDS: '0' }))('http.conf')).not.toContain('max-age');
  });

  it('makes a configuration that nginx takes', async () => {
    const [port = 0, opsPort = 0] = await chooseFreePorts(2);
    const { status, stderr } = start({
      GATEWAYS: '127.0.0.1:1',
      PORT: String(port),
      OPS_PORT: String(opsPort),
    });
    expect([status, stderr]).toEqual([0, expect.stringContaining('test is successful')]);
  });

  it('speaks of problems as the contracts do', () => {
    const script = join(ROOT, 'deploy/edge/generate.mjs');
    const check = spawnSync(process.execPath, [script, '--check'], { encoding: 'utf8' });
    expect([check.status, check.stderr]).toEqual([0, '']);
  });
});

describe('the edge', () => {
  it('takes calls in processes of an unprivileged user', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'edge-test-'));
    chmodSync(folder, 0o755);
    const one = await TestEdge.start({
      GATEWAYS: gateway.address,
      EDGE_HOME: join(folder, 'home'),
      EDGE_USER: '',
    });
    try {
      const { stdout } = spawnSync('ps', ['-A', '-o', 'ppid=,user=,args='], { encoding: 'utf8' });
      const users = [...stdout.matchAll(/^ *(\d+) +(\S+) +nginx: worker/gm)]
        .filter(([, parent]) => parent === String(one.pid))
        .map(([, , user]) => user);
      expect(users.length).toBeGreaterThan(0);
      expect(users).not.toContain('root');
      expect(await one.passes('sale', 'a-shopper')).toBe(true);
    } finally {
      await one.stop();
      rmSync(folder, { recursive: true });
    }
  });

  it('leaves nothing behind when it is told to end', async () => {
    const one = await TestEdge.start({ GATEWAYS: gateway.address });
    await one.stop();
    await expect(fetch(one.url)).rejects.toThrow();
  });
});
