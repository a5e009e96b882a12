import { writeSync } from 'node:fs';

const MAX_WAITING_BYTES = 4 * 1024 * 1024;
const MAX_WRITE_BYTES = 64 * 1024;
const TRY_AGAIN_AFTER_MS = 25;
/** How long an exit may wait for a reader that is slow. */
const FINISH_WITHIN_MS = 1_000;

export interface LineWriterOptions {
  /** A descriptor that does not block, or that never has to: see {@link stdoutWriter}. */
  readonly fd: number;
  readonly maxWaitingBytes?: number;
}

/**
 * Writes lines to a descriptor in their order. Those of one turn of the event loop leave together at its end, because a busy
 * process would otherwise spend more on writing lines than on what they tell of. A reader that stands still must not make the
 * process stand still too: then lines wait, bounded, and those beyond the bound are dropped and counted.
 */
export class LineWriter {
  /** Told how many lines were dropped, once lines flow again. */
  onDropped: (lines: number) => void = () => {};
  private waiting: Buffer[] = [];
  private waitingBytes = 0;
  private dropped = 0;
  /** Lines are being gathered until the end of this turn. */
  private turn: NodeJS.Immediate | undefined;
  /** The reader is slow; it is tried again then. */
  private timer: NodeJS.Timeout | undefined;
  private readonly fd: number;
  private readonly maxWaitingBytes: number;

  constructor(options: LineWriterOptions) {
    this.fd = options.fd;
    this.maxWaitingBytes = options.maxWaitingBytes ?? MAX_WAITING_BYTES;
  }

  /** Takes one line, or several, each with its line break. */
  write(line: string): void {
    const bytes = Buffer.from(line);
    if (this.waitingBytes + bytes.length > this.maxWaitingBytes) {
      this.dropped += 1;
      return;
    }
    this.waiting.push(bytes);
    this.waitingBytes += bytes.length;
    if (this.timer !== undefined) return;
    // A turn that says this much is not waited for: its end may come too late for what else it says.
    if (this.waitingBytes >= MAX_WRITE_BYTES) this.flow();
    else this.turn ??= setImmediate(() => this.flow()).unref();
  }

  /** Writes what waits, trying for so long at most; blocks. For the end of a process, when nothing else can run any more. */
  finish(withinMs = FINISH_WITHIN_MS): void {
    const deadlineMs = performance.now() + withinMs;
    const bell = new Int32Array(new SharedArrayBuffer(4));
    while (!this.writeWaiting() && performance.now() < deadlineMs) Atomics.wait(bell, 0, 0, 10);
    if (this.waiting.length === 0) this.tellDropped();
  }

  private flow(): void {
    clearImmediate(this.turn);
    this.turn = undefined;
    if (!this.writeWaiting()) {
      this.timer = setTimeout(() => {
        this.timer = undefined;
        this.flow();
      }, TRY_AGAIN_AFTER_MS);
      // What waits at the end is written by `finish`.
      this.timer.unref();
      return;
    }
    this.tellDropped();
  }

  private tellDropped(): void {
    const { dropped } = this;
    this.dropped = 0;
    if (dropped > 0) this.onDropped(dropped);
  }

  /** @returns whether nothing waits any more */
  private writeWaiting(): boolean {
    while (this.waiting.length > 0) {
      const bytes = this.takeSome();
      let written: number;
      try {
        written = writeSync(this.fd, bytes);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        written = 0;
        if (code !== 'EAGAIN') {
          // The reader is gone, or its disk is full: nobody can be told, and a log is no reason to end.
          this.waitingBytes -= bytes.length;
          continue;
        }
      }
      this.waitingBytes -= written;
      if (written === bytes.length) continue;
      this.waiting.unshift(bytes.subarray(written));
      return false;
    }
    return true;
  }

  /** The first lines that wait, as one piece: a system call costs more than the copying. */
  private takeSome(): Buffer {
    const first = this.waiting[0] ?? Buffer.alloc(0);
    let count = 1;
    let length = first.length;
    for (; count < this.waiting.length; count += 1) {
      length += this.waiting[count]?.length ?? 0;
      if (length > MAX_WRITE_BYTES) break;
    }
    const taken = this.waiting.splice(0, count);
    return taken.length === 1 ? first : Buffer.concat(taken);
  }
}

let stdout: LineWriter | undefined;

/** The process's writer to stdout; what waits when the process exits is still written, as far as its reader lets it. */
export function stdoutWriter(): LineWriter {
  if (stdout) return stdout;
  // Making the stream lets the system answer "try again" where a pipe is full, in place of blocking; the stream itself would
  // keep what it could not write where nobody can reach it at exit.
  void process.stdout;
  const writer = new LineWriter({ fd: 1 });
  process.once('exit', () => writer.finish());
  stdout = writer;
  return writer;
}
