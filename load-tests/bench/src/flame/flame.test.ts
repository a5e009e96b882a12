import { describe, expect, it } from '@jest/globals';
import { drawFlameGraph } from './drawing.js';
import { callTree, microsByOwner, type CpuProfile, type Frame } from './profile.js';

const ROOT = '/checkout';
const INTERVAL = 100;

function profileOf(
  nodes: readonly (readonly [id: number, name: string, url: string, children?: readonly number[]])[],
  samples: readonly (readonly [id: number, micros: number])[],
): CpuProfile {
  return {
    nodes: nodes.map(([id, functionName, url, children]) => ({
      id,
      callFrame: { functionName, url, lineNumber: 9 },
      ...(children && { children: [...children] }),
    })),
    samples: samples.map(([id]) => id),
    timeDeltas: samples.map(([, micros]) => micros),
  };
}

const profile = profileOf(
  [
    [1, '(root)', '', [2, 3, 6]],
    [2, '(idle)', ''],
    [3, 'handle', `file://${ROOT}/apps/order-writer/dist/writer.js`, [4, 5, 7]],
    [4, 'parse', `file://${ROOT}/node_modules/.pnpm/zod@4/node_modules/zod/v4/core.js`],
    [5, 'parse', `file://${ROOT}/node_modules/.pnpm/zod@4/node_modules/zod/v4/core.js`],
    [6, '(garbage collector)', ''],
    [7, 'Hmac', 'node:internal/crypto/hash'],
  ],
  [
    [3, 100],
    [4, 100],
    [5, 200],
    [2, 5_000],
    [7, 100],
    [6, 50],
    // The process was stopped in here.
    [4, 4_000_000],
  ],
);

describe('callTree', () => {
  const tree = callTree(profile, ROOT, INTERVAL);
  const handle = [...tree.callees.values()].find(({ name }) => name === 'handle');

  it('counts neither waiting nor the time in which the process was stopped', () => {
    expect(tree.micros).toBe(100 + 100 + 200 + 100 + 50 + INTERVAL);
    expect([...tree.callees.values()].map(({ name }) => name)).not.toContain('(idle)');
  });

  it('joins calls of one function by one caller, and tells own time from that of callees', () => {
    expect([handle?.micros, handle?.selfMicros, handle?.callees.size]).toEqual([600, 100, 2]);
  });

  it('says whose code a frame is, and names its place without the path of the checkout', () => {
    const [parse, hmac] = [...(handle?.callees.values() ?? [])];
    expect([handle?.owner, handle?.place]).toEqual([
      'apps/order-writer',
      'apps/order-writer/dist/writer.js:10',
    ]);
    expect([parse?.owner, parse?.place]).toEqual(['zod', 'zod/v4/core.js:10']);
    expect([hmac?.owner, hmac?.origin]).toEqual(['node:crypto', 'node']);
    expect(microsByOwner(tree).map(({ owner, micros }) => [owner, micros])).toEqual([
      ['zod', 400],
      ['apps/order-writer', 100],
      ['node:crypto', 100],
      ['(garbage collector)', 50],
    ]);
  });
});

describe('drawFlameGraph', () => {
  const caption = { title: 'a <service>', lines: ['npm run flame'] };

  it('needs nothing else, and says in text what the colours say', () => {
    const svg = drawFlameGraph(callTree(profile, ROOT, INTERVAL), caption);
    expect(svg).toContain('a &lt;service&gt;');
    expect(svg).toContain('npm run flame');
    expect(svg).toContain(
      '<title>handle\napps/order-writer/dist/writer.js:10\n92.3 %, itself 15.4 %</title>',
    );
    expect(svg).toMatch(/zod 61\.5 %/);
    expect(svg).not.toMatch(/<script|href|NaN/);
    expect(svg).not.toContain(ROOT);
  });

  it('leaves out what is narrowest until it is small enough', () => {
    const tree = callTree(profile, ROOT, INTERVAL);
    const wide = (depth: number): Frame => ({
      ...tree,
      micros: 3 ** depth,
      callees: new Map(
        depth === 0 ? [] : Array.from({ length: 3 }, (_, index) => [String(index), wide(depth - 1)]),
      ),
    });
    const svg = drawFlameGraph(wide(8), caption);
    expect(svg.length).toBeLessThanOrEqual(200_000);
    expect(svg.length).toBeGreaterThan(20_000);
  });
});
