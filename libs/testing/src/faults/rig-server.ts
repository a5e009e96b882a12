import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import {
  startPrivateServer,
  type PrivateServer,
  type PrivateServerOptions,
  type ServerName,
  type ServerSettings,
} from '@flash-sale/stack';
import { until } from '../waiting.js';
import type { ProxyControl } from './proxy-thread.js';

export interface RigServerOptions {
  readonly name: ServerName;
  /** Of its own; a disk of its own is mounted there where that is allowed. */
  readonly folder: string;
  readonly diskMegabytes: number;
  /** In front of it; what clients connect to. */
  readonly proxy: ProxyControl;
  readonly settings?: ServerSettings;
  readonly log: (line: string) => void;
}

/** A fault that cannot be produced on this machine; the table says so and why. */
export class NotHere extends Error {
  override readonly name = 'NotHere';
}

/** A private server behind a fault proxy. Whatever is done to it, {@link RigServer.heal} undoes. */
export abstract class RigServer {
  readonly proxy: ProxyControl;
  protected server: PrivateServer;
  /** Where its files are kept; another one after a failover. */
  protected folder: string;
  private readonly disk: SmallDisk;
  /** Settings that were changed while it ran; a restart forgets them by itself. */
  private undo: (() => Promise<void>)[] = [];
  /** It was started in a way in which it must not stay. */
  protected restartToHeal = false;

  protected constructor(
    protected readonly options: RigServerOptions,
    server: PrivateServer,
    disk: SmallDisk,
  ) {
    this.proxy = options.proxy;
    this.server = server;
    this.folder = options.folder;
    this.disk = disk;
  }

  /** Without the proxy. */
  get port(): number {
    return this.server.port;
  }

  isRunning(): boolean {
    return this.server.isRunning();
  }

  /** Ends it at once; resolves when it is gone. */
  async kill(): Promise<void> {
    this.server.signal('SIGKILL');
    await until(`${this.options.name} to be gone`, 10_000, async () => !this.server.isRunning());
  }

  /** Ends it in good order. */
  async shutDown(): Promise<void> {
    await this.server.stop();
  }

  /** Stops its clockwork: the kernel goes on taking connections and bytes for it, which it reads when it is resumed. */
  pause(): void {
    this.server.signal('SIGSTOP');
  }

  resume(): void {
    this.server.signal('SIGCONT');
  }

  /** Starts it again on the same port; resolves when it serves. `temporary`: {@link heal} starts it once more without. */
  async start(temporary: Pick<PrivateServerOptions, 'settings' | 'env'> = {}): Promise<void> {
    if (this.isRunning()) throw new Error(`${this.options.name} runs already; kill it or shut it down first`);
    this.restartToHeal = Object.keys(temporary).length > 0;
    const { port } = this.server;
    this.server = await startPrivateServer(this.options.name, {
      folder: this.folder,
      port: this.server.port,
      log: this.options.log,
      ...(temporary.env && { env: temporary.env }),
      settings: { ...this.options.settings, ...temporary.settings },
    });
    // Its proxy, and whoever connects to it directly, know it by that port.
    if (this.server.port !== port)
      throw new Error(`another process took port ${port} while ${this.options.name} was down; run it again`);
  }

  /** @throws NotHere where no disk of its own could be mounted */
  fillDisk(): void {
    this.disk.fill();
  }

  freeDisk(): void {
    this.disk.free();
  }

  /** What it printed since its last start. */
  log(): string {
    return readFileSync(this.server.logFile, 'utf8');
  }

  /** Makes it serve as at the beginning, whatever was done to it; resolves when it does. Its data stay as they are. */
  async heal(): Promise<void> {
    await this.proxy.pass();
    this.disk.free();
    this.resume();
    if (this.restartToHeal && this.isRunning()) await this.shutDown();
    const undo = this.undo.toReversed();
    this.undo = [];
    if (!this.isRunning()) return this.start();
    for (const step of undo) await step();
  }

  async stop(): Promise<void> {
    this.resume();
    // Nothing in it is worth an orderly end.
    await this.kill();
    this.disk.unmount();
  }

  /** Ends it and its disk without waiting. */
  abandon(): void {
    this.server.signal('SIGKILL');
    this.disk.unmount();
  }

  /** Has something undone when the server is healed without a restart. */
  protected onHeal(step: () => Promise<void>): void {
    this.undo.push(step);
  }
}

/** Mounts the disk and starts the server on it, behind its proxy. */
export async function launch(options: RigServerOptions): Promise<{ server: PrivateServer; disk: SmallDisk }> {
  const disk = SmallDisk.mount(options.folder, options.diskMegabytes);
  try {
    const server = await startPrivateServer(options.name, options);
    await options.proxy.retarget({ host: server.host, port: server.port });
    return { server, disk };
  } catch (error) {
    disk.unmount();
    throw error;
  }
}

const FILL_TRIES = 10;

/** A file system of a fixed size in memory, so that a disk can be full without filling anybody else's. */
export class SmallDisk {
  private constructor(
    private readonly folder: string,
    private readonly megabytes: number,
    /** Why there is none; undefined where there is. */
    private readonly missing: string | undefined,
  ) {
    if (missing === undefined) process.on('exit', this.onExit);
  }

  static mount(folder: string, megabytes: number): SmallDisk {
    mkdirSync(folder, { recursive: true });
    const fault = run('mount', ['-t', 'tmpfs', '-o', `size=${megabytes}m,mode=700`, 'tmpfs', folder]);
    return new SmallDisk(folder, megabytes, fault);
  }

  /** Shrinks it to what is used, so that not one more page fits. */
  fill(): void {
    if (this.missing !== undefined) {
      throw new NotHere(
        `a small disk cannot be mounted (${this.missing}); run it as root, with the right to mount`,
      );
    }
    // What is written between asking and shrinking makes the size too small to be taken.
    for (let tries = 1; ; tries += 1) {
      const used = spawnSync('df', ['-k', '--output=used', this.folder], { encoding: 'utf8' }).stdout;
      const fault = this.resize(`${Number(used.split('\n')[1]) + 16 * (tries - 1)}k`);
      if (fault === undefined) return;
      if (tries === FILL_TRIES) throw new Error(`the disk of ${this.folder} could not be filled: ${fault}`);
    }
  }

  free(): void {
    const fault = this.missing === undefined ? this.resize(`${this.megabytes}m`) : undefined;
    if (fault !== undefined) throw new Error(`the disk of ${this.folder} could not be freed: ${fault}`);
  }

  unmount(): void {
    if (this.missing !== undefined) return;
    process.off('exit', this.onExit);
    // Lazily: whoever was killed a moment ago may still hold a file.
    run('umount', ['--lazy', this.folder]);
  }

  private resize(size: string): string | undefined {
    return run('mount', ['-o', `remount,size=${size}`, this.folder]);
  }

  private readonly onExit = () => this.unmount();
}

function run(command: string, args: readonly string[]): string | undefined {
  const { status, stderr, error } = spawnSync(command, args, { encoding: 'utf8', timeout: 10_000 });
  return status === 0 ? undefined : (error?.message ?? stderr.trim());
}
