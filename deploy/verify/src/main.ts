import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { stackHome } from '@flash-sale/stack';
import { Chart, REFUSED, VARIANTS, type Variant } from './chart.js';
import { ThrowAwayNamespace } from './cluster.js';
import { composeFaults, readCompose } from './compose.js';
import { dockerfileFaults } from './dockerfile.js';
import { readVerifyEnv } from './env.js';
import { parseManifests, type Rendered } from './manifests.js';
import { RULES, plainEnvironment } from './rules.js';
import { lastWords, run } from './run.js';
import { schemaFaults } from './schemas.js';
import {
  SERVICES,
  contentFaults,
  environmentFaults,
  packageService,
  type PackagedService,
  type ServiceName,
} from './services.js';
import { SCHEMA_VERSION, openToolbox } from './tools.js';

/**
 * `npm run verify:deploy`: everything about images, compose files and chart that can be known without running them, and
 * with a cluster (KUBECONFIG) what its server, scheduler and controllers say. Exit code 0 only if there is no fault.
 */
const ROOT = fileURLToPath(new URL('../../..', import.meta.url));
const CHART = join(ROOT, 'deploy/chart');
const DOCKERFILES = [
  { file: join(ROOT, 'deploy/images/Dockerfile'), title: 'Dockerfile', runs: 'node' },
  { file: join(ROOT, 'deploy/edge/Dockerfile'), title: 'Dockerfile of the edge', runs: 'nginx' },
] as const;

const HELP = `npm run verify:deploy -- [options]

Checks the Dockerfile, what goes into each image, the compose files and the chart. With KUBECONFIG it also applies the
chart to that cluster, in a namespace that is deleted afterwards, and waits for the roll-out. By default with the chart's
example values; a cluster that really runs containers needs values that name images, and stores, that are there:

  --values FILE   values to roll out
  --secret FILE   the Secret that they name
`;

const env = readVerifyEnv();
const say = (line: string) => void process.stdout.write(`${line}\n`);

let checks = 0;
let broken = 0;
/** Things that were not looked at, said again at the end so that nobody takes silence for consent. */
const omissions: string[] = [];

/** What an interruption must not leave behind. Each may be done twice. */
const leftovers: (() => void)[] = [];
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.once(signal, () => {
    for (const remove of leftovers) remove();
    process.exit(130);
  });
}

/** One line for a check that holds; each fault where it does not. */
function report(what: string, faults: readonly string[]): void {
  checks += 1;
  if (faults.length === 0) return say(`✓ ${what}`);
  broken += 1;
  say(`✗ ${what}`);
  for (const fault of faults) say(`    ${fault.replaceAll('\n', '\n    ')}`);
}

/** A check that cannot be made is not one that holds. */
async function attempt(what: string, check: () => Promise<readonly string[]>): Promise<void> {
  try {
    report(what, await check());
  } catch (error) {
    report(what, [error instanceof Error ? error.message : String(error)]);
  }
}

async function verifyDockerfiles(hadolint: string | undefined): Promise<void> {
  if (hadolint === undefined) omissions.push('no hadolint: the Dockerfiles were not linted');
  for (const { file, title, runs } of DOCKERFILES) {
    const faults = dockerfileFaults(readFileSync(file, 'utf8'), runs);
    report(`${title}: who runs it, its health, its signals`, faults);
    if (hadolint === undefined) continue;
    const outcome = await run(hadolint, [file], { timeoutMs: 60_000 });
    report(`${title}: hadolint`, outcome.code === 0 ? [] : [lastWords(outcome)]);
  }
}

async function verifyImages(packaged: ReadonlyMap<ServiceName, PackagedService>): Promise<void> {
  for (const [name, service] of packaged) {
    await attempt(`image of ${name}: has what it needs, nothing else, and starts`, () =>
      contentFaults(ROOT, service),
    );
  }
}

async function verifyCompose(packaged: ReadonlyMap<ServiceName, PackagedService>): Promise<void> {
  await attempt('compose: both files fit together', async () => {
    const services = readCompose(join(ROOT, 'deploy/compose.services.yaml'));
    const faults = composeFaults(readCompose(join(ROOT, 'deploy/compose.yaml')), services);
    for (const [name, service] of packaged) {
      const given = services.services[name]?.environment ?? {};
      faults.push(...(await environmentFaults(service, withoutEmpty(given))));
    }
    return faults;
  });
}

interface RenderedVariant {
  readonly name: string;
  readonly yaml: string;
  readonly rendered: Rendered;
}

async function verifyChart(
  chart: Chart,
  schemaFile: (file: string) => unknown,
  packaged: ReadonlyMap<ServiceName, PackagedService>,
  { variants: wanted, secretFile }: Options,
): Promise<RenderedVariant[]> {
  const secret = parseManifests(readFileSync(secretFile, 'utf8')).secrets[0]?.stringData ?? {};
  const asked = new Set<string>();
  const variants: RenderedVariant[] = [];
  for (const { name, values, complete } of wanted) {
    await attempt(
      `chart, ${name}: lints, renders, and every field is one of Kubernetes ${SCHEMA_VERSION}`,
      async () => {
        const { yaml, rendered } = await chart.render(values);
        variants.push({ name, yaml, rendered });
        return [...(await chart.lint(values)), ...schemaFaults(rendered.manifests, schemaFile)];
      },
    );
    const rendered = variants.find((variant) => variant.name === name)?.rendered;
    if (!rendered) continue;
    const faults = RULES.flatMap((rule) =>
      rule.check(rendered, { complete }).map((fault) => `${rule.name}: ${fault} (${rule.why})`),
    );
    report(`chart, ${name}: ${RULES.length} rules`, faults);
    await attempt(
      `chart, ${name}: each service has the variables it needs and reads all it is given`,
      async () => {
        const missing = complete ? SERVICES.filter((service) => !deploymentOf(rendered, service)) : [];
        const found = missing.map((service) => `there is no Deployment of ${service}`);
        for (const [service, files] of packaged) {
          const deployment = deploymentOf(rendered, service);
          if (!deployment) continue;
          const environment = plainEnvironment(rendered, deployment);
          for (const { name: variable, valueFrom } of deployment.spec.template.spec.containers[0]?.env ??
            []) {
            const key = valueFrom?.secretKeyRef?.key;
            if (key === undefined) continue;
            asked.add(key);
            const value = secret[key];
            if (value === undefined) found.push(`${service}: the Secret has no key ${key}`);
            else environment[variable] = value;
          }
          found.push(...(await environmentFaults(files, environment)));
        }
        return found;
      },
    );
  }
  report(
    'chart: every key of the Secret is asked for',
    Object.keys(secret).filter((key) => !asked.has(key)),
  );
  await attempt(`chart: ${REFUSED.length} kinds of wrong values are refused`, async () => {
    const faults: string[] = [];
    for (const [what, change] of REFUSED) faults.push(...(await chart.acceptance(what, change)));
    return faults;
  });
  return variants;
}

async function verifyCluster(
  kubectl: string,
  variants: readonly RenderedVariant[],
  options: Options,
): Promise<void> {
  let namespace: ThrowAwayNamespace | undefined;
  try {
    namespace = await ThrowAwayNamespace.create(kubectl, env.inherited);
    const there = namespace;
    leftovers.push(() => there.removeAtOnce());
    say(`  applying to the cluster of KUBECONFIG (${there.serverVersion}), in the namespace ${there.name}`);
    for (const { name, yaml } of variants) {
      await attempt(`cluster, ${name}: the server takes it without a warning, pods being restricted`, () =>
        there.dryRun(yaml),
      );
    }
    const example = variants.find(({ name }) => name === options.variants[0]?.name);
    if (!example) return;
    const names = example.rendered.deployments.map(({ metadata }) => metadata.name);
    await attempt(`cluster, ${example.name}: ${names.length} Deployments roll out`, async () => {
      return there.rollOut(`${readFileSync(options.secretFile, 'utf8')}\n---\n${example.yaml}`, names);
    });
    await attempt('cluster: a drain may take one pod of each service at a time', () =>
      there.budgetFaults(example.rendered.budgets.map(({ metadata }) => metadata.name)),
    );
  } catch (error) {
    report('cluster: a namespace to throw away', [error instanceof Error ? error.message : String(error)]);
  } finally {
    if (namespace) report('cluster: the namespace is gone again', await namespace.remove());
  }
}

function deploymentOf(rendered: Rendered, service: ServiceName) {
  return rendered.deployments.find(
    ({ spec }) => spec.template.metadata.labels['app.kubernetes.io/name'] === service,
  );
}

function withoutEmpty(environment: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(environment).filter(([, value]) => value !== ''));
}

interface Options {
  /** The first is the one that is rolled out where there is a cluster. */
  readonly variants: readonly Variant[];
  readonly secretFile: string;
}

async function main(args: string[]): Promise<number> {
  const text = { type: 'string' } as const;
  const { values } = parseArgs({ args, options: { values: text, secret: text, help: { type: 'boolean' } } });
  if (values.help) {
    say(HELP);
    return 0;
  }
  const own =
    values.values === undefined ? [] : [{ name: 'yours', values: resolve(values.values), complete: true }];
  const options: Options = {
    variants: [...own, ...VARIANTS],
    secretFile: resolve(values.secret ?? join(CHART, 'examples/secret.yaml')),
  };
  const tools = openToolbox(join(stackHome(), 'tools'), (line) => say(`  ${line}`));
  const packaged = new Map<ServiceName, PackagedService>();
  try {
    await verifyDockerfiles(await tools.hadolint());
    for (const name of SERVICES) {
      if (!existsSync(join(ROOT, 'apps', name, 'dist/main.js'))) {
        report(`image of ${name}`, [`apps/${name} is not built: run npm run setup`]);
        continue;
      }
      try {
        const service = await packageService(ROOT, name);
        leftovers.push(service.dispose);
        packaged.set(name, service);
      } catch (error) {
        report(`image of ${name}`, [error instanceof Error ? error.message : String(error)]);
      }
    }
    await verifyImages(packaged);
    await verifyCompose(packaged);
    const chart = new Chart(await tools.helm(), CHART);
    const variants = await verifyChart(chart, await tools.schemas(), packaged, options);
    if (env.kubeconfig === undefined) {
      omissions.push('no cluster (KUBECONFIG is not set): nothing was applied');
    } else {
      await verifyCluster(await tools.kubectl(), variants, options);
      omissions.push(
        'the roll-out is what server, scheduler and controllers say: policies, routing and autoscaling were not tried',
      );
    }
  } catch (error) {
    report('the tools for checking', [error instanceof Error ? error.message : String(error)]);
  } finally {
    for (const service of packaged.values()) service.dispose();
  }
  for (const omission of omissions) say(`! ${omission}`);
  say(`verify:deploy: ${broken === 0 ? 'PASS' : 'FAIL'}, ${checks} checks, ${broken} broken`);
  return broken === 0 ? 0 : 1;
}

process.exitCode = await main(process.argv.slice(2)).catch((error: unknown) => {
  process.stderr.write(`verify:deploy: ${error instanceof Error ? error.message : String(error)}\n`);
  return 2;
});
