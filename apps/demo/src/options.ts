import { parseArgs } from 'node:util';
import { z } from 'zod';

/** What the caller may set; everything has a default, so that `npm start` alone is a whole demonstration. */
export interface DemoOptions {
  /** Units to sell. */
  readonly units: number;
  /** People in the crowd, each of whom wants one unit. */
  readonly shoppers: number;
  /** Mean arrivals a second of the crowd's first requests. */
  readonly perSecond: number;
  /** Slices of the stock in Redis. */
  readonly buckets: number;
  /** The crowd's dice: the same seed gives the same arrivals and the same intentions. */
  readonly seed: number;
  /** Share of the crowd that walks away after the grant or after the order, without a word. */
  readonly abandon: number;
  /** Share of the crowd whose only card is declined. */
  readonly decline: number;
  /** Wanted port of the shop; any free one where it is taken or not given. */
  readonly port: number | undefined;
  /** Put nginx in front of the gateway. */
  readonly edge: boolean;
  /** After this many seconds of selling the sale is closed, whatever is left. */
  readonly maxSeconds: number;
  /** End after the verdict. */
  readonly once: boolean;
  /** Print the verdict as one JSON object on stdout; everything else then goes to stderr. */
  readonly json: boolean;
  /** No sale and no crowd: only bring everything up, say on stdout where it is, and stay until told to stop. */
  readonly serve: boolean;
}

export type ParsedOptions =
  | { readonly kind: 'run'; readonly options: DemoOptions }
  | { readonly kind: 'help' }
  /** One sentence for each thing that is wrong. */
  | { readonly kind: 'faults'; readonly faults: readonly string[] };

const count = (min: number, max: number) =>
  z
    .string()
    .regex(/^\d{1,15}$/, `a whole number from ${group(min)} to ${group(max)}`)
    .transform(Number)
    .refine((value) => value >= min && value <= max, `a whole number from ${group(min)} to ${group(max)}`);

const share = z
  .string()
  .regex(/^(0|1|0?\.\d{1,9}|1\.0{1,9})$/, 'a share from 0 to 1, for example 0.1')
  .transform(Number);

const Arguments = z.object({
  units: count(1, 100_000_000).default(1_000),
  shoppers: count(1, 1_000_000).default(20_000),
  'per-second': count(1, 100_000).default(1_500),
  buckets: count(1, 1_024).default(8),
  seed: count(0, 4_294_967_295).default(1),
  abandon: share.optional(),
  decline: share.optional(),
  port: count(1, 65_535).optional(),
  'max-seconds': count(5, 3_600).default(300),
  edge: z.boolean().default(false),
  once: z.boolean().default(false),
  json: z.boolean().default(false),
  serve: z.boolean().default(false),
});

export const HELP = `npm start -- [options]

Starts Redis, Kafka and MySQL (or uses the ones given by REDIS_URL, KAFKA_BROKERS, MYSQL_URL) and the five services,
sells a limited quantity to a simulated crowd over HTTP, lets the independent auditor judge the result, and then stays
up for you to look around, until Ctrl-C.

The sale
  --units N         units to sell                                      (1000)
  --buckets N       slices of the stock in Redis, 1 to 1024            (8)

The crowd
  --shoppers N      people, each of whom wants one unit                (20000)
  --per-second N    how many of them arrive in a second                (1500)
  --abandon SHARE   share that walks away after its grant or order     (0.1)
  --decline SHARE   share whose card is declined                       (0.1)
                    (both 0 where there is a unit for everybody, as nobody waits for what is given back)
  --seed N          the crowd's dice; the same seed, the same crowd    (1)
  --max-seconds N   close the sale after so long, whatever is left     (300)

The run
  --once            end after the verdict; exit code 0 only if it is clean
  --json            the verdict as one JSON object on the last line of stdout, all else to stderr
  --serve           no sale, no crowd: start servers and services, print where they are as one JSON object on
                    stdout, and stay up until Ctrl-C or SIGTERM; for other programs, such as load tests
  --edge            nginx in front of the gateway, also by TLS: refuses by itself what is sold out or not open
  --port N          where the shop listens, if that port is free       (a free one)
  --help            this text

  npm start -- --once --json                                       one judged run, for programs
  npm start -- --units 1000000                                     enough for everybody
  npm start -- --units 40 --buckets 64 --shoppers 5000             fewer units than buckets

Each run has a database and two Kafka topics of its own and leaves them for you to look at; on servers that were started
here \`npm run stack -- down --wipe\` removes them. Logs: .flash-sale/logs, or FLASH_SALE_HOME/logs.
`;

/** Reads the command line. Nothing is guessed: an unknown option or a value out of range is a fault, all told at once. */
export function parseOptions(args: readonly string[]): ParsedOptions {
  const text = { type: 'string' } as const;
  const flag = { type: 'boolean' } as const;
  let values: Record<string, string | boolean | undefined>;
  try {
    ({ values } = parseArgs({
      args: [...args],
      strict: true,
      allowPositionals: false,
      options: {
        units: text,
        shoppers: text,
        'per-second': text,
        buckets: text,
        seed: text,
        abandon: text,
        decline: text,
        port: text,
        'max-seconds': text,
        edge: flag,
        once: flag,
        json: flag,
        serve: flag,
        help: flag,
      },
    }));
  } catch (error) {
    return { kind: 'faults', faults: [error instanceof Error ? error.message : String(error)] };
  }
  if (values['help'] === true) return { kind: 'help' };
  const parsed = Arguments.safeParse(values);
  if (!parsed.success) {
    const faults = parsed.error.issues.map((issue) => {
      const name = String(issue.path[0]);
      return `--${name} is ${JSON.stringify(values[name] ?? null)}, but must be ${issue.message}`;
    });
    return { kind: 'faults', faults };
  }
  const { 'per-second': perSecond, 'max-seconds': maxSeconds, port, ...rest } = parsed.data;
  // Giving back is worth showing where somebody waits for it; where there is plenty, everybody simply buys.
  const usual = rest.units < rest.shoppers ? 0.1 : 0;
  const { abandon = usual, decline = usual } = rest;
  if (abandon + decline > 1) {
    return { kind: 'faults', faults: ['--abandon and --decline together must be at most 1'] };
  }
  return { kind: 'run', options: { ...rest, abandon, decline, port, perSecond, maxSeconds } };
}

/** 20000 → "20,000". */
export function group(value: number): string {
  return value.toLocaleString('en-US');
}
