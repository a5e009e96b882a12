import type { ServerResponse } from 'node:http';

/** What a look at the state behind a stream gives. */
export type Look =
  | { readonly outcome: 'state'; readonly body: object; readonly isFinal: boolean }
  /** There is nothing to be watched any more. */
  | { readonly outcome: 'gone' }
  /** Not known at the moment; the stream stays open and says nothing. */
  | { readonly outcome: 'unknown' };

export interface EventStreamsOptions {
  /** Streams open at once; more are refused. */
  readonly maxStreams: number;
  /** How often each stream's state is looked at, ms. */
  readonly pollEveryMs: number;
  /** Whether streams are to be done without at the moment: none begin, and those that are open end. */
  readonly isOff?: () => boolean;
  /** Hears of a look that threw; its stream ends. */
  readonly onDefect: (error: unknown) => void;
}

export interface StreamRequest {
  /** Names the events, e.g. `entry`. */
  readonly event: string;
  readonly shopperId: string;
  /** The state that is known already; sent at once. */
  readonly first: object;
  readonly look: () => Promise<Look>;
  /** The stream ends when the access token does, milliseconds since 1970. */
  readonly endsAtMs: number;
}

interface Stream {
  readonly request: StreamRequest;
  readonly response: ServerResponse;
  lastSent: string;
  lastWriteMs: number;
  looking: boolean;
}

const HEARTBEAT_EVERY_MS = 15_000;
/** A shopper has a tab or two; more streams of one are a machine's. */
const MAX_STREAMS_PER_SHOPPER = 5;
/** A reader that leaves this much unread is cut off, and may come again. */
const MAX_UNREAD_BYTES = 64 * 1024;
/** Who cannot have a stream should ask so often. */
export const POLL_AFTER_MS = 2_000;
/** Streams are looked at in this many turns, so that a poll is neither one burst nor thousands of single calls. */
const TURNS = 4;

/**
 * Server-sent events of states that change seldom. A state is looked at, not pushed, because it lies in other services:
 * all streams of a turn are looked at together, so their calls travel in one batch. A reader that comes again simply gets
 * the present state first; no event can be missed, so none has an id. When streams are switched off, the last event of each is
 * `poll` with `{"pollAfterMs"}`: from then on its reader asks for the state itself.
 */
export class EventStreams {
  private readonly turns: Set<Stream>[] = Array.from({ length: TURNS }, () => new Set());
  private readonly perShopper = new Map<string, number>();
  private readonly timer: NodeJS.Timeout;
  private open = 0;
  private nextTurn = 0;

  constructor(private readonly options: EventStreamsOptions) {
    this.timer = setInterval(() => this.turn(), Math.max(10, options.pollEveryMs / TURNS));
    this.timer.unref();
  }

  get count(): number {
    return this.open;
  }

  /** Whether one more may be opened for a shopper; asked before the first look, so that a refusal can still be a problem. */
  hasRoom(shopperId: string): boolean {
    return (
      !this.isOff() &&
      this.open < this.options.maxStreams &&
      (this.perShopper.get(shopperId) ?? 0) < MAX_STREAMS_PER_SHOPPER
    );
  }

  /** Takes the response over until the state is final, the reader leaves or the access token ends. */
  start(response: ServerResponse, headers: Readonly<Record<string, string>>, request: StreamRequest): void {
    response.writeHead(200, {
      ...headers,
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-store, no-transform',
      'x-accel-buffering': 'no',
    });
    const stream: Stream = {
      request,
      response,
      lastSent: '',
      lastWriteMs: performance.now(),
      looking: false,
    };
    const turn = this.turns[this.open % TURNS];
    this.open += 1;
    turn?.add(stream);
    this.perShopper.set(request.shopperId, (this.perShopper.get(request.shopperId) ?? 0) + 1);
    response.once('close', () => {
      turn?.delete(stream);
      this.open -= 1;
      const left = (this.perShopper.get(request.shopperId) ?? 1) - 1;
      if (left > 0) this.perShopper.set(request.shopperId, left);
      else this.perShopper.delete(request.shopperId);
    });
    this.send(stream, request.first);
  }

  /** Ends all streams; their readers come again, to another gateway. */
  close(): void {
    clearInterval(this.timer);
    for (const turn of this.turns) {
      for (const { response } of turn) response.end();
    }
  }

  private isOff(): boolean {
    return this.options.isOff?.() ?? false;
  }

  private turn(): void {
    this.nextTurn = (this.nextTurn + 1) % TURNS;
    for (const stream of this.turns[this.nextTurn] ?? []) {
      if (!stream.looking) void this.lookAt(stream);
    }
  }

  private async lookAt(stream: Stream): Promise<void> {
    stream.looking = true;
    try {
      if (Date.now() >= stream.request.endsAtMs) {
        stream.response.end();
        return;
      }
      if (this.isOff()) {
        this.write(stream, `event: poll\ndata: ${JSON.stringify({ pollAfterMs: POLL_AFTER_MS })}\n\n`);
        stream.response.end();
        return;
      }
      const look = await stream.request.look();
      if (look.outcome === 'state') this.send(stream, look.body);
      if (look.outcome === 'gone' || (look.outcome === 'state' && look.isFinal)) stream.response.end();
      else if (performance.now() - stream.lastWriteMs >= HEARTBEAT_EVERY_MS)
        this.write(stream, ': still here\n\n');
    } catch (error) {
      this.options.onDefect(error);
      stream.response.end();
    } finally {
      stream.looking = false;
    }
  }

  private send(stream: Stream, body: object): void {
    const data = JSON.stringify(body);
    if (data === stream.lastSent) return;
    stream.lastSent = data;
    this.write(stream, `event: ${stream.request.event}\ndata: ${data}\n\n`);
  }

  private write(stream: Stream, text: string): void {
    if (stream.response.writableEnded || stream.response.destroyed) return;
    stream.lastWriteMs = performance.now();
    stream.response.write(text);
    if (stream.response.writableLength > MAX_UNREAD_BYTES) stream.response.destroy();
  }
}
