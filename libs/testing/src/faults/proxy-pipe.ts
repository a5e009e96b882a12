import type { Socket } from 'node:net';

/** Of one direction of one connection; more waits in the kernel, as it would on a slow network. */
const MAX_QUEUED_BYTES = 1024 * 1024;

interface Piece {
  readonly dueMs: number;
  /** Null: the end. */
  readonly bytes: Buffer | null;
}

/** One direction: what comes in goes out later, in order, at the speed of whoever takes it. */
export class Pipe {
  private readonly queue: Piece[] = [];
  private queuedBytes = 0;
  private timer: NodeJS.Timeout | undefined;
  private stalled = false;
  private discarding = false;
  private full = false;

  constructor(
    private readonly from: Socket,
    private readonly to: Socket,
    private readonly take: (chunk: Buffer) => Buffer[],
    private readonly delayMs: () => number,
  ) {
    from.on('data', (chunk) => {
      if (this.discarding) return;
      for (const bytes of this.take(chunk)) this.add(bytes);
      this.flush();
    });
    // Bytes that were sent before a connection ended still arrive; a network does not take them back.
    let over = false;
    const ended = () => {
      if (over || this.discarding) return;
      over = true;
      this.add(null);
      this.flush();
    };
    from.once('end', ended);
    from.once('close', ended);
    to.on('drain', () => {
      this.full = false;
      this.flush();
    });
    to.once('close', () => {
      if (this.discarding) return;
      this.discard();
      // What it still had to say has no reader.
      from.end();
    });
  }

  stall(stalled: boolean): void {
    this.stalled = stalled;
    if (stalled) this.from.pause();
    else this.flush();
  }

  /** Nothing is passed on from now on; what comes is read and thrown away. */
  discard(): void {
    this.discarding = true;
    this.queue.length = 0;
    this.queuedBytes = 0;
    clearTimeout(this.timer);
    this.from.resume();
  }

  private add(bytes: Buffer | null): void {
    // A delay that was shortened must not let later bytes overtake earlier ones.
    const dueMs = Math.max(performance.now() + this.delayMs(), this.queue.at(-1)?.dueMs ?? 0);
    this.queue.push({ dueMs, bytes });
    this.queuedBytes += bytes?.length ?? 0;
  }

  private flush(): void {
    clearTimeout(this.timer);
    while (!this.stalled && !this.full && !this.discarding) {
      const next = this.queue[0];
      if (!next) break;
      const waitMs = next.dueMs - performance.now();
      if (waitMs > 0) {
        this.timer = setTimeout(() => this.flush(), Math.ceil(waitMs));
        break;
      }
      this.queue.shift();
      this.queuedBytes -= next.bytes?.length ?? 0;
      if (next.bytes === null) this.to.end();
      else if (!this.to.destroyed) this.full = !this.to.write(next.bytes);
    }
    if (this.stalled || this.queuedBytes > MAX_QUEUED_BYTES) this.from.pause();
    else if (!this.discarding) this.from.resume();
  }
}
