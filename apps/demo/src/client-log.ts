import { createWriteStream, type WriteStream } from 'node:fs';
import { finished } from 'node:stream/promises';

const CHUNK_CHARACTERS = 64 * 1024;
const CONGESTED_BYTES = 16 * 1024 * 1024;

/** The crowd's own record of every exchange, one JSON object a line: the auditor's evidence from outside. */
export class ClientLog {
  readonly #stream: WriteStream;
  #pending: string[] = [];
  #pendingCharacters = 0;
  #failure: Error | undefined;

  constructor(readonly path: string) {
    this.#stream = createWriteStream(path, { flags: 'wx', mode: 0o600, highWaterMark: CHUNK_CHARACTERS });
    this.#stream.on('error', (error) => {
      this.#failure = error;
    });
  }

  /** Whether the disk is so far behind that the crowd should wait for it. */
  get congested(): boolean {
    return this.#stream.writableLength > CONGESTED_BYTES;
  }

  /** Throws once the file could not be written: a crowd without evidence proves nothing. */
  write(exchange: object): void {
    if (this.#failure)
      throw new Error(`the client log ${this.path} cannot be written`, { cause: this.#failure });
    const line = `${JSON.stringify(exchange)}\n`;
    this.#pending.push(line);
    this.#pendingCharacters += line.length;
    if (this.#pendingCharacters >= CHUNK_CHARACTERS) this.#flush();
  }

  async close(): Promise<void> {
    this.#flush();
    this.#stream.end();
    await finished(this.#stream);
  }

  #flush(): void {
    if (this.#pending.length === 0) return;
    this.#stream.write(this.#pending.join(''));
    this.#pending = [];
    this.#pendingCharacters = 0;
  }
}
