import type { Bodies, LoggedAttempt, Manner, Slice } from './evidence.js';
import { byLog, NEEDS_LOG, type Findings, type Invariant } from './findings.js';
import { ENTRY_ENDS, ORDER_ENDS, PROBLEM_CODES } from './grammar.js';

/** Where Redis was lost, entries may be forgotten that never had a row; orders never are. */
function mayForgetEntries({ sale }: Slice): boolean {
  return sale.faults;
}

/** What has ended, or was refused for good, is answered the same for ever; and one key always means one entry. */
function answersStand(slice: Slice, found: Findings): void {
  for (const [attemptId, { answeredIds, seen }] of slice.logged ?? []) {
    found.look(seen.entry.answers + seen.order.answers);
    const { entry, order } = seen;
    if (answeredIds.size > 1 && !mayForgetEntries(slice)) {
      found.breach(
        { attemptId, answered: [...answeredIds].join(' ') },
        'one key was answered with different entries',
      );
    }
    if (entry.broken && ENTRY_ENDS.has(entry.broken.from) && !mayForgetEntries(slice)) {
      found.breach(
        { attemptId, ...entry.broken },
        `its entry was ${entry.broken.from} for good, and was ${entry.broken.to} later`,
      );
    }
    if (order.broken && isFinal(order.broken.from)) {
      found.breach(
        { attemptId, ...order.broken },
        `its order was answered ${order.broken.from} for good, and ${order.broken.to} later`,
      );
    }
  }
}

const isFinal = (state: string) => ORDER_ENDS.has(state) || state === 'token_expired';

/** Whoever has seen something of an attempt never sees less of it later. */
function readsAreMonotone(slice: Slice, found: Findings): void {
  for (const [attemptId, { seen }] of slice.logged ?? []) {
    found.look(seen.entry.answers + seen.order.answers);
    const { entry, order } = seen;
    if (entry.broken && !ENTRY_ENDS.has(entry.broken.from) && !mayForgetEntries(slice)) {
      found.breach({ attemptId, ...entry.broken }, whyBackwards('entry', entry.broken));
    }
    if (order.broken && !isFinal(order.broken.from)) {
      found.breach({ attemptId, ...order.broken }, whyBackwards('order', order.broken));
    }
  }
}

function whyBackwards(what: string, { from, to }: { from: string; to: string }): string {
  return to === '404'
    ? `its ${what} was known as ${from}, and later there was no such ${what}`
    : `its ${what} was ${from}, and later ${to}, which cannot follow`;
}

/** One key, one body: the first is acted on, and every other is refused for what it is. */
function oneBodyPerKey({ logged }: Slice, found: Findings): void {
  for (const [attemptId, attempt] of logged ?? []) {
    if (attempt.asked) checkBodies(attemptId, 'entry', attempt.bodies.entry, found);
    checkBodies(attemptId, 'order', attempt.bodies.order, found);
  }
}

function checkBodies(attemptId: string, what: string, bodies: Bodies, found: Findings): void {
  const { sent, actedOn, refused } = bodies;
  if (sent.size === 0) return;
  found.look();
  const witness = { attemptId, what, sent: sent.size, actedOn: actedOn.size, refused };
  if (actedOn.size > 1) {
    found.breach(witness, `${actedOn.size} different bodies of one ${what} were acted on under one key`);
  }
  if (refused > 0 && sent.size === 1) {
    found.breach(witness, `its ${what} was refused for another body, but only one was ever sent`);
  }
}

/** Nobody is told anything of an attempt but the shopper whose it is. */
function answersAreOnesOwn(slice: Slice, found: Findings): void {
  for (const [attemptId, attempt] of slice.logged ?? []) {
    if (attempt.readers.size === 0) continue;
    found.look();
    const owner = ownerOf(attemptId, attempt, slice);
    for (const reader of attempt.readers) {
      if (owner === null || reader === owner) continue;
      found.breach({ attemptId, owner, told: reader }, `was told to ${reader}, it is ${owner}'s`);
    }
  }
}

function ownerOf(attemptId: string, attempt: LoggedAttempt, { ordersById, holds }: Slice): string | null {
  return (
    ordersById.get(attemptId)?.shopperId ??
    holds.get(attemptId)?.shopperId ??
    attempt.tokens.find(({ claims }) => claims?.attemptId === attemptId)?.claims?.shopperId ??
    (attempt.asked ? attempt.shopperId : null)
  );
}

/** The contract in its manners: no defect shows, whoever has to come back is told when, and nobody waits in vain. */
function whyBadManner({ http, code, hasRetryAfter, contentType, late }: Manner): string | null {
  if (http === 500 || code === 'internal') return 'a defect was answered with 500';
  if (late === true) return 'the answer came more than a second after the client’s own deadline';
  if (http < 400) return null;
  if (!PROBLEM_CODES.has(code)) return `the code "${code}" of a ${http} is not in the contract`;
  if ((http === 429 || http === 503) && hasRetryAfter === false) return `a ${http} had no Retry-After`;
  if (contentType !== null && !contentType.startsWith('application/problem+json')) {
    return `a ${http} came as ${contentType || 'nothing'}, not as application/problem+json`;
  }
  return null;
}

/** I8, I12, I13, I26, I27: what the crowd was answered. */
export const ANSWER_INVARIANTS: readonly Invariant[] = [
  { id: 'I8', says: 'what was answered for good is never answered otherwise', begin: byLog(answersStand) },
  { id: 'I12', says: 'of two bodies under one key one was acted on', begin: byLog(oneBodyPerKey) },
  { id: 'I13', says: 'nobody sees less of an attempt than before', begin: byLog(readsAreMonotone) },
  {
    id: 'I26',
    says: 'nobody is told of another’s attempt',
    begin: ({ log }, found) => {
      if (!log) found.cannot(NEEDS_LOG);
      return {
        slice: (slice) => answersAreOnesOwn(slice, found),
        finish: () => {
          for (const { foreign, op, count, first } of log?.manners ?? []) {
            if (foreign) found.breach({ op, count, ...first }, `a ${op} was answered with another's id`);
          }
        },
      };
    },
  },
  {
    id: 'I27',
    says: 'no defect shows, and every refusal is as the contract says',
    begin: ({ log }, found) => {
      if (!log) {
        found.cannot(NEEDS_LOG);
        return {};
      }
      if (!log.manners.some(({ contentType }) => contentType !== null))
        found.cannot('headers: the log has no contentType');
      if (!log.manners.some(({ late }) => late !== null))
        found.cannot('waiting in vain: the log has no deadlineMs');
      return {
        finish: () => {
          for (const manner of log.manners) {
            const { op, http, code, count, first } = manner;
            // No answer at all is judged by how long it took; the rest may be a cut connection.
            found.look(count);
            const fault = whyBadManner(manner);
            if (fault !== null) found.breach({ op, http, code, count, ...first }, fault);
          }
        },
      };
    },
  },
];
