import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import { StockModel, type ModelGate } from './stock-model.js';

const gate: ModelGate = {
  opensAtMs: 0,
  closesAtMs: 1e9,
  paused: false,
  closed: false,
  limit: 2,
  holdMs: 100,
};
const wish = (id: string, shopperId: string, quantity = 1) => ({ id, shopperId, quantity });

describe('StockModel', () => {
  it('decides a batch one wish after another', () => {
    const model = new StockModel(1, gate);
    const grants = model.grant([wish('a1', 'a'), wish('b1', 'b'), wish('a1', 'a')], 0);
    expect(grants.map(({ outcome }) => outcome)).toEqual(['granted', 'empty', 'known']);
  });

  it('gives one live entry to a shopper: another key of the same wish is its alias, another quantity is refused', () => {
    const model = new StockModel(9, gate);
    model.grant([wish('a1', 'a')], 0);
    expect(model.grant([wish('a2', 'a'), wish('a3', 'a', 2)], 0)).toEqual([
      { outcome: 'known', id: 'a1', state: 'H' },
      { outcome: 'entry_exists' },
    ]);
    expect(model.held).toBe(1);
  });

  it('answers a known attempt after the sale was closed', () => {
    const model = new StockModel(9, gate);
    model.grant([wish('a1', 'a')], 0);
    model.setGate({ ...gate, closed: true });
    const grants = model.grant([wish('a1', 'a'), wish('b1', 'b')], 0);
    expect(grants.map(({ outcome }) => outcome)).toEqual(['known', 'closed']);
  });

  it('keeps an acknowledged order out of expiry and returns the units of a void one', () => {
    const model = new StockModel(2, gate);
    model.grant([wish('a1', 'a'), wish('b1', 'b')], 0);
    model.queue({ ...wish('a1', 'a'), deliveryHash: 'd' }, 50, 100);
    model.recordOffset('a1', '7', 60, 1000);
    expect(model.beginExpiry(500)).toEqual(['b1']);
    expect([model.held, model.queued, model.free]).toEqual([1, 1, 0]);
    expect(model.apply('b1', 'void', 'hold_expired')).toEqual({ outcome: 'applied' });
    expect(model.apply('a1', 'confirm', '')).toEqual({ outcome: 'applied' });
    expect([model.free, model.sold, model.usedBy('b'), model.liveOf('a')]).toEqual([1, 1, 0, '']);
  });

  it('returns units once, from a sold order too, and never for what it does not know', () => {
    const model = new StockModel(1, gate);
    model.grant([wish('a1', 'a')], 0);
    model.apply('a1', 'confirm', '');
    expect(model.apply('a1', 'void', 'cancelled')).toEqual({ outcome: 'applied' });
    expect(model.apply('a1', 'void', 'cancelled')).toEqual({ outcome: 'already' });
    expect(model.apply('a1', 'confirm', '')).toEqual({ outcome: 'void_before', reason: 'cancelled' });
    expect(model.apply('zz', 'void', 'cancelled')).toEqual({ outcome: 'missing' });
    expect(model.free).toBe(1);
  });

  it('never has fewer than no free units, nor gives anybody more than the limit, whatever is wished for', () => {
    const wishes = fc.array(
      fc.record({
        id: fc.nat(30).map(String),
        shopperId: fc.constantFrom('a', 'b', 'c'),
        quantity: fc.integer({ min: 0, max: 3 }),
      }),
    );
    fc.assert(
      fc.property(wishes, fc.nat(6), (list, units) => {
        const model = new StockModel(units, gate);
        model.grant(list, 0);
        expect(model.free).toBeGreaterThanOrEqual(0);
        for (const shopper of ['a', 'b', 'c']) expect(model.usedBy(shopper)).toBeLessThanOrEqual(gate.limit);
      }),
    );
  });

  it('moves what is needed and half of the rest, once per transfer', () => {
    const [from, to] = [new StockModel(10, gate), new StockModel(0, gate)];
    const units = from.transferOut('t', 2);
    expect(units).toBe(6);
    expect(from.transferOut('t', 2)).toBe(6);
    const outcomes = [1, 2].map(() => to.transferIn('t', units, [wish('b1', 'b')], 0)[0]?.outcome);
    expect(outcomes).toEqual(['granted', 'known']);
    expect([to.free, from.free, from.openTransfers]).toEqual([5, 4, 1]);
    expect([from.transferDone('t'), from.transferDone('t'), from.transferDone('x')]).toEqual([
      'done',
      'already',
      'unknown',
    ]);
    expect(from.openTransfers).toBe(0);
  });

  it('begins to expire what Kafka has lost, unless it was acknowledged anew', () => {
    const model = new StockModel(1, gate);
    model.grant([wish('a1', 'a')], 0);
    model.queue({ ...wish('a1', 'a'), deliveryHash: 'd' }, 50, 100);
    model.recordOffset('a1', '7', 60, 1000);
    expect([model.beginLost('a1', '6'), model.beginLost('a1', '7'), model.beginLost('a1', '7')]).toEqual([
      false,
      true,
      false,
    ]);
    expect(model.queue({ ...wish('a1', 'a'), deliveryHash: 'd' }, 70, 100)).toBe('expiring');
  });

  it('corrects the number of its units once per correction, and takes only what is free', () => {
    const model = new StockModel(2, gate);
    model.grant([wish('a1', 'a')], 0);
    expect([model.correct('x', -2), model.correct('y', -1), model.correct('y', -1)]).toEqual([
      'not_free',
      'corrected',
      'already',
    ]);
    expect([model.units, model.free, model.held]).toEqual([1, 0, 1]);
  });

  it('has clones that go their own way', () => {
    const model = new StockModel(2, gate);
    model.grant([wish('a1', 'a')], 0);
    const copy = model.clone();
    copy.apply('a1', 'confirm', '');
    copy.transferOut('t', 1);
    expect([copy.sold, copy.free, copy.departures()]).toEqual([1, 0, [{ tid: 't', units: 1 }]]);
    expect([model.sold, model.free, model.departures()]).toEqual([0, 1, []]);
  });
});
