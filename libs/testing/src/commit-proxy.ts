import { createServer, connect, type AddressInfo, type Server, type Socket } from 'node:net';

/**
 * Stands between a client and MySQL, passes bytes on, and can lose the next COMMIT on its way there, or the answer to it on
 * its way back: the two cases that a client cannot tell apart.
 */
export class CommitProxy {
  /** How many COMMITs, or answers, were lost. */
  cuts = 0;
  private armed = false;
  private refusing = false;
  private readonly sockets = new Set<Socket>();

  private constructor(
    private readonly server: Server,
    private readonly target: URL,
    private readonly when: 'before COMMIT' | 'after COMMIT',
  ) {
    server.on('connection', (client) => this.join(client));
  }

  static async start(target: URL, when: 'before COMMIT' | 'after COMMIT'): Promise<CommitProxy> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return new CommitProxy(server, target, when);
  }

  /** As the target's, with the proxy's port. */
  get url(): string {
    const url = new URL(this.target);
    url.hostname = '127.0.0.1';
    url.port = String((this.server.address() as AddressInfo).port);
    return url.href;
  }

  /** The next COMMIT is lost, or its answer, and with it the connection. */
  cutNext(): void {
    this.armed = true;
  }

  /** While refusing, the server is gone as far as clients can tell. */
  refuse(refusing: boolean): void {
    this.refusing = refusing;
    if (refusing) for (const socket of this.sockets) socket.destroy();
  }

  async stop(): Promise<void> {
    this.refuse(true);
    await new Promise((resolve) => this.server.close(resolve));
  }

  private join(client: Socket): void {
    if (this.refusing) return void client.destroy();
    const upstream = connect(Number(this.target.port), this.target.hostname);
    let losing = false;
    const cut = () => {
      this.cuts += 1;
      client.destroy();
      upstream.destroy();
    };
    for (const socket of [client, upstream]) {
      this.sockets.add(socket);
      socket.on('error', () => undefined);
      socket.on('close', () => {
        this.sockets.delete(socket);
        client.destroy();
        upstream.destroy();
      });
    }
    client.on('data', (bytes) => {
      // A COM_QUERY packet: length, sequence number, 0x03, on MySQL the query's attributes, text.
      const isCommit = bytes.at(4) === 3 && bytes.toString('latin1').endsWith('COMMIT');
      if (this.armed && isCommit) {
        this.armed = false;
        if (this.when === 'before COMMIT') return cut();
        losing = true;
      }
      upstream.write(bytes);
    });
    upstream.on('data', (bytes) => {
      if (losing) cut();
      else client.write(bytes);
    });
  }
}
