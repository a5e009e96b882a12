import { defineScript, type RedisScript } from '@flash-sale/redis';
import { ACCOUNT_FIELDS, type Account } from './keys.js';

/**
 * The scripts on stock with a decoder each. A decoder turns a reply into a closed union; whatever it does not know is a
 * fault, because then script and service do not fit each other.
 */

/**
 * Why a script decided nothing: Redis does not know the bucket, knows it in another epoch, its stock is being built anew
 * (`filling`: from nothing), or another server answers for it than the one that it was last found whole on.
 */
export type Refusal =
  | { readonly outcome: 'gone' }
  | { readonly outcome: 'other_epoch'; readonly epoch: number }
  | { readonly outcome: 'frozen'; readonly filling: boolean }
  | { readonly outcome: 'moved' };

/** A record as it lies in Redis, under the tail of the attempt that owns it. */
export interface FoundRecord {
  readonly tail: string;
  readonly text: string;
}

export type GrantReply =
  | ({ readonly outcome: 'granted' | 'known' } & FoundRecord)
  | { readonly outcome: 'mismatch' | 'not_open' | 'paused' | 'closed' | 'entry_exists' | 'limit' }
  | { readonly outcome: 'empty'; readonly free: number };

export type QueueReply =
  | 'queued'
  | 'decided'
  | 'expiring'
  | 'token_expired'
  | 'other_delivery'
  | 'missing'
  | 'contradicts';

export type EffectReply =
  | { readonly outcome: 'applied' | 'already' | 'missing' }
  | { readonly outcome: 'void_before'; readonly reason: string };

export type DueItem =
  | ({ readonly kind: 'attempt' } & FoundRecord)
  | { readonly kind: 'transfer'; readonly tid: string; readonly units: number; readonly destination: number };

type Ok<Value> = { readonly outcome: 'ok' } & Value;

const GRANT_WORDS = {
  MISMATCH: 'mismatch',
  NOT_OPEN: 'not_open',
  PAUSED: 'paused',
  CLOSED: 'closed',
  ENTRY_EXISTS: 'entry_exists',
  LIMIT: 'limit',
} as const;

const QUEUE_WORDS = {
  QUEUED: 'queued',
  DECIDED: 'decided',
  EXPIRING: 'expiring',
  TOKEN_EXPIRED: 'token_expired',
  OTHER_DELIVERY: 'other_delivery',
  MISSING: 'missing',
  CONTRADICTS: 'contradicts',
} as const;

/** `{'OK', …}` decoded by `rest`, or a refusal. */
function okOr<Value extends object>(
  rest: (fields: readonly unknown[]) => Value,
): (reply: unknown) => Refusal | Ok<Value> {
  return (reply) => {
    const [word, ...fields] = list(reply);
    if (word === 'OK') return { outcome: 'ok', ...rest(fields) };
    const refusal = refusalOf(word, fields);
    if (!refusal) throw new Error('neither OK nor a refusal');
    return refusal;
  };
}

/** `{WORD}` as one of the words given, or a refusal. */
function wordOr<Outcome extends string>(
  words: Readonly<Record<string, Outcome>>,
): (reply: unknown) => Refusal | { readonly outcome: Outcome } {
  return (reply) => {
    const [word, ...fields] = list(reply);
    return refusalOf(word, fields) ?? { outcome: oneOf(words, word) };
  };
}

function refusalOf(word: unknown, fields: readonly unknown[]): Refusal | undefined {
  if (word === 'GONE') return { outcome: 'gone' };
  if (word === 'EPOCH') return { outcome: 'other_epoch', epoch: whole(fields[0]) };
  if (word === 'MOVED') return { outcome: 'moved' };
  if (word === 'FROZEN') return { outcome: 'frozen', filling: whole(fields[0]) === 2 };
  return undefined;
}

/** `{WORD, units}` where that is one of the words, or a refusal. */
function unitsOr<Outcome extends string>(
  words: Readonly<Record<string, Outcome>>,
): (reply: unknown) => Refusal | { readonly outcome: Outcome; readonly units: number } {
  return (reply) => {
    const [word, ...fields] = list(reply);
    return refusalOf(word, fields) ?? { outcome: oneOf(words, word), units: whole(fields[0] ?? 0) };
  };
}

function decodeGrant(item: unknown): GrantReply {
  const [word, ...fields] = list(item);
  if (word === 'GRANTED' || word === 'KNOWN') {
    return {
      outcome: word === 'GRANTED' ? 'granted' : 'known',
      tail: text(fields[0]),
      text: text(fields[1]),
    };
  }
  if (word === 'EMPTY') return { outcome: 'empty', free: whole(fields[0]) };
  return { outcome: oneOf(GRANT_WORDS, word) };
}

function decodeEffect(item: unknown): EffectReply {
  const [word, reason] = list(item);
  if (word === 'VOID_BEFORE') return { outcome: 'void_before', reason: text(reason) };
  return { outcome: oneOf({ APPLIED: 'applied', ALREADY: 'already', MISSING: 'missing' } as const, word) };
}

function decodeDue(item: unknown): DueItem {
  const [word, id, entry] = list(item);
  if (word === 'ATTEMPT') return { kind: 'attempt', tail: text(id), text: text(entry) };
  if (word !== 'TRANSFER') throw new Error('neither an attempt nor a transfer');
  const [, units, destination] = text(entry).split('|');
  return { kind: 'transfer', tid: text(id), units: whole(units), destination: whole(destination) };
}

function decodeRestored(item: unknown) {
  const [word, units] = list(item);
  return {
    outcome: oneOf({ RESTORED: 'restored', ALREADY: 'already', CHANGED: 'changed' } as const, word),
    units: whole(units ?? 0),
  };
}

function script<Reply>(name: string, keys: number, decode: (reply: unknown) => Reply): RedisScript<Reply> {
  return defineScript(new URL(`../src/scripts/${name}.lua`, import.meta.url), { keys, decode });
}

const loaded = (reply: unknown) =>
  oneOf({ LOADED: 'loaded', ALREADY: 'already', LATER: 'later' } as const, reply);

export const scripts = {
  load: script('load', 6, loaded),
  loadState: script('load-state', 1, loaded),
  gate: script('gate', 1, wordOr({ SET: 'set', ALREADY: 'already' } as const)),
  grant: script(
    'grant',
    5,
    okOr((items) => ({ items: items.map(decodeGrant) })),
  ),
  queue: script(
    'queue',
    3,
    okOr((items) => ({ items: items.map((word): QueueReply => oneOf(QUEUE_WORDS, word)) })),
  ),
  recordOffsets: script('record-offsets', 2, (reply) => whole(reply)),
  release: script(
    'release',
    3,
    okOr((items) => ({
      items: items.map((word) =>
        oneOf(
          { RELEASED: 'released', ALREADY_ORDERED: 'already_ordered', UNKNOWN: 'unknown' } as const,
          word,
        ),
      ),
    })),
  ),
  find: script(
    'find',
    2,
    okOr((items) => ({
      items: items.map((item): FoundRecord | null => {
        const [word, tail, record] = list(item);
        if (word === 'UNKNOWN') return null;
        if (word !== 'KNOWN') throw new Error('neither known nor unknown');
        return { tail: text(tail), text: text(record) };
      }),
    })),
  ),
  applyEffects: script(
    'apply-effects',
    4,
    okOr(([freed, ...items]) => ({ freed: whole(freed), items: items.map(decodeEffect) })),
  ),
  snapshot: script(
    'snapshot',
    2,
    okOr(([unresolved, boot, ...values]) => ({
      unresolved: whole(unresolved),
      /** Incarnation of the server that this bucket was filled on, or looked through on, the last time. */
      boot: text(boot),
      account: Object.fromEntries(
        ACCOUNT_FIELDS.map((name, index) => [name, whole(values[index])]),
      ) as unknown as Account,
    })),
  ),
  credit: script('credit', 1, wordOr({ LIFTED: 'lifted', NOTED: 'noted' } as const)),
  soldOut: script('sold-out', 1, wordOr({ SET: 'set', ALREADY: 'already', CREDITED: 'credited' } as const)),
  nextVersion: script(
    'next-version',
    1,
    okOr(([version, soldOut]) => ({ version: whole(version), soldOut: whole(soldOut) === 1 })),
  ),
  publish: script('publish', 1, (reply) => oneOf({ PUBLISHED: 'published', OLDER: 'older' } as const, reply)),
  tellBlocklist: script('tell-blocklist', 1, (reply) =>
    oneOf({ TOLD: 'told', OTHER: 'other' } as const, reply),
  ),
  transferOut: script('transfer-out', 3, unitsOr({ OUT: 'out', EMPTY: 'empty' } as const)),
  transferIn: script(
    'transfer-in',
    6,
    okOr(([free, ...items]) => ({ free: whole(free), items: items.map(decodeGrant) })),
  ),
  transferDone: script(
    'transfer-done',
    3,
    wordOr({ DONE: 'done', ALREADY: 'already', UNKNOWN: 'unknown' } as const),
  ),
  freeze: script('freeze', 6, wordOr({ KEPT: 'kept', LOST: 'lost' } as const)),
  transferEnd: script('transfer-end', 3, wordOr({ ENDED: 'ended', ALREADY: 'already' } as const)),
  restore: script(
    'restore',
    6,
    okOr(([freed, ...items]) => ({ freed: whole(freed), items: items.map(decodeRestored) })),
  ),
  fill: script('fill', 3, wordOr({ FILLED: 'filled' } as const)),
  seal: script('seal', 4, unitsOr({ SEALED: 'sealed', OPEN: 'open', FORGOT: 'forgot' } as const)),
  thaw: script('thaw', 1, wordOr({ THAWED: 'thawed', ALREADY: 'already' } as const)),
  adjust: script('adjust', 2, unitsOr({ DONE: 'done', ALREADY: 'already' } as const)),
  overdue: script(
    'overdue',
    4,
    okOr((items) => ({ items: items.map(decodeDue) })),
  ),
  expireLost: script(
    'expire-lost',
    3,
    okOr((items) => ({
      begun: items.filter((word) => oneOf({ BEGUN: 1, CHANGED: 0 }, word) === 1).length,
    })),
  ),
};

function list(reply: unknown): readonly unknown[] {
  if (!Array.isArray(reply)) throw new Error('not a list');
  return reply;
}

function text(value: unknown): string {
  if (typeof value !== 'string') throw new Error('not a text');
  return value;
}

function whole(value: unknown): number {
  const number = typeof value === 'string' && /^-?\d{1,16}$/.test(value) ? Number(value) : value;
  if (typeof number !== 'number' || !Number.isSafeInteger(number)) throw new Error('not a whole number');
  return number;
}

function oneOf<Value>(words: Readonly<Record<string, Value>>, word: unknown): Value {
  const found = typeof word === 'string' && Object.hasOwn(words, word) ? words[word] : undefined;
  if (found === undefined) throw new Error(`an unknown word ${JSON.stringify(word)}`);
  return found;
}
