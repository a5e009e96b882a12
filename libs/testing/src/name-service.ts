import { createSocket, type Socket } from 'node:dgram';

const TYPE_A = 1;
/** Seconds an answer may be kept. */
const TTL_SECONDS = 1;

/**
 * A name service on loopback that knows IPv4 addresses of names, for processes that come and go. It can fall silent, as one
 * that is down does.
 */
export class NameService {
  /** Questions answered, and questions left unanswered while silent. */
  answered = 0;
  ignored = 0;
  private silent = false;
  private readonly addresses = new Map<string, Set<string>>();

  private constructor(private readonly socket: Socket) {
    socket.on('message', (question, { address, port }) => {
      if (this.silent) {
        this.ignored += 1;
        return;
      }
      const answer = this.answerTo(question);
      if (answer) socket.send(answer, port, address);
    });
    socket.on('error', () => undefined);
  }

  static async start(): Promise<NameService> {
    const socket = createSocket('udp4');
    await new Promise<void>((bound) => socket.bind(0, '127.0.0.1', bound));
    return new NameService(socket);
  }

  /** As gRPC spells an authority: `dns://127.0.0.1:53`. */
  get url(): string {
    return `dns://127.0.0.1:${this.socket.address().port}`;
  }

  add(name: string, address: string): void {
    const known = this.addresses.get(name) ?? new Set();
    this.addresses.set(name, known.add(address));
  }

  remove(name: string, address: string): void {
    this.addresses.get(name)?.delete(address);
  }

  /** While silent, no question is answered. */
  fallSilent(silent: boolean): void {
    this.silent = silent;
  }

  async stop(): Promise<void> {
    await new Promise<void>((closed) => this.socket.close(() => closed()));
  }

  /** A message with one question (RFC 1035, section 4), answered with what is known; null for what is none. */
  private answerTo(question: Buffer): Buffer | null {
    const labels: string[] = [];
    let at = 12;
    for (
      let length = question[at] ?? 0;
      length > 0 && at + length < question.length;
      length = question[at] ?? 0
    ) {
      labels.push(question.toString('latin1', at + 1, at + 1 + length));
      at += 1 + length;
    }
    const end = at + 5;
    if (question.length < end || labels.length === 0) return null;
    const type = question.readUInt16BE(at + 1);
    const found = type === TYPE_A ? [...(this.addresses.get(labels.join('.').toLowerCase()) ?? [])] : [];
    const header = Buffer.from(question.subarray(0, 12));
    // A response, authoritative, recursion as asked; a known name without such a record is no error.
    header.writeUInt16BE(0x8400 | (header.readUInt16BE(2) & 0x0100), 2);
    header.writeUInt16BE(1, 4);
    header.writeUInt16BE(found.length, 6);
    header.writeUInt32BE(0, 8);
    const records = found.map((address) => {
      const record = Buffer.alloc(16);
      record.writeUInt16BE(0xc00c, 0);
      record.writeUInt16BE(TYPE_A, 2);
      record.writeUInt16BE(1, 4);
      record.writeUInt32BE(TTL_SECONDS, 6);
      record.writeUInt16BE(4, 10);
      Buffer.from(address.split('.').map(Number)).copy(record, 12);
      return record;
    });
    this.answered += 1;
    return Buffer.concat([header, question.subarray(12, end), ...records]);
  }
}
