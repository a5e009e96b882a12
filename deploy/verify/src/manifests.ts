import { parseAllDocuments } from 'yaml';
import { z } from 'zod';

/** Only what the rules look at; whether a manifest is whole and right in itself is the schemas' business. */
const labels = z.record(z.string(), z.string()).default({});
const metadata = z.looseObject({ name: z.string(), labels });
const selector = z.looseObject({ matchLabels: labels }).default({ matchLabels: {} });
const port = z.union([z.string(), z.number()]);

const Probe = z.looseObject({
  httpGet: z.looseObject({ path: z.string(), port }).optional(),
  periodSeconds: z.number().default(10),
  failureThreshold: z.number().default(3),
});

const Resources = z.record(z.string(), z.union([z.string(), z.number()])).default({});

const Container = z.looseObject({
  name: z.string(),
  image: z.string().default(''),
  command: z.array(z.string()).optional(),
  args: z.array(z.string()).optional(),
  env: z
    .array(
      z.looseObject({
        name: z.string(),
        value: z.string().optional(),
        valueFrom: z
          .looseObject({ secretKeyRef: z.looseObject({ name: z.string(), key: z.string() }).optional() })
          .optional(),
      }),
    )
    .default([]),
  envFrom: z
    .array(z.looseObject({ configMapRef: z.looseObject({ name: z.string() }).optional() }))
    .default([]),
  ports: z.array(z.looseObject({ name: z.string().default(''), containerPort: z.number() })).default([]),
  startupProbe: Probe.optional(),
  livenessProbe: Probe.optional(),
  readinessProbe: Probe.optional(),
  lifecycle: z.looseObject({ preStop: z.unknown().optional() }).optional(),
  resources: z.looseObject({ requests: Resources, limits: Resources }).default({ requests: {}, limits: {} }),
  securityContext: z
    .looseObject({
      allowPrivilegeEscalation: z.boolean().optional(),
      privileged: z.boolean().optional(),
      readOnlyRootFilesystem: z.boolean().optional(),
      runAsNonRoot: z.boolean().optional(),
      runAsUser: z.number().optional(),
      capabilities: z
        .looseObject({ drop: z.array(z.string()).default([]), add: z.array(z.string()).default([]) })
        .default({ drop: [], add: [] }),
    })
    .default({ capabilities: { drop: [], add: [] } }),
});
export type Container = z.infer<typeof Container>;

const PodSpec = z.looseObject({
  serviceAccountName: z.string().optional(),
  automountServiceAccountToken: z.boolean().optional(),
  enableServiceLinks: z.boolean().optional(),
  hostNetwork: z.boolean().optional(),
  hostPID: z.boolean().optional(),
  hostIPC: z.boolean().optional(),
  terminationGracePeriodSeconds: z.number().default(30),
  securityContext: z
    .looseObject({
      runAsNonRoot: z.boolean().optional(),
      runAsUser: z.number().optional(),
      seccompProfile: z.looseObject({ type: z.string() }).optional(),
    })
    .default({}),
  topologySpreadConstraints: z.array(z.looseObject({ topologyKey: z.string() })).default([]),
  initContainers: z.array(Container).default([]),
  containers: z.array(Container),
  volumes: z.array(z.looseObject({ hostPath: z.unknown().optional() })).default([]),
});

const Deployment = z.looseObject({
  metadata,
  spec: z.looseObject({
    replicas: z.number().optional(),
    selector,
    template: z.looseObject({ metadata: z.looseObject({ labels }), spec: PodSpec }),
  }),
});
export type Deployment = z.infer<typeof Deployment>;

const Service = z.looseObject({
  metadata,
  spec: z.looseObject({
    type: z.string().default('ClusterIP'),
    clusterIP: z.string().optional(),
    selector: labels,
    ports: z.array(
      z.looseObject({ name: z.string().default(''), port: z.number(), targetPort: port.optional() }),
    ),
  }),
});
export type Service = z.infer<typeof Service>;

const Budget = z.looseObject({
  metadata,
  spec: z.looseObject({ selector, minAvailable: port.optional(), maxUnavailable: port.optional() }),
});

const NetworkPolicy = z.looseObject({
  metadata,
  spec: z.looseObject({
    podSelector: selector,
    policyTypes: z.array(z.string()).default([]),
    ingress: z
      .array(
        z.looseObject({
          from: z
            .array(
              z.looseObject({ podSelector: selector.optional(), namespaceSelector: z.unknown().optional() }),
            )
            .optional(),
          ports: z.array(z.looseObject({ port: port.optional() })).optional(),
        }),
      )
      .default([]),
  }),
});
export type NetworkPolicy = z.infer<typeof NetworkPolicy>;

const ConfigMap = z.looseObject({ metadata, data: labels });
const Secret = z.looseObject({ metadata, stringData: labels });

const Ingress = z.looseObject({
  metadata,
  spec: z.looseObject({
    defaultBackend: z.unknown().optional(),
    rules: z
      .array(
        z.looseObject({
          http: z.looseObject({
            paths: z.array(
              z.looseObject({
                backend: z.looseObject({
                  service: z.looseObject({ name: z.string(), port: z.unknown().optional() }),
                }),
              }),
            ),
          }),
        }),
      )
      .default([]),
  }),
});

/** One object as it was rendered. */
export interface Manifest {
  readonly kind: string;
  readonly apiVersion: string;
  /** `Kind/name`, for messages. */
  readonly title: string;
  readonly content: Readonly<Record<string, unknown>>;
}

/** All that was rendered, sorted by what it is. */
export interface Rendered {
  readonly manifests: readonly Manifest[];
  readonly deployments: readonly Deployment[];
  readonly services: readonly Service[];
  readonly budgets: readonly z.infer<typeof Budget>[];
  readonly policies: readonly NetworkPolicy[];
  readonly configMaps: readonly z.infer<typeof ConfigMap>[];
  readonly secrets: readonly z.infer<typeof Secret>[];
  readonly ingresses: readonly z.infer<typeof Ingress>[];
}

const Header = z.looseObject({
  apiVersion: z.string(),
  kind: z.string(),
  metadata: z.looseObject({ name: z.string() }),
});

/**
 * Reads a stream of YAML documents as Kubernetes does (YAML 1.1: an unquoted `on` is no string).
 *
 * @throws where it is no YAML, has a key twice or holds something that is no object of Kubernetes
 */
export function parseManifests(yaml: string): Rendered {
  const manifests = parseAllDocuments(yaml, { version: '1.1', merge: true }).flatMap(
    (document): Manifest[] => {
      const fault = document.errors[0] ?? document.warnings[0];
      if (fault) throw new Error(`not the YAML it should be: ${fault.message}`);
      const content: unknown = document.toJS();
      if (content === null || content === undefined) return [];
      const {
        apiVersion,
        kind,
        metadata: { name },
      } = Header.parse(content);
      return [{ apiVersion, kind, title: `${kind}/${name}`, content: content as Record<string, unknown> }];
    },
  );
  const ofKind = <Shape extends z.ZodType>(kind: string, shape: Shape): z.output<Shape>[] =>
    manifests
      .filter((manifest) => manifest.kind === kind)
      .map((manifest) => {
        const parsed = shape.safeParse(manifest.content);
        if (parsed.success) return parsed.data;
        throw new Error(`${manifest.title}: ${z.prettifyError(parsed.error)}`);
      });
  return {
    manifests,
    deployments: ofKind('Deployment', Deployment),
    services: ofKind('Service', Service),
    budgets: ofKind('PodDisruptionBudget', Budget),
    policies: ofKind('NetworkPolicy', NetworkPolicy),
    configMaps: ofKind('ConfigMap', ConfigMap),
    secrets: ofKind('Secret', Secret),
    ingresses: ofKind('Ingress', Ingress),
  };
}

/** Whether a selector chooses something with these labels. An empty one chooses everything. */
export function selects(
  wanted: Readonly<Record<string, string>>,
  found: Readonly<Record<string, string>>,
): boolean {
  return Object.entries(wanted).every(([name, value]) => found[name] === value);
}
