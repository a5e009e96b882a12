/** `stack up | down | status`: the three servers for work at a desk. Addresses go to stdout, all else to stderr. */
import { stackStatus, stopStack } from './control.js';
import { startStack } from './stack.js';
import { stackHome } from './state.js';

const usage = `usage: stack <command>

  up [--detached]   start Redis, Kafka and MySQL, or find them running, and print their addresses
                    as REDIS_URL=… KAFKA_BROKERS=… MYSQL_URL=…; they run on until "down"
  down [--wipe]     stop them; with --wipe also delete their data
  status            one line for each: engine, address, process, up or down

Servers named by REDIS_URL, KAFKA_BROKERS or MYSQL_URL are used as they are and never stopped.
Data lives in .flash-sale at the repository's root, or in FLASH_SALE_HOME.
`;

const log = (line: string) => void process.stderr.write(`stack: ${line}\n`);

async function main(args: readonly string[]): Promise<number> {
  const [command, ...flags] = args;
  const allowed: Record<string, string[]> = { up: ['--detached'], down: ['--wipe'], status: [] };
  if (command === '--help' || command === 'help') {
    process.stdout.write(usage);
    return 0;
  }
  const known = command === undefined ? undefined : allowed[command];
  if (!known || flags.some((flag) => !known.includes(flag))) {
    process.stderr.write(usage);
    return 2;
  }
  if (command === 'up') return up();
  return command === 'down' ? down(flags.includes('--wipe')) : status();
}

async function up(): Promise<number> {
  const stack = await startStack({ keep: true, log });
  process.stdout.write(
    `REDIS_URL=${stack.redisUrl}\nKAFKA_BROKERS=${stack.kafkaBrokers}\nMYSQL_URL=${stack.mysqlUrl}\n`,
  );
  return 0;
}

async function down(wipe: boolean): Promise<number> {
  const stopped = await stopStack({ home: stackHome(), log, wipe });
  log(stopped.length > 0 ? `stopped ${stopped.join(', ')}` : 'nothing was running');
  return 0;
}

async function status(): Promise<number> {
  const servers = await stackStatus({ home: stackHome(), env: process.env });
  const lines = servers.map((server) => {
    const pid = server.pid === undefined ? '-' : `pid ${server.pid}`;
    const address = server.address.replace(/\/\/[^@/]*:[^@/]*@/, '//***@');
    const columns = [server.name.padEnd(6), server.engine.padEnd(10), address.padEnd(32), pid.padEnd(12)];
    return `${columns.join(' ')} ${server.up ? 'up' : 'down'}\n`;
  });
  process.stdout.write(lines.join(''));
  return 0;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  log((error as Error).message);
  process.exitCode = 1;
}
