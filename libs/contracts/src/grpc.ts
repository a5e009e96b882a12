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
import { Circuit } from './circuit.js';
import { NotSent } from './coalescer.js';

/** The package of all our .proto files. */
export const GRPC_PACKAGE = 'flashsale';

/** Where the .proto files lie; both ends load these very files. */
export const PROTO_DIR = fileURLToPath(new URL('../proto', import.meta.url));
export const PROTO_FILES = ['inventory', 'token', 'order', 'operators'].map(
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

/**
 * Repeating is done in two places only: here, once, when no answer of a server came because its connection was refused or cut;
 * and by shoppers, when they were asked to. What a server answered is never repeated by us, so no failure is met by more than
 * one layer's repetitions. All our calls are idempotent by the ids they carry. A repetition costs a token of ten and an
 * answer earns a tenth of one: in an outage at most a tenth of the calls comes twice.
 */
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{}],
      retryPolicy: {
        maxAttempts: 2,
        initialBackoff: '0.02s',
        maxBackoff: '0.1s',
        backoffMultiplier: 2,
        retryableStatusCodes: ['UNAVAILABLE'],
      },
    },
  ],
  retryThrottling: { maxTokens: 10, tokenRatio: 0.1 },
};

const CHANNEL_OPTIONS: ChannelOptions = {
  'grpc.service_config': JSON.stringify(SERVICE_CONFIG),
  // By default channels to one address share a connection, so the channel that replaces a silent one would get the silent one.
  'grpc.use_local_subchannel_pool': 1,
  // A silent peer is noticed within 2.5 s even when no call is under way, or the answers of other instances hide its silence.
  // Calls alone would notice one hop after the other, because nobody calls the second before the first is answered again.
  // grpc-js takes as many pings as come, and a peer that answers none for so long has missed its callers' deadlines anyway.
  'grpc.keepalive_time_ms': 1_000,
  'grpc.keepalive_timeout_ms': 1_500,
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
    /** Whether that means that the peer is away or silent, rather than refusing or given too little time. */
    readonly isPeerAway = grpcStatus === 'UNAVAILABLE',
  ) {
    super(`${method}: ${grpcStatus}: ${cause.message}`);
  }
}

/** This many calls in a row without an answer in time, and the channel is replaced: a silent peer never closes it. */
const DEADLINES_BEFORE_NEW_CHANNEL = 5;
/** A call that was given less than this says nothing about its peer when it ends without an answer. */
const FAIR_CHANCE_MS = 200;

const HOST_AND_PORT = /^[^\s:/,]+:\d{1,5}$/;
const DNS_SERVER_AND_NAME = /^dns:\/\/[^\s/,]*\/[^\s:/,]+:\d{1,5}$/;
const IPV4_AND_PORT = /^(?:\d{1,3}\.){3}\d{1,3}:\d{1,5}$/;

/**
 * The target that gRPC balances calls over, of an address as an operator writes it:
 * `host:port`, where a DNS name with several addresses means all of them; `dns://server:port/host:port`, which asks that
 * server for the name (grpc-js does so only with `GRPC_NODE_USE_ALTERNATIVE_RESOLVER=true` in the environment, and otherwise
 * asks the system's resolver without a word); or several instances listed by IPv4, `10.0.0.1:9000,10.0.0.2:9000`.
 *
 * @throws when it is none of these
 */
export function grpcTarget(address: string): string {
  if (HOST_AND_PORT.test(address)) return `dns:///${address}`;
  if (DNS_SERVER_AND_NAME.test(address)) return address;
  if (address.split(',').every((one) => IPV4_AND_PORT.test(one))) return `ipv4:${address}`;
  throw new Error(
    `"${address}" must be host:port, dns://server:port/host:port, or IPv4 addresses as in 10.0.0.1:9000,10.0.0.2:9000`,
  );
}

const loaded = loadPackageDefinition(loadSync(PROTO_FILES, LOADER_OPTIONS));

/**
 * A channel to one service. Every call has a deadline; there is no way to make one without.
 */
export class GrpcChannel {
  private client: Client;
  private readonly constructorOfClient: ServiceClientConstructor;
  private readonly circuits = new Map<string, Circuit>();
  private deadlinesInARow = 0;

  /**
   * @param service e.g. `Stock`
   * @param address see {@link grpcTarget}
   */
  constructor(
    readonly service: string,
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
   * @throws NotSent when it was too late, or the method's last calls had no answer
   * @throws CallFailed when no answer came: what was asked for may or may not have happened
   */
  call<Request, Reply>(method: string, request: Request, deadlineMs: number): Promise<Reply> {
    return this.circuitOf(method).run(() => this.send<Request, Reply>(method, request, deadlineMs));
  }

  private send<Request, Reply>(method: string, request: Request, deadlineMs: number): Promise<Reply> {
    const name = `${this.service}.${method}`;
    const definition = this.constructorOfClient.service[method];
    if (!definition) throw new Error(`no method ${method} in ${GRPC_PACKAGE}.${this.service}`);
    const remainingMs = deadlineMs - performance.now();
    if (remainingMs <= 0)
      return Promise.reject(new NotSent(`${name}: the deadline passed before it was sent`));
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
            const isSilent = error.code === status.DEADLINE_EXCEEDED && remainingMs >= FAIR_CHANCE_MS;
            this.countDeadline(isSilent);
            const isPeerAway = isSilent || error.code === status.UNAVAILABLE;
            reject(new CallFailed(name, status[error.code] ?? String(error.code), error, isPeerAway));
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

  private circuitOf(method: string): Circuit {
    const known = this.circuits.get(method);
    if (known) return known;
    const isFailure = (error: unknown) => error instanceof CallFailed && error.isPeerAway;
    const circuit = new Circuit(`${this.service}.${method}`, isFailure);
    this.circuits.set(method, circuit);
    return circuit;
  }

  private connect(): Client {
    return new this.constructorOfClient(
      grpcTarget(this.address),
      credentials.createInsecure(),
      CHANNEL_OPTIONS,
    );
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
