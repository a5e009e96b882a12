import { z } from 'zod';

const Schema = z.object({
  /** Any value turns colours off (no-color.org). */
  NO_COLOR: z.string().optional(),
  /** Set by npm for its scripts. */
  npm_lifecycle_event: z.string().optional(),
  /** How much the services write to their log files. */
  LOG_LEVEL: z.enum(['trace', 'debug', 'info', 'warn', 'error', 'silent']).default('info'),
});

/** What the demonstration takes from its surroundings. */
export interface DemoEnv {
  readonly colour: boolean;
  readonly logLevel: string;
  readonly startedByNpm: boolean;
  /** Handed on to the services, which each read their own variables; what the demonstration sets goes before it. */
  readonly inherited: NodeJS.ProcessEnv;
}

/** @throws an error that names every faulty variable */
export function readDemoEnv(env: NodeJS.ProcessEnv = process.env): DemoEnv {
  const parsed = Schema.safeParse(env);
  if (!parsed.success) {
    const faults = parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`);
    throw new Error(`the environment is not usable:\n${faults.join('\n')}`);
  }
  const { NO_COLOR, LOG_LEVEL, npm_lifecycle_event: npmScript } = parsed.data;
  return {
    colour: NO_COLOR === undefined || NO_COLOR === '',
    logLevel: LOG_LEVEL,
    startedByNpm: npmScript !== undefined,
    inherited: env,
  };
}
