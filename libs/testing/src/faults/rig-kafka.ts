import { randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { chooseFreePort, startPrivateServer, type PrivateServer } from '@flash-sale/stack';
import { until } from '../waiting.js';
import { framing } from './proxy-frames.js';
import { RigServer, launch, type RigServerOptions } from './rig-server.js';

/** One broker, which tells its clients to come through the proxy; and a second one where a topic shall have two replicas. */
export class RigKafka extends RigServer {
  private second: PrivateServer | undefined;

  static async launch(options: RigServerOptions): Promise<RigKafka> {
    const settings = {
      'advertised.listeners': `PLAINTEXT://127.0.0.1:${options.proxy.port}`,
      ...options.settings,
    };
    const { server, disk } = await launch({ ...options, settings });
    return new RigKafka({ ...options, settings }, server, disk);
  }

  /**
   * Starts a second broker, gives each partition of the topic a replica there, and has an acknowledgement need both. Undone when
   * the server is healed.
   */
  async replicate(topic: string, partitions: number): Promise<void> {
    await this.startSecond();
    this.onHeal(() => this.stopSecond());
    await reassign(this.port, topic, partitions, [1, 2]);
    this.onHeal(() => reassign(this.port, topic, partitions, [1]));
    await alterTopic(this.port, topic, 'min.insync.replicas', '2');
    this.onHeal(() => alterTopic(this.port, topic, 'min.insync.replicas', null));
  }

  /** Kills the second broker: from then on too few replicas are in sync. */
  async killSecond(): Promise<void> {
    const { second } = this;
    second?.signal('SIGKILL');
    await until('the second broker to be gone', 10_000, async () => second?.isRunning() !== true);
  }

  async startSecond(): Promise<void> {
    const folder = join(this.folder, 'second');
    const port = this.second?.port ?? (await chooseFreePort());
    if (!this.second) this.join(join(folder, 'kafka', 'data'));
    this.second = await startPrivateServer('kafka', {
      folder,
      port,
      settings: {
        'process.roles': 'broker',
        'node.id': 2,
        'controller.quorum.voters': propertyOf(
          join(this.server.folder, 'server.properties'),
          'controller.quorum.voters',
        ),
        listeners: `PLAINTEXT://127.0.0.1:${port}`,
      },
      log: this.options.log,
    });
  }

  override async stop(): Promise<void> {
    this.second?.signal('SIGKILL');
    await super.stop();
  }

  private async stopSecond(): Promise<void> {
    await this.second?.stop();
  }

  /** Writes what formatting would write, with the first broker's cluster in it. */
  private join(data: string): void {
    mkdirSync(data, { recursive: true });
    const clusterId = propertyOf(join(this.server.folder, 'data', 'meta.properties'), 'cluster.id');
    const directoryId = `f${randomBytes(16).toString('base64url').slice(1)}`;
    const lines = ['version=1', `cluster.id=${clusterId}`, 'node.id=2', `directory.id=${directoryId}`];
    writeFileSync(join(data, 'meta.properties'), `${lines.join('\n')}\n`);
  }
}

function propertyOf(file: string, name: string): string {
  const line = readFileSync(file, 'utf8')
    .split('\n')
    .find((text) => text.startsWith(`${name}=`));
  if (!line) throw new Error(`${file} does not say ${name}`);
  return line.slice(name.length + 1).trim();
}

// ── Two requests of Kafka's protocol, written by hand ───────────────────────────────────────────────────────────────────

const int8 = (number: number) => Buffer.from([number & 0xff]);
const int16 = (number: number) => Buffer.from([(number >> 8) & 0xff, number & 0xff]);
const int32 = (number: number) => Buffer.concat([int16(number >> 16), int16(number & 0xffff)]);
const string = (text: string | null) =>
  text === null ? int16(-1) : Buffer.concat([int16(Buffer.byteLength(text)), Buffer.from(text)]);
/** Of the newer, compact forms: lengths are one more than they are, and one byte is enough for ours. */
const compactString = (text: string) => Buffer.concat([int8(Buffer.byteLength(text) + 1), Buffer.from(text)]);
const compactArray = (items: readonly Buffer[]) => Buffer.concat([int8(items.length + 1), ...items]);
const NO_TAGS = int8(0);

const INCREMENTAL_ALTER_CONFIGS = 44;
const ALTER_PARTITION_REASSIGNMENTS = 45;
const CORRELATION_ID = 1;
const ANSWER_WITHIN_MS = 10_000;

async function alterTopic(port: number, topic: string, name: string, value: string | null): Promise<void> {
  const [topicType, set, remove] = [2, 0, 1];
  const header = [int16(INCREMENTAL_ALTER_CONFIGS), int16(0), int32(CORRELATION_ID), string('rig')];
  const resource = [int32(1), int8(topicType), string(topic)];
  const change = [int32(1), string(name), int8(value === null ? remove : set), string(value)];
  const reallyDoIt = int8(0);
  const reply = await ask(port, [...header, ...resource, ...change, reallyDoIt]);
  // Size, correlation id, throttle time, number of results: 4 bytes each. Then the first result's error code.
  accept(reply.readInt16BE(16), `${name}=${value} of topic ${topic}`);
}

async function reassign(
  port: number,
  topic: string,
  partitions: number,
  brokers: readonly number[],
): Promise<void> {
  const replicas = compactArray(brokers.map(int32));
  const each = Array.from({ length: partitions }, (_, partition) =>
    Buffer.concat([int32(partition), replicas, NO_TAGS]),
  );
  const header = [
    int16(ALTER_PARTITION_REASSIGNMENTS),
    int16(0),
    int32(CORRELATION_ID),
    string('rig'),
    NO_TAGS,
  ];
  const topics = compactArray([Buffer.concat([compactString(topic), compactArray(each), NO_TAGS])]);
  const reply = await ask(port, [...header, int32(ANSWER_WITHIN_MS), topics, NO_TAGS]);
  // Size, correlation id: 4 bytes each; no tags: 1; throttle time: 4. Then the error code.
  accept(reply.readInt16BE(13), `replicas of topic ${topic} on brokers ${brokers.join(' and ')}`);
}

function accept(errorCode: number, what: string): void {
  if (errorCode !== 0) throw new Error(`Kafka refused ${what} with error ${errorCode}`);
}

/** One request on a connection of its own. */
function ask(port: number, parts: readonly Buffer[]): Promise<Buffer> {
  const request = Buffer.concat(parts);
  return new Promise((done, failed) => {
    const socket = connect(port, '127.0.0.1');
    const { replies } = framing('kafka', () =>
      failed(new Error(`what answers on port ${port} is not Kafka`)),
    );
    socket.setTimeout(ANSWER_WITHIN_MS, () => {
      socket.destroy();
      failed(new Error(`Kafka did not answer within ${ANSWER_WITHIN_MS} ms`));
    });
    socket.once('error', failed);
    socket.once('close', () => failed(new Error('Kafka closed the connection instead of answering')));
    socket.on('data', (chunk) => {
      const [reply] = replies.push(chunk);
      if (!reply) return;
      done(reply.bytes);
      socket.destroy();
    });
    socket.write(Buffer.concat([int32(request.length), request]));
  });
}
