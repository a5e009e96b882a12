import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { lastWords, run, type Outcome } from './run.js';

const CALL_TIMEOUT_MS = 60_000;
const ROLLOUT_SECONDS = 180;

/** A namespace of its own in a real cluster, thrown away afterwards, in which pods must be *restricted*. */
export class ThrowAwayNamespace {
  private constructor(
    private readonly kubectl: string,
    private readonly env: NodeJS.ProcessEnv,
    readonly name: string,
    /** Of the server, e.g. `v1.36.3`. */
    readonly serverVersion: string,
  ) {}

  /** @throws when the cluster does not answer or forbids it, with kubectl's words */
  static async create(kubectl: string, env: NodeJS.ProcessEnv): Promise<ThrowAwayNamespace> {
    const version = await run(kubectl, ['get', '--raw', '/version'], { env, timeoutMs: CALL_TIMEOUT_MS });
    if (version.code !== 0)
      throw new Error(`the cluster of KUBECONFIG does not answer:\n${lastWords(version)}`);
    const { gitVersion } = JSON.parse(version.stdout) as { gitVersion: string };
    const name = `flash-sale-verify-${randomBytes(4).toString('hex')}`;
    const namespace = new ThrowAwayNamespace(kubectl, env, name, gitVersion);
    const labels = ['enforce', 'warn', 'audit'].map((mode) => [
      `pod-security.kubernetes.io/${mode}`,
      'restricted',
    ]);
    await namespace.must(['apply', '--server-side', '--filename', '-'], {
      apiVersion: 'v1',
      kind: 'Namespace',
      metadata: { name, labels: Object.fromEntries(labels) as Record<string, string> },
    });
    return namespace;
  }

  /**
   * Lets the server decide about these manifests, to the end but for storing them. A warning is a fault: of an outdated
   * API, an unknown field, or a pod that is not restricted.
   */
  async dryRun(yaml: string): Promise<string[]> {
    const args = ['apply', '--server-side', '--dry-run=server', '--validate=strict', '--filename', '-'];
    const outcome = await this.call(args, yaml);
    if (outcome.code !== 0) return [`the server refuses it:\n${lastWords(outcome)}`];
    return warningsIn(outcome).map((warning) => `the server warns: ${warning}`);
  }

  /** Applies manifests and waits until every Deployment has rolled out. */
  async rollOut(yaml: string, deployments: readonly string[]): Promise<string[]> {
    const applied = await this.call(['apply', '--server-side', '--validate=strict', '--filename', '-'], yaml);
    if (applied.code !== 0) return [`it cannot be applied:\n${lastWords(applied)}`];
    const faults: string[] = [];
    for (const name of deployments) {
      const args = ['rollout', 'status', `deployment/${name}`, `--timeout=${ROLLOUT_SECONDS}s`];
      const outcome = await run(this.kubectl, ['--namespace', this.name, ...args], {
        env: this.env,
        timeoutMs: (ROLLOUT_SECONDS + 10) * 1_000,
      });
      if (outcome.code !== 0) {
        const pods = await this.call(['get', 'pods', '--selector', `app.kubernetes.io/part-of=flash-sale`]);
        faults.push(`${name} did not roll out:\n${lastWords(outcome)}\n${pods.stdout.trim()}`);
        break;
      }
    }
    return faults;
  }

  /** Whether a drain may take exactly one pod of a Deployment at a time, by what the budgets' controller says. */
  async budgetFaults(budgets: readonly string[]): Promise<string[]> {
    const faults: string[] = [];
    for (const name of budgets) {
      const path = 'jsonpath={.status.disruptionsAllowed}';
      let allowed = '';
      // The controller looks at pods in its own time.
      for (let tries = 0; tries < 40 && allowed !== '1'; tries += 1) {
        if (tries > 0) await new Promise((resolve) => setTimeout(resolve, 250));
        allowed = (await this.call(['get', 'poddisruptionbudget', name, '--output', path])).stdout;
      }
      if (allowed !== '1')
        faults.push(`${name}: a drain may take ${allowed || 'an unknown number of'} pods, not one`);
    }
    return faults;
  }

  /** Deletes the namespace with everything in it, and waits until it is gone. */
  async remove(): Promise<string[]> {
    const args = ['delete', 'namespace', this.name, '--ignore-not-found', '--wait', '--timeout=120s'];
    const outcome = await run(this.kubectl, args, { env: this.env, timeoutMs: 130_000 });
    return outcome.code === 0
      ? []
      : [`the namespace ${this.name} could not be deleted; delete it by hand:\n${lastWords(outcome)}`];
  }

  /** Asks for the deletion and does not wait: for somebody who is about to be ended. */
  removeAtOnce(): void {
    const args = ['delete', 'namespace', this.name, '--ignore-not-found', '--wait=false'];
    spawnSync(this.kubectl, args, { env: this.env, timeout: 10_000, stdio: 'ignore' });
  }

  /** Applies one object that the check itself needs. */
  async must(args: readonly string[], object: object): Promise<void> {
    const outcome = await this.call(args, JSON.stringify(object), object);
    if (outcome.code !== 0) throw new Error(`kubectl ${args.join(' ')} failed:\n${lastWords(outcome)}`);
  }

  private call(args: readonly string[], input = '', object?: object): Promise<Outcome> {
    const isNamespace = object !== undefined && 'kind' in object && object.kind === 'Namespace';
    const scope = isNamespace ? [] : ['--namespace', this.name];
    return run(this.kubectl, [...scope, ...args], { env: this.env, input, timeoutMs: CALL_TIMEOUT_MS });
  }
}

function warningsIn({ stderr }: Outcome): string[] {
  return stderr.split('\n').flatMap((line) => /^Warning: (.*)/.exec(line)?.[1] ?? []);
}
