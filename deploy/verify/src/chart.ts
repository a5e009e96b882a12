import { resolve } from 'node:path';
import { parseManifests, type Rendered } from './manifests.js';
import { lastWords, run } from './run.js';

/** A set of values with which the chart is rendered. */
export interface Variant {
  readonly name: string;
  /** Below the chart's folder, or absolute. */
  readonly values: string;
  /** Whether all services are in it. */
  readonly complete: boolean;
}

export const VARIANTS: readonly Variant[] = [
  { name: 'the example', values: 'examples/values.yaml', complete: true },
  { name: 'every option', values: 'ci/everything.yaml', complete: true },
  { name: 'one service alone', values: 'ci/one-service.yaml', complete: false },
];

/** Changes to the example that the schema of values must refuse. */
export const REFUSED: readonly (readonly [what: string, change: string])[] = [
  ['an image without a version', 'image.tag=latest'],
  ['no secret', 'secrets.existingSecret='],
  ['no broker', 'kafka.brokers=null'],
  ['a broker without a port', 'kafka.brokers={kafka.example}'],
  ['a misspelt name', 'services.gatway.replicas=3'],
  ['a misspelt setting', 'services.gateway.replica=3'],
  ['a variable that is no string', 'services.gateway.env.PORT=8080'],
  ['two sources of keys', 'identity.algorithm=HS256'],
  ['an ingress for no host', 'ingress.enabled=true'],
  ['waiting longer than the pods may', 'drainWaitMs=60000'],
];

const HELM_TIMEOUT_MS = 60_000;

export class Chart {
  constructor(
    private readonly helm: string,
    private readonly folder: string,
  ) {}

  /** Renders the chart as it would be installed under the name `flash-sale`; the YAML and what is in it. */
  async render(values: string): Promise<{ yaml: string; rendered: Rendered }> {
    const args = ['template', 'flash-sale', this.folder, '--values', resolve(this.folder, values)];
    const outcome = await run(this.helm, args, { timeoutMs: HELM_TIMEOUT_MS });
    if (outcome.code !== 0) throw new Error(`helm cannot render ${values}:\n${lastWords(outcome)}`);
    return { yaml: outcome.stdout, rendered: parseManifests(outcome.stdout) };
  }

  async lint(values: string): Promise<string[]> {
    const args = ['lint', '--strict', this.folder, '--values', resolve(this.folder, values)];
    const outcome = await run(this.helm, args, { timeoutMs: HELM_TIMEOUT_MS });
    return outcome.code === 0 ? [] : [`helm lint with ${values}:\n${lastWords(outcome)}`];
  }

  /** Empty if the change is refused by the schema of values, and not for some other reason. */
  async acceptance(what: string, change: string): Promise<string[]> {
    const values = resolve(this.folder, 'examples/values.yaml');
    const [kind, given] = change.includes('env.') ? ['--set-json', change] : ['--set', change];
    const args = ['template', 'flash-sale', this.folder, '--values', values, kind, given];
    const outcome = await run(this.helm, args, { timeoutMs: HELM_TIMEOUT_MS });
    if (outcome.code === 0) return [`the values may name ${what} (${change})`];
    return /schema/.test(outcome.stderr)
      ? []
      : [`${what} (${change}) is not refused by the schema:\n${lastWords(outcome)}`];
  }
}
