import { connect } from 'node:net';
import { readdirSync, rmSync, statSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { startPrivateServer, type PrivateServer } from '@flash-sale/stack';
import { until } from '../waiting.js';
import { framing } from './proxy-frames.js';
import type { ProxyControl, ProxyThread } from './proxy-thread.js';
import { RigServer, launch, type RigServerOptions, type SmallDisk } from './rig-server.js';

/** Redis with an append-only file, and a replica where one is asked for. */
export class RigRedis extends RigServer {
  private replica:
    | { readonly server: PrivateServer; readonly folder: string; readonly link: ProxyControl }
    | undefined;
  private replicas = 0;
  /** What was primary before, still there or not. */
  private readonly former: PrivateServer[] = [];

  private constructor(
    options: RigServerOptions,
    server: PrivateServer,
    disk: SmallDisk,
    private readonly proxies: ProxyThread,
    /** Leads to the primary and does nothing else: for those whom no fault is meant for. */
    private readonly signpost: ProxyControl,
  ) {
    super(options, server, disk);
  }

  /** Where the primary is reached without any fault, whichever server that is. */
  get directPort(): number {
    return this.signpost.port;
  }

  static async launch(options: RigServerOptions, proxies: ProxyThread): Promise<RigRedis> {
    // By default a replica waits five seconds for others to come.
    const mine = { ...options, settings: { 'repl-diskless-sync-delay': 0, ...options.settings } };
    const { server, disk } = await launch(mine);
    const signpost = await proxies.proxy({
      protocol: 'bytes',
      target: { host: server.host, port: server.port },
    });
    return new RigRedis(mine, server, disk, proxies, signpost);
  }

  /** Asks the primary directly, without the proxy; bulk and simple replies as text. */
  command(...words: readonly (string | number)[]): Promise<string> {
    return ask(this.port, words);
  }

  /** As CONFIG SET; back to what it was when the server is healed. */
  async configure(name: string, value: string | number): Promise<void> {
    const before = (await this.command('CONFIG', 'GET', name)).split('\r\n').at(-1) ?? '';
    await this.command('CONFIG', 'SET', name, value);
    this.onHeal(async () => void (await this.command('CONFIG', 'SET', name, before)));
  }

  /** Starts it again without any of its data. */
  async startEmpty(): Promise<void> {
    rmSync(this.appendOnlyFolder, { recursive: true, force: true });
    await this.start();
  }

  /** Makes the append-only file longer by so many commands, all on one key of nobody's. */
  async growAppendOnlyFile(commands: number): Promise<void> {
    const script = "for i = 1, ARGV[1] do redis.call('SET', KEYS[1], i) end return 'OK'";
    await this.command('EVAL', script, 1, 'rig:ballast', commands);
  }

  /**
   * Starts it again so that it reads its data for about so long. It looks up from that only once in a thousand commands, so the
   * file should have many; see {@link growAppendOnlyFile}.
   */
  async startLoadingFor(aboutMs: number): Promise<void> {
    const bytes = readdirSync(this.appendOnlyFolder)
      .map((name) => statSync(join(this.appendOnlyFolder, name)).size)
      .reduce((sum, size) => sum + size, 0);
    const commands = Math.max(1, bytes / USUAL_COMMAND_BYTES);
    await this.start({ settings: { 'key-load-delay': Math.ceil((aboutMs * 1_000) / commands) } });
    await this.command('CONFIG', 'SET', 'key-load-delay', 0);
    this.restartToHeal = false;
  }

  /** Takes so many bytes off the end of its append-only file, as if they had never reached the disk. It must not run. */
  cutAppendOnlyFile(bytes: number): void {
    const last = readdirSync(this.appendOnlyFolder)
      .filter((name) => name.endsWith('.incr.aof'))
      .toSorted((a, b) => Number(a.split('.')[2]) - Number(b.split('.')[2]))
      .at(-1);
    if (!last) throw new Error(`there is no append-only file in ${this.appendOnlyFolder}`);
    const file = join(this.appendOnlyFolder, last);
    truncateSync(file, Math.max(0, statSync(file).size - bytes));
  }

  /**
   * Starts a replica and waits until it has everything. What the primary sends it goes through the proxy returned: a
   * replica that is merely stopped proves little, because the kernel keeps its stream for it.
   */
  async addReplica(): Promise<ProxyControl> {
    if (this.replica) throw new Error('there is a replica already');
    const link = await this.proxies.proxy({
      protocol: 'bytes',
      target: { host: '127.0.0.1', port: this.port },
    });
    this.replicas += 1;
    const folder = join(this.options.folder, `replica-${this.replicas}`);
    const server = await startPrivateServer('redis', {
      folder,
      settings: { replicaof: `127.0.0.1 ${link.port}` },
      log: this.options.log,
    });
    this.replica = { server, folder, link };
    await until('the replica to have everything', 20_000, async () =>
      (await ask(server.port, ['INFO', 'replication'])).includes('master_link_status:up'),
    );
    return link;
  }

  /**
   * Makes the replica the primary, which clients are sent to from now on. The former primary is left as it is: connected
   * clients stay with it until somebody ends it, demotes it ({@link demoteFormer}) or cuts them.
   */
  async promoteReplica(): Promise<void> {
    const replica = this.replica;
    if (!replica) throw new Error('there is no replica to promote');
    await ask(replica.server.port, ['REPLICAOF', 'NO', 'ONE']);
    this.former.push(this.server);
    this.server = replica.server;
    this.folder = replica.folder;
    this.replica = undefined;
    const target = { host: this.server.host, port: this.server.port };
    await this.proxy.retarget(target);
    await this.signpost.retarget(target);
    await replica.link.stop();
  }

  /** Makes the former primary a replica of the new one, as a failover does with one that still lives. */
  async demoteFormer(): Promise<void> {
    const former = this.former.at(-1);
    if (former) await ask(former.port, ['REPLICAOF', '127.0.0.1', this.port]);
  }

  override async heal(): Promise<void> {
    for (const server of this.former.splice(0)) await server.stop();
    if (this.replica) {
      await this.replica.server.stop();
      await this.replica.link.stop();
      this.replica = undefined;
    }
    await super.heal();
  }

  override async stop(): Promise<void> {
    for (const server of [...this.former, ...(this.replica ? [this.replica.server] : [])])
      server.signal('SIGKILL');
    await super.stop();
  }

  private get appendOnlyFolder(): string {
    return join(this.server.folder, 'appendonlydir');
  }
}

const ANSWER_WITHIN_MS = 5_000;
/** Of one in the append-only file, in bytes; a guess that decides nothing but how long loading takes. */
const USUAL_COMMAND_BYTES = 60;

/** One command on a connection of its own. */
function ask(port: number, words: readonly (string | number)[]): Promise<string> {
  return new Promise((done, failed) => {
    const socket = connect(port, '127.0.0.1');
    const { replies } = framing('redis', () =>
      failed(new Error(`what answers on port ${port} is not Redis`)),
    );
    const end = (settle: () => void) => {
      socket.destroy();
      settle();
    };
    socket.setTimeout(ANSWER_WITHIN_MS, () =>
      end(() =>
        failed(
          new Error(`Redis did not answer ${words.slice(0, 3).join(' ')} within ${ANSWER_WITHIN_MS} ms`),
        ),
      ),
    );
    socket.once('error', (error) => end(() => failed(error)));
    socket.on('data', (chunk) => {
      const [reply] = replies.push(chunk);
      if (!reply) return;
      const text = reply.bytes.toString();
      if (text.startsWith('-'))
        end(() => failed(new Error(`${words.slice(0, 3).join(' ')}: ${text.slice(1).trim()}`)));
      else
        end(() =>
          done(
            text
              .replace(/^\$\d+\r\n/, '')
              .replace(/^[+:]/, '')
              .replace(/\r\n$/, ''),
          ),
        );
    });
    const parts = words.map((word) => `$${Buffer.byteLength(String(word))}\r\n${word}\r\n`);
    socket.write(`*${parts.length}\r\n${parts.join('')}`);
  });
}
