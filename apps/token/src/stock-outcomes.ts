import type { inventory } from '@flash-sale/contracts';
import type { EndState } from './line-scripts.js';

/** How an entry ends that had waited and then could not be served. */
export function endAfterWaiting(outcome: inventory.GrantResult['outcome']): EndState {
  if (outcome === 'SOLD_OUT' || outcome === 'NOT_ENOUGH_LEFT') return 'sold_out';
  return outcome === 'CLOSED' ? 'expired' : 'released';
}

/** The code that refuses an entry for what Stock answered to a grant. */
export function problemOfGrant(outcome: inventory.GrantResult['outcome']): string {
  switch (outcome) {
    case 'SOLD_OUT':
      return 'sold_out';
    case 'NOT_ENOUGH_LEFT':
      return 'not_enough_left';
    case 'LIMIT_REACHED':
      return 'limit_reached';
    case 'ENTRY_EXISTS':
      return 'entry_exists';
    case 'KEY_REUSED':
      return 'idempotency_key_reused';
    case 'NOT_OPEN':
      return 'sale_not_open';
    case 'PAUSED':
      return 'sale_paused';
    case 'CLOSED':
      return 'sale_closed';
    case 'UNKNOWN_SALE':
      return 'not_found';
    case 'UNAVAILABLE':
      return 'unavailable';
    case 'UNSPECIFIED':
    case 'HELD':
    case 'QUEUED':
    case 'EXPIRING':
    case 'CONFIRMED':
    case 'VOID':
      throw new Error(`Stock's outcome ${outcome} is no refusal`);
  }
}

/** The code for what Stock answered to a release; empty when the units are given up. */
export function problemOfRelease(outcome: inventory.ReleaseResult['outcome']): string {
  switch (outcome) {
    case 'RELEASED':
      return '';
    case 'ALREADY_ORDERED':
      return 'already_ordered';
    case 'UNKNOWN':
      return 'not_found';
    case 'UNAVAILABLE':
      return 'unavailable';
    case 'UNSPECIFIED':
      throw new Error('Stock answered a release without an outcome');
  }
}
