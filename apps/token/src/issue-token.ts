import { createHmac, createSecretKey, type KeyObject } from 'node:crypto';
import type { inventory, token } from '@flash-sale/contracts';
import {
  AttemptId,
  ShopperId,
  SkuId,
  saleIdOf,
  signPurchaseToken,
  type SigningKey,
  type SigningKeys,
} from '@flash-sale/domain';

type Outcome = 'HELD' | 'QUEUED' | 'EXPIRING' | 'CONFIRMED' | 'VOID';

/** The states of an entry as shoppers see them. */
export type EntryState = 'waiting' | 'granted' | 'ordered' | 'expired' | 'released' | 'sold_out';

const NO_ENTRY: token.Entry = {
  problem: '',
  entryId: '',
  state: '',
  created: false,
  purchaseToken: '',
  expiresAtMs: 0,
  position: 0,
  estimatedWaitSeconds: 0,
  pollAfterMs: 0,
  ticket: '',
  reason: '',
  place: undefined,
};

/** An answer that is a refusal. */
export function refusal(problem: string): token.Entry {
  return { ...NO_ENTRY, problem };
}

/** An answer about an entry; whatever is not given is empty. */
export function entry(entryId: string, state: EntryState, more: Partial<token.Entry> = {}): token.Entry {
  return { ...NO_ENTRY, entryId, state, ...more };
}

/**
 * What a shopper learns of an attempt that Stock knows. The same hold always yields the same purchase token, so a repeated
 * request is handed no second one. An attempt that is being checked (EXPIRING) answers with its token too: whoever uses it
 * is told to repeat until the check has ended, and learns the truth either way.
 *
 * @param created whether the very call that asked made the hold
 */
export function entryOfHold(
  outcome: Outcome,
  hold: inventory.Hold,
  created: boolean,
  keys: SigningKeys,
): token.Entry {
  switch (outcome) {
    case 'HELD':
    case 'EXPIRING':
      return entry(hold.attemptId, 'granted', {
        created,
        purchaseToken: purchaseTokenOf(hold, keys),
        expiresAtMs: hold.deadlineMs,
      });
    case 'QUEUED':
    case 'CONFIRMED':
      return entry(hold.attemptId, 'ordered');
    case 'VOID':
      return entry(hold.attemptId, endOf(hold.reason), { reason: hold.reason });
  }
}

/** A void attempt either never became an order, or is one whose own state tells the rest. */
function endOf(reason: string): EntryState {
  if (reason === 'hold_expired' || reason === 'lost') return 'expired';
  return reason === 'released' ? 'released' : 'ordered';
}

function purchaseTokenOf(hold: inventory.Hold, keys: SigningKeys): string {
  const attemptId = AttemptId.parse(hold.attemptId);
  return signPurchaseToken(
    {
      attemptId,
      saleId: saleIdOf(attemptId),
      skuId: SkuId.parse(hold.skuId),
      shopperId: ShopperId.parse(hold.shopperId),
      quantity: hold.quantity,
      epoch: hold.epoch,
      issuedAtMs: hold.grantedAtMs,
      expiresAtMs: hold.deadlineMs,
    },
    keys,
  );
}

/**
 * Proof of a place in the line: `t1.kid.payload.mac`. It says whose entry it is and nothing about the position, so it stays
 * true while the line moves and is the same each time.
 */
export function signTicket(entryId: string, shopperId: string, [key]: SigningKeys): string {
  const payload = Buffer.from(JSON.stringify({ e: entryId, u: shopperId })).toString('base64url');
  const body = `t1.${key.id}.${payload}`;
  return `${body}.${createHmac('sha256', ticketKeyOf(key)).update(body).digest('base64url')}`;
}

const ticketKeys = new WeakMap<SigningKey, KeyObject>();

function ticketKeyOf(key: SigningKey): KeyObject {
  const known = ticketKeys.get(key);
  if (known) return known;
  const made = createSecretKey(derivedSecret(key.secret, 'entry-ticket'));
  ticketKeys.set(key, made);
  return made;
}

/** A secret for one purpose, so that what is signed for one can never be presented for another. */
export function derivedSecret(secret: Buffer, purpose: string): Buffer {
  return createHmac('sha256', secret).update(`flash-sale/${purpose}`).digest();
}
