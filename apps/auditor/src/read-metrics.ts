import { UsageError } from './env.js';
import type { Counters } from './evidence.js';

const TIMEOUT_MS = 5_000;
const MAX_BYTES = 8 * 1024 * 1024;

interface Sample {
  readonly name: string;
  readonly labels: ReadonlyMap<string, string>;
  readonly value: number;
}

/**
 * Asks the services for their counters, in Prometheus' text format, and adds up those of one name over all processes.
 *
 * @throws UsageError where a process does not answer: a counter that is not asked would be a lie
 */
export async function readCounters(urls: readonly string[], saleId: string): Promise<Counters | null> {
  if (urls.length === 0) return null;
  const samples = (await Promise.all(urls.map(readSamples))).flat();
  const sum = (name: string, is: (labels: Sample['labels']) => boolean = () => true) => {
    const of = samples.filter((sample) => sample.name === name && is(sample.labels));
    return of.length === 0 ? null : of.reduce((total, { value }) => total + value, 0);
  };
  const by = (name: string, label: string, is: (labels: Sample['labels']) => boolean, add: boolean) => {
    const values = new Map<string, number>();
    for (const sample of samples) {
      if (sample.name !== name || !is(sample.labels)) continue;
      const key = sample.labels.get(label) ?? '';
      values.set(key, sample.value + (add ? (values.get(key) ?? 0) : 0));
    }
    return values;
  };
  return {
    accepted: sum('orders_placed_total', (labels) => labels.get('answer') === 'accepted'),
    writtenByState: by('orders_written_total', 'state', () => true, true),
    tombstones: sum('inventory_tombstones_total'),
    // Every process of inventory shows the same units.
    stock: by('sale_stock_units', 'state', (labels) => labels.get('sale') === saleId, false),
  };
}

async function readSamples(url: string): Promise<Sample[]> {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!response.ok) throw new Error(`it answered ${response.status}`);
    const text = await response.text();
    if (text.length > MAX_BYTES) throw new Error(`it answered ${text.length} characters`);
    return text.split('\n').flatMap((line) => readSample(line) ?? []);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new UsageError(
      `The metrics at ${url} cannot be read (${reason}); give --metrics the address of a process that runs, e.g. http://127.0.0.1:9464/metrics.`,
    );
  }
}

/** `name{label="value",…} number`; `null` for comments and everything else. */
function readSample(line: string): Sample | null {
  const [, name, labels = '', number] = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/.exec(line) ?? [];
  if (name === undefined || number === undefined || !Number.isFinite(Number(number))) return null;
  const pairs = labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g);
  return {
    name,
    labels: new Map([...pairs].map(([, label = '', value = '']) => [label, value])),
    value: Number(number),
  };
}
