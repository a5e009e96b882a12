import { describe, expect, it } from '@jest/globals';
import { Circuit } from './circuit.js';
import { NotSent } from './coalescer.js';

const away = new Error('away');
const refusal = new Error('a refusal');

/** A circuit before a dependency whose calls are counted. */
function circuitOf(answer: () => Promise<string>) {
  const state = { calls: 0, answer };
  const circuit = new Circuit('Test.Call', (error) => error === away);
  const ask = () =>
    circuit
      .run(() => {
        state.calls += 1;
        return state.answer();
      })
      .catch((error: unknown) => error);
  return { state, ask };
}

describe('Circuit', () => {
  it('after five failures in a row asks no more, and goes on by itself when the dependency is back', async () => {
    const { state, ask } = circuitOf(() => Promise.reject(away));
    for (let call = 0; call < 5; call += 1) expect(await ask()).toBe(away);
    expect(await ask()).toBeInstanceOf(NotSent);
    expect(state.calls).toBe(5);
    state.answer = async () => 'back';
    const giveUpAtMs = performance.now() + 10_000;
    let answer = await ask();
    while (answer instanceof NotSent && performance.now() < giveUpAtMs) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      answer = await ask();
    }
    expect(answer).toBe('back');
    expect(await ask()).toBe('back');
  });

  it('is not opened by failures with answers between them, nor by refusals', async () => {
    const { state, ask } = circuitOf(() => Promise.reject(away));
    for (let round = 0; round < 5; round += 1) {
      state.answer = () => Promise.reject(away);
      for (let call = 0; call < 4; call += 1) expect(await ask()).toBe(away);
      state.answer = async () => 'here';
      expect(await ask()).toBe('here');
    }
    state.answer = () => Promise.reject(refusal);
    for (let call = 0; call < 20; call += 1) expect(await ask()).toBe(refusal);
  });

  it('is not kept open by a clock that was set back', async () => {
    const { state, ask } = circuitOf(() => Promise.reject(away));
    for (let call = 0; call < 5; call += 1) await ask();
    const { now } = Date;
    Date.now = () => now() - 3_600_000;
    try {
      state.answer = async () => 'back';
      const giveUpAtMs = performance.now() + 10_000;
      let answer = await ask();
      while (answer instanceof NotSent && performance.now() < giveUpAtMs) {
        await new Promise((resolve) => setTimeout(resolve, 20));
        answer = await ask();
      }
      expect(answer).toBe('back');
    } finally {
      Date.now = now;
    }
  });
});
