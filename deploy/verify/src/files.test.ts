import { mkdtempSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { deflateRawSync, gzipSync } from 'node:zlib';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { tgzEntries, zipEntries } from './archives.js';
import { composeFaults, readCompose, type Compose } from './compose.js';
import { dockerfileFaults } from './dockerfile.js';
import { schemaFaults } from './schemas.js';
import { environmentFaults } from './services.js';

const ROOT = join(import.meta.dirname, '../../..');

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'verify-test-'));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

describe('the Dockerfile', () => {
  const source = readFileSync(join(ROOT, 'deploy/images/Dockerfile'), 'utf8');

  it('is sound', () => {
    expect(dockerfileFaults(source)).toEqual([]);
  });

  it.each([
    ['USER 1000:1000', '', 'runs as "root"'],
    ['USER 1000:1000', 'USER node', 'numeric user'],
    ['CMD ["node", "--import"', 'CMD ["npm", "start"', 'SIGTERM'],
    ['"--import", "@flash-sale/service/instrumentation", ', '', 'without the instrumentation'],
    ['/healthz', '/', 'no health check'],
    ['node:24-slim', 'node:latest', '"latest" image'],
    ['WORKDIR /service', 'RUN apt-get update', 'more than copying'],
    ['ARG PNPM_VERSION', 'ARG JWT_SECRET=x\nARG PNPM_VERSION', 'holds a secret'],
  ])('is not sound where %j became %j', (find, put, says) => {
    const broken = source.replace(find, put);
    expect(broken).not.toBe(source);
    expect(dockerfileFaults(broken).join()).toContain(says);
  });
});

describe('the Dockerfile of the edge', () => {
  const source = readFileSync(join(ROOT, 'deploy/edge/Dockerfile'), 'utf8');

  it('is sound', () => {
    expect(dockerfileFaults(source, 'nginx')).toEqual([]);
  });

  it.each([
    ['USER 1000:1000', '', 'runs as "root"'],
    ['CMD ["sh", "/edge/start.sh"]', 'CMD nginx', 'SIGTERM'],
    ['/healthz', '/', 'no health check'],
    ['debian:bookworm-slim', 'debian:latest', '"latest" image'],
  ])('is not sound where %j became %j', (find, put, says) => {
    const broken = source.replace(find, put);
    expect(broken).not.toBe(source);
    expect(dockerfileFaults(broken, 'nginx').join()).toContain(says);
  });
});

describe('the compose files', () => {
  const servers = () => readCompose(join(ROOT, 'deploy/compose.yaml'));
  const services = () => readCompose(join(ROOT, 'deploy/compose.services.yaml'));
  const faultsAfter = (change: (servers: Compose['services'], services: Compose['services']) => void) => {
    const [below, above] = [servers(), services()];
    change(below.services, above.services);
    return composeFaults(below, above).join('\n');
  };

  it('fit together', () => {
    expect(composeFaults(servers(), services())).toEqual([]);
  });

  it('have the defaults of their variables filled in', () => {
    expect(services().services['edge']?.ports).toContain('127.0.0.1:8080:8080');
  });

  it('give the edge no variable that it does not explain', () => {
    const script = readFileSync(join(ROOT, 'deploy/edge/start.sh'), 'utf8');
    const given = Object.keys(services().services['edge']?.environment ?? {});
    expect(given.filter((name) => !new RegExp(`^#   ${name} `, 'm').test(script))).toEqual([]);
  });

  const set = (all: Compose['services'], name: string, change: object) =>
    Object.assign(all[name] ?? {}, change);
  it.each<[string, (below: Compose['services'], above: Compose['services']) => void]>([
    ['there is no service token', (_, above) => delete above['token']],
    [
      'not built with SERVICE=order',
      (_, above) => set(above, 'order', { build: { args: { SERVICE: 'token' } } }),
    ],
    ['may do more than a pod', (_, above) => set(above, 'order', { read_only: false })],
    ['to other machines', (below) => set(below, 'redis', { ports: ['6379:6379'] })],
    ['names no version', (below) => set(below, 'redis', { image: 'redis:latest' })],
    ['depends on mysql, which is not there', (below) => delete below['mysql']],
    ['which nothing checks', (below) => set(below, 'mysql', { healthcheck: undefined })],
    [
      'leads to nowhere',
      (_, above) => set(above, 'token', { environment: { INVENTORY_URL: 'nowhere:9000' } }),
    ],
    ['leads to nobody', (_, above) => set(above, 'edge', { environment: { GATEWAYS: 'nobody:8080' } })],
  ])('do not, if: %s', (says, change) => {
    expect(faultsAfter(change)).toContain(says);
  });
});

describe('environmentFaults', () => {
  const judge = async (source: string, environment: Record<string, string>) => {
    mkdirSync(join(folder, 'dist'));
    writeFileSync(join(folder, 'package.json'), '{"type":"module"}');
    writeFileSync(join(folder, 'dist/env.js'), source);
    return environmentFaults({ name: 'token', folder, dispose: () => undefined }, environment);
  };
  const READER = `export function readTokenEnv() {
    if (process.env.NEEDED) return;
    process.stderr.write('NEEDED is missing\\n');
    process.exit(2);
  }`;

  it('is content where a service has what it needs and reads what it is given', async () => {
    expect(await judge(READER, { NEEDED: '1', SERVICE_NAME: 'token' })).toEqual([]);
  });

  it('repeats what a service says about a variable that it lacks', async () => {
    expect(await judge(READER, {})).toEqual(['token: NEEDED is missing']);
  });

  it('names a variable that nobody reads', async () => {
    expect(await judge(READER, { NEEDED: '1', NEDED: '1' })).toEqual([
      'token is given NEDED, which it does not read',
    ]);
  });

  it('does not take a module without a reader for one that is content', async () => {
    expect((await judge('export const x = 1;', {})).join()).toContain('exports 0 functions named read');
  });
});

describe('schemaFaults', () => {
  const files: Record<string, unknown> = {
    '_definitions.json': {
      $defs: { Spec: { properties: { n: { type: 'integer' } }, additionalProperties: false } },
    },
    'thing-example-v1.json': {
      properties: { apiVersion: {}, kind: {}, spec: { $ref: '/api/_definitions.json#/$defs/Spec' } },
      additionalProperties: false,
    },
  };
  const faultsOf = (content: Record<string, unknown>, kind = 'Thing') =>
    schemaFaults([{ kind, apiVersion: 'example.io/v1', title: `${kind}/x`, content }], (file) => files[file]);

  it('is content with what fits', () => {
    expect(faultsOf({ kind: 'Thing', spec: { n: 1 } })).toEqual([]);
  });

  it('names a field that does not exist, one of a wrong type, and a kind that does not exist', () => {
    expect(faultsOf({ spec: { m: 1 } })).toEqual(['Thing/x/spec must NOT have additional properties "m"']);
    expect(faultsOf({ spec: { n: '1' } })).toEqual(['Thing/x/spec/n must be integer']);
    expect(faultsOf({}, 'Thingy')).toEqual(['Thingy/x: Kubernetes has no Thingy in example.io/v1']);
  });
});

describe('archives', () => {
  it('of type ZIP give their files, stored and deflated, and no folders', () => {
    const zip = makeZip([
      { name: 'folder/', bytes: Buffer.alloc(0), deflate: false },
      { name: 'folder/stored', bytes: Buffer.from('as it is'), deflate: false },
      { name: 'deflated', bytes: Buffer.alloc(10_000, 'x'), deflate: true },
    ]);
    const entries = zipEntries(Buffer.concat([zip, Buffer.from('')]));
    expect(entries.map(({ name }) => name)).toEqual(['folder/stored', 'deflated']);
    expect(entries.map(({ read }) => read().length)).toEqual([8, 10_000]);
  });

  it('of type ZIP are recognised as such', () => {
    expect(() => zipEntries(Buffer.alloc(100))).toThrow('not a ZIP file');
  });

  it('of type tgz give their files', () => {
    const header = Buffer.alloc(512);
    header.write('package/a.txt', 0);
    header.write('00000000005', 124);
    header.write('0', 156);
    const body = Buffer.alloc(512);
    body.write('hello');
    const [entry] = tgzEntries(gzipSync(Buffer.concat([header, body, Buffer.alloc(1_024)])));
    expect(entry?.name).toBe('package/a.txt');
    expect(entry?.read().toString()).toBe('hello');
  });
});

function makeZip(files: readonly { name: string; bytes: Buffer; deflate: boolean }[]): Buffer {
  const locals: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  for (const { name, bytes, deflate } of files) {
    const packed = deflate ? deflateRawSync(bytes) : bytes;
    const local = Buffer.alloc(30);
    local.writeUInt16LE(name.length, 26);
    // Longer than in the directory, as some tools write it.
    local.writeUInt16LE(4, 28);
    const central = Buffer.alloc(46);
    central.writeUInt16LE(deflate ? 8 : 0, 10);
    central.writeUInt32LE(packed.length, 20);
    central.writeUInt16LE(name.length, 28);
    central.writeUInt32LE(offset, 42);
    const whole = Buffer.concat([local, Buffer.from(name), Buffer.alloc(4), packed]);
    locals.push(whole);
    directory.push(central, Buffer.from(name));
    offset += whole.length;
  }
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x06054b50, 0);
  end.writeUInt16LE(files.length, 10);
  end.writeUInt32LE(offset, 16);
  return Buffer.concat([...locals, ...directory, end]);
}
