import { z } from 'zod';
import { grpcTarget } from '@flash-sale/contracts';
import { parseSigningKeys, type SigningKeys } from '@flash-sale/domain';

/** What a variable's schema may say about itself, for whoever has to correct it: `z.string().meta({ example: … })`. */
export interface VariableHint {
  /** A value that would do. */
  readonly example?: string;
  /** True: a wrong value is not repeated in the message. */
  readonly secret?: boolean;
}

export type EnvShape = Readonly<Record<string, z.ZodType>>;
export type Env<Shape extends EnvShape> = { readonly [Name in keyof Shape]: z.output<Shape[Name]> };
export type ParsedEnv<Shape extends EnvShape> =
  | { readonly outcome: 'ok'; readonly env: Env<Shape> }
  | { readonly outcome: 'faulty'; readonly faults: readonly string[] };

type Variables = Readonly<Record<string, string | undefined>>;

/**
 * Reads variables by a schema per name. All faults are found in one go; an empty variable counts as absent.
 *
 * @param rules what must hold between variables; each returned sentence is a fault. Asked only if every variable is good.
 */
export function parseEnv<const Shape extends EnvShape>(
  shape: Shape,
  variables: Variables,
  rules: (env: Env<Shape>) => readonly string[] = () => [],
): ParsedEnv<Shape> {
  const values: Record<string, unknown> = {};
  const faults: string[] = [];
  for (const [name, schema] of Object.entries(shape)) {
    const raw = variables[name] === '' ? undefined : variables[name];
    const parsed = schema.safeParse(raw);
    if (parsed.success) values[name] = parsed.data;
    else faults.push(describeFault(name, schema, raw, parsed.error));
  }
  if (faults.length === 0) faults.push(...rules(values as Env<Shape>));
  return faults.length === 0 ? { outcome: 'ok', env: values as Env<Shape> } : { outcome: 'faulty', faults };
}

/**
 * Reads the process's variables once, at the start. If any is wrong, says so for all of them together on stderr and ends
 * the process with code 2.
 */
export function readEnv<const Shape extends EnvShape>(
  shape: Shape,
  rules?: (env: Env<Shape>) => readonly string[],
): Env<Shape> {
  const parsed = parseEnv(shape, process.env, rules);
  if (parsed.outcome === 'ok') return parsed.env;
  const list = parsed.faults.map((fault) => `  - ${fault}\n`).join('');
  process.stderr.write(`The environment is not complete or not right:\n${list}`);
  return process.exit(2);
}

function describeFault(name: string, schema: z.ZodType, raw: string | undefined, error: z.ZodError): string {
  const hint = hintOf(schema);
  const reasons = error.issues.map((issue) => issue.message).join('; ');
  const shown = hint.secret ? '' : ` (it is "${raw?.slice(0, 100)}")`;
  const example = hint.example === undefined ? '' : `, e.g. ${name}=${hint.example}`;
  return raw === undefined ? `${name} is missing${example}` : `${name}: ${reasons}${shown}${example}`;
}

function hintOf(schema: z.ZodType): VariableHint {
  const meta = schema.meta() as VariableHint | undefined;
  if (meta) return meta;
  const inner = 'unwrap' in schema ? (schema as unknown as z.ZodOptional<z.ZodType>).unwrap() : undefined;
  return inner ? hintOf(inner) : {};
}

/** A whole number written in decimal digits, within bounds. */
export function intVariable(bounds: { min?: number; max?: number } = {}) {
  const { min = 0, max = Number.MAX_SAFE_INTEGER } = bounds;
  return z
    .string()
    .regex(/^\d{1,16}$/, 'must be a whole number')
    .transform(Number)
    .refine((value) => value >= min && value <= max, `must be from ${min} to ${max}`);
}

/** A TCP port; 0 lets the system choose one. */
export const portVariable = intVariable({ max: 65_535 }).meta({ example: '8080' });

/** A duration in milliseconds, at most a day. */
export const msVariable = intVariable({ max: 86_400_000 }).meta({ example: '1500' });

/** `true` or `false`, nothing else. */
export const flagVariable = z
  .enum(['true', 'false'], 'must be true or false')
  .transform((value) => value === 'true')
  .meta({ example: 'true' });

/** Where the instances of one of our services answer; the forms are `grpcTarget`'s. */
export const serviceAddressVariable = z
  .string()
  .superRefine((text, context) => {
    try {
      grpcTarget(text);
    } catch (error) {
      context.addIssue({ code: 'custom', message: error instanceof Error ? error.message : String(error) });
    }
  })
  .meta({ example: 'inventory:9000' });

/** Several `host:port`, separated by commas. */
export const addressesVariable = z
  .string()
  .transform((text) => text.split(',').map((part) => part.trim()))
  .pipe(z.array(z.string().regex(/^[^\s:/,]+:\d{1,5}$/, 'must be host:port,host:port')).min(1));

/** Variables of every service. */
export const chassisVariables = {
  OPS_PORT: portVariable.meta({ example: '9090' }),
  LOG_LEVEL: z
    .enum(
      ['trace', 'debug', 'info', 'warn', 'error', 'silent'],
      'must be trace, debug, info, warn, error or silent',
    )
    .default('info')
    .meta({ example: 'info' }),
  /** How long after SIGTERM requests are still taken, until every load balancer has noticed `/readyz`. */
  DRAIN_WAIT_MS: msVariable.default(3_000),
} as const;

/** Variables of a service that is called by gRPC. */
export const grpcVariables = {
  GRPC_HOST: z.string().default('0.0.0.0'),
  GRPC_PORT: portVariable.meta({ example: '9000' }),
} as const;

/** Variables of a service that calls others item by item. */
export const callVariables = {
  /** Whether calls of one moment travel together; false only to measure what that saves. */
  COALESCE: flagVariable.default(true),
} as const;

/** Where Redis is. Use with {@link redisRule}. */
export const redisVariables = {
  REDIS_URL: z
    .string()
    .regex(/^rediss?:\/\/\S+$/, 'must be an URL of the form redis://host:port[/db]')
    .meta({ example: 'redis://localhost:6379', secret: true })
    .optional(),
  REDIS_CLUSTER_NODES: addressesVariable.meta({ example: 'node1:6379,node2:6379' }).optional(),
} as const;

/** Exactly one of the two addresses of Redis must be given. */
export function redisRule(env: {
  readonly REDIS_URL: string | undefined;
  readonly REDIS_CLUSTER_NODES: readonly string[] | undefined;
}): readonly string[] {
  if ((env.REDIS_URL === undefined) !== (env.REDIS_CLUSTER_NODES === undefined)) return [];
  return [
    'give either REDIS_URL, e.g. REDIS_URL=redis://localhost:6379, or REDIS_CLUSTER_NODES, e.g. REDIS_CLUSTER_NODES=node1:6379,node2:6379',
  ];
}

/** Where Kafka is. */
export const kafkaVariables = {
  KAFKA_BROKERS: addressesVariable.meta({ example: 'localhost:9092' }),
} as const;

/** Where MySQL is; the URL names the database. */
export const mysqlVariables = {
  MYSQL_URL: z
    .string()
    .regex(
      /^mysql:\/\/\S+\/[A-Za-z0-9_$-]+/,
      'must be an URL of the form mysql://user:password@host:port/database',
    )
    .meta({ example: 'mysql://user:password@localhost:3306/flash_sale', secret: true }),
} as const;

/** The keys of the purchase token; the first signs, all verify. */
export const purchaseTokenVariables = {
  PURCHASE_TOKEN_KEYS: z
    .string()
    .transform((text, context): SigningKeys => {
      try {
        return parseSigningKeys(text);
      } catch (error) {
        context.addIssue({ code: 'custom', message: error instanceof Error ? error.message : String(error) });
        return z.NEVER;
      }
    })
    .meta({ example: 'k1:$(openssl rand -base64 32)', secret: true }),
} as const;
