// Generates src/gen from proto/ (types only; at run time the .proto files themselves are loaded, which is twice as fast
// as generated codecs). `--check` writes nowhere and fails when src/gen is not what the .proto files say.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const here = import.meta.dirname;
const buf = join(here, '../../node_modules/.bin/buf');

function generate(out) {
  execFileSync(buf, ['generate', '--output', out], { cwd: here, stdio: ['ignore', 'inherit', 'inherit'] });
}

function textsBelow(folder) {
  return new Map(
    readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name))
      .map((path) => [path.slice(folder.length), readFileSync(path, 'utf8')]),
  );
}

if (process.argv.includes('--check')) {
  const scratch = mkdtempSync(join(tmpdir(), 'contracts-gen-'));
  try {
    generate(scratch);
    const fresh = textsBelow(join(scratch, 'src/gen'));
    const kept = textsBelow(join(here, 'src/gen'));
    const differing = [...new Set([...fresh.keys(), ...kept.keys()])].filter(
      (path) => fresh.get(path) !== kept.get(path),
    );
    if (differing.length > 0) {
      console.error(`libs/contracts/src/gen is stale: ${differing.join(', ')}. Run: npm run generate`);
      process.exitCode = 1;
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
} else {
  rmSync(join(here, 'src/gen'), { recursive: true, force: true });
  generate('.');
}
