/** What must hold. A run that breaks one names it. */
export type Rule =
  /** After every step. */
  | 'never oversold'
  | 'the books add up'
  | 'nobody has more than the limit'
  | 'units return only behind a durable row'
  | 'no unit exists twice'
  | 'no offset passes a record without a trace'
  | 'an accepted order never expires'
  | 'a rebuild counts what was promised'
  | 'sold out is said of an empty sale only'
  /** Once every fault is healed and everybody had time. */
  | 'every accepted order is decided'
  | 'only a loss rejects an accepted order'
  | 'nothing stays unresolved'
  | 'Redis and MySQL agree'
  | 'no unit is stranded';

/**
 * The protocol's safety rules, each as the mistake of leaving it out: the rule that must break, and why. The model must
 * catch every one by that name; a rule that nothing catches would be a rule that nobody needs.
 */
export const FLAWS = {
  'no guard': {
    breaks: 'never oversold',
    because: 'Redis may forget what it granted; only the locked row knows',
  },
  'no limit behind Redis': {
    breaks: 'nobody has more than the limit',
    because: 'a shopper whom Redis has forgotten is granted again',
  },
  'units returned when a produce fails': {
    breaks: 'units return only behind a durable row',
    because: 'a failed produce means unknown: the record may be in the log',
  },
  'units returned before the order ends': {
    breaks: 'units return only behind a durable row',
    because: 'the transaction may fail, or the payment may win',
  },
  'tombstone skipped': {
    breaks: 'units return only behind a durable row',
    because: 'a record that comes later would become an order for a unit that is on sale again',
  },
  'tombstone without waiting for the writer': {
    breaks: 'an accepted order never expires',
    because: 'the accepted record lies in the log, not yet read',
  },
  'tombstone of an older epoch': {
    breaks: 'an accepted order never expires',
    because: 'Redis has forgotten that the attempt was expiring, and let it be ordered again',
  },
  'tombstone for a dead letter': {
    breaks: 'an accepted order never expires',
    because: 'an accepted record that could not be read is still to be decided',
  },
  'no grace after giving up': {
    breaks: 'an accepted order never expires',
    because: 'a produce that was allowed may still be acknowledged, where Redis was rolled back to the hold',
  },
  'a late acknowledgement counts': {
    breaks: 'an accepted order never expires',
    because: 'the record may have landed behind its own tombstone',
  },
  'an old token passes by its record': {
    breaks: 'an accepted order never expires',
    because: 'the record may be about to expire; only where there is none may MySQL be left to decide',
  },
  'a changed Redis is served at once': {
    breaks: 'an accepted order never expires',
    because: 'it may show as held what has a tombstone already',
  },
  'accepted before the acknowledgement': {
    breaks: 'an accepted order never expires',
    because: 'nothing durable holds the order yet',
  },
  'offset committed first': {
    breaks: 'no offset passes a record without a trace',
    because: 'a writer that dies before its COMMIT leaves a record that nobody reads again',
  },
  'same batch id on a repetition': {
    breaks: 'the books add up',
    because: 'after an unknown COMMIT the rows of the first try look like new ones and count twice',
  },
  'credit for a missing record': {
    breaks: 'no unit exists twice',
    because: 'units that were never taken from this Redis must not come back to it',
  },
  'epoch ignored': {
    breaks: 'no unit exists twice',
    because: 'a transfer begun before a rebuild brings units that the rebuild has counted already',
  },
  'transfer finished under a new id': {
    breaks: 'no unit exists twice',
    because: 'whoever began it may not be dead, only slow',
  },
  'rebuild before the drain': {
    breaks: 'a rebuild counts what was promised',
    because: 'accepted orders that the writer has not read yet are missing in the sum',
  },
  'rebuild overlooks units about to return': {
    breaks: 'no unit exists twice',
    because: 'what MySQL has ended and a surviving bucket has not is neither sold nor undecided',
  },
  'sold out without looking': {
    breaks: 'sold out is said of an empty sale only',
    because: 'another bucket has units, or a transfer carries them',
  },
  'no reconciler': {
    breaks: 'Redis and MySQL agree',
    because: 'an old token buys behind the back of a rebuilt Redis',
  },
} as const satisfies Record<string, { readonly breaks: Rule; readonly because: string }>;

export type Flaw = keyof typeof FLAWS;

/** A rule did not hold. */
export class Broken extends Error {
  constructor(
    readonly rule: Rule,
    readonly witness: string,
  ) {
    super(`${rule}: ${witness}`);
  }
}
