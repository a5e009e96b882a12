import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { thisProcess } from './processes.js';
import { StateFile, type ServerRecord } from './state.js';

let home = '';
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'flash-sale-stack-test-'));
});
afterEach(() => rmSync(home, { recursive: true, force: true }));

const redis: ServerRecord = {
  engine: 'native',
  host: '127.0.0.1',
  port: 1,
  process: { pid: 1, startTime: '1' },
  owner: 'kept',
};
const mysql: ServerRecord = {
  engine: 'container',
  host: '127.0.0.1',
  port: 2,
  owner: { pid: 3, startTime: '4' },
};

describe('the state file', () => {
  it('is empty before the first start', () => {
    expect(new StateFile(home).read()).toEqual({});
  });

  it('remembers each server until it is forgotten', () => {
    const state = new StateFile(home);
    state.record('redis', redis);
    state.record('mysql', mysql);
    expect(new StateFile(home).read()).toEqual({ redis, mysql });
    state.forget('redis');
    expect(new StateFile(home).read()).toEqual({ mysql });
  });

  it.each(['', '{"format":1', 'null', '{"format":99,"servers":{"redis":{}}}'])(
    'counts as empty when it reads %j',
    (text) => {
      writeFileSync(join(home, 'stack.json'), text);
      expect(new StateFile(home).read()).toEqual({});
    },
  );
});

describe('the lock', () => {
  it('lets one run in at a time', async () => {
    let inside = 0;
    let most = 0;
    const work = async () => {
      most = Math.max(most, ++inside);
      await sleep(30);
      inside--;
    };
    await Promise.all([1, 2, 3].map(() => new StateFile(home).exclusively({ timeoutMs: 5_000 }, work)));
    expect(most).toBe(1);
    expect(readdirSync(home)).toEqual(['.gitignore']);
  });

  it('is free again after a failure', async () => {
    const state = new StateFile(home);
    const failing = state.exclusively({ timeoutMs: 1_000 }, () => Promise.reject(new Error('broken')));
    await expect(failing).rejects.toThrow('broken');
    expect(await state.exclusively({ timeoutMs: 1_000 }, async () => 'done')).toBe('done');
  });

  it.each(['{"pid":1,"startTime":"not then"}', '', 'nonsense'])(
    'of a run that died, %j, is taken over',
    async (text) => {
      writeFileSync(join(home, 'stack.lock'), text);
      expect(await new StateFile(home).exclusively({ timeoutMs: 1_000 }, async () => 'done')).toBe('done');
      expect(readdirSync(home)).toEqual(['.gitignore']);
    },
  );

  it('of a living run is waited for, but not for ever, and is left alone', async () => {
    writeFileSync(join(home, 'stack.lock'), JSON.stringify(thisProcess()));
    const waitingFor: number[] = [];
    const attempt = new StateFile(home).exclusively(
      { timeoutMs: 250, onWait: (pid) => waitingFor.push(pid) },
      async () => 'done',
    );
    await expect(attempt).rejects.toThrow(`process ${process.pid} has been starting or stopping servers`);
    expect(waitingFor).toEqual([process.pid]);
    expect(existsSync(join(home, 'stack.lock'))).toBe(true);
  });
});
