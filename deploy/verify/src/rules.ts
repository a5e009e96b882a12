import { selects, type Deployment, type NetworkPolicy, type Rendered } from './manifests.js';
import { POD_RULES, eachContainer, titleOf, type Rule } from './pod-rules.js';

const ADDRESS = /^([a-z0-9-]+):(\d{1,5})$/;

/** All rules: those for each pod, and those for how the objects fit together. */
export const RULES: readonly Rule[] = [
  ...POD_RULES,
  {
    name: 'no-cluster-access',
    why: 'no service talks to Kubernetes',
    check: ({ manifests, deployments }) => [
      ...manifests
        .filter(({ kind }) => /Role|RoleBinding$/.test(kind))
        .map(({ title }) => `${title} gives rights in the cluster`),
      ...deployments
        .filter(({ spec }) => spec.template.spec.automountServiceAccountToken !== false)
        .map((deployment) => `${titleOf(deployment)} gets a service account's token`),
    ],
  },
  {
    name: 'disruption-budgets',
    why: 'emptying a node must leave each service running, and must not be blocked for ever',
    check: ({ deployments, budgets }) =>
      deployments.flatMap((deployment) => {
        const own = budgets.filter(({ spec }) =>
          selects(spec.selector.matchLabels, deployment.spec.template.metadata.labels),
        );
        const [budget] = own;
        if (!budget || own.length > 1)
          return [`${titleOf(deployment)} has ${own.length} disruption budgets, not one`];
        const { maxUnavailable, minAvailable } = budget.spec;
        const blocks =
          maxUnavailable === 0 ||
          maxUnavailable === '0%' ||
          minAvailable === '100%' ||
          (typeof minAvailable === 'number' && minAvailable >= (deployment.spec.replicas ?? 1));
        return blocks
          ? [`${titleOf(deployment)}'s disruption budget lets no pod go, so no node can be emptied`]
          : [];
      }),
  },
  {
    name: 'secrets-by-reference',
    why: 'whoever may read a chart or a ConfigMap must not thereby know a secret',
    check: ({ deployments, configMaps, secrets }) => [
      ...secrets.map(({ metadata }) => `Secret/${metadata.name} is rendered; secrets come from outside`),
      ...configMaps.flatMap(({ metadata, data }) =>
        Object.entries(data)
          .filter(([name, value]) => looksSecret(name, value))
          .map(([name]) => `ConfigMap/${metadata.name}: ${name} looks like a secret`),
      ),
      ...eachContainer(deployments, ({ env }) =>
        env
          .filter(({ name, value }) => value !== undefined && looksSecret(name, value))
          .map(({ name }) => `has a value for ${name} that looks like a secret`),
      ),
    ],
  },
  {
    name: 'selectors',
    why: 'two Deployments that choose the same pods fight over them for ever',
    check: ({ deployments }) =>
      deployments.flatMap((deployment) => {
        const { selector, template } = deployment.spec;
        const others = deployments.filter(
          (other) =>
            other !== deployment && selects(selector.matchLabels, other.spec.template.metadata.labels),
        );
        return [
          ...(selects(selector.matchLabels, template.metadata.labels)
            ? []
            : [`${titleOf(deployment)} does not select its own pods`]),
          ...others.map((other) => `${titleOf(deployment)} also selects the pods of ${titleOf(other)}`),
        ];
      }),
  },
  {
    name: 'services-reach-pods',
    why: 'a Service without pods, or with the wrong port, only shows when it is called',
    check: ({ services, deployments }) =>
      services.flatMap((service) => {
        const title = `Service/${service.metadata.name}`;
        const targets = deployments.filter(({ spec }) =>
          selects(service.spec.selector, spec.template.metadata.labels),
        );
        const [target] = targets;
        if (!target || targets.length > 1)
          return [`${title} leads to ${targets.length} Deployments, not one`];
        const ports = target.spec.template.spec.containers.flatMap((container) => container.ports);
        return service.spec.ports.flatMap(({ name, port, targetPort = port }) => [
          ...(ports.some((each) => each.name === targetPort || each.containerPort === targetPort)
            ? []
            : [`${title}: ${titleOf(target)} has no port ${targetPort}`]),
          ...(name === 'grpc' && service.spec.clusterIP !== 'None'
            ? [`${title} is not headless, so each gRPC client would stay with one pod for ever`]
            : []),
        ]);
      }),
  },
  {
    name: 'addresses',
    why: 'an address in the environment must lead to a Service whose policy lets the caller in',
    check: (rendered, { complete }) =>
      rendered.deployments.flatMap((deployment) =>
        Object.entries(plainEnvironment(rendered, deployment))
          .filter(([name]) => /^(TOKEN|INVENTORY|ORDER)_URL$/.test(name))
          .flatMap(([name, address]) => addressFaults(rendered, deployment, name, address, complete)),
      ),
  },
  {
    name: 'network-policies',
    why: 'gRPC has no password: only the suite may reach it, and nobody the operators’ port or the metrics unless named',
    check: ({ deployments, policies }) =>
      deployments.flatMap((deployment) => {
        const own = policiesOf(policies, deployment);
        if (own.length === 0) return [`${titleOf(deployment)} may be called by anybody on every port`];
        return own.flatMap(({ metadata, spec }) =>
          spec.ingress
            .filter((rule) => !rule.from?.length)
            .flatMap((rule) => rule.ports ?? [{ port: 'every port' }])
            .filter(({ port }) => port !== 'http')
            .map(({ port }) => `NetworkPolicy/${metadata.name} lets anybody call ${port ?? 'every port'}`),
        );
      }),
  },
  {
    name: 'operators-stay-inside',
    why: 'the operators’ port can close a sale; nothing may publish it',
    check: ({ services, ingresses }) => [
      ...services
        .filter(({ spec }) => spec.type !== 'ClusterIP')
        .map(({ metadata, spec }) => `Service/${metadata.name} is of type ${spec.type}, which publishes it`),
      ...ingresses.flatMap(({ metadata, spec }) => {
        const backends = spec.rules.flatMap(({ http }) =>
          http.paths.map(({ backend }) => backend.service.name),
        );
        const inner = backends.filter((name) =>
          services.some(
            (service) =>
              service.metadata.name === name && service.spec.ports.some((each) => each.name !== 'http'),
          ),
        );
        return [
          ...inner.map((name) => `Ingress/${metadata.name} publishes Service/${name}`),
          ...backends
            .filter((name) => !services.some((service) => service.metadata.name === name))
            .map((name) => `Ingress/${metadata.name} leads to Service/${name}, which is not there`),
          ...(spec.defaultBackend === undefined ? [] : [`Ingress/${metadata.name} has a default backend`]),
        ];
      }),
    ],
  },
  {
    name: 'no-demo-login',
    why: 'DEV_LOGIN lets anybody be anybody',
    check: (rendered) =>
      rendered.deployments
        .filter((deployment) => plainEnvironment(rendered, deployment)['DEV_LOGIN'] === 'true')
        .map((deployment) => `${titleOf(deployment)} has DEV_LOGIN=true`),
  },
  {
    name: 'no-nulls',
    why: 'a template that rendered nothing leaves a null, which means "the default" and not what was meant',
    check: ({ manifests }) =>
      manifests.flatMap(({ title, content }) =>
        nullsIn(content, '').map((path) => `${title} has nothing at ${path}`),
      ),
  },
];

export function plainEnvironment(rendered: Rendered, deployment: Deployment): Record<string, string> {
  const environment: Record<string, string> = {};
  for (const { env, envFrom } of deployment.spec.template.spec.containers) {
    for (const { configMapRef } of envFrom) {
      const map = rendered.configMaps.find(({ metadata }) => metadata.name === configMapRef?.name);
      Object.assign(environment, map?.data);
    }
    for (const { name, value } of env) if (value !== undefined) environment[name] = value;
  }
  return environment;
}

function looksSecret(name: string, value: string): boolean {
  return (
    /SECRET|PASSWORD|PASSWD|TOKEN_KEYS|PRIVATE_KEY|CREDENTIAL/.test(name) ||
    /:\/\/[^/@\s]*:[^/@\s]+@/.test(value) ||
    /-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(value)
  );
}

function addressFaults(
  { services, policies, deployments }: Rendered,
  caller: Deployment,
  name: string,
  address: string,
  complete: boolean,
): string[] {
  const what = `${titleOf(caller)}: ${name}=${address}`;
  const [, host, port] = ADDRESS.exec(address) ?? [];
  const service = services.find(({ metadata }) => metadata.name === host);
  if (!service) return complete ? [`${what} leads to no Service`] : [];
  const found = service.spec.ports.find((each) => String(each.port) === port);
  if (!found) return [`${what}: the Service has no port ${port ?? ''}`];
  const target = deployments.find(({ spec }) =>
    selects(service.spec.selector, spec.template.metadata.labels),
  );
  if (!target) return [];
  const admitted = policiesOf(policies, target).some(({ spec }) =>
    spec.ingress.some(
      (rule) =>
        (rule.ports ?? []).some((each) => each.port === found.targetPort || each.port === found.port) &&
        (rule.from ?? []).some(
          (peer) =>
            peer.podSelector && selects(peer.podSelector.matchLabels, caller.spec.template.metadata.labels),
        ),
    ),
  );
  return admitted || policies.length === 0 ? [] : [`${what}: no NetworkPolicy lets it in`];
}

function policiesOf(policies: readonly NetworkPolicy[], deployment: Deployment): NetworkPolicy[] {
  return policies.filter(
    ({ spec }) =>
      spec.policyTypes.includes('Ingress') &&
      selects(spec.podSelector.matchLabels, deployment.spec.template.metadata.labels),
  );
}

function nullsIn(value: unknown, path: string): string[] {
  if (value === null) return [path];
  if (typeof value !== 'object') return [];
  return Object.entries(value).flatMap(([key, inner]) => nullsIn(inner, `${path}/${key}`));
}
