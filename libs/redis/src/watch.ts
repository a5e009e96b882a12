import { Cluster, type Redis } from 'ioredis';
import { silentLog, type AdapterLog } from './adapter-log.js';
import type { RedisClient } from './connect.js';
import { hashSlot } from './hash-slot.js';

/**
 * What one server is to us now.
 * - `serving`: it answered as a primary, on the connection that stands now.
 * - `loading`: it reads its data and answers nothing else.
 * - `demoted`: it has become a replica; what it holds may be older than what it said before.
 * - `away`: there is no connection, or none that was looked at since it was made.
 */
export type RedisServerStatus = 'serving' | 'loading' | 'demoted' | 'away';

export interface RedisServer {
  /** `host:port` as the client reaches it. */
  readonly address: string;
  readonly status: RedisServerStatus;
  /**
   * One life of a server as a primary: another process, a restart and a promotion each give it another one. As long as it is
   * the same, the server has forgotten nothing by itself. Undefined until it has answered for the first time; kept while it is
   * away.
   */
  readonly incarnation: string | undefined;
}

export interface RedisServerChange {
  /** What was known of the server at this address; undefined when it is new to us. */
  readonly before: RedisServer | undefined;
  readonly now: RedisServer;
}

export interface RedisWatchOptions {
  /** How often each server is asked, ms. A connection that is lost or made is noticed at once. */
  readonly everyMs?: number;
  /** Called with each change of a status or an incarnation, before any command's caller can have seen its effect twice. */
  readonly onChange?: (change: RedisServerChange) => void;
  readonly log?: AdapterLog;
}

const AWAY = { status: 'away', incarnation: undefined } as const;

/**
 * Tells whether each Redis server is still the one it was. A server that was restarted with an old file, or a replica that
 * was promoted, answers as if nothing had happened; only its identity betrays that it may have forgotten. Between the loss
 * of a connection and the first look at the next one a server counts as `away`, so that whoever asks before it acts does not
 * act on a server that is not known yet.
 */
export class RedisWatch {
  private readonly servers = new Map<string, RedisServer>();
  /** The connections that are listened to, and how many times each has closed. */
  private readonly closes = new WeakMap<Redis, { count: number }>();
  private timer: NodeJS.Timeout | undefined;
  private looking: Promise<void> | undefined;
  private lookAgain = false;
  private stopped = false;
  private readonly everyMs: number;
  private readonly log: AdapterLog;

  constructor(
    private readonly client: RedisClient,
    private readonly options: RedisWatchOptions = {},
  ) {
    this.everyMs = options.everyMs ?? 500;
    this.log = options.log ?? silentLog;
  }

  /** Looks for the first time and goes on in the background; resolves after the first look, whatever that found. */
  async start(): Promise<void> {
    this.timer ??= setInterval(() => void this.look(), this.everyMs);
    await this.look();
  }

  stop(): void {
    this.stopped = true;
    clearInterval(this.timer);
  }

  /** The server that answers for a key now. */
  serverOf(key: string): RedisServer {
    const address =
      this.client instanceof Cluster
        ? (this.client.slots[hashSlot(key)]?.[0] ?? 'unknown')
        : addressOf(this.client);
    return this.servers.get(address) ?? { address, ...AWAY };
  }

  /** All primaries that the client knows. */
  all(): readonly RedisServer[] {
    return [...this.servers.values()];
  }

  /** One look at a time; asked for meanwhile, one more follows. */
  look(): Promise<void> {
    if (this.looking) {
      this.lookAgain = true;
      return this.looking;
    }
    this.looking = this.lookAtAll().finally(() => {
      this.looking = undefined;
      if (!this.lookAgain) return;
      this.lookAgain = false;
      void this.look();
    });
    return this.looking;
  }

  private async lookAtAll(): Promise<void> {
    if (this.stopped) return;
    const nodes = this.client instanceof Cluster ? this.client.nodes('master') : [this.client];
    await Promise.all(nodes.map((node) => this.lookAt(node)));
    const known = new Set(nodes.map(addressOf));
    const missing = [...this.servers.values()].filter(({ address }) => !known.has(address));
    for (const { address } of missing) {
      this.note(address, { status: 'away' });
      // Still asked for by its slots until the cluster has agreed on another; then nobody asks any more.
      if (this.servers.size > 2 * known.size + 8) this.servers.delete(address);
    }
    // ioredis forgets a node whose connection ended until some command is sent there, and meanwhile nobody may send one.
    if (missing.length > 0 && this.client instanceof Cluster) this.client.refreshSlotsCache();
  }

  private async lookAt(node: Redis): Promise<void> {
    const closes = this.listen(node);
    const { count } = closes;
    const address = addressOf(node);
    if (node.status !== 'ready') return this.note(address, { status: 'away' });
    let info: string;
    try {
      info = await node.info();
    } catch {
      // Late, or refused: the connection either answers the next time or is closed for its silence, which is heard too.
      return;
    }
    // What was said on a connection that is gone says nothing about the server behind the next one.
    if (closes.count !== count || this.stopped) return;
    const seen = readInfo(info);
    this.note(address, seen);
    // Behind an address that moves with the primary, a new connection leads to it.
    if (seen.status === 'demoted' && !(this.client instanceof Cluster)) node.disconnect(true);
  }

  private listen(node: Redis): { readonly count: number } {
    const known = this.closes.get(node);
    if (known) return known;
    const closes = { count: 0 };
    this.closes.set(node, closes);
    node.on('close', () => {
      closes.count += 1;
      if (!this.stopped) this.note(addressOf(node), { status: 'away' });
    });
    node.on('ready', () => void this.look());
    return closes;
  }

  private note(
    address: string,
    seen: { readonly status: RedisServerStatus; readonly incarnation?: string },
  ): void {
    const before = this.servers.get(address);
    const now = { address, status: seen.status, incarnation: seen.incarnation ?? before?.incarnation };
    if (before?.status === now.status && before.incarnation === now.incarnation) return;
    this.servers.set(address, now);
    if (before?.incarnation !== undefined && before.incarnation !== now.incarnation) {
      this.log.warn(
        { redis: address },
        'this Redis is another one than before; it may have forgotten writes',
      );
    }
    this.options.onChange?.({ before, now });
  }
}

function addressOf(node: Redis): string {
  return `${node.options.host}:${node.options.port}`;
}

/** @throws when the text is not what a Redis answers to INFO */
function readInfo(info: string): { readonly status: RedisServerStatus; readonly incarnation: string } {
  const fieldOf = (name: string) => new RegExp(`^${name}:(.*?)\\r?$`, 'm').exec(info)?.[1];
  // Whom it followed before it was promoted. Its own replication id would not do: that changes with the first replica too.
  const [runId, formerId] = [fieldOf('run_id'), fieldOf('master_replid2')];
  if (runId === undefined || formerId === undefined) {
    throw new Error('INFO does not tell run_id and master_replid2: this is no Redis 7');
  }
  const status =
    fieldOf('role') === 'master' ? (fieldOf('loading') === '1' ? 'loading' : 'serving') : 'demoted';
  return { status, incarnation: `${runId}/${formerId}` };
}
