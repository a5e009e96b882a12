import { fileURLToPath } from 'node:url';
import {
  Client,
  Metadata,
  credentials,
  loadPackageDefinition,
  status,
  type ChannelOptions,
  type ServiceClientConstructor,
  type ServiceError,
} from '@grpc/grpc-js';
import { loadSync, type Options } from '@grpc/proto-loader';

/** The package of all our .proto files. */
export const GRPC_PACKAGE = 'flashsale';

/** Where the .proto files lie; both ends load these very files. */
export const PROTO_DIR = fileURLToPath(new URL('../proto', import.meta.url));
export const PROTO_FILES = ['inventory', 'token', 'order'].map(
  (name) => `${PROTO_DIR}/flashsale/${name}.proto`,
);

/** Both ends must read the wire alike: camelCase, numbers for 64 bits (all ours stay below 2^53), names for enums. */
export const LOADER_OPTIONS: Options = {
  keepCase: false,
  longs: Number,
  enums: String,
  defaults: true,
  arrays: true,
  objects: true,
  oneofs: true,
  includeDirs: [PROTO_DIR],
};

/** A batch of 256 items is well below this; grpc-js refuses a larger message before it is held in memory. */
export const MAX_MESSAGE_BYTES = 1024 * 1024;

const CHANNEL_OPTIONS: ChannelOptions = {
  'grpc.service_config': JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }),
  // A dead peer is noticed within 25 s even when no call is under way.
  'grpc.keepalive_time_ms': 20_000,
  'grpc.keepalive_timeout_ms': 5_000,
  'grpc.keepalive_permit_without_calls': 1,
  // After a failed connect grpc-js backs off; a service that is up again must not be refused for minutes.
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 1_000,
  'grpc.dns_min_time_between_resolutions_ms': 5_000,
  'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
  'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
};

/** A call that has no answer: whether it was carried out is not known. */
export class CallFailed extends Error {
  override readonly name = 'CallFailed';
  constructor(
    readonly method: string,
    /** The gRPC status, e.g. `UNAVAILABLE`, `DEADLINE_EXCEEDED`. */
    readonly grpcStatus: string,
    override readonly cause: Error,
  ) {
    super(`${method}: ${grpcStatus}: ${cause.message}`);
  }
}

/** This many calls in a row without an answer in time, and the channel is replaced: a silent peer never closes it. */
const DEADLINES_BEFORE_NEW_CHANNEL = 5;

const loaded = loadPackageDefinition(loadSync(PROTO_FILES, LOADER_OPTIONS));

/**
 * A channel to one service. Every call has a deadline; there is no way to make one without.
 */
export class GrpcChannel {
  private client: Client;
  private readonly constructorOfClient: ServiceClientConstructor;
  private deadlinesInARow = 0;

  /**
   * @param service e.g. `Stock`
   * @param address `host:port`; a DNS name with several addresses is balanced over all of them
   */
  constructor(
    private readonly service: string,
    private readonly address: string,
  ) {
    const found = (loaded[GRPC_PACKAGE] as Record<string, unknown> | undefined)?.[service];
    if (typeof found !== 'function')
      throw new Error(`no gRPC service ${GRPC_PACKAGE}.${service} in ${PROTO_DIR}`);
    this.constructorOfClient = found as ServiceClientConstructor;
    this.client = this.connect();
  }

  /**
   * One unary call.
   *
   * @param deadlineMs on the `performance.now()` scale
   * @throws CallFailed when no answer came: what was asked for may or may not have happened
   */
  call<Request, Reply>(method: string, request: Request, deadlineMs: number): Promise<Reply> {
    const definition = this.constructorOfClient.service[method];
    if (!definition) throw new Error(`no method ${method} in ${GRPC_PACKAGE}.${this.service}`);
    const remainingMs = Math.max(1, deadlineMs - performance.now());
    return new Promise<Reply>((resolve, reject) => {
      this.client.makeUnaryRequest(
        definition.path,
        definition.requestSerialize,
        definition.responseDeserialize,
        request,
        new Metadata(),
        { deadline: Date.now() + remainingMs },
        (error: ServiceError | null, reply?: unknown) => {
          if (error) {
            this.countDeadline(error.code === status.DEADLINE_EXCEEDED);
            reject(
              new CallFailed(`${this.service}.${method}`, status[error.code] ?? String(error.code), error),
            );
          } else {
            this.countDeadline(false);
            resolve(reply as Reply);
          }
        },
      );
    });
  }

  /** Resolves when the channel is connected; rejects when it is not within the time given. */
  ready(withinMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.client.waitForReady(Date.now() + withinMs, (error) =>
        error
          ? reject(new CallFailed(`${this.service} at ${this.address}`, 'UNAVAILABLE', error))
          : resolve(),
      );
    });
  }

  close(): void {
    this.client.close();
  }

  private connect(): Client {
    const target = this.address.includes('://') ? this.address : `dns:///${this.address}`;
    return new this.constructorOfClient(target, credentials.createInsecure(), CHANNEL_OPTIONS);
  }

  private countDeadline(exceeded: boolean): void {
    this.deadlinesInARow = exceeded ? this.deadlinesInARow + 1 : 0;
    if (this.deadlinesInARow < DEADLINES_BEFORE_NEW_CHANNEL) return;
    this.deadlinesInARow = 0;
    const silent = this.client;
    this.client = this.connect();
    // Calls already under way on the silent channel end by their own deadlines.
    silent.close();
  }
}
