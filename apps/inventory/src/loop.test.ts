import { describe, expect, it } from '@jest/globals';
import { Loop } from './loop.js';

const turns = async (count: number) => {
  for (let n = 0; n < count; n += 1) await new Promise((resolve) => setImmediate(resolve));
};

describe('Loop', () => {
  const open = (run: (signal: AbortSignal) => Promise<void>, errors: unknown[] = []) =>
    new Loop({ intervalMs: 3_600_000, run, onError: (error) => errors.push(error) });

  it('runs once when started, and again when nudged, never two at a time', async () => {
    let running = 0;
    let runs = 0;
    const loop = open(async () => {
      running += 1;
      expect(running).toBe(1);
      await turns(3);
      running -= 1;
      runs += 1;
    });
    loop.start();
    await turns(10);
    expect(runs).toBe(1);
    loop.nudge();
    loop.nudge();
    await turns(10);
    expect(runs).toBe(2);
    await loop.stop();
  });

  it('runs once more after a nudge that came during a run', async () => {
    let runs = 0;
    const loop = open(async () => {
      runs += 1;
      await turns(3);
    });
    loop.start();
    await turns(1);
    loop.nudge();
    await turns(20);
    expect(runs).toBe(2);
    await loop.stop();
  });

  it('reports a failure and goes on', async () => {
    const errors: unknown[] = [];
    const loop = open(() => Promise.reject(new Error('broken')), errors);
    loop.start();
    await turns(5);
    loop.nudge();
    await turns(5);
    expect(errors).toHaveLength(2);
    await loop.stop();
  });

  it('stops when the run under way has ended, and tells it to hurry', async () => {
    let ended = false;
    const loop = open(async (signal) => {
      while (!signal.aborted) await turns(1);
      ended = true;
    });
    loop.start();
    await turns(2);
    await loop.stop();
    expect(ended).toBe(true);
  });
});
