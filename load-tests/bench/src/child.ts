import { fork, type ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';

/**
 * Starts a program of this folder in a process of its own, so that its CPU time is counted by itself or not at all. It ends with
 * us: it hears when its channel is closed, however we ended.
 */
export function startChild(name: 'unit-server' | 'generator-process'): ChildProcess {
  // A process runs what was built, also where a test imports this from its source.
  const file = fileURLToPath(new URL(`../dist/${name}.js`, import.meta.url));
  return fork(file, [], { serialization: 'advanced', stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
}

/** What it says next. @throws when it ends instead */
export function nextMessage<Message>(child: ChildProcess): Promise<Message> {
  return new Promise((resolve, reject) => {
    const onMessage = (message: unknown) => {
      child.off('exit', onExit);
      resolve(message as Message);
    };
    const onExit = (code: number | null, signal: string | null) => {
      child.off('message', onMessage);
      reject(new Error(`${child.spawnargs[1] ?? 'a child'} ended (${signal ?? `exit code ${code}`})`));
    };
    child.once('message', onMessage);
    child.once('exit', onExit);
  });
}

/** In the child: ends it when whoever started it is gone. */
export function endWithParent(): void {
  process.once('disconnect', () => process.exit(0));
  // Ctrl-C in a terminal reaches everybody; who started us ends us in order.
  process.on('SIGINT', () => undefined);
}
