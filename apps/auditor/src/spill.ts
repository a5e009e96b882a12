import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** The characters of an id's tail in the order in which bytes compare, as MySQL orders them. */
const ALPHABET = '-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz';
const PREFIXES = ALPHABET.length ** 2;
/** Attempts looked at together. What is kept of one in memory is about six kilobytes. */
const ATTEMPTS_PER_SLICE = 4_096;
const MAX_SLICES = 1_024;
/** What may wait to be written, of one kind and all slices. */
const BUFFERED_CHARACTERS = 2 * 1024 * 1024;

/**
 * How a sale is cut: attempts by ranges of their ids, whose tails are digests and therefore spread evenly; shoppers by a
 * digest of theirs. Memory is that of one slice, however many there are.
 */
export class Slices {
  readonly count: number;

  constructor(
    private readonly saleId: string,
    attempts: number,
    attemptsPerSlice = ATTEMPTS_PER_SLICE,
  ) {
    this.count = Math.min(MAX_SLICES, Math.max(1, Math.ceil(attempts / attemptsPerSlice)));
  }

  /** The slice of an attempt. What is no id of the sale lies in the first. */
  of(attemptId: string): number {
    const start = this.saleId.length + 1;
    const first = rankOf(attemptId[start]);
    const second = rankOf(attemptId[start + 1]);
    return Math.floor(((first * ALPHABET.length + second) * this.count) / PREFIXES);
  }

  /** The ids of a slice: from the first on, and before the second. */
  range(slice: number): { readonly from: string; readonly before: string } {
    return { from: this.boundary(slice), before: this.boundary(slice + 1) };
  }

  ofShopper(shopperId: string): number {
    let hash = 0x811c9dc5;
    for (let i = 0; i < shopperId.length; i += 1) {
      hash = Math.imul(hash ^ shopperId.charCodeAt(i), 0x01000193) >>> 0;
    }
    return hash % this.count;
  }

  private boundary(slice: number): string {
    if (slice === 0) return `${this.saleId}-`;
    if (slice === this.count) return `${this.saleId}-~`;
    const prefix = Math.ceil((slice * PREFIXES) / this.count);
    const first = ALPHABET[Math.floor(prefix / ALPHABET.length)] ?? '';
    return `${this.saleId}-${first}${ALPHABET[prefix % ALPHABET.length] ?? ''}`;
  }
}

function rankOf(character: string | undefined): number {
  return Math.max(0, ALPHABET.indexOf(character ?? ''));
}

/** What is written aside until the slice that it belongs to is looked at. */
export type Aside = 'log' | 'hold' | 'due' | 'record' | 'snapshot' | 'live' | 'quota' | 'used';

/**
 * Files in a folder of their own, one per kind and slice, in which the readers put what comes unordered from Redis, Kafka and
 * the crowd's log. JSON lines; read back one slice at a time.
 */
export class Spill {
  private readonly folder = mkdtempSync(join(tmpdir(), 'audit-'));
  private readonly buffers = new Map<string, string>();

  private readonly mostBuffered: number;

  constructor(readonly slices: Slices) {
    this.mostBuffered = BUFFERED_CHARACTERS / slices.count;
  }

  put(kind: Aside, slice: number, value: unknown): void {
    const name = `${kind}.${slice}`;
    const buffered = `${this.buffers.get(name) ?? ''}${JSON.stringify(value)}\n`;
    if (buffered.length < this.mostBuffered) {
      this.buffers.set(name, buffered);
      return;
    }
    this.buffers.set(name, '');
    appendFileSync(join(this.folder, name), buffered, { mode: 0o600 });
  }

  /** What was put aside of one kind for one slice, in the order in which it was put. It can be taken once. */
  *take<T>(kind: Aside, slice: number): Generator<T> {
    const name = `${kind}.${slice}`;
    const file = join(this.folder, name);
    const texts = [existsSync(file) ? readFileSync(file, 'utf8') : '', this.buffers.get(name) ?? ''];
    this.buffers.delete(name);
    rmSync(file, { force: true });
    for (const text of texts) {
      for (let start = 0; start < text.length;) {
        const end = text.indexOf('\n', start);
        yield JSON.parse(text.slice(start, end)) as T;
        start = end + 1;
      }
    }
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}
