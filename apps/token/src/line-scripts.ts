import { defineScript } from '@flash-sale/redis';

/** Where an entry stands, as the scripts of the line say. `tail` is that of the first entry where an alias was asked for. */
export type Standing =
  | {
      readonly kind: 'waiting';
      readonly tail: string;
      /** 1 is next. */
      readonly position: number;
      readonly created: boolean;
      /** Its number of arrival, and the line's {@link LineProgress} of that moment. */
      readonly number: number;
      readonly bornMs: number;
      readonly admitted: number;
    }
  | {
      readonly kind: 'admitted';
      readonly tail: string;
      readonly quantity: number;
      readonly created: boolean;
    }
  | { readonly kind: 'ended'; readonly tail: string; readonly state: EndState; readonly reason: string }
  | { readonly kind: 'live'; readonly tail: string; readonly quantity: number }
  | { readonly kind: 'exists' | 'reused' | 'sold_out' | 'unknown' };

/** How far a line has come. */
export interface LineProgress {
  /** Since when there is this line, by Redis' clock: another one where Redis has lost the one before. */
  readonly bornMs: number;
  /** How many it ever let through. */
  readonly admitted: number;
  /** The highest number of arrival that it let through. */
  readonly admittedTo: number;
  readonly soldOut: boolean;
}

const END_STATES = ['ordered', 'expired', 'released', 'sold_out'] as const;
export type EndState = (typeof END_STATES)[number];

const script = <Reply>(name: string, decode: (reply: unknown) => Reply) =>
  defineScript(new URL(`../src/scripts/${name}.lua`, import.meta.url), { keys: 4, decode });

export const enterLine = script('enter-line', decodeStandings);
export const findInLine = script('find-in-line', decodeStandings);
export const leaveLine = script('leave-line', decodeStandings);
export const lineProgress = script('line-progress', (reply): LineProgress => {
  if (!Array.isArray(reply) || !reply.every((part) => typeof part === 'string'))
    throw new Error('a list of texts was expected');
  const [born = '', admitted = '', admittedTo = '', soldOut = ''] = reply;
  return {
    bornMs: whole(born),
    admitted: whole(admitted),
    admittedTo: whole(admittedTo),
    soldOut: flag(soldOut),
  };
});
export const settleInLine = script('settle-in-line', (reply) => {
  if (typeof reply !== 'number') throw new Error('a number was expected');
  return reply;
});

function decodeStandings(reply: unknown): Standing[] {
  if (!Array.isArray(reply)) throw new Error('a list was expected');
  return reply.map(decodeStanding);
}

function decodeStanding(item: unknown): Standing {
  if (!Array.isArray(item) || !item.every((part) => typeof part === 'string')) {
    throw new Error('a list of texts was expected');
  }
  const [kind = '', tail = '', third = '', fourth = '', number = '', born = '', admitted = ''] = item;
  switch (kind) {
    case 'waiting':
      return {
        kind,
        tail: required(tail),
        position: count(third),
        created: flag(fourth),
        number: count(number),
        bornMs: whole(born),
        admitted: whole(admitted),
      };
    case 'admitted':
      return { kind, tail: required(tail), quantity: count(third), created: flag(fourth) };
    case 'ended': {
      const state = END_STATES.find((known) => known === third);
      if (!state) throw new Error(`unknown end "${third}"`);
      return { kind, tail: required(tail), state, reason: fourth };
    }
    case 'live':
      return { kind, tail: required(tail), quantity: count(third) };
    case 'exists':
    case 'reused':
    case 'sold_out':
    case 'unknown':
      return { kind };
    default:
      throw new Error(`unknown standing "${kind}"`);
  }
}

function required(tail: string): string {
  if (tail === '') throw new Error('the tail is missing');
  return tail;
}

function count(text: string): number {
  const number = whole(text);
  if (number < 1) throw new Error(`"${text}" is no count`);
  return number;
}

function whole(text: string): number {
  const number = text === '' ? Number.NaN : Number(text);
  if (!Number.isSafeInteger(number) || number < 0) throw new Error(`"${text}" is no whole number`);
  return number;
}

function flag(text: string): boolean {
  if (text !== '0' && text !== '1') throw new Error(`"${text}" is no flag`);
  return text === '1';
}
