import { parseArgs } from 'node:util';

/** What the caller of `npm run load` asks for. */
export interface LoadOptions {
  readonly profile: 'spike';
  /** 1 is the whole profile. */
  readonly scale: number;
  /** Units to sell; by default a tenth of the arrivals. */
  readonly units: number | undefined;
  readonly buckets: number;
  /** How long the slowest hundredth of visits takes, seconds; decides how many VUs there are. */
  readonly iterationSeconds: number;
  /** A gateway that runs already; without it a suite is started for this run. */
  readonly target: { readonly baseUrl: string; readonly operatorUrl: string } | undefined;
}

export type ParsedOptions =
  | { readonly kind: 'run'; readonly options: LoadOptions }
  | { readonly kind: 'help' }
  | { readonly kind: 'faults'; readonly faults: readonly string[] };

export const HELP = `npm run load -- spike [options]

Sends the opening of a sale to the suite: arrivals jump three hundredfold in an instant, each is one person's whole way from
log-in to payment, and the auditor then judges the result. Exit code 0: PASS. 1: FAIL, a threshold or an invariant is
broken. 3: INVALID, the load was not what was asked for, so the run says nothing.

  --scale N            share of the whole profile, 0.01 to 10                 (0.1)
  --units N            units to sell                                          (a tenth of the arrivals)
  --buckets N          slices of the stock                                    (8)
  --iteration-seconds  what the slowest hundredth of visits takes             (2)

  --base-url URL       a gateway that runs already; it must let anybody log in (DEV_LOGIN)
  --operator-url URL   its operators' port; OPERATOR_TOKEN is the token to call it with
                       and REDIS_URL, KAFKA_BROKERS, MYSQL_URL, ORDERS_TOPIC … say where the auditor finds its stores
  --allow-host NAME    a host that is not this machine and may be loaded; else it is refused

BASELINE_RPS is the arrivals per second before the opening, at scale 1 (4).
`;

/** Reads the command line; every fault is told at once. A target that is not allowed is one of them. */
export function parseOptions(args: readonly string[]): ParsedOptions {
  let parsed;
  try {
    const text = { type: 'string' } as const;
    parsed = parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        scale: text,
        units: text,
        buckets: text,
        'iteration-seconds': text,
        'base-url': text,
        'operator-url': text,
        'allow-host': { type: 'string', multiple: true },
        help: { type: 'boolean' },
      },
    });
  } catch (error) {
    return { kind: 'faults', faults: [error instanceof Error ? error.message : String(error)] };
  }
  const { values, positionals } = parsed;
  if (values.help) return { kind: 'help' };
  const faults: string[] = [];
  const number = (
    name: 'scale' | 'units' | 'buckets' | 'iteration-seconds',
    min: number,
    max: number,
    whole: boolean,
  ) => {
    const given = values[name];
    if (given === undefined) return undefined;
    const value = /^\d{1,9}(\.\d{1,6})?$/.test(given) ? Number(given) : Number.NaN;
    const fits = value >= min && value <= max && (!whole || Number.isInteger(value));
    if (!fits)
      faults.push(
        `--${name} is "${given}", but must be a ${whole ? 'whole ' : ''}number from ${min} to ${max}`,
      );
    return value;
  };
  if (positionals.length !== 1 || positionals[0] !== 'spike') {
    faults.push(`say which profile: npm run load -- spike (there is no other yet)`);
  }
  const options: LoadOptions = {
    profile: 'spike',
    scale: number('scale', 0.01, 10, false) ?? 0.1,
    units: number('units', 1, 100_000_000, true),
    buckets: number('buckets', 1, 1024, true) ?? 8,
    iterationSeconds: number('iteration-seconds', 0.1, 60, false) ?? 2,
    target: undefined,
  };
  const { 'base-url': baseUrl, 'operator-url': operatorUrl, 'allow-host': allowed = [] } = values;
  if (baseUrl === undefined && operatorUrl === undefined)
    return faults.length > 0 ? { kind: 'faults', faults } : { kind: 'run', options };
  if (baseUrl === undefined || operatorUrl === undefined) {
    faults.push('--base-url and --operator-url belong together');
  } else {
    for (const [name, url] of [
      ['--base-url', baseUrl],
      ['--operator-url', operatorUrl],
    ] as const) {
      const fault = targetFault(url, allowed);
      if (fault !== undefined) faults.push(`${name} ${fault}`);
    }
  }
  if (faults.length > 0 || baseUrl === undefined || operatorUrl === undefined)
    return { kind: 'faults', faults };
  const origin = (url: string) => new URL(url).origin;
  return {
    kind: 'run',
    options: { ...options, target: { baseUrl: origin(baseUrl), operatorUrl: origin(operatorUrl) } },
  };
}

/** Why an address may not be loaded; undefined if it may. Three hundred times too many requests are an attack elsewhere. */
export function targetFault(url: string, allowed: readonly string[]): string | undefined {
  const parsed = URL.parse(url);
  if (!parsed || !/^https?:$/.test(parsed.protocol)) return `is "${url}", which is no http address`;
  if (parsed.pathname !== '/' || parsed.search !== '')
    return `is "${url}", but must be an origin without a path`;
  const host = parsed.hostname.replace(/^\[(.*)\]$/, '$1');
  const isLoopback = host === 'localhost' || host === '::1' || /^127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(host);
  if (isLoopback || allowed.includes(host)) return undefined;
  return `leads to ${host}, which is not this machine; if it is yours to load, say --allow-host ${host}`;
}
