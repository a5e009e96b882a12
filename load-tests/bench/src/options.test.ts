import { describe, expect, it } from '@jest/globals';
import { PARTS } from './operations.js';
import { parseOptions } from './options.js';

describe('parseOptions', () => {
  it('has a default for everything', () => {
    expect(parseOptions([])).toEqual({
      kind: 'run',
      options: {
        isShort: false,
        withGrowth: false,
        parts: PARTS,
        repetitions: 5,
        compareWith: undefined,
        out: undefined,
      },
    });
  });

  it('measures the unit alone where that is asked for', () => {
    expect(parseOptions(['--unit'])).toEqual({ kind: 'unit' });
  });

  it('reads what is given', () => {
    const args = [
      '--growth',
      '--compare',
      'old.json',
      '--repetitions=7',
      '--only',
      'polls, orders',
      '--out=x',
    ];
    expect(parseOptions(args)).toMatchObject({
      options: {
        withGrowth: true,
        compareWith: 'old.json',
        repetitions: 7,
        parts: ['polls', 'orders'],
        out: 'x',
      },
    });
  });

  it('leaves out of a short run what needs another suite, unless that is asked for', () => {
    const short = parseOptions(['--short']);
    expect(short.kind === 'run' && short.options.parts).not.toContain('uncoalesced');
    expect(parseOptions(['--short', '--only', 'uncoalesced'])).toMatchObject({
      options: { isShort: true, parts: ['uncoalesced'] },
    });
  });

  it('tells every fault at once', () => {
    const parsed = parseOptions(['--only', 'polls,pools', '--repetitions', '0', '--compare', '']);
    expect(parsed.kind === 'faults' && parsed.faults).toEqual([
      `--only has "pools", but there are ${PARTS.join(', ')}`,
      '--repetitions is "0", but must be a whole number from 1 to 50',
      '--compare is empty, but must be a path',
    ]);
    expect(parseOptions(['--shrot']).kind).toBe('faults');
    expect(parseOptions(['polls']).kind).toBe('faults');
  });

  it('helps', () => {
    expect(parseOptions(['--help']).kind).toBe('help');
  });
});
