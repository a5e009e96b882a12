import { readFileSync } from 'node:fs';
import { parseDocument } from 'yaml';
import { z } from 'zod';
import { SERVICES } from './services.js';

const text = z.union([z.string(), z.number()]).transform(String);

const ComposeService = z.looseObject({
  image: z.string().optional(),
  build: z
    .looseObject({ dockerfile: z.string().optional(), args: z.record(z.string(), text).default({}) })
    .optional(),
  environment: z.record(z.string(), text).default({}),
  ports: z.array(z.string()).default([]),
  depends_on: z.record(z.string(), z.looseObject({ condition: z.string() })).default({}),
  read_only: z.boolean().default(false),
  cap_drop: z.array(z.string()).default([]),
  security_opt: z.array(z.string()).default([]),
  healthcheck: z.unknown().optional(),
});
const Compose = z.looseObject({ services: z.record(z.string(), ComposeService) });
export type Compose = z.infer<typeof Compose>;

/**
 * Reads a compose file with the defaults of its `${NAME:-default}` filled in.
 *
 * @throws where it is not the YAML it should be
 */
export function readCompose(file: string): Compose {
  const source = readFileSync(file, 'utf8').replace(/\$\{\w+:-([^}]*)\}/g, '$1');
  const document = parseDocument(source, { merge: true });
  const fault = document.errors[0] ?? document.warnings[0];
  if (fault) throw new Error(`${file}: ${fault.message}`);
  return Compose.parse(document.toJS());
}

/** What is wrong with the servers' file and the services' file on top of it, apart from the services' variables. */
export function composeFaults(servers: Compose, services: Compose): string[] {
  const all = { ...servers.services, ...services.services };
  return [
    ...SERVICES.filter((name) => !services.services[name]).map((name) => `there is no service ${name}`),
    ...Object.entries(services.services).flatMap(([name, service]) => [
      ...(!isOurs(name) || service.build?.args['SERVICE'] === name
        ? []
        : [`${name} is not built with SERVICE=${name}`]),
      ...(service.read_only && service.cap_drop.includes('ALL') && service.security_opt.length > 0
        ? []
        : [
            `${name} may do more than a pod of the chart: read_only, cap_drop ALL and no-new-privileges belong to it`,
          ]),
    ]),
    ...Object.entries(all).flatMap(([name, service]) => [
      ...service.ports
        .filter((port) => !port.startsWith('127.0.0.1:'))
        .map((port) => `${name} publishes ${port} to other machines`),
      ...(service.build || /:(?!latest$)[\w.-]+$/.test(service.image ?? '')
        ? []
        : [`${name} runs "${service.image ?? ''}", which names no version`]),
      ...Object.entries(service.depends_on).flatMap(([other, { condition }]) =>
        dependencyFaults(name, other, condition, all[other]),
      ),
      ...addressesIn(service.environment)
        .filter(({ host }) => !all[host] && services.services[name])
        .map(({ variable, host }) => `${name}: ${variable} leads to ${host}, which is not there`),
    ]),
  ];
}

function isOurs(name: string): boolean {
  return SERVICES.some((service) => service === name);
}

function dependencyFaults(
  name: string,
  other: string,
  condition: string,
  target: z.infer<typeof ComposeService> | undefined,
): string[] {
  if (!target) return [`${name} depends on ${other}, which is not there`];
  // Our own images have a health check of their own.
  const hasCheck = target.build !== undefined || target.healthcheck !== undefined;
  return condition === 'service_healthy' && !hasCheck
    ? [`${name} waits for ${other} to be healthy, which nothing checks`]
    : [];
}

function addressesIn(environment: Readonly<Record<string, string>>): { variable: string; host: string }[] {
  return Object.entries(environment)
    .filter(([variable]) =>
      /^(GATEWAYS|GATEWAY_FEEDS|TOKEN_URL|INVENTORY_URL|ORDER_URL|REDIS_URL|MYSQL_URL|KAFKA_BROKERS)$/.test(
        variable,
      ),
    )
    .map(([variable, value]) => ({
      variable,
      host: /(?:^|\/\/(?:[^@/]*@)?)([\w.-]+):\d+/.exec(value)?.[1] ?? value,
    }));
}
