import { connect, type Socket } from 'node:net';
import { endWithParent } from './child.js';
import type { Load, LoadResult, Order, Report } from './generator.js';
import { dueAfterMs, quantile } from './statistics.js';

/**
 * The generator's process. It shares the machine with what it measures, so it knows no more of HTTP than our servers answer:
 * every answer has a length.
 */

interface Answer {
  /** 0: none; `text` then says why. */
  readonly status: number;
  readonly text: string;
}

const DEADLINE_MS = 15_000;
const OPENED_AT_ONCE = 100;
const TICK_MS = 1;
const CONTENT_LENGTH = /\r\ncontent-length: *(\d+)\r\n/i;

/** One connection that is kept alive, with one request at a time. */
class Connection {
  isOpen = true;
  private received = '';
  private answered: ((answer: Answer) => void) | null = null;
  // Set anew by each request, which is cheaper than a timer for each.
  private readonly timer = setTimeout(() => {
    if (this.answered) this.end('no answer in time');
  }, DEADLINE_MS);

  private constructor(private readonly socket: Socket) {
    socket.setEncoding('latin1');
    socket.on('data', (text: string) => this.read(text));
    socket.on('error', (error) => this.end(error.message));
    socket.on('close', () => this.end('closed'));
  }

  static open(origin: string): Promise<Connection> {
    const { hostname, port } = new URL(origin);
    return new Promise((resolve, reject) => {
      const socket = connect({ host: hostname, port: Number(port), noDelay: true });
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.off('error', reject);
        resolve(new Connection(socket));
      });
    });
  }

  send(text: string, answered: (answer: Answer) => void): void {
    if (!this.isOpen) {
      // Not within this call: thousands of calls may find all connections closed.
      setImmediate(answered, { status: 0, text: 'closed while it was idle' });
      return;
    }
    this.answered = answered;
    this.timer.refresh();
    this.socket.write(text, 'latin1');
  }

  /** As {@link send}. */
  ask(text: string): Promise<Answer> {
    return new Promise((resolve) => this.send(text, resolve));
  }

  end(reason: string): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    clearTimeout(this.timer);
    this.socket.destroy();
    this.settle({ status: 0, text: reason });
  }

  private read(text: string): void {
    this.received += text;
    const headEnd = this.received.indexOf('\r\n\r\n');
    if (headEnd < 0) return;
    const head = this.received.slice(0, headEnd + 2);
    const length = CONTENT_LENGTH.exec(head)?.[1];
    if (length === undefined) {
      this.end(`an answer without a length: ${head.slice(0, 100)}`);
      return;
    }
    const bodyStart = headEnd + 4;
    if (this.received.length < bodyStart + Number(length)) return;
    const body = this.received.slice(bodyStart, bodyStart + Number(length));
    this.received = '';
    this.settle({ status: Number(head.slice(9, 12)), text: body });
  }

  private settle(answer: Answer): void {
    const { answered } = this;
    this.answered = null;
    answered?.(answer);
  }
}

/** One load, from its connections to its result. */
class Run {
  private readonly idle: Connection[] = [];
  private readonly latenciesMs: Float64Array;
  private readonly latenessMs: Float64Array;
  private readonly kept: string[] = [];
  /** Calls of an open load that found no connection free, and when they were due. */
  private readonly waiting: { readonly index: number; readonly dueMs: number }[] = [];
  private next = 0;
  private finished = 0;
  private unexpected = 0;
  private example = '';
  private lastAnswerMs = 0;
  private ticking: NodeJS.Timeout | undefined;
  private allFinished: () => void = () => undefined;

  constructor(private readonly load: Load) {
    this.latenciesMs = new Float64Array(load.calls.length);
    this.latenessMs = new Float64Array(load.calls.length);
  }

  async open(): Promise<void> {
    const { origins, connections, greeting } = this.load;
    for (let opened = 0; opened < connections; opened += OPENED_AT_ONCE) {
      const count = Math.min(OPENED_AT_ONCE, connections - opened);
      const some = Array.from({ length: count }, (_, index) =>
        Connection.open(origins[(opened + index) % origins.length] ?? ''),
      );
      const fresh = await Promise.all(some);
      if (greeting !== undefined) await Promise.all(fresh.map((one) => one.ask(greeting)));
      this.idle.push(...fresh);
    }
  }

  async go(): Promise<LoadResult> {
    const { pace, calls } = this.load;
    const done = new Promise<void>((resolve) => (this.allFinished = resolve));
    const startedMs = performance.now();
    if (pace.kind === 'closed') {
      const atOnce = Math.min(pace.inFlight, this.idle.length, calls.length);
      for (let started = 0; started < atOnce; started += 1) this.beginNext();
    } else {
      this.ticking = setInterval(() => this.beginDue(startedMs, pace.perSecond), TICK_MS);
    }
    await done;
    clearInterval(this.ticking);
    return {
      tookMs: this.lastAnswerMs - startedMs,
      latenciesMs: this.latenciesMs,
      kept: this.kept,
      unexpected: this.unexpected,
      example: this.example,
      latenessMs: quantile(this.latenessMs.sort(), 0.99),
    };
  }

  close(): void {
    for (const connection of this.idle) connection.end('the load is over');
  }

  private beginNext(): void {
    if (this.next >= this.load.calls.length) return;
    this.begin(this.next, performance.now());
    this.next += 1;
  }

  private beginDue(startedMs: number, perSecond: number): void {
    for (const now = performance.now(); this.next < this.load.calls.length; this.next += 1) {
      const dueMs = startedMs + dueAfterMs(this.next, perSecond);
      if (dueMs > now) return;
      if (this.idle.length > 0) this.begin(this.next, dueMs);
      else this.waiting.push({ index: this.next, dueMs });
    }
  }

  private begin(index: number, dueMs: number): void {
    // The one that was idle for longest: so all of them are used.
    const connection = this.idle.shift();
    const call = this.load.calls[index];
    if (!connection || call === undefined) throw new Error('there is neither a call nor a connection left');
    this.latenessMs[index] = performance.now() - dueMs;
    connection.send(call, (answer) => this.first(index, dueMs, connection, answer));
  }

  private first(index: number, dueMs: number, connection: Connection, answer: Answer): void {
    const { expected, keep, followUp } = this.load;
    if (!expected.includes(answer.status)) {
      this.note(answer);
      this.finish(index, dueMs, connection);
      return;
    }
    const wanted = followUp?.field ?? keep;
    const value = wanted === undefined ? '' : fieldOf(answer.text, wanted);
    if (keep !== undefined) this.kept[index] = value;
    if (!followUp) {
      this.finish(index, dueMs, connection);
      return;
    }
    const body = `${followUp.bodyBefore}${value}${followUp.bodyAfter}`;
    const head = `${followUp.heads[index] ?? ''}content-length: ${Buffer.byteLength(body)}\r\n\r\n`;
    connection.send(head + body, (second) => {
      if (second.status !== followUp.expected) this.note(second);
      this.finish(index, dueMs, connection);
    });
  }

  private note({ status, text }: Answer): void {
    this.unexpected += 1;
    this.example ||= `${status} ${text.slice(0, 300)}`;
  }

  private finish(index: number, dueMs: number, connection: Connection): void {
    this.lastAnswerMs = performance.now();
    this.latenciesMs[index] = this.lastAnswerMs - dueMs;
    this.finished += 1;
    // One that was closed fails whoever gets it, so that a load ends and is found faulty.
    this.idle.push(connection);
    if (this.finished === this.load.calls.length) {
      this.allFinished();
      return;
    }
    const late = this.waiting.shift();
    if (late) this.begin(late.index, late.dueMs);
    else if (this.load.pace.kind === 'closed') this.beginNext();
  }
}

function fieldOf(text: string, name: string): string {
  const body = JSON.parse(text) as Record<string, unknown>;
  const value = body[name];
  return typeof value === 'string' ? value : '';
}

const tell = (report: Report) => process.send?.(report);
let run: Run | undefined;

async function obey(order: Order): Promise<void> {
  if (order === 'go') {
    if (!run) throw new Error('there is no load to run');
    tell({ result: await run.go() });
  } else if (order === 'close') {
    run?.close();
    run = undefined;
    tell('closed');
  } else {
    run = new Run(order.prepare);
    await run.open();
    tell('ready');
  }
}

endWithParent();
process.on('message', (order: Order) => {
  obey(order).catch((error: unknown) => {
    tell({ fault: error instanceof Error ? error.message : String(error) });
  });
});
