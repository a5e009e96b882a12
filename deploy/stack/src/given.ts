/** Servers that somebody else runs, named by the environment: used as they are, checked before anything starts. */
import { probe, type Address, type ServerName } from './probe.js';

export const variables: Record<ServerName, string> = {
  redis: 'REDIS_URL',
  kafka: 'KAFKA_BROKERS',
  mysql: 'MYSQL_URL',
};

export type GivenAddresses = Partial<Record<ServerName, string>>;

export function givenAddresses(env: NodeJS.ProcessEnv): GivenAddresses {
  const given: GivenAddresses = {};
  for (const name of Object.keys(variables) as ServerName[]) {
    const value = env[variables[name]]?.trim();
    if (value) given[name] = value;
  }
  return given;
}

/** Throws one error that names every given server that cannot be used, and why. */
export async function checkGiven(given: GivenAddresses, timeoutMs = 3_000): Promise<void> {
  const names = Object.keys(given) as ServerName[];
  const faults = await Promise.all(
    names.map(async (name) => {
      const fault = await faultOf(name, given[name] ?? '', timeoutMs);
      return fault === undefined ? [] : [`${variables[name]} is set, but ${fault}`];
    }),
  );
  const found = faults.flat();
  if (found.length > 0) {
    throw new Error(
      `${found.join('\n')}\nStart that server, correct the variable, or unset it to have one started`,
    );
  }
}

async function faultOf(name: ServerName, value: string, timeoutMs: number): Promise<string | undefined> {
  const addresses = name === 'kafka' ? parseBrokers(value) : parseUrl(name, value);
  if (typeof addresses === 'string') return addresses;
  // Brokers and rediss: may want TLS from the first byte on.
  const protocol = name === 'kafka' || value.startsWith('rediss:') ? 'none' : name;
  const faults = await Promise.all(addresses.map((address) => probe(protocol, address, timeoutMs)));
  if (faults.includes(undefined)) return undefined;
  return `nothing usable answers at ${addresses.map(({ host, port }) => `${host}:${port}`).join(', ')}: ${faults[0]}`;
}

function parseUrl(name: 'redis' | 'mysql', value: string): Address[] | string {
  const schemes = name === 'redis' ? ['redis:', 'rediss:'] : ['mysql:'];
  const usualPort = name === 'redis' ? 6_379 : 3_306;
  // Never quoted back: it may hold a password.
  if (!URL.canParse(value)) return `it is not a URL such as ${schemes[0]}//127.0.0.1:${usualPort}`;
  const url = new URL(value);
  if (!schemes.includes(url.protocol))
    return `its scheme is ${url.protocol} instead of ${schemes.join(' or ')}`;
  if (url.hostname === '') return 'it names no host';
  return [{ host: unbracket(url.hostname), port: url.port === '' ? usualPort : Number(url.port) }];
}

function parseBrokers(value: string): Address[] | string {
  const addresses: Address[] = [];
  for (const broker of value.split(',')) {
    const match = /^(.+):(\d{1,5})$/.exec(broker.trim());
    const [, host, port] = match ?? [];
    if (host === undefined || Number(port) > 65_535 || host.includes('/')) {
      return `"${broker.trim()}" is not of the form host:port`;
    }
    addresses.push({ host: unbracket(host), port: Number(port) });
  }
  return addresses;
}

function unbracket(host: string): string {
  return host.replace(/^\[(.*)\]$/, '$1');
}
