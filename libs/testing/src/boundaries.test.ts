import { spawnSync } from 'node:child_process';
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { afterEach, describe, expect, it } from '@jest/globals';

/**
 * The rules of .dependency-cruiser.mjs, held against the tree and, one deliberate violation each, against themselves: a
 * rule that does not bite is worse than none. The violations are planted in a small tree of the same layout elsewhere.
 */

const ROOT = resolve(import.meta.dirname, '../../..');
const CONFIG = join(ROOT, '.dependency-cruiser.mjs');
const BINARY = join(ROOT, 'node_modules/dependency-cruiser/bin/dependency-cruiser.mjs');

interface Violation {
  readonly from: string;
  readonly to: string;
  readonly rule: { readonly name: string };
}
interface Report {
  readonly summary: { readonly violations: readonly Violation[]; readonly totalCruised: number };
}

function violationsIn(tree: string, ...paths: string[]): Report['summary'] {
  const args = [BINARY, '--config', CONFIG, '--output-type', 'json', ...paths];
  // The exit code counts violations; the report itself is what is read.
  const run = spawnSync(process.execPath, args, {
    cwd: tree,
    encoding: 'utf8',
    maxBuffer: 256 * 1024 * 1024,
  });
  if (run.error) throw run.error;
  if (!run.stdout) throw new Error(`dependency-cruiser printed no report: ${run.stderr}`);
  return (JSON.parse(run.stdout) as Report).summary;
}

const trees: string[] = [];
afterEach(() => {
  for (const tree of trees.splice(0)) rmSync(tree, { recursive: true, force: true });
});

function plant(files: Record<string, string>): string {
  const tree = realpathSync(mkdtempSync(join(tmpdir(), 'boundaries-')));
  trees.push(tree);
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(tree, path)), { recursive: true });
    writeFileSync(join(tree, path), `${text}\n`);
  }
  symlinkSync(join(ROOT, 'tsconfig.base.json'), join(tree, 'tsconfig.base.json'));
  return tree;
}

/** A file that breaks the rule, and the file that it must not reach. */
type Planted = [rule: string, from: string, text: string, target?: string];
const planted: Planted[] = [
  ['no-circle', 'libs/domain/src/a.ts', "import './b.js';"],
  ['unresolvable', 'apps/order/src/a.ts', "import '@flash-sale/no-such-thing';"],
  [
    'apps-stand-alone',
    'apps/gateway/src/a.ts',
    "import '../../order/src/main.js';",
    'apps/order/src/main.ts',
  ],
  [
    'libs-know-no-apps',
    'libs/kafka/src/a.ts',
    "import '../../../apps/order/src/main.js';",
    'apps/order/src/main.ts',
  ],
  ['domain-is-pure', 'libs/domain/src/a.ts', "import 'node:fs';"],
  [
    'contracts-and-database-know-domain-only',
    'libs/database/src/a.ts',
    "import '../../redis/src/index.js';",
    'libs/redis/src/index.ts',
  ],
  [
    'adapters-know-no-suite',
    'libs/redis/src/a.ts',
    "import '../../domain/src/ids.js';",
    'libs/domain/src/ids.ts',
  ],
  ['ioredis-in-one-place', 'apps/order/src/a.ts', "import 'ioredis';", 'node_modules/ioredis/index.js'],
  ['kafkajs-in-one-place', 'apps/order/src/a.ts', "import 'kafkajs';", 'node_modules/kafkajs/index.js'],
  ['mysql-in-one-place', 'apps/order/src/a.ts', "import 'typeorm';", 'node_modules/typeorm/index.js'],
  [
    'auditor-shares-nothing',
    'apps/auditor/src/a.ts',
    "import '../../../libs/domain/src/ids.js';",
    'libs/domain/src/ids.ts',
  ],
  [
    'nest-at-the-edges',
    'apps/order/src/a.ts',
    "import '@nestjs/common';",
    'node_modules/@nestjs/common/index.js',
  ],
  [
    'testing-in-tests-only',
    'apps/order/src/a.ts',
    "import '../../../libs/testing/src/a.js';",
    'libs/testing/src/a.ts',
  ],
  [
    'tests-are-nobodys-dependency',
    'libs/domain/src/a.ts',
    "import './ids.test.js';",
    'libs/domain/src/ids.test.ts',
  ],
];

describe('dependencies point one way', () => {
  it('in the whole tree', () => {
    const { violations, totalCruised } = violationsIn(
      ROOT,
      'libs/*/src',
      'apps/*/src',
      'deploy/*/src',
      'load-tests/src',
      'load-tests/bench/src',
    );
    expect(totalCruised).toBeGreaterThan(50);
    expect(violations.map(({ rule, from, to }) => `${rule.name}: ${from} → ${to}`)).toEqual([]);
  }, 120_000);

  it.each(planted.map((row): [string, Planted] => [row[0], row]))(
    '%s bites',
    (rule, [, from, text, target]) => {
      const tree = plant({
        [from]: text,
        ...(target ? { [target]: 'export {};' } : {}),
        ...(rule === 'no-circle' ? { 'libs/domain/src/b.ts': "import './a.js';" } : {}),
      });
      expect(violationsIn(tree, from).violations.map((violation) => violation.rule.name)).toContain(rule);
    },
  );

  it('has a planted violation for every rule', () => {
    const rules = [...readFileSync(CONFIG, 'utf8').matchAll(/name: '([a-z-]+)'/g)].map((match) => match[1]);
    expect(planted.map(([rule]) => rule).sort()).toEqual(rules.sort());
  });
});
