/**
 * What a Dockerfile must say beyond what a linter looks for: who runs the process, how its health is told, and that signals
 * reach it. Looks at the last stage, which is what is shipped.
 *
 * @param runs what the image runs; that of the edge is made of packages, not of files that were built
 */
export function dockerfileFaults(source: string, runs: 'node' | 'nginx' = 'node'): string[] {
  const instructions = source
    .replace(/\\\r?\n(?:\s*#.*\r?\n)*/g, ' ')
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'));
  const lastStage = instructions.slice(instructions.findLastIndex((line) => /^FROM\s/i.test(line)));
  const user = argumentOf(lastStage, 'USER');
  const command = argumentOf(lastStage, 'CMD');
  const health = argumentOf(lastStage, 'HEALTHCHECK');
  const bases = instructions.flatMap((line) => /^(?:FROM|ARG\s+\w*IMAGE=)\s*(\S+)/i.exec(line)?.[1] ?? []);
  return [
    /^[1-9]\d*(:[1-9]\d*)?$/.test(user)
      ? ''
      : `runs as "${user || 'root'}"; a numeric user that is not root belongs there`,
    command.startsWith(runs === 'node' ? '["node"' : '["sh", "/edge/start.sh"]')
      ? ''
      : `does not start ${runs} directly, so SIGTERM may not reach it`,
    runs === 'nginx' || command.includes('@flash-sale/service/instrumentation')
      ? ''
      : 'starts without the instrumentation',
    health.includes('/healthz') ? '' : 'has no health check of /healthz',
    bases.some((base) => base.endsWith(':latest')) ? 'is built on a "latest" image' : '',
    runs === 'node' && lastStage.some((line) => /^(RUN|ADD)\s/i.test(line))
      ? 'changes the shipped stage by more than copying'
      : '',
    instructions.some((line) => /^(ARG|ENV)\s.*(SECRET|PASSWORD|TOKEN_KEYS)\w*=/i.test(line))
      ? 'holds a secret, which anybody who has the image can read'
      : '',
  ].filter((fault) => fault !== '');
}

function argumentOf(stage: readonly string[], instruction: string): string {
  const line = stage.findLast((each) => each.toUpperCase().startsWith(`${instruction} `));
  return line?.slice(instruction.length + 1).trim() ?? '';
}
