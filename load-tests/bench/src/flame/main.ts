import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import type { ServiceName } from '@flash-sale/testing';
import { Bench, WHOLE } from '../bench.js';
import { commandWith, say, USAGE_EXIT_CODE } from '../command.js';
import { PARTS, measurePart, type Part } from '../operations.js';
import { OwnServers } from '../servers.js';
import { SERVICES, Suite } from '../suite.js';
import { drawFlameGraph } from './drawing.js';
import { callTree } from './profile.js';

/** `npm run flame`: where a service's CPU time goes while a part of the benchmark runs. */
const ROOT = resolve(import.meta.dirname, '../../../..');
const INTERVAL_MICROS = 250;
/** Nobody asks it anything. */
const REST = 'rest';
const KINDS = [...PARTS, REST] as const;

interface FlameOptions {
  readonly service: ServiceName;
  readonly part: Part | typeof REST;
  readonly repetitions: number;
  readonly out: string;
}

const HELP = `npm run flame -- --service SERVICE --part PART [options]

Runs a part of the benchmark with V8's profiler in one service, after a warm-up without it, and draws where the service's CPU
time went. Exit code 0; 1: it could not be measured; 2: called wrongly.

  --service SERVICE  ${SERVICES.join(', ')}
  --part PART        ${KINDS.join(', ')}
  --repetitions N    how often the part is run under the profiler (2)
  --out FILE         the SVG (docs/flame/SERVICE.svg)
`;

function optionsOf(args: readonly string[]): FlameOptions | string {
  const text = { type: 'string' } as const;
  let values;
  try {
    ({ values } = parseArgs({
      args: [...args],
      options: { service: text, part: text, repetitions: text, out: text },
    }));
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
  const service = SERVICES.find((name) => name === values.service);
  const part = KINDS.find((name) => name === values.part);
  if (!service) return `--service must be one of ${SERVICES.join(', ')}`;
  if (!part) return `--part must be one of ${KINDS.join(', ')}`;
  const { repetitions = '2', out = join(ROOT, 'docs/flame', `${service}.svg`) } = values;
  if (!/^[1-9]\d?$/.test(repetitions)) return '--repetitions must be a whole number from 1 to 99';
  return { service, part, repetitions: Number(repetitions), out: resolve(out) };
}

async function main(args: readonly string[]): Promise<number> {
  if (args.includes('--help')) {
    process.stdout.write(HELP);
    return 0;
  }
  const options = optionsOf(args);
  if (typeof options === 'string') {
    process.stderr.write(`${options}\nnpm run flame -- --help says what there is\n`);
    return USAGE_EXIT_CODE;
  }
  const { service, part, repetitions, out } = options;
  return commandWith(async (started) => {
    say('starting servers and services');
    const servers = started.keep(await OwnServers.start(say));
    const suite = started.keep(await Suite.start(servers));
    const bench = started.keep(await Bench.start(WHOLE, say));
    const run = () => (part === REST ? bench.measureRest(suite) : measurePart(part, bench, suite));
    await run();
    bench.warmingUp = false;
    const profiling = await suite.profile(service, INTERVAL_MICROS);
    for (let time = 0; time < repetitions; time += 1) await run();
    const tree = callTree(await profiling.stop(), ROOT, INTERVAL_MICROS);
    mkdirSync(dirname(out), { recursive: true });
    const seconds = (tree.micros / 1e6).toFixed(1);
    const svg = drawFlameGraph(tree, {
      title: `${service} during “${part}”`,
      lines: [
        `npm run flame -- --service ${service} --part ${part} --repetitions ${repetitions}`,
        `${new Date().toISOString().slice(0, 10)}, Node.js ${process.versions.node}, ${seconds} s on its main thread: waiting for events is left out, waiting for a core is in it`,
      ],
    });
    writeFileSync(out, svg);
    say(`written to ${relative(process.cwd(), out)}`);
  });
}

process.exitCode = await main(process.argv.slice(2));
