import { Database } from '@flash-sale/database';
import { requireFaketime, type PrivateServer } from '@flash-sale/stack';
import { RigServer, launch, type RigServerOptions, type SmallDisk } from './rig-server.js';

/** As whom the suite connects. */
export const SUITE_USER = 'suite';

/** MySQL or MariaDB, whichever this machine has. */
export class RigMysql extends RigServer {
  /** Directly, without the proxy, as a user who may do everything; of no database, so tables are named with theirs. */
  readonly database: Database;

  private constructor(options: RigServerOptions, server: PrivateServer, disk: SmallDisk) {
    super(options, server, disk);
    this.database = new Database({ url: `mysql://root@127.0.0.1:${server.port}/`, poolSize: 4 });
  }

  static async launch(options: RigServerOptions): Promise<RigMysql> {
    const { server, disk } = await launch(options);
    const mysql = new RigMysql(options, server, disk);
    try {
      await mysql.createSuite();
    } catch (error) {
      // Nobody else knows of it yet, and its disk would stay mounted.
      await mysql.stop();
      throw error;
    }
    return mysql;
  }

  /** A user without the rights of an administrator, whom neither a read-only server nor a full one makes an exception for. */
  private async createSuite(): Promise<void> {
    await this.database.change(`CREATE USER '${SUITE_USER}'@'127.0.0.1'`);
    await this.database.change(`GRANT ALL PRIVILEGES ON *.* TO '${SUITE_USER}'@'127.0.0.1'`);
    const [version] = await this.database.query('SELECT VERSION() AS name');
    const rights = /mariadb/i.test(String(version?.['name']))
      ? 'SUPER, READ ONLY ADMIN, CONNECTION ADMIN'
      : 'SUPER, CONNECTION_ADMIN';
    await this.database.change(`REVOKE ${rights} ON *.* FROM '${SUITE_USER}'@'127.0.0.1'`);
  }

  /** As SET GLOBAL; back to what it was when the server is healed. */
  async configure(name: 'read_only' | 'wait_timeout', value: number): Promise<void> {
    const [row] = await this.database.query(`SELECT @@GLOBAL.${name} AS value`);
    await this.database.change(`SET GLOBAL ${name} = ${value}`);
    this.onHeal(
      async () => void (await this.database.change(`SET GLOBAL ${name} = ${String(row?.['value'])}`)),
    );
  }

  /** Ends every connection of a user, as a server does with those that were idle for too long. How many there were. */
  async killConnectionsOf(user: string): Promise<number> {
    const connections = await this.database.query(
      'SELECT id FROM information_schema.processlist WHERE user = ?',
      [user],
    );
    for (const { id } of connections) {
      // It may have ended by itself meanwhile.
      await this.database.query(`KILL ${String(id)}`).catch(() => undefined);
    }
    return connections.length;
  }

  /** Shuts it down and starts it with a clock that differs from everybody else's. */
  async restartWithClock(offsetMs: number): Promise<void> {
    const env = await requireFaketime(offsetMs, this.options.log);
    await this.shutDown();
    await this.start({ env });
  }

  override async stop(): Promise<void> {
    await this.database.close().catch(() => undefined);
    await super.stop();
  }
}
