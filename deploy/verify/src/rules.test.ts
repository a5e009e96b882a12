import { describe, expect, it } from '@jest/globals';
import { parseManifests } from './manifests.js';
import { RULES } from './rules.js';

/** Two services, one calling the other, with everything that the rules ask for. */
const SOUND = `
apiVersion: v1
kind: ConfigMap
metadata: { name: s-gateway }
data: { PORT: '8080', ORDER_URL: 's-order:9000' }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: s-gateway, labels: { app: gateway } }
spec:
  replicas: 3
  selector: { matchLabels: { app: gateway } }
  template:
    metadata: { labels: { app: gateway } }
    spec: &pod
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: 45
      securityContext: { runAsNonRoot: true, runAsUser: 1000, seccompProfile: { type: RuntimeDefault } }
      topologySpreadConstraints: [{ topologyKey: kubernetes.io/hostname }]
      containers:
        - &container
          name: gateway
          image: registry.example:5000/flash-sale/gateway:0.1.0
          envFrom: [{ configMapRef: { name: s-gateway } }]
          env: [{ name: REDIS_URL, valueFrom: { secretKeyRef: { name: s, key: redis-url } } }]
          ports: [{ name: http, containerPort: 8080 }, { name: ops, containerPort: 9090 }]
          startupProbe: { httpGet: { path: /healthz, port: ops }, periodSeconds: 2, failureThreshold: 60 }
          livenessProbe: { httpGet: { path: /healthz, port: 9090 } }
          readinessProbe: { httpGet: { path: /readyz, port: ops } }
          resources: { requests: { cpu: 1, memory: 1Gi }, limits: { cpu: 1, memory: 1Gi } }
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: { drop: [ALL] }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: s-order }
spec:
  replicas: 2
  selector: { matchLabels: { app: order } }
  template:
    metadata: { labels: { app: order } }
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: 45
      securityContext: { runAsNonRoot: true, runAsUser: 1000, seccompProfile: { type: RuntimeDefault } }
      topologySpreadConstraints: [{ topologyKey: kubernetes.io/hostname }]
      containers:
        - name: order
          image: flash-sale/order@sha256:${'a'.repeat(64)}
          ports: [{ name: grpc, containerPort: 9000 }, { name: ops, containerPort: 9090 }]
          startupProbe: { httpGet: { path: /healthz, port: ops }, periodSeconds: 2, failureThreshold: 60 }
          livenessProbe: { httpGet: { path: /healthz, port: ops } }
          readinessProbe: { httpGet: { path: /readyz, port: ops } }
          resources: { requests: { cpu: 1, memory: 1Gi }, limits: { cpu: 1, memory: 1Gi } }
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: { drop: [ALL] }
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: { name: s-gateway }
spec: { maxUnavailable: 1, selector: { matchLabels: { app: gateway } } }
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: { name: s-order }
spec: { minAvailable: 1, selector: { matchLabels: { app: order } } }
---
apiVersion: v1
kind: Service
metadata: { name: s-gateway }
spec: { selector: { app: gateway }, ports: [{ name: http, port: 80, targetPort: http }] }
---
apiVersion: v1
kind: Service
metadata: { name: s-order }
spec: { clusterIP: None, selector: { app: order }, ports: [{ name: grpc, port: 9000, targetPort: grpc }] }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: s-gateway }
spec: { policyTypes: [Ingress], podSelector: { matchLabels: { app: gateway } }, ingress: [{ ports: [{ port: http }] }] }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: s-order }
spec:
  policyTypes: [Ingress]
  podSelector: { matchLabels: { app: order } }
  ingress: [{ ports: [{ port: grpc }], from: [{ podSelector: { matchLabels: { app: gateway } } }] }]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: { name: s }
spec: { rules: [{ http: { paths: [{ path: /, backend: { service: { name: s-gateway, port: { name: http } } } }] } }] }
`;

/** Which rules complain, and what they say. */
function complaints(yaml: string, complete = true): { rules: string[]; faults: string[] } {
  const rendered = parseManifests(yaml);
  const found = RULES.map((rule) => ({ name: rule.name, faults: rule.check(rendered, { complete }) }));
  return {
    rules: found.filter(({ faults }) => faults.length > 0).map(({ name }) => name),
    faults: found.flatMap(({ faults }) => faults),
  };
}

/** A rule, what is done to the sound manifests, and a part of the complaint. Every rule must be here. */
const PLANTED: readonly (readonly [rule: string, find: string | RegExp, put: string, says: string])[] = [
  ['restricted-pods', 'runAsNonRoot: true, ', '', 'may run as root'],
  ['restricted-pods', 'runAsUser: 1000', 'runAsUser: 0', 'may run as root'],
  [
    'restricted-pods',
    'readOnlyRootFilesystem: true',
    'readOnlyRootFilesystem: false',
    'write to its root file system',
  ],
  ['restricted-pods', 'allowPrivilegeEscalation: false', 'privileged: false', 'gain privileges'],
  ['restricted-pods', 'drop: [ALL]', 'drop: [NET_RAW]', 'keeps capabilities'],
  ['restricted-pods', ', seccompProfile: { type: RuntimeDefault }', '', 'seccomp'],
  [
    'restricted-pods',
    'enableServiceLinks',
    'hostNetwork: true\n      enableServiceLinks',
    'namespace with its node',
  ],
  [
    'restricted-pods',
    'enableServiceLinks',
    'volumes: [{ hostPath: { path: / } }]\n      enableServiceLinks',
    'path of its node',
  ],
  ['no-cluster-access', 'automountServiceAccountToken: false', 'automountServiceAccountToken: true', 'token'],
  ['no-cluster-access', /^/, 'apiVersion: v1\nkind: ClusterRole\nmetadata: { name: all }\n---\n', 'rights'],
  ['probes', /startupProbe:.*/, '', 'no startupProbe'],
  [
    'probes',
    /livenessProbe: .*/,
    'livenessProbe: { httpGet: { path: /readyz, port: ops } }',
    '/readyz instead of /healthz',
  ],
  ['probes', 'path: /readyz, port: ops', 'path: /readyz, port: http', 'not its ops port'],
  ['probes', 'failureThreshold: 60', 'failureThreshold: 3', 'only 6 s to start'],
  ['resources', 'limits: { cpu: 1, memory: 1Gi }', 'limits: { cpu: 1 }', 'no memory in its limits'],
  ['resources', 'requests: { cpu: 1, memory: 1Gi }', 'requests: { memory: 1Gi }', 'no cpu in its requests'],
  ['pinned-images', 'gateway:0.1.0', 'gateway:latest', 'names no version'],
  ['pinned-images', 'gateway:0.1.0', 'gateway', 'names no version'],
  ['disruption-budgets', 'maxUnavailable: 1', 'maxUnavailable: 0', 'no node can be emptied'],
  ['disruption-budgets', 'minAvailable: 1', 'minAvailable: 2', 'no node can be emptied'],
  [
    'disruption-budgets',
    '{ maxUnavailable: 1, selector: { matchLabels: { app: gateway } } }',
    '{ maxUnavailable: 1, selector: { matchLabels: { app: other } } }',
    'has 0 disruption budgets',
  ],
  [
    'secrets-by-reference',
    "PORT: '8080'",
    "PORT: '8080', REDIS_URL: 'redis://:hunter2@redis:6379'",
    'REDIS_URL',
  ],
  [
    'secrets-by-reference',
    "PORT: '8080'",
    "PORT: '8080', PAYMENT_WEBHOOK_SECRET: x",
    'PAYMENT_WEBHOOK_SECRET',
  ],
  [
    'secrets-by-reference',
    'env: [{ name: REDIS_URL, valueFrom: { secretKeyRef: { name: s, key: redis-url } } }]',
    'env: [{ name: PURCHASE_TOKEN_KEYS, value: k }]',
    'PURCHASE_TOKEN_KEYS',
  ],
  [
    'secrets-by-reference',
    /^/,
    'apiVersion: v1\nkind: Secret\nmetadata: { name: s }\n---\n',
    'come from outside',
  ],
  [
    'selectors',
    'labels: { app: gateway } }\n    spec',
    'labels: { app: gatway } }\n    spec',
    'does not select its own pods',
  ],
  ['selectors', 'matchLabels: { app: order } }\n  template', 'matchLabels: {} }\n  template', 'also selects'],
  ['services-reach-pods', 'targetPort: http', 'targetPort: web', 'has no port web'],
  ['services-reach-pods', 'clusterIP: None, ', '', 'not headless'],
  [
    'services-reach-pods',
    'selector: { app: order }, ports',
    'selector: { app: nobody }, ports',
    '0 Deployments',
  ],
  ['addresses', 's-order:9000', 's-orders:9000', 'no Service'],
  ['addresses', 's-order:9000', 's-order:9001', 'no port 9001'],
  [
    'addresses',
    'from: [{ podSelector: { matchLabels: { app: gateway } } }]',
    'from: [{ podSelector: { matchLabels: { app: token } } }]',
    'no NetworkPolicy lets it in',
  ],
  [
    'network-policies',
    'ports: [{ port: http }]',
    'ports: [{ port: http }, { port: operator }]',
    'lets anybody call operator',
  ],
  ['network-policies', 'ingress: [{ ports: [{ port: http }] }]', 'ingress: [{}]', 'every port'],
  [
    'network-policies',
    'podSelector: { matchLabels: { app: gateway } }, ingress',
    'podSelector: { matchLabels: { app: x } }, ingress',
    'by anybody on every port',
  ],
  [
    'operators-stay-inside',
    'spec: { selector: { app: gateway }',
    'spec: { type: LoadBalancer, selector: { app: gateway }',
    'LoadBalancer',
  ],
  [
    'operators-stay-inside',
    'service: { name: s-gateway',
    'service: { name: s-order',
    'publishes Service/s-order',
  ],
  ['operators-stay-inside', 'service: { name: s-gateway', 'service: { name: s-shop', 'not there'],
  [
    'stopping',
    'terminationGracePeriodSeconds: 45',
    'terminationGracePeriodSeconds: 30',
    '30 s after SIGTERM',
  ],
  ['stopping', 'envFrom', 'lifecycle: { preStop: { sleep: { seconds: 5 } } }\n          envFrom', 'preStop'],
  ['no-npm-start', 'envFrom', 'command: [npm, start]\n          envFrom', 'does not pass signals on'],
  ['spread', 'topologySpreadConstraints: [{ topologyKey: kubernetes.io/hostname }]', '', 'one node'],
  ['no-demo-login', "PORT: '8080'", "PORT: '8080', DEV_LOGIN: 'true'", 'DEV_LOGIN=true'],
  ['no-service-links', 'enableServiceLinks: false', '', 'every Service'],
  ['no-nulls', 'replicas: 3', 'replicas: 3\n  paused:', '/spec/paused'],
];

describe('the rules for what the chart renders', () => {
  it('have nothing to say about sound manifests', () => {
    expect(complaints(SOUND).faults).toEqual([]);
  });

  it.each(PLANTED.map(([rule, find, put, says]) => ({ rule, find, put, says })))(
    '$rule: "$says" where "$find" became "$put"',
    ({ rule, find, put, says }) => {
      const broken = SOUND.replace(find, put);
      expect(broken).not.toBe(SOUND);
      const { rules, faults } = complaints(broken);
      expect(rules).toContain(rule);
      expect(faults.join('\n')).toContain(says);
    },
  );

  it('are each broken on purpose above', () => {
    expect([...new Set(PLANTED.map(([rule]) => rule))].sort()).toEqual(RULES.map(({ name }) => name).sort());
  });

  it('do not miss what another release brings when one service is rendered alone', () => {
    const alone = SOUND.replace('s-order:9000', 'elsewhere:9000');
    expect(complaints(alone, true).rules).toEqual(['addresses']);
    expect(complaints(alone, false).rules).toEqual([]);
  });
});

describe('parseManifests', () => {
  it('reads YAML as Kubernetes does, so that a switch that is no string is noticed', () => {
    const yaml = 'apiVersion: v1\nkind: ConfigMap\nmetadata: { name: c }\ndata: { DOCS: on }';
    expect(() => parseManifests(yaml)).toThrow(/ConfigMap\/c.*\n?.*expected string/s);
  });

  it.each([
    ['a key twice', 'apiVersion: v1\nkind: A\nkind: B\nmetadata: { name: x }'],
    ['no object', 'apiVersion: v1\nkind: A'],
    ['no YAML', 'a: [1'],
  ])('refuses %s', (_, yaml) => {
    expect(() => parseManifests(yaml)).toThrow();
  });

  it('passes over documents that a template left empty', () => {
    expect(parseManifests('---\n# nothing\n---\n').manifests).toEqual([]);
  });
});
