/** What this command takes from its surroundings. */
export interface VerifyEnv {
  /** With it the chart is applied to that cluster. */
  readonly kubeconfig: string | undefined;
  /** For the programs that are called. */
  readonly inherited: Readonly<Record<string, string | undefined>>;
}

export function readVerifyEnv(env: NodeJS.ProcessEnv = process.env): VerifyEnv {
  return {
    kubeconfig: env['KUBECONFIG'] === '' ? undefined : env['KUBECONFIG'],
    inherited: env,
  };
}
