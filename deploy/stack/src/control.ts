/** Looking at and ending the servers of a home, whoever started them: `stack status` and `stack down`. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { ContainerEngine } from './containers.js';
import { checkGiven, givenAddresses } from './given.js';
import { stopGraceMs } from './native.js';
import { isRunning, stopProcess } from './processes.js';
import { probe, serverNames, type ServerName } from './probe.js';
import type { Log } from './software.js';
import type { EngineKind } from './stack.js';
import { addressOf, lockTimeoutMs, StateFile } from './state.js';

export interface ServerStatus {
  name: ServerName;
  engine: EngineKind | 'none';
  address: string;
  pid: number | undefined;
  up: boolean;
}

/** Stops every server recorded there, and with `wipe` deletes their data. Returns which ones were stopped. */
export async function stopStack(options: { home: string; log: Log; wipe: boolean }): Promise<ServerName[]> {
  const { home, log, wipe } = options;
  const state = new StateFile(home);
  const onWait = (pid: number) => log(`waiting for process ${pid}, which is starting or stopping servers`);
  return state.exclusively({ timeoutMs: lockTimeoutMs, onWait }, async () => {
    const records = state.read();
    const names = serverNames.filter((name) => records[name] !== undefined);
    await Promise.all(
      names.map(async (name) => {
        const server = records[name]?.process;
        if (server) await stopProcess(server, stopGraceMs);
      }),
    );
    const contained = names.filter((name) => records[name]?.engine === 'container');
    if (contained.length > 0 || wipe) {
      const engine = await ContainerEngine.find(home);
      if (wipe) await engine?.wipe();
      else await engine?.stop(contained);
    }
    for (const name of names) state.forget(name);
    if (wipe) for (const name of serverNames) rmSync(join(home, name), { recursive: true, force: true });
    return names;
  });
}

export async function stackStatus(options: {
  home: string;
  env: NodeJS.ProcessEnv;
}): Promise<ServerStatus[]> {
  const given = givenAddresses(options.env);
  const records = new StateFile(options.home).read();
  return Promise.all(
    serverNames.map(async (name): Promise<ServerStatus> => {
      const address = given[name];
      if (address !== undefined) {
        const up = await checkGiven({ [name]: address }).then(
          () => true,
          () => false,
        );
        return { name, engine: 'given', address, pid: undefined, up };
      }
      const record = records[name];
      if (!record) return { name, engine: 'none', address: '-', pid: undefined, up: false };
      const ended = record.process !== undefined && !isRunning(record.process);
      const up = !ended && (await probe(name, record, 2_000)) === undefined;
      return {
        name,
        engine: record.engine,
        address: addressOf(name, record),
        pid: record.process?.pid,
        up,
      };
    }),
  );
}
