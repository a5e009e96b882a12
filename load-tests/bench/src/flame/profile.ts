import { z } from 'zod';

/** What V8's profiler writes, as far as it is read here. */
export const CpuProfile = z.object({
  nodes: z.array(
    z.object({
      id: z.number(),
      callFrame: z.object({ functionName: z.string(), url: z.string(), lineNumber: z.number() }),
      children: z.array(z.number()).optional(),
    }),
  ),
  /** Which node was found running, and how long after the sample before, µs. */
  samples: z.array(z.number()),
  timeDeltas: z.array(z.number()),
});
export type CpuProfile = z.infer<typeof CpuProfile>;

/** Whose code a frame is. */
export type Origin = 'suite' | 'library' | 'node' | 'engine';

/** A function, in one place of the call tree. */
export interface Frame {
  readonly name: string;
  /** Where it is written, e.g. `apps/order-writer/dist/writer.js:12` or `kafkajs/src/broker/index.js:88`. */
  readonly place: string;
  readonly origin: Origin;
  /** Of a library or of the suite: its name. */
  readonly owner: string;
  /** Time in it and in what it called, µs. */
  micros: number;
  /** Time in itself, µs. */
  selfMicros: number;
  readonly callees: Map<string, Frame>;
}

/** So many times the interval of the profiler, and the process stood still meanwhile: time in which it used no CPU. */
const STOOD_STILL_INTERVALS = 20;

/**
 * The calls of a profile, those of one function by one caller together. Time in which the process waited is left out.
 *
 * @param root the checkout's path; what lies in it is named from there
 * @param intervalMicros between two samples
 */
export function callTree(profile: CpuProfile, root: string, intervalMicros: number): Frame {
  const byId = new Map(profile.nodes.map((node) => [node.id, node]));
  const selfMicros = new Map<number, number>();
  for (const [index, id] of profile.samples.entries()) {
    const delta = Math.max(0, profile.timeDeltas[index] ?? 0);
    const micros = delta > STOOD_STILL_INTERVALS * intervalMicros ? intervalMicros : delta;
    selfMicros.set(id, (selfMicros.get(id) ?? 0) + micros);
  }
  const [first] = profile.nodes;
  const all: Frame = { ...frameOf('all', '', root), place: '' };
  const add = (id: number, into: Frame): number => {
    const node = byId.get(id);
    if (!node || node.callFrame.functionName === '(idle)') return 0;
    const { functionName, url, lineNumber } = node.callFrame;
    const isRoot = functionName === '(root)';
    const key = `${functionName} ${url}:${lineNumber}`;
    let frame = isRoot ? into : into.callees.get(key);
    if (!frame) {
      frame = frameOf(functionName, url && `${url}:${lineNumber + 1}`, root);
      into.callees.set(key, frame);
    }
    const self = selfMicros.get(id) ?? 0;
    let micros = self;
    for (const child of node.children ?? []) micros += add(child, frame);
    frame.selfMicros += self;
    frame.micros += micros;
    return micros;
  };
  if (first) add(first.id, all);
  return all;
}

/** Self time by whose code it is, most first: `kafkajs`, `@flash-sale/domain`, `node:crypto`, … */
export function microsByOwner(tree: Frame): { owner: string; origin: Origin; micros: number }[] {
  const owners = new Map<string, { owner: string; origin: Origin; micros: number }>();
  const visit = (frame: Frame) => {
    const known = owners.get(frame.owner) ?? { owner: frame.owner, origin: frame.origin, micros: 0 };
    known.micros += frame.selfMicros;
    owners.set(frame.owner, known);
    for (const callee of frame.callees.values()) visit(callee);
  };
  visit(tree);
  return [...owners.values()].filter(({ micros }) => micros > 0).sort((a, b) => b.micros - a.micros);
}

const IN_LIBRARY = /.*\/node_modules\/(?!\.pnpm\/)((@[^/]+\/)?[^/]+)\//;

function frameOf(name: string, url: string, root: string): Frame {
  const times = { micros: 0, selfMicros: 0, callees: new Map<string, Frame>() };
  const of = (origin: Origin, owner: string, place: string): Frame => ({
    name: name && name !== '(anonymous)' ? name : place.replace(/.*\//, '') || '(anonymous)',
    place,
    origin,
    owner,
    ...times,
  });
  if (url === '') return of('engine', name === 'all' ? 'engine' : name || 'engine', '');
  if (url.startsWith('node:')) {
    const [module = ''] = url.slice('node:'.length).replace('internal/', '').split(/[/:]/);
    return of('node', `node:${module}`, url);
  }
  const path = url.replace(/^file:\/\//, '').replace(/^data:.*:/s, 'data:');
  const library = IN_LIBRARY.exec(path);
  if (library?.[1]) return of('library', library[1], library[1] + path.slice(library[0].length - 1));
  const inside = path.startsWith(`${root}/`) ? path.slice(root.length + 1) : path.replace(/.*\//, '');
  return of('suite', inside.split('/').slice(0, 2).join('/'), inside);
}
