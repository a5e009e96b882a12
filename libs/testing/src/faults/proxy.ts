import { createServer, connect, type AddressInfo, type Server, type Socket } from 'node:net';
import { framing, type Frame, type Protocol } from './proxy-frames.js';
import { Pipe } from './proxy-pipe.js';

export interface ProxyOptions {
  readonly protocol: Protocol;
  /** Where connections go; may be set later, until then they are refused. */
  readonly target?: Target;
}

export interface Target {
  readonly host: string;
  readonly port: number;
}

/** One request, or the reply to it, that is to be lost. */
export interface Loss {
  /** In capitals: `PRODUCE`, `EVALSHA`, `COMMIT` or any other command. */
  readonly request: string;
  /** Only requests that have this text somewhere in them are counted. */
  readonly containing?: string;
  /** Which one of those that come from now on: 1, by default, is the next. */
  readonly nth?: number;
  /** `half of the reply`: its first half arrives. */
  readonly part: 'request' | 'reply' | 'half of the reply';
  /**
   * What becomes of the connection. `silence`: it stays open, but nothing passes any more. `go on`: only this frame is
   * missing; of the three protocols only Kafka's replies can be told apart without the one before.
   */
  readonly connection: 'cut' | 'silence' | 'go on';
}

export interface ProxyFigures {
  readonly connections: number;
  /** Requests seen, by name. */
  readonly requests: Readonly<Record<string, number>>;
  /** Losses that were carried out. */
  readonly lost: number;
  /** Connections whose bytes were not of the protocol; they are passed on all the same, but nothing of them can be lost. */
  readonly unreadable: number;
}

/**
 * Stands between clients and a server, passes bytes on, and can do to them what networks and dying servers do. It knows
 * where frames begin and end, so that it can lose one chosen reply: the case in which a client cannot know what happened.
 * Everything that was set stays until {@link pass}.
 */
export class FaultProxy {
  private readonly connections = new Set<Connection>();
  private readonly requests = new Map<string, number>();
  private losses: { readonly loss: Loss; left: number }[] = [];
  private lost = 0;
  private unreadable = 0;
  private refusing = false;
  private stalled = false;
  private target: Target | undefined;
  /** Added to each direction, ms. */
  delayMs = 0;

  private constructor(
    private readonly server: Server,
    private readonly options: ProxyOptions,
  ) {
    this.target = options.target;
    server.on('connection', (client) => this.join(client));
  }

  /** Listens on a free port of 127.0.0.1. */
  static async start(options: ProxyOptions): Promise<FaultProxy> {
    const server = createServer({ allowHalfOpen: true, noDelay: true });
    await new Promise<void>((listening, failed) => {
      server.once('error', failed);
      server.listen(0, '127.0.0.1', listening);
    });
    return new FaultProxy(server, options);
  }

  /** In front of the server that an URL names. */
  static before(protocol: Protocol, url: string): Promise<FaultProxy> {
    const { hostname: host, port } = new URL(url);
    return FaultProxy.start({ protocol, target: { host, port: Number(port) } });
  }

  /** The same URL, through the proxy. */
  through(url: string): string {
    const through = new URL(url);
    through.host = `127.0.0.1:${this.port}`;
    return through.href;
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  /** From now on connections go elsewhere, as after a failover. Those that exist stay where they are; see {@link cut}. */
  retarget(target: Target): void {
    this.target = target;
  }

  /** A round trip takes so much longer, half of it each way, ms. */
  delay(roundTripMs: number): void {
    this.delayMs = roundTripMs / 2;
  }

  /** What is connected now stays open for its owners, but nothing passes on it ever again; new connections work. */
  silenceEstablished(): void {
    for (const connection of this.connections) connection.silence();
  }

  /** While stalled, nothing passes on any connection, old or new; afterwards everything arrives, late and in order. */
  stall(stalled: boolean): void {
    this.stalled = stalled;
    for (const connection of this.connections) connection.stall(stalled);
  }

  /** While refusing, the server is gone as far as clients can tell: what is connected is cut, new connections are reset. */
  refuse(refusing: boolean): void {
    this.refusing = refusing;
    if (refusing) this.cut();
  }

  /** Ends all connections at once; what was under way in them is lost. */
  cut(): void {
    for (const connection of this.connections) connection.cut();
  }

  /** Arms one loss. Several may be armed; each counts for itself. */
  lose(loss: Loss): void {
    if (loss.connection === 'go on' && this.options.protocol !== 'kafka') {
      throw new Error(
        `a connection of ${this.options.protocol} cannot go on without a frame; cut or silence it`,
      );
    }
    this.losses.push({ loss, left: loss.nth ?? 1 });
  }

  /** Ends every fault. Connections that were silenced are cut, as whoever still believes in them would wait for ever. */
  pass(): void {
    this.losses = [];
    this.delayMs = 0;
    this.refusing = false;
    this.stall(false);
    for (const connection of this.connections) if (connection.isSilent) connection.cut();
  }

  figures(): ProxyFigures {
    return {
      connections: this.connections.size,
      requests: Object.fromEntries(this.requests),
      lost: this.lost,
      unreadable: this.unreadable,
    };
  }

  async stop(): Promise<void> {
    const closed = new Promise((done) => this.server.close(done));
    this.refuse(true);
    await closed;
  }

  private join(client: Socket): void {
    if (this.refusing || !this.target) {
      client.on('error', () => undefined);
      client.resetAndDestroy();
      return;
    }
    const upstream = connect({ ...this.target, allowHalfOpen: true, noDelay: true });
    const connection = new Connection(client, upstream, {
      protocol: this.options.protocol,
      delayMs: () => this.delayMs,
      lossOf: (request) => this.lossOf(request),
      onLost: () => (this.lost += 1),
      onUnreadable: () => (this.unreadable += 1),
      onEnd: () => this.connections.delete(connection),
    });
    this.connections.add(connection);
    if (this.stalled) connection.stall(true);
  }

  private lossOf({ name, bytes }: Frame): Loss | undefined {
    if (name !== '') this.requests.set(name, (this.requests.get(name) ?? 0) + 1);
    for (const armed of this.losses) {
      const { request, containing } = armed.loss;
      if (request !== name || (containing !== undefined && !bytes.includes(containing))) continue;
      armed.left -= 1;
      if (armed.left > 0) continue;
      this.losses = this.losses.filter((other) => other !== armed);
      return armed.loss;
    }
    return undefined;
  }
}

interface ConnectionOptions {
  readonly protocol: Protocol;
  readonly delayMs: () => number;
  readonly lossOf: (request: Frame) => Loss | undefined;
  readonly onLost: () => void;
  readonly onUnreadable: () => void;
  readonly onEnd: () => void;
}

/** A client's socket and the one to the server that belongs to it. */
class Connection {
  private readonly losses = new Map<number, Loss>();
  private readonly pipes: readonly [Pipe, Pipe];
  /** Messages come that nobody asked for, so replies cannot be counted. */
  private hasSubscribed = false;
  isSilent = false;

  constructor(
    private readonly client: Socket,
    private readonly upstream: Socket,
    private readonly options: ConnectionOptions,
  ) {
    const { requests, replies } = framing(options.protocol, options.onUnreadable);
    const each = (frames: readonly Frame[], judge: (frame: Frame) => Buffer | null) =>
      frames.flatMap((frame) => (this.isOver ? [] : (judge(frame) ?? [])));
    this.pipes = [
      new Pipe(
        client,
        upstream,
        (chunk) => each(requests.push(chunk), (frame) => this.request(frame)),
        options.delayMs,
      ),
      new Pipe(
        upstream,
        client,
        (chunk) => each(replies.push(chunk), (frame) => this.reply(frame)),
        options.delayMs,
      ),
    ];
    let connected = false;
    upstream.once('connect', () => (connected = true));
    upstream.on('error', () => {
      // Nobody listens there: the client must not believe that it has been connected.
      if (!connected) client.resetAndDestroy();
    });
    client.on('error', () => undefined);
    let open = 2;
    for (const socket of [client, upstream]) {
      socket.once('close', () => {
        open -= 1;
        if (open === 0) options.onEnd();
      });
    }
  }

  /** Neither side is told that the other has left, as when a firewall forgets a connection. */
  silence(): void {
    this.isSilent = true;
    for (const pipe of this.pipes) pipe.discard();
  }

  stall(stalled: boolean): void {
    for (const pipe of this.pipes) pipe.stall(stalled);
  }

  cut(): void {
    for (const pipe of this.pipes) pipe.discard();
    this.client.destroy();
    this.upstream.destroy();
  }

  private get isOver(): boolean {
    return this.isSilent || this.client.destroyed || this.upstream.destroyed;
  }

  private request(frame: Frame): Buffer | null {
    if (this.options.protocol === 'redis' && /^P?SUBSCRIBE$/.test(frame.name)) this.hasSubscribed = true;
    const loss = this.options.lossOf(frame);
    if (!loss || this.hasSubscribed) return frame.bytes;
    if (loss.part === 'request') {
      this.lose(loss);
      return null;
    }
    this.losses.set(frame.key, loss);
    return frame.bytes;
  }

  private reply(frame: Frame): Buffer | null {
    const loss = this.losses.get(frame.key);
    if (!loss) return frame.bytes;
    this.losses.delete(frame.key);
    if (loss.part === 'half of the reply') {
      const half = frame.bytes.subarray(0, Math.ceil(frame.bytes.length / 2));
      for (const pipe of this.pipes) pipe.discard();
      this.client.write(half, () => this.lose(loss));
    } else {
      this.lose(loss);
    }
    return null;
  }

  private lose(loss: Loss): void {
    this.options.onLost();
    if (loss.connection === 'cut') this.cut();
    else if (loss.connection === 'silence') this.silence();
  }
}
