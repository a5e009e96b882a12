import { beforeEach, describe, expect, it } from '@jest/globals';
import type { token } from '@flash-sale/contracts';
import { AttemptId, ShopperId } from '@flash-sale/domain';
import { saleOf } from './fixtures/lone-gateway.js';
import { WaitingPlaces } from './waiting-places.js';

const sale = saleOf({ line: { mode: 'fifo', admitPerSecond: 10, overbook: 0 } });
const attemptId = AttemptId.parse(`${sale.saleId}-${'a'.repeat(22)}`);
const shopperId = ShopperId.parse('alice');
const NEW: token.ProgressReply = { bornMs: 7, admitted: 20, admittedTo: 25, soldOut: false };
let progress: token.ProgressReply | null;
let asked: number;
let places: WaitingPlaces;

beforeEach(() => {
  progress = NEW;
  asked = 0;
  places = new WaitingPlaces({
    progress: () => {
      asked += 1;
      return progress ? Promise.resolve(progress) : Promise.reject(new Error('nobody is there'));
    },
  });
});

const waiting = (changes: Partial<token.Entry> = {}): token.Entry => ({
  problem: '',
  entryId: attemptId,
  state: 'waiting',
  created: true,
  purchaseToken: '',
  expiresAtMs: 0,
  position: 100,
  estimatedWaitSeconds: 10,
  pollAfterMs: 2_500,
  ticket: 'ticket',
  reason: '',
  // The 121st to arrive of whom one has left: 20 were let through before.
  place: { number: 121, bornMs: 7, admitted: 20 },
  ...changes,
});
const note = (changes: Partial<token.Entry> = {}) =>
  places.note(sale, attemptId, shopperId, waiting(changes));
const find = (as = shopperId, of = sale) => places.find(of, attemptId, as);
const hasAskedSince = (before: number) => asked > before;
/** Polls until progress is asked for again, and gives what is found once it is there. */
async function afterProgress(next: token.ProgressReply | null) {
  progress = next;
  const before = asked;
  find();
  while (!hasAskedSince(before)) {
    await new Promise((resolve) => setTimeout(resolve, 10));
    find();
  }
  await Promise.resolve();
  return find();
}

describe('WaitingPlaces', () => {
  it('knows nobody before the line was asked, and then asks for all with one call', async () => {
    note();
    expect(find()).toBeUndefined();
    expect(await afterProgress(NEW)).toEqual({ ...waiting(), created: false });
    for (let i = 0; i < 1_000; i += 1) find();
    expect(asked).toBeLessThanOrEqual(3);
  });

  it('counts the position down as the line moves, and lets those look whose turn is near', async () => {
    note();
    expect(await afterProgress({ ...NEW, admitted: 60, admittedTo: 65 })).toMatchObject({
      position: 60,
      estimatedWaitSeconds: 6,
      pollAfterMs: 1_500,
    });
    expect(await afterProgress({ ...NEW, admitted: 110, admittedTo: 115 })).toBeUndefined();
  });

  it('never shows as waiting whom the line has passed, whatever it thought of the position', async () => {
    note();
    // Almost everybody before it has left.
    expect(await afterProgress({ ...NEW, admitted: 22, admittedTo: 121 })).toBeUndefined();
  });

  it('believes nothing of a line that Redis has lost, nor of an earlier epoch, nor while everything is gone', async () => {
    note();
    expect(await afterProgress({ ...NEW, bornMs: 8 })).toBeUndefined();
    expect(await afterProgress({ ...NEW, soldOut: true })).toBeUndefined();
    expect(await afterProgress(NEW)).toBeDefined();
    expect(find(shopperId, { ...sale, epoch: 2 })).toBeUndefined();
  });

  it('shows an entry to its owner only, and forgets what was given up or is no place any more', async () => {
    note();
    expect(await afterProgress(NEW)).toBeDefined();
    expect(find(ShopperId.parse('mallory'))).toBeUndefined();
    places.forget(attemptId);
    expect(find()).toBeUndefined();
    for (const other of [
      { state: 'granted' },
      { place: undefined },
      { entryId: `${sale.saleId}-${'b'.repeat(22)}` },
    ]) {
      note();
      expect(find()).toBeDefined();
      note(other);
      expect(find()).toBeUndefined();
    }
  });

  it('lets everybody look once progress is old', async () => {
    note();
    expect(await afterProgress(NEW)).toBeDefined();
    progress = null;
    await new Promise((resolve) => setTimeout(resolve, 800));
    expect(find()).toBeUndefined();
  });
});
