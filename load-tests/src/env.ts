import { z } from 'zod';

const Schema = z.object({
  BASELINE_RPS: z
    .string()
    .regex(/^\d{1,4}(\.\d{1,3})?$/, 'must be a number of arrivals per second')
    .transform(Number)
    .refine((value) => value > 0, 'must be more than 0')
    .default(4),
  /** An operator's token for --operator-url. */
  OPERATOR_TOKEN: z.string().min(1).optional(),
});

/** What a load test takes from its surroundings. */
export interface LoadEnv {
  /** Arrivals per second before the opening, at scale 1. */
  readonly baselinePerSecond: number;
  readonly operatorToken: string | undefined;
  /** For the programs that are started: the auditor finds the stores by it. */
  readonly inherited: NodeJS.ProcessEnv;
}

/** @throws an error that names every faulty variable */
export function readLoadEnv(env: NodeJS.ProcessEnv = process.env): LoadEnv {
  const parsed = Schema.safeParse(env);
  if (!parsed.success) {
    const faults = parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`);
    throw new Error(`the environment is not usable:\n${faults.join('\n')}`);
  }
  const { BASELINE_RPS, OPERATOR_TOKEN } = parsed.data;
  return { baselinePerSecond: BASELINE_RPS, operatorToken: OPERATOR_TOKEN, inherited: env };
}
