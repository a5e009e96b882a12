import { ReplyError } from 'ioredis';

/** A script answered in a way its decoder does not know: script and code do not fit each other. */
export class UnexpectedReply extends Error {
  override readonly name = 'UnexpectedReply';
  constructor(
    /** The script's file name. */
    readonly script: string,
    readonly reply: unknown,
    options?: ErrorOptions,
  ) {
    super(`${script} answered ${excerpt(reply)}, which its decoder does not know`, options);
  }
}

/** Whether the server itself answered with an error. False: no answer came, and what was asked for may have happened. */
export function isRedisError(error: unknown): error is Error {
  return error instanceof ReplyError;
}

/**
 * Why a command or a script did not succeed, and so what may be done about it.
 * - `loading`, `read_only`, `cluster_down`: the server does not serve now; it, or another one, will. Nothing was written.
 * - `out_of_memory`, `disk`, `no_replicas`: it refuses writes until somebody makes room. Nothing was written.
 * - `busy`: a script holds it up.
 * - `no_answer`: nothing came in time, or the connection is gone: whether it was done is not known.
 * - `wrong_type`: the key holds something that we never put there.
 * - `defect`: ours; doing it again will not help.
 */
export type RedisFailure =
  | 'loading'
  | 'read_only'
  | 'cluster_down'
  | 'out_of_memory'
  | 'disk'
  | 'no_replicas'
  | 'busy'
  | 'no_answer'
  | 'wrong_type'
  | 'defect';

const FAILURE_BY_CODE: Readonly<Record<string, RedisFailure>> = {
  LOADING: 'loading',
  READONLY: 'read_only',
  MASTERDOWN: 'read_only',
  CLUSTERDOWN: 'cluster_down',
  TRYAGAIN: 'cluster_down',
  MOVED: 'cluster_down',
  ASK: 'cluster_down',
  OOM: 'out_of_memory',
  MISCONF: 'disk',
  NOREPLICAS: 'no_replicas',
  BUSY: 'busy',
  WRONGTYPE: 'wrong_type',
};

/** A script's error begins with the script's name; Redis 6 quotes the error inside of a text of its own. */
const CODE = /(?:^|: |: -|^-)([A-Z]{3,})\b/g;
/** What ioredis says when no answer came; it has no class of errors for it. */
const NO_ANSWER =
  /timed out|time-?out|ECONN|EPIPE|ENOTFOUND|EHOSTUNREACH|connect|closed|writeable|slots cache|max retries|Too many Cluster redirections|isn't ready/i;

/** Tells the errors of commands and scripts apart. */
export function redisFailureOf(error: unknown): RedisFailure {
  if (!(error instanceof Error) || error instanceof UnexpectedReply) return 'defect';
  const { message } = error;
  if (!isRedisError(error)) return NO_ANSWER.test(message) ? 'no_answer' : 'defect';
  for (const [, code = ''] of message.matchAll(CODE)) {
    const failure = FAILURE_BY_CODE[code];
    if (failure) return failure;
  }
  return 'defect';
}

function excerpt(reply: unknown): string {
  const text = JSON.stringify(reply) ?? String(reply);
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}
