import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { pathToFileURL } from 'node:url';
import { z } from 'zod';
import { lastWords, run } from './run.js';

/** The services of the suite; each has an image, a Deployment and a service in the compose file by this name. */
export const SERVICES = ['gateway', 'token', 'inventory', 'order', 'order-writer'] as const;
export type ServiceName = (typeof SERVICES)[number];

const PACKAGE_TIMEOUT_MS = 180_000;
const START_TIMEOUT_MS = 30_000;
const USAGE_EXIT_CODE = 2;
/** Of no use in an image, and a sign that development dependencies came along. */
const UNWANTED = /^(jest|nx|oxlint|oxfmt|@swc\+core|playwright-core|vite|fast-check|@flash-sale\+testing)@/;

/** What goes into a service's image, as files of its own that are deleted by `dispose`. */
export interface PackagedService {
  readonly name: ServiceName;
  readonly folder: string;
  readonly dispose: () => void;
}

/**
 * Does what the Dockerfile does: collects a service and what it needs at run time. Needs the service to be built.
 *
 * @throws when pnpm fails, with its words
 */
export async function packageService(root: string, name: ServiceName): Promise<PackagedService> {
  const scratch = mkdtempSync(join(tmpdir(), `flash-sale-${name}-`));
  const dispose = () => rmSync(scratch, { recursive: true, force: true });
  const folder = join(scratch, 'service');
  const args = ['--filter', `@flash-sale/${name}`, '--prod', 'deploy', folder];
  const outcome = await run(join(root, 'node_modules/.bin/pnpm'), args, {
    cwd: root,
    timeoutMs: PACKAGE_TIMEOUT_MS,
    env: { ...process.env, CI: 'true' },
  });
  if (outcome.code === 0) return { name, folder, dispose };
  dispose();
  throw new Error(`pnpm deploy of ${name} failed:\n${lastWords(outcome)}`);
}

/** Whether the files in an image are enough to start from, and not more than that. */
export async function contentFaults(root: string, { name, folder }: PackagedService): Promise<string[]> {
  const scripts = filesBelow(join(root, 'apps', name, 'src')).filter((file) => file.endsWith('.lua'));
  const wanted = [
    'dist/main.js',
    ...scripts.map((file) => join('src', file)),
    ...filesBelow(join(root, 'libs/contracts/proto')).map((file) =>
      join('node_modules/@flash-sale/contracts/proto', file),
    ),
  ];
  const installed = readdirSync(join(folder, 'node_modules/.pnpm'));
  const otherApps = SERVICES.filter((other) => other !== name).map((other) => `@flash-sale+${other}@`);
  const faults = [
    ...wanted.filter((file) => !existsSync(join(folder, file))).map((file) => `lacks ${file}`),
    ...installed
      .filter((entry) => UNWANTED.test(entry) || otherApps.some((app) => entry.startsWith(app)))
      .map((entry) => `carries ${entry}, which it does not need`),
  ];
  // Without any variable a service ends at once and says what it needs; to say so it must have loaded all of its code.
  const start = await run(
    process.execPath,
    ['--import', '@flash-sale/service/instrumentation', 'dist/main.js'],
    {
      cwd: folder,
      env: {},
      timeoutMs: START_TIMEOUT_MS,
    },
  );
  if (start.code !== USAGE_EXIT_CODE || !start.stderr.includes('OPS_PORT is missing')) {
    faults.push(`does not start as far as its variables (exit code ${start.code}):\n${lastWords(start)}`);
  }
  return faults.map((fault) => `${name} ${fault}`);
}

const EnvironmentReport = z.object({ read: z.array(z.string()) });

/**
 * Imports the service's own schema of variables and lets it judge; every name that it asks for is written down. Ends the
 * process with code 2, and the faults on stderr, as the service would.
 */
const READER = `
const read = new Set();
process.env = new Proxy(process.env, {
  get(env, name) { if (typeof name === 'string') read.add(name); return env[name]; },
});
process.on('exit', () => process.stdout.write(JSON.stringify({ read: [...read] })));
const [, file] = process.argv;
const readers = Object.entries(await import(file)).filter(([name]) => /^read\\w*Env$/.test(name));
if (readers.length !== 1) throw new Error(file + ' exports ' + readers.length + ' functions named read…Env, not one');
readers[0][1]();
`;

/** Variables that are read before a service's own schema is: by the instrumentation, or by Node itself. */
const READ_EARLIER = new Set([
  'SERVICE_NAME',
  'OTEL_EXPORTER_OTLP_ENDPOINT',
  'OTEL_TRACES_SAMPLER_ARG',
  'NODE_OPTIONS',
]);

/** Whether a service would start with these variables and no others, and would read each of them. */
export async function environmentFaults(
  { name, folder }: PackagedService,
  environment: Readonly<Record<string, string>>,
): Promise<string[]> {
  const file = pathToFileURL(join(folder, 'dist/env.js')).href;
  const outcome = await run(process.execPath, ['--input-type=module', '--eval', READER, file], {
    env: environment,
    timeoutMs: START_TIMEOUT_MS,
  });
  if (outcome.code !== 0) return [`${name}: ${lastWords({ ...outcome, stdout: '' })}`];
  const { read } = EnvironmentReport.parse(JSON.parse(outcome.stdout));
  return Object.keys(environment)
    .filter((variable) => !read.includes(variable) && !READ_EARLIER.has(variable))
    .map((variable) => `${name} is given ${variable}, which it does not read`);
}

function filesBelow(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(folder, join(entry.parentPath, entry.name)));
}
