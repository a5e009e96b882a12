import { describe, expect, it } from '@jest/globals';
import { NotSent } from '@flash-sale/contracts';
import { DatabaseError } from '@flash-sale/database';
import { Gate, Overloaded, QueuedDatabase, Rarely, type OrderDatabase } from './load.js';

const soon = () => performance.now() + 1_000;
const turn = () => new Promise((resolve) => setImmediate(resolve));

describe('Gate', () => {
  it('lets so many run at once and the others in their order', async () => {
    const gate = new Gate(2, 10);
    const begun: number[] = [];
    const finish: (() => void)[] = [];
    const work = (n: number) => () => {
      begun.push(n);
      return new Promise<void>((resolve) => finish.push(resolve));
    };
    const all = [1, 2, 3, 4].map((n) => gate.run(work(n), soon()));
    await turn();
    expect(begun).toEqual([1, 2]);
    finish.shift()?.();
    await turn();
    expect(begun).toEqual([1, 2, 3]);
    while (finish.length > 0) {
      finish.shift()?.();
      await turn();
    }
    await Promise.all(all);
    expect(begun).toEqual([1, 2, 3, 4]);
  });

  it('refuses at once when the line is full, and those whose caller has gone when their turn comes', async () => {
    const gate = new Gate(1, 1);
    let finish: () => void = () => undefined;
    const running = gate.run(() => new Promise<void>((resolve) => (finish = resolve)), soon());
    const late = gate.run(() => Promise.reject(new Error('must not run')), performance.now() + 5);
    await expect(gate.run(async () => 'refused', soon())).rejects.toThrow(Overloaded);
    await new Promise((resolve) => setTimeout(resolve, 10));
    finish();
    await running;
    await expect(late).rejects.toThrow('its turn did not come in time');
    expect(await gate.run(async () => 'free again', soon())).toBe('free again');
  });

  it('gives the place back when the work fails', async () => {
    const gate = new Gate(1, 1);
    await expect(gate.run(() => Promise.reject(new Error('broken')), soon())).rejects.toThrow('broken');
    expect(await gate.run(async () => 'next', soon())).toBe('next');
  });
});

describe('QueuedDatabase', () => {
  it('never asks for more connections at once than there are, and answers everybody', async () => {
    let atOnce = 0;
    let most = 0;
    const step = async () => {
      atOnce += 1;
      most = Math.max(most, atOnce);
      await turn();
      atOnce -= 1;
    };
    const pool: OrderDatabase = {
      query: async () => {
        await step();
        return [];
      },
      change: async () => {
        await step();
        return 1;
      },
      transaction: async (work) => {
        await step();
        return work(pool);
      },
    };
    const database = new QueuedDatabase(pool, 3);
    await Promise.all(
      Array.from({ length: 30 }, async (_, n) => {
        if (n % 3 === 0) await database.query('SELECT 1');
        else if (n % 3 === 1) await database.change('UPDATE');
        else await database.transaction(async () => n);
      }),
    );
    expect([most, atOnce]).toEqual([3, 0]);
  });
});

describe('QueuedDatabase on a database that is away', () => {
  it('keeps nobody waiting for it after five lost connections, and asks it again by itself', async () => {
    let asked = 0;
    let isAway = true;
    const fail = (failure: 'connection' | 'deadlock') => new DatabaseError(failure, new Error('in a test'));
    const pool: OrderDatabase = {
      query: async () => {
        asked += 1;
        if (isAway) throw fail('connection');
        return [];
      },
      change: () => Promise.reject(fail('deadlock')),
      transaction: () => Promise.reject(fail('deadlock')),
    };
    const database = new QueuedDatabase(pool, 2);
    // That it answers with a deadlock shows that it is there.
    for (let n = 0; n < 10; n += 1) await expect(database.change('UPDATE')).rejects.toThrow('deadlock');
    for (let n = 0; n < 5; n += 1) await expect(database.query('SELECT 1')).rejects.toThrow('connection');
    await expect(database.query('SELECT 1')).rejects.toBeInstanceOf(NotSent);
    expect(asked).toBe(5);
    isAway = false;
    const giveUpAtMs = performance.now() + 10_000;
    let answer: unknown;
    while (!Array.isArray(answer) && performance.now() < giveUpAtMs) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      answer = await database.query('SELECT 1').catch((error: unknown) => error);
    }
    expect(answer).toEqual([]);
  });
});

describe('Rarely', () => {
  it('says a thing once a second and counts what it did not say', () => {
    const rarely = new Rarely();
    const said: number[] = [];
    for (let n = 0; n < 5; n += 1) rarely.say((unsaid) => said.push(unsaid));
    expect(said).toEqual([0]);
  });
});
