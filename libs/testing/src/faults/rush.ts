import { connect, type Socket } from 'node:net';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { resolve } from 'node:path';
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';

/** Somebody who comes with a rush. */
export interface Rusher {
  readonly id: string;
  readonly authorization: string;
}

/** What a rusher was answered. Times are milliseconds since 1970, with fractions. */
export interface RushAnswer {
  readonly rusher: Rusher;
  /** When they were to come, whatever this process was doing then. */
  readonly dueMs: number;
  readonly sentMs: number;
  readonly endedMs: number;
  /** 0 where there was no answer; `text` is then `timeout`, `refused` or `cut`. */
  readonly http: number;
  readonly retryAfter: string | undefined;
  readonly contentType: string;
  readonly text: string;
}

export interface RushPlan {
  /** Where all of them go. */
  readonly shopUrl: string;
  readonly path: string;
  readonly idempotencyKey: string;
  readonly body: string;
  readonly perSecond: number;
  readonly deadlineMs: number;
  /** All who come, in their order. Their tokens were signed before, which costs as much as sending them does. */
  readonly rushers: readonly Rusher[];
}

export interface RushEnd {
  /** Who did not come, because all connections were waiting. */
  readonly turnedAway: number;
  /** How late the thread's own timers fired: 99th percentile, ms. */
  readonly lagMs: number;
}

type Said = { readonly answers: readonly RushAnswer[] } | { readonly end: RushEnd };

const ROLE = 'rush';
const MOST_CONNECTIONS = 1_000;
const TICK_MS = 2;
const TELL_EVERY_MS = 20;

/**
 * A step of load in a thread of its own: what the crowd does with answers must not be taken for the time that a gateway
 * needs. The client knows no more of HTTP than a gateway answers, since it shares the machine with what it measures.
 */
export class RushThread {
  readonly ended: Promise<RushEnd>;
  private readonly worker: Worker;

  /** Gets everything ready; nobody comes before {@link start}. */
  constructor(plan: RushPlan, onAnswers: (answers: readonly RushAnswer[]) => void) {
    // A thread runs what was built, also where a test imports this from its source.
    const file = resolve(import.meta.dirname, '../../dist/faults/rush.js');
    this.worker = new Worker(file, { workerData: { role: ROLE, plan } });
    this.ended = new Promise((done, failed) => {
      this.worker.on('error', failed);
      this.worker.on('exit', () => failed(new Error('the rush was over before everybody was answered')));
      this.worker.on('message', (said: Said) => {
        if ('end' in said) done(said.end);
        else onAnswers(said.answers);
      });
    });
    // Whoever waits for the end is told; until then nobody may be waiting.
    this.ended.catch(() => undefined);
  }

  start(): void {
    this.worker.postMessage('start', []);
  }

  /** Nobody comes any more; {@link ended} resolves when everybody has been answered. */
  stop(): void {
    this.worker.postMessage('stop', []);
  }

  async terminate(): Promise<void> {
    await this.worker.terminate();
  }
}

/** One connection that is kept alive, with one request at a time. */
class Connection {
  private readonly socket: Socket;
  private received = '';
  private answered: ((answer: HttpAnswer) => void) | null = null;
  private readonly timer: NodeJS.Timeout;
  isOpen = true;

  /** @param closed is told once, whoever closed it and whether or not somebody waited */
  constructor(
    host: string,
    port: number,
    deadlineMs: number,
    private readonly closed: () => void,
  ) {
    this.socket = connect({ host, port, noDelay: true });
    this.socket.setEncoding('latin1');
    this.socket.on('data', (text: string) => this.read(text));
    this.socket.on('error', (error: NodeJS.ErrnoException) =>
      this.end(error.code === 'ECONNREFUSED' ? 'refused' : 'cut'),
    );
    this.socket.on('close', () => this.end('cut'));
    // Set anew by each request, which is cheaper than a timer for each.
    this.timer = setTimeout(() => this.end('timeout'), deadlineMs);
  }

  send(text: string, answered: (answer: HttpAnswer) => void): void {
    this.answered = answered;
    this.timer.refresh();
    this.socket.write(text, 'latin1');
  }

  end(reason: string): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    clearTimeout(this.timer);
    this.socket.destroy();
    this.closed();
    const { answered } = this;
    this.answered = null;
    answered?.({ http: 0, retryAfter: undefined, contentType: '', text: reason });
  }

  private read(text: string): void {
    this.received += text;
    const headEnd = this.received.indexOf('\r\n\r\n');
    if (headEnd < 0) return;
    const head = this.received.slice(0, headEnd + 2);
    const length = Number(headerOf(head, 'content-length') ?? Number.NaN);
    if (Number.isNaN(length)) {
      this.end('cut');
      return;
    }
    const bodyStart = headEnd + 4;
    if (this.received.length < bodyStart + length) return;
    const body = this.received.slice(bodyStart, bodyStart + length);
    this.received = '';
    const { answered } = this;
    this.answered = null;
    if (/^close$/i.test(headerOf(head, 'connection') ?? '')) this.end('cut');
    answered?.({
      http: Number(head.slice(9, 12)),
      retryAfter: headerOf(head, 'retry-after'),
      contentType: headerOf(head, 'content-type') ?? '',
      text: Buffer.from(body, 'latin1').toString(),
    });
  }
}

type HttpAnswer = Pick<RushAnswer, 'http' | 'retryAfter' | 'contentType' | 'text'>;

function headerOf(head: string, name: string): string | undefined {
  return new RegExp(String.raw`\r\n${name}: *([^\r]*)\r\n`, 'i').exec(head)?.[1];
}

/** In the thread. */
function serve(plan: RushPlan): void {
  const { hostname, port, host } = new URL(plan.shopUrl);
  const idle: Connection[] = [];
  const answers: RushAnswer[] = [];
  const lag = monitorEventLoopDelay({ resolution: 10 });
  let [startedMs, connections, underway, turnedAway, next] = [0, 0, 0, 0, 0];
  let ending = false;
  const now = () => performance.timeOrigin + performance.now();

  const come = (rusher: Rusher, dueMs: number) => {
    let connection = idle.pop();
    // One that was idle for too long was closed meanwhile.
    while (connection && !connection.isOpen) connection = idle.pop();
    if (!connection) {
      if (connections >= MOST_CONNECTIONS) {
        turnedAway += 1;
        return;
      }
      connections += 1;
      connection = new Connection(hostname, Number(port), plan.deadlineMs, () => {
        connections -= 1;
      });
    }
    const mine = connection;
    const sentMs = now();
    underway += 1;
    const request =
      `POST ${plan.path} HTTP/1.1\r\nhost: ${host}\r\nauthorization: ${rusher.authorization}\r\n` +
      `idempotency-key: ${plan.idempotencyKey}\r\ncontent-type: application/json\r\n` +
      `content-length: ${plan.body.length}\r\n\r\n${plan.body}`;
    mine.send(request, (answer) => {
      underway -= 1;
      answers.push({ rusher, dueMs, sentMs, endedMs: now(), ...answer });
      if (mine.isOpen) idle.push(mine);
    });
  };

  const ticking = setInterval(() => {
    if (startedMs === 0 || ending) return;
    // Everybody comes at their time; who comes late because of this thread is late all the same.
    for (; next < plan.rushers.length; next += 1) {
      const dueMs = startedMs + (1_000 * next) / plan.perSecond;
      const rusher = plan.rushers[next];
      if (dueMs > now() || !rusher) return;
      come(rusher, dueMs);
    }
  }, TICK_MS);
  const telling = setInterval(() => {
    if (answers.length > 0) parentPort?.postMessage({ answers: answers.splice(0) } satisfies Said, []);
    if (!ending || underway > 0) return;
    clearInterval(ticking);
    clearInterval(telling);
    for (const connection of idle) connection.end('cut');
    const lagMs = Math.round(lag.percentile(99) / 1e6);
    lag.disable();
    parentPort?.postMessage({ end: { turnedAway, lagMs } } satisfies Said, []);
    parentPort?.close();
  }, TELL_EVERY_MS);
  parentPort?.on('message', (said: 'start' | 'stop') => {
    if (said === 'start') {
      startedMs = now();
      lag.enable();
    } else ending = true;
  });
}

const given = workerData as { readonly role?: string; readonly plan: RushPlan } | null;
if (!isMainThread && given?.role === ROLE) serve(given.plan);
