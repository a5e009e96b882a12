import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from '@jest/globals';
import { startPrivateServer } from './private-server.js';
import { probe } from './probe.js';
import { chooseFreePorts } from './processes.js';

/** What MySQL says first: the length of its greeting, its number, and the version of the protocol. */
const GREETING = Buffer.from([1, 0, 0, 0, 10]);

/** Listens as soon as the server that wants the port has found it free and is making its data folder. */
async function takeThePortOf(folder: string, port: number): Promise<Server> {
  for (let look = 0; ; look += 1) {
    const names = readdirSync(folder, { recursive: true, encoding: 'utf8' });
    if (names.some((name) => name.includes('data-'))) break;
    if (look === 3_000) throw new Error('the server never made its data folder');
    await sleep(10);
  }
  const other = createServer((socket) => socket.on('error', () => undefined).write(GREETING));
  await new Promise<void>((listening) => other.listen(port, '127.0.0.1', listening));
  return other;
}

describe('a private server whose port another process takes in the moment before it listens there', () => {
  it('is not taken for that other process, and serves on another port', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'flash-sale-private-'));
    const [port = 0] = await chooseFreePorts(1);
    const said: string[] = [];
    const starting = startPrivateServer('mysql', { folder, port, log: (line) => said.push(line) });
    const other = await takeThePortOf(folder, port);
    try {
      const server = await starting;
      try {
        expect(server.port).not.toBe(port);
        expect(server.isRunning()).toBe(true);
        expect(await probe('mysql', { host: server.host, port: server.port }, 5_000)).toBeUndefined();
        expect(said).toContainEqual(expect.stringContaining('another process took the port of MySQL'));
      } finally {
        await server.stop();
      }
    } finally {
      other.close();
      rmSync(folder, { recursive: true, force: true });
    }
  }, 120_000);
});
