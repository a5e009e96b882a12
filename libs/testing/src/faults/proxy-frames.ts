/** What the fault proxy can tell apart on the wire. `bytes`: nothing; whatever comes is passed on as it comes. */
export type Protocol = 'redis' | 'kafka' | 'mysql' | 'bytes';

/** A whole request or reply, or, where a protocol's replies are not taken apart, some bytes of one. */
export interface Frame {
  readonly bytes: Buffer;
  /** Of a request: the command in capitals, e.g. `PRODUCE`, `EVALSHA`, `COMMIT`. Empty for replies. */
  readonly name: string;
  /** The same for a request and its reply, within one connection. */
  readonly key: number;
}

/** Cuts the bytes of one direction of one connection into frames, however they arrive. */
export interface FrameReader {
  push(chunk: Buffer): Frame[];
}

/**
 * The readers of both directions of a connection; they know of each other, because some replies name no request.
 *
 * @param onUnreadable the bytes are not of the protocol; from then on they are passed on as they come
 */
export function framing(
  protocol: Protocol,
  onUnreadable: () => void,
): { readonly requests: FrameReader; readonly replies: FrameReader } {
  if (protocol === 'kafka') {
    return { requests: new KafkaReader(true, onUnreadable), replies: new KafkaReader(false, onUnreadable) };
  }
  if (protocol === 'redis') {
    return { requests: new RedisReader(true, onUnreadable), replies: new RedisReader(false, onUnreadable) };
  }
  if (protocol === 'mysql') {
    const requests = new MysqlRequests(onUnreadable);
    // A reply may be many packets, but there is never more than one under way: it is that of the last request.
    return { requests, replies: { push: (bytes) => [{ bytes, name: '', key: requests.last }] } };
  }
  const asIs: FrameReader = { push: (bytes) => [unknownFrame(bytes)] };
  return { requests: asIs, replies: asIs };
}

const unknownFrame = (bytes: Buffer): Frame => ({ bytes, name: '', key: -1 });

abstract class Reader implements FrameReader {
  /** What has come and is not a whole frame yet. */
  protected rest: Buffer = Buffer.alloc(0);
  private readable = true;

  constructor(private readonly onUnreadable: () => void) {}

  push(chunk: Buffer): Frame[] {
    if (!this.readable) return [unknownFrame(chunk)];
    this.rest = this.rest.length === 0 ? chunk : Buffer.concat([this.rest, chunk]);
    const frames: Frame[] = [];
    try {
      for (let frame = this.next(); frame; frame = this.next()) frames.push(frame);
    } catch {
      this.readable = false;
      this.onUnreadable();
      frames.push(unknownFrame(this.rest));
    }
    return frames;
  }

  /**
   * The next whole frame, taken off the rest; null while there is none.
   *
   * @throws when the bytes are not of the protocol
   */
  protected abstract next(): Frame | null;

  protected takeOff(size: number): Buffer {
    const bytes = this.rest.subarray(0, size);
    this.rest = this.rest.subarray(size);
    return bytes;
  }
}

/** Larger than anything the suite sends; a length beyond it means that this is not the protocol. */
const MAX_FRAME_BYTES = 64 * 1024 * 1024;

/** The API keys a fault may name; the others are `API 36` and the like. */
const KAFKA_APIS: Readonly<Record<number, string>> = {
  0: 'PRODUCE',
  1: 'FETCH',
  2: 'LIST_OFFSETS',
  3: 'METADATA',
  8: 'OFFSET_COMMIT',
  9: 'OFFSET_FETCH',
  10: 'FIND_COORDINATOR',
  11: 'JOIN_GROUP',
  12: 'HEARTBEAT',
  14: 'SYNC_GROUP',
  18: 'API_VERSIONS',
};

/** Each frame: its size (4 bytes); a request then has API key, version (2 each) and correlation id (4), a reply only the last. */
class KafkaReader extends Reader {
  constructor(
    private readonly isRequest: boolean,
    onUnreadable: () => void,
  ) {
    super(onUnreadable);
  }

  protected next(): Frame | null {
    if (this.rest.length < 4) return null;
    const size = this.rest.readInt32BE(0);
    if (size < (this.isRequest ? 8 : 4) || size > MAX_FRAME_BYTES) {
      throw new Error(`${size} is no size of a Kafka frame`);
    }
    if (this.rest.length < 4 + size) return null;
    const bytes = this.takeOff(4 + size);
    if (!this.isRequest) return { bytes, name: '', key: bytes.readInt32BE(4) };
    const api = bytes.readInt16BE(4);
    return { bytes, name: KAFKA_APIS[api] ?? `API ${api}`, key: bytes.readInt32BE(8) };
  }
}

const CR = 0x0d;
const LF = 0x0a;
const [ARRAY, BULK, SIMPLE, ERROR, INTEGER] = Buffer.from('*$+-:');

/** RESP 2. Replies come in the order of the requests, so both are counted. */
class RedisReader extends Reader {
  /** How far the rest has been read, and how many values the frame still lacks: a large reply is read only once. */
  private at = 0;
  private lacking = 1;
  private count = 0;

  constructor(
    private readonly isRequest: boolean,
    onUnreadable: () => void,
  ) {
    super(onUnreadable);
  }

  protected next(): Frame | null {
    if (!this.readFrame()) return null;
    const bytes = this.takeOff(this.at);
    this.at = 0;
    this.lacking = 1;
    this.count += 1;
    return { bytes, name: this.isRequest ? commandOf(bytes) : '', key: this.count };
  }

  private readFrame(): boolean {
    while (this.lacking > 0) {
      const lineEnd = this.rest.indexOf('\r\n', this.at, 'latin1');
      if (lineEnd < 0) return false;
      const type = this.rest[this.at];
      const length = Number(this.rest.toString('latin1', this.at + 1, lineEnd));
      let next = lineEnd + 2;
      if (type === BULK || type === ARRAY) {
        if (!Number.isInteger(length) || length < -1 || length > MAX_FRAME_BYTES) {
          throw new Error(`${length} is no length in RESP`);
        }
        if (type === ARRAY) this.lacking += Math.max(0, length);
        else if (length >= 0) next += length + 2;
        if (next > this.rest.length) return false;
      } else if (!this.isRequest && type !== SIMPLE && type !== ERROR && type !== INTEGER) {
        throw new Error(`${type} is no type in RESP 2`);
      }
      // Anything else in a request is an inline command: one line.
      this.lacking -= 1;
      this.at = next;
    }
    return true;
  }
}

function commandOf(request: Buffer): string {
  if (request[0] !== ARRAY) return request.toString('latin1').split(/\s/)[0]?.toUpperCase() ?? '';
  const name = request.indexOf(LF, request.indexOf('$')) + 1;
  return request.toString('latin1', name, request.indexOf(CR, name)).toUpperCase();
}

const COM_QUERY = 3;

/** Packets: length (3 bytes, little endian), sequence number, payload. A command's first packet has the number 0. */
class MysqlRequests extends Reader {
  last = 0;

  protected next(): Frame | null {
    if (this.rest.length < 4) return null;
    const size = 4 + this.rest.readUIntLE(0, 3);
    if (this.rest.length < size) return null;
    const bytes = this.takeOff(size);
    const isCommand = bytes[3] === 0;
    if (isCommand) this.last += 1;
    return { bytes, name: isCommand ? statementOf(bytes) : '', key: this.last };
  }
}

function statementOf(packet: Buffer): string {
  if (packet[4] !== COM_QUERY) return `COM ${packet[4]}`;
  // MySQL puts the number of the query's attributes, usually none, before its text; MariaDB does not.
  const text = packet.toString('latin1', 5, 64);
  return /[A-Za-z]+/.exec(text)?.[0].toUpperCase() ?? '';
}
