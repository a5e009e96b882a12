import { describe, expect, it } from '@jest/globals';
import { Coalescer, NotSent } from './coalescer.js';
import { ConcurrencyLimit } from './concurrency-limit.js';

const soon = () => performance.now() + 5_000;

/** A sender that keeps every batch and answers when told to. */
function heldSender() {
  const batches: {
    items: readonly number[];
    answer: (results: readonly string[]) => void;
    fail: (error: Error) => void;
  }[] = [];
  const send = (items: readonly number[]) =>
    new Promise<readonly string[]>((resolve, reject) =>
      batches.push({ items, answer: resolve, fail: reject }),
    );
  return { batches, send };
}
const turn = () => new Promise((resolve) => setImmediate(resolve));
const settled = (promises: Promise<string>[]) => Promise.allSettled(promises);

describe('Coalescer', () => {
  it('sends the calls of one turn of the event loop together and gives each its own result', async () => {
    const { batches, send } = heldSender();
    const coalescer = new Coalescer(send, { name: 'test' });
    const calls = [coalescer.call(1, soon()), coalescer.call(2, soon()), coalescer.call(3, soon())];
    await turn();
    expect(batches.map((batch) => batch.items)).toEqual([[1, 2, 3]]);
    batches[0]?.answer(['one', 'two', 'three']);
    expect(await Promise.all(calls)).toEqual(['one', 'two', 'three']);
  });

  it('lets a lone call leave in its own turn, alone', async () => {
    const { batches, send } = heldSender();
    const coalescer = new Coalescer(send, { name: 'test' });
    const call = coalescer.call(1, soon());
    await turn();
    expect(batches).toHaveLength(1);
    batches[0]?.answer(['one']);
    expect(await call).toBe('one');
  });

  it('has at most so many batches in flight, and gathers what arrives meanwhile into the next', async () => {
    const { batches, send } = heldSender();
    const coalescer = new Coalescer(send, { name: 'test', maxInFlight: 1, maxBatch: 2 });
    const calls = [1, 2, 3, 4, 5].map((n) => coalescer.call(n, soon()));
    await turn();
    expect(batches.map((batch) => batch.items)).toEqual([[1, 2]]);
    batches[0]?.answer(['1', '2']);
    await turn();
    await turn();
    batches[1]?.answer(['3', '4']);
    await turn();
    await turn();
    batches[2]?.answer(['5']);
    expect(await Promise.all(calls)).toEqual(['1', '2', '3', '4', '5']);
  });

  it('fails only the items of a batch that failed', async () => {
    const { batches, send } = heldSender();
    const coalescer = new Coalescer(send, { name: 'test', maxBatch: 1, maxInFlight: 2 });
    const calls = [coalescer.call(1, soon()), coalescer.call(2, soon())];
    await turn();
    batches[0]?.fail(new Error('broken'));
    batches[1]?.answer(['two']);
    expect((await settled(calls)).map((result) => result.status)).toEqual(['rejected', 'fulfilled']);
  });

  it('drops an item whose deadline passed before it could be sent, and sends the others', async () => {
    const { batches, send } = heldSender();
    const coalescer = new Coalescer(send, { name: 'test' });
    const late = coalescer.call(1, performance.now() - 1);
    const inTime = coalescer.call(2, soon());
    await expect(late).rejects.toBeInstanceOf(NotSent);
    expect(batches.map((batch) => batch.items)).toEqual([[2]]);
    batches[0]?.answer(['two']);
    expect(await inTime).toBe('two');
  });

  it('refuses at once what would make the waiting line longer than its bound', async () => {
    const { batches, send } = heldSender();
    const coalescer = new Coalescer(send, { name: 'test', maxInFlight: 1, maxBatch: 1, maxWaiting: 2 });
    const first = coalescer.call(1, soon());
    await turn();
    const waiting = [coalescer.call(2, soon()), coalescer.call(3, soon())];
    await expect(coalescer.call(4, soon())).rejects.toThrow(/2 calls are waiting/);
    for (const answer of ['1', '2', '3']) {
      batches.at(-1)?.answer([answer]);
      await turn();
      await turn();
    }
    expect(await Promise.all([first, ...waiting])).toEqual(['1', '2', '3']);
  });

  it('refuses at once what is beyond its limit, and has room again for each that ended, however it did', async () => {
    const { batches, send } = heldSender();
    const limit = new ConcurrencyLimit({ goodMs: 1_000, badMs: 2_000, initial: 2, min: 2, max: 2 });
    const coalescer = new Coalescer(send, { name: 'test', limit });
    const calls = [coalescer.call(1, soon()), coalescer.call(2, soon())];
    await expect(coalescer.call(3, soon())).rejects.toThrow(/2 calls are under way already/);
    await turn();
    batches[0]?.answer(['one', 'two']);
    await Promise.all(calls);
    expect(limit.underWay).toBe(0);
    await expect(coalescer.call(4, performance.now() - 1)).rejects.toBeInstanceOf(NotSent);
    const broken = coalescer.call(5, soon());
    await turn();
    batches[1]?.fail(new Error('broken'));
    await expect(broken).rejects.toThrow('broken');
    expect(limit.underWay).toBe(0);
  });

  it('keeps room for what matters more than work in the background', async () => {
    const { batches, send } = heldSender();
    const limit = new ConcurrencyLimit({ goodMs: 1_000, badMs: 2_000, initial: 2, min: 2, max: 2 });
    const coalescer = new Coalescer(send, { name: 'test', limit });
    const calls = [coalescer.call(1, soon(), 0.5)];
    await expect(coalescer.call(2, soon(), 0.5)).rejects.toBeInstanceOf(NotSent);
    calls.push(coalescer.call(3, soon()));
    await turn();
    batches[0]?.answer(['one', 'three']);
    expect(await Promise.all(calls)).toEqual(['one', 'three']);
  });

  it('treats a reply with another number of results as broken, never as somebody else’s answer', async () => {
    const coalescer = new Coalescer(async () => ['only one'], { name: 'test' });
    const results = await settled([coalescer.call(1, soon()), coalescer.call(2, soon())]);
    expect(results.map((result) => result.status)).toEqual(['rejected', 'rejected']);
  });
});
