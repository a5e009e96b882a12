import type { Container, Deployment, Rendered } from './manifests.js';

/** What must hold for what the chart renders, beyond being valid: each rule says why and is broken on purpose in a test. */
export interface Rule {
  readonly name: string;
  readonly why: string;
  /** One sentence for each place where it does not hold. */
  readonly check: (rendered: Rendered, scope: Scope) => string[];
}

export interface Scope {
  /** False where only some of the services were rendered, so that the others are not to be found. */
  readonly complete: boolean;
}

/** Below it Kubernetes would kill what is still finishing: services take up to 40 s to stop. */
const GRACE_SECONDS = 45;
/** Making tables and topics on a slow day; a start that takes longer is a restart loop. */
const STARTUP_SECONDS = 60;

/** What must hold for each pod by itself. */
export const POD_RULES: readonly Rule[] = [
  {
    name: 'restricted-pods',
    why: 'a service needs no right at all on its node, so a break-in should find none',
    check: ({ deployments }) => deployments.flatMap(restrictionFaults),
  },
  {
    name: 'probes',
    why: 'a process that hangs must be noticed, and one that is not ready must get no requests',
    check: ({ deployments }) =>
      eachContainer(deployments, (container) => [
        ...probeFaults(container, 'startupProbe', '/healthz'),
        ...probeFaults(container, 'livenessProbe', '/healthz'),
        ...probeFaults(container, 'readinessProbe', '/readyz'),
        ...startupFaults(container),
      ]),
  },
  {
    name: 'resources',
    why: 'the scheduler places by requests, and a leak must hit its own pod only',
    check: ({ deployments }) =>
      eachContainer(deployments, ({ resources }) =>
        (['requests', 'limits'] as const).flatMap((kind) =>
          ['cpu', 'memory']
            .filter((name) => resources[kind][name] === undefined)
            .map((name) => `has no ${name} in its ${kind}`),
        ),
      ),
  },
  {
    name: 'pinned-images',
    why: 'what runs must be known, and a roll-back must bring back what ran before',
    check: ({ deployments }) =>
      eachContainer(deployments, ({ image }) =>
        /@sha256:[0-9a-f]{64}$/.test(image) || /:(?!latest$)[A-Za-z0-9_][\w.-]{0,127}$/.test(image)
          ? []
          : [`runs "${image}", which names no version`],
      ),
  },
  {
    name: 'stopping',
    why: 'a service finishes what it has taken, which it is given 45 s for, and waits for endpoints by itself',
    check: ({ deployments }) =>
      deployments.flatMap((deployment) => {
        const { terminationGracePeriodSeconds, containers } = deployment.spec.template.spec;
        return [
          ...(terminationGracePeriodSeconds >= GRACE_SECONDS
            ? []
            : [`${titleOf(deployment)} is killed ${terminationGracePeriodSeconds} s after SIGTERM`]),
          ...containers
            .filter(({ lifecycle }) => lifecycle?.preStop !== undefined)
            .map(
              ({ name }) => `${titleOf(deployment)}: ${name} has a preStop hook, which takes from those 45 s`,
            ),
        ];
      }),
  },
  {
    name: 'no-npm-start',
    why: 'npm and shells do not pass SIGTERM on',
    check: ({ deployments }) =>
      eachContainer(deployments, ({ command, args }) =>
        /^(npm|npx|pnpm|yarn|sh|bash|\/bin\/(ba)?sh)$/.test(command?.[0] ?? args?.[0] ?? '')
          ? ['is started through a program that does not pass signals on']
          : [],
      ),
  },
  {
    name: 'spread',
    why: 'the pods of a service on one node all go with that node',
    check: ({ deployments }) =>
      deployments
        .filter(
          ({ spec }) =>
            !spec.template.spec.topologySpreadConstraints.some(
              (each) => each.topologyKey === 'kubernetes.io/hostname',
            ),
        )
        .map((deployment) => `${titleOf(deployment)} may be put on one node altogether`),
  },
  {
    name: 'no-service-links',
    why: 'Kubernetes would add variables such as ORDER_PORT=tcp://… that services could take for their own',
    check: ({ deployments }) =>
      deployments
        .filter(({ spec }) => spec.template.spec.enableServiceLinks !== false)
        .map((deployment) => `${titleOf(deployment)} gets variables of every Service in its namespace`),
  },
];

/** For messages. */
export function titleOf(deployment: Deployment): string {
  return `Deployment/${deployment.metadata.name}`;
}

/** The faults of each container, with its name before them. */
export function eachContainer(
  deployments: readonly Deployment[],
  check: (container: Container) => readonly string[],
): string[] {
  return deployments.flatMap((deployment) => {
    const { containers, initContainers } = deployment.spec.template.spec;
    return [...initContainers, ...containers].flatMap((container) =>
      check(container).map((fault) => `${titleOf(deployment)}: ${container.name} ${fault}`),
    );
  });
}

function restrictionFaults(deployment: Deployment): string[] {
  const pod = deployment.spec.template.spec;
  const podFaults = [
    pod.hostNetwork || pod.hostPID || pod.hostIPC ? 'shares a namespace with its node' : '',
    pod.volumes.some(({ hostPath }) => hostPath !== undefined) ? 'mounts a path of its node' : '',
    pod.securityContext.seccompProfile?.type === 'RuntimeDefault'
      ? ''
      : 'has not the seccomp profile RuntimeDefault',
  ].filter((fault) => fault !== '');
  const containerFaults = eachContainer([deployment], ({ securityContext: own }) => {
    const uid = own.runAsUser ?? pod.securityContext.runAsUser;
    return [
      (own.runAsNonRoot ?? pod.securityContext.runAsNonRoot) === true && uid !== undefined && uid > 0
        ? ''
        : 'may run as root',
      own.readOnlyRootFilesystem === true ? '' : 'may write to its root file system',
      own.allowPrivilegeEscalation === false && own.privileged !== true ? '' : 'may gain privileges',
      own.capabilities.drop.includes('ALL') && own.capabilities.add.length === 0 ? '' : 'keeps capabilities',
    ].filter((fault) => fault !== '');
  });
  return [...podFaults.map((fault) => `${titleOf(deployment)} ${fault}`), ...containerFaults];
}

function probeFaults(
  container: Container,
  kind: 'startupProbe' | 'livenessProbe' | 'readinessProbe',
  path: string,
): string[] {
  const call = container[kind]?.httpGet;
  if (!call) return [`has no ${kind}`];
  const ops = container.ports.find(({ name }) => name === 'ops');
  if (call.path !== path) return [`has a ${kind} of ${call.path} instead of ${path}`];
  const hits = ops !== undefined && (call.port === 'ops' || call.port === ops.containerPort);
  return hits ? [] : [`has a ${kind} on port ${call.port}, which is not its ops port`];
}

function startupFaults({ startupProbe }: Container): string[] {
  if (!startupProbe) return [];
  const seconds = startupProbe.periodSeconds * startupProbe.failureThreshold;
  return seconds >= STARTUP_SECONDS ? [] : [`has only ${seconds} s to start`];
}
