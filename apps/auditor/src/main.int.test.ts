import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { dropTestDatabase, migrate } from '@flash-sale/database';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { SyntheticSale, TOTAL } from './testing/synthetic-sale.js';

/** The program as it is called: its exit codes, and what it prints where. Runs the build in dist. */

const MAIN = join(import.meta.dirname, '../dist/main.js');
const servers = {
  redisUrl: withPath(process.env['REDIS_URL'], '/4'),
  kafkaBrokers: process.env['KAFKA_BROKERS'] ?? '',
  mysqlUrl: withPath(process.env['MYSQL_URL'], '/test_auditor_program'),
};
let sale: SyntheticSale;

function withPath(address: string | undefined, path: string): string {
  if (!address) throw new Error('REDIS_URL and MYSQL_URL are not set; run the tests with npm test');
  const url = new URL(address);
  url.pathname = path;
  return url.href;
}

beforeAll(async () => {
  await dropTestDatabase(servers.mysqlUrl);
  await migrate(servers.mysqlUrl);
  sale = new SyntheticSale(servers);
  await sale.writeKafka();
}, 60_000);

afterAll(async () => {
  await sale.close();
  await dropTestDatabase(servers.mysqlUrl);
});

beforeEach(() => sale.write());

interface Run {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function audit(args: readonly string[], env: Record<string, string> = sale.env): Promise<Run> {
  const child = spawn(process.execPath, [MAIN, ...args], {
    env: { PATH: process.env['PATH'], ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', (text: Buffer) => (stdout += text.toString()));
  child.stderr.on('data', (text: Buffer) => (stderr += text.toString()));
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve({ code, stdout, stderr }));
  });
}

describe('audit', () => {
  it('ends with 0 and a table when nothing is broken', async () => {
    const { code, stdout, stderr } = await audit(['--sale', sale.saleId, '--log', sale.writeLog()]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toContain(`Sale ${sale.saleId}: 9 of ${TOTAL} units sold (oversold 0, undersold 11)`);
    expect(stdout).toMatch(/^I1 +nothing is oversold.* ok +\d+ looked at$/m);
    expect(stdout).toMatch(/^Clean: 28 of 29 invariants had something to look at, none is broken\.$/m);
    expect(stdout).toMatch(/^ +I28 +needs the services’ metrics: --metrics URL/m);
  });

  it('says which invariants looked at nothing when there is no log', async () => {
    const { code, stdout } = await audit(['--sale', sale.saleId]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^I6 .* – +looked at nothing$/m);
    expect(stdout).toMatch(/^ +I6 +needs the crowd’s log: --log FILE$/m);
  });

  it('ends with 1, names what is broken and shows a witness', async () => {
    await sale.mysql.query('UPDATE sale_stock SET sold = sold + 1');
    const { code, stdout } = await audit(['--sale', sale.saleId, '--quiet-wait-ms', '0']);
    expect(code).toBe(1);
    expect(stdout).toMatch(/^I1 +.* BROKEN/m);
    expect(stdout).toContain(`"sale_id":"${sale.saleId}","total":${TOTAL},"sold":10,"liveUnits":9`);
    expect(stdout).toMatch(/^BROKEN: I1, I3, I21 /m);
  });

  it('prints the verdict as one JSON object on the last line with --json', async () => {
    await sale.mysql.query('UPDATE quota SET used = 1 WHERE used = 2');
    const args = ['--sale', sale.saleId, '--log', sale.writeLog(), '--json'];
    const { code, stdout } = await audit(args);
    expect(code).toBe(1);
    const percentiles = { p50: expect.any(Number), p95: expect.any(Number), p99: expect.any(Number) };
    expect(JSON.parse(stdout.trimEnd().split('\n').at(-1) ?? '')).toEqual({
      saleId: sale.saleId,
      quiet: true,
      allotment: TOTAL,
      sold: 9,
      oversold: 0,
      undersold: 11,
      accepted: 12,
      rejectedAfterAccept: 0,
      lost: 0,
      duplicates: 0,
      duplicateRecords: 1,
      refused: expect.objectContaining({ enqueue_unknown: 2, sold_out: 1 }),
      latencyMs: { entry: percentiles, order: percentiles, acceptedToWritten: percentiles },
      books: expect.objectContaining({ mysql: expect.objectContaining({ total: TOTAL, sold: 9, paid: 6 }) }),
      invariants: {
        checked: 28,
        broken: ['I14'],
        unchecked: [
          { id: 'I21', why: expect.stringContaining('--snapshot') },
          { id: 'I28', why: expect.stringContaining('--metrics') },
        ],
      },
      breaches: [
        expect.objectContaining({
          invariant: 'I14',
          witness: expect.any(Object),
          message: expect.any(String),
        }),
        expect.objectContaining({ invariant: 'I14' }),
      ],
      breachCounts: { I14: 2 },
    });
  });

  it('copies the ledger while the sale runs, and later says what was changed in it', async () => {
    const file = join(sale.folder, 'ledger.jsonl');
    const taken = await audit(['--sale', sale.saleId, '--take-snapshot', file]);
    expect(taken).toMatchObject({ code: 0, stderr: '' });
    expect(taken.stdout).toMatch(/has the \d+ legs of the ledger/);
    expect((await audit(['--sale', sale.saleId, '--snapshot', file])).code).toBe(0);
    await sale.sql("DELETE FROM ledger WHERE entry_id LIKE '%:return'");
    const { code, stdout } = await audit(['--sale', sale.saleId, '--snapshot', file]);
    expect(code).toBe(1);
    expect(stdout).toMatch(/a leg of the ledger was changed or removed since the snapshot/);
  });

  it.each([
    ['no sale', [], {}, /--sale must be the id of a sale[^]*Usage:/],
    ['an unknown option', ['--sale', 's', '--colour'], {}, /Unknown option '--colour'[^]*Usage:/],
    ['a wait that is no number', ['--sale', 's', '--quiet-wait-ms', 'soon'], {}, /--quiet-wait-ms must be/],
    ['a sale that nobody made', ['--sale', 'no-such-sale'], {}, /no sale "no-such-sale".*latest are aud-/],
    ['no addresses', ['--sale', 's'], { MYSQL_URL: '', KAFKA_BROKERS: '' }, /KAFKA_BROKERS.*\n.*MYSQL_URL/],
    [
      'no database in MYSQL_URL',
      ['--sale', 's'],
      { MYSQL_URL: 'mysql://root@127.0.0.1:1/' },
      /database’s name/,
    ],
    ['a time that is none', ['--sale', 's', '--healed-at', 'noon'], {}, /--healed-at must be milliseconds/],
  ])('ends with 2 and says what to do: %s', async (_name, args, env, message) => {
    const { code, stdout, stderr } = await audit(args, { ...sale.env, ...env });
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(message);
  });

  it.each([
    ['no log', '--log', '/no/such/log', /log \/no\/such\/log cannot be read.*--log/],
    ['no snapshot', '--snapshot', '/no/such/file', /snapshot \/no\/such\/file cannot be read.*--snapshot/],
    ['a snapshot that is none', '--snapshot', MAIN, /is no snapshot of the ledger of aud-.*--take-snapshot/],
    ['no folder', '--take-snapshot', '/no/such/file', /cannot be written.*--take-snapshot/],
    ['no metrics', '--metrics', 'http://127.0.0.1:1/metrics', /metrics at http.* cannot be read.*--metrics/],
  ])('ends with 2 and says what to do: %s', async (_name, option, value, message) => {
    const { code, stdout, stderr } = await audit(['--sale', sale.saleId, option, value]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(message);
  });

  it.each([
    [
      'Redis',
      { REDIS_URL: 'redis://user:secret@127.0.0.1:1/4' },
      /Redis does not answer at 127\.0\.0\.1:1 .*REDIS_URL/,
    ],
    ['Kafka', { KAFKA_BROKERS: '127.0.0.1:1' }, /Kafka does not answer at 127\.0\.0\.1:1 .*KAFKA_BROKERS/],
    [
      'MySQL',
      { MYSQL_URL: 'mysql://root:secret@127.0.0.1:1/x' },
      /MySQL does not answer at 127\.0\.0\.1:1\/x .*MYSQL_URL/,
    ],
    ['the topic', { ORDERS_TOPIC: 'aud_nothing' }, /no topic "aud_nothing"; set ORDERS_TOPIC/],
  ])('ends with 2 when %s is not there, and keeps secrets to itself', async (_name, env, message) => {
    const { code, stderr } = await audit(['--sale', sale.saleId], { ...sale.env, ...env });
    expect(code).toBe(2);
    expect(stderr).toMatch(message);
    expect(stderr).not.toContain('secret');
  });

  it('explains itself', async () => {
    const { code, stdout } = await audit(['--help']);
    expect(code).toBe(0);
    expect(stdout).toContain('--quiet-wait-ms N');
  });
});
