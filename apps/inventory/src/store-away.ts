import { DatabaseError } from '@flash-sale/database';
import { UnexpectedReply, isRedisError } from '@flash-sale/redis';

/** What Redis itself answers while it cannot serve; {@link isRedisError} texts may begin with a script's name. */
const CANNOT_SERVE =
  /^(\S+: )?-?(LOADING|READONLY|CLUSTERDOWN|TRYAGAIN|MASTERDOWN|NOREPLICAS|OOM|MISCONF|BUSY)/;
/** What ioredis and kafkajs say when no answer came. Neither has one class of errors for it. */
const NO_ANSWER =
  /timed out|time-?out|ECONN|EPIPE|ENOTFOUND|EHOSTUNREACH|connection|connect|closed|writeable|slots cache|max retries|at Kafka/i;

/**
 * Whether an error means that a store did not answer, so that the same may succeed later. Everything else is a defect: a
 * script's own error, a reply that its decoder does not know, SQL that is wrong, a broken assumption.
 */
export function isStoreAway(error: unknown): boolean {
  if (error instanceof DatabaseError) return error.retriable;
  if (error instanceof UnexpectedReply || !(error instanceof Error)) return false;
  const { message } = error;
  return isRedisError(error) ? CANNOT_SERVE.test(message) : NO_ANSWER.test(message);
}

/** A store that does not answer is no defect: the operator may ask again, and what was begun is then finished. */
export async function orUnavailable<Outcome>(
  work: () => Promise<Outcome>,
): Promise<Outcome | { readonly problem: 'unavailable'; readonly detail: string }> {
  try {
    return await work();
  } catch (error) {
    if (!isStoreAway(error)) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    return { problem: 'unavailable', detail: `not finished, ask again: ${reason}` };
  }
}
