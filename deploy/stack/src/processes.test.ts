import { afterAll, describe, expect, it } from '@jest/globals';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  chooseFreePort,
  chooseFreePorts,
  identifyProcess,
  isRunning,
  launch,
  signalProcess,
  stopProcess,
  thisProcess,
} from './processes.js';

const folder = mkdtempSync(join(tmpdir(), 'flash-sale-stack-test-'));
const logFile = join(folder, 'log');
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const idle = 'setInterval(() => {}, 1000); console.log("ready")';
const deaf = `process.on('SIGTERM', () => {}); ${idle}`;

async function launchScript(script: string) {
  const launched = await launch({ command: process.execPath, args: ['-e', script], logFile });
  await soon(() => readFileSync(logFile, 'utf8').includes('ready') || undefined);
  rmSync(logFile);
  return launched;
}

async function soon<T>(look: () => T | undefined): Promise<T | undefined> {
  for (const deadline = Date.now() + 5_000; look() === undefined && Date.now() < deadline;) await sleep(20);
  return look();
}

describe('a process', () => {
  it('is recognised by its id and start time together', async () => {
    const { identity } = await launchScript(idle);
    expect(isRunning(identity)).toBe(true);
    expect(isRunning({ ...identity, startTime: '1' })).toBe(false);
    await stopProcess(identity, 5_000);
    expect(isRunning(identity)).toBe(false);
    expect(identifyProcess(identity.pid)).toBeUndefined();
  });

  it('is never signalled when the id belongs to another process by now', () => {
    const formerOwner = { pid: process.pid, startTime: '1' };
    expect(signalProcess(formerOwner, 'SIGKILL')).toBe(false);
    expect(isRunning(thisProcess())).toBe(true);
  });

  it('ends even when it ignores the request', async () => {
    const { identity, ending } = await launchScript(deaf);
    await stopProcess(identity, 200);
    expect(isRunning(identity)).toBe(false);
    expect(await soon(ending)).toBe('killed by SIGKILL');
  });

  it('ends even when it is paused', async () => {
    const { identity, ending } = await launchScript(idle);
    signalProcess(identity, 'SIGSTOP');
    await stopProcess(identity, 5_000);
    expect(await soon(ending)).toBe('killed by SIGTERM');
  });

  it('is reported when the program does not exist', async () => {
    await expect(launch({ command: '/nowhere/at-all', args: [], logFile })).rejects.toThrow('ENOENT');
  });
});

describe('a port', () => {
  it('is the preferred one where that is free', async () => {
    const [free] = await chooseFreePorts(1);
    expect(await chooseFreePort(free)).toBe(free);
  });

  it('is another one where the preferred is taken', async () => {
    const taken = createServer();
    const port = await new Promise<number>((resolve) =>
      taken.listen(0, '127.0.0.1', () => resolve((taken.address() as { port: number }).port)),
    );
    const chosen = await chooseFreePort(port);
    expect(chosen).not.toBe(port);
    expect(chosen).toBeGreaterThan(0);
    await new Promise((resolve) => taken.close(resolve));
  });

  it('differs from the others chosen with it', async () => {
    expect(new Set(await chooseFreePorts(20)).size).toBe(20);
  });
});
