import { describe, expect, it } from '@jest/globals';
import { HELP, parseOptions } from './options.js';

const optionsOf = (...args: string[]) => {
  const parsed = parseOptions(args);
  if (parsed.kind !== 'run') throw new Error(`not a run: ${JSON.stringify(parsed)}`);
  return parsed.options;
};
const faultsOf = (...args: string[]) => {
  const parsed = parseOptions(args);
  if (parsed.kind !== 'faults') throw new Error(`no faults: ${JSON.stringify(parsed)}`);
  return parsed.faults;
};

describe('the options', () => {
  it('have defaults that make a whole demonstration', () => {
    expect(optionsOf()).toEqual({
      units: 1_000,
      shoppers: 20_000,
      perSecond: 1_500,
      buckets: 8,
      seed: 1,
      abandon: 0.1,
      decline: 0.1,
      port: undefined,
      maxSeconds: 300,
      edge: false,
      once: false,
      json: false,
      serve: false,
    });
  });

  it('are read in both spellings', () => {
    const args = [
      '--once',
      '--edge',
      '--json',
      '--units=1000000',
      '--shoppers',
      '50',
      '--abandon',
      '0',
      '--decline=.25',
    ];
    expect(
      optionsOf(...args, '--port', '8080', '--seed', '0', '--per-second=9', '--buckets', '64'),
    ).toMatchObject({
      edge: true,
      once: true,
      json: true,
      units: 1_000_000,
      shoppers: 50,
      abandon: 0,
      decline: 0.25,
      port: 8_080,
      seed: 0,
      perSecond: 9,
      buckets: 64,
    });
  });

  it.each([
    ['--units', '0'],
    ['--units', '1.5'],
    ['--units', '1e3'],
    ['--units', ''],
    ['--shoppers', '10000000'],
    ['--buckets', '1025'],
    ['--per-second', 'many'],
    ['--seed', '4294967296'],
    ['--abandon', '1.1'],
    ['--decline', '10%'],
    ['--port', '65536'],
    ['--max-seconds', '1'],
  ])('refuse %s %j and say what is wanted', (name, value) => {
    const faults = faultsOf(name, value);
    expect(faults).toHaveLength(1);
    expect(faults[0]).toMatch(
      new RegExp(`^${name} is "${value.replaceAll('.', '\\.')}", but must be a (whole number|share)`),
    );
  });

  it('let everybody buy where there is a unit for each, unless told otherwise', () => {
    expect(optionsOf('--units', '20000')).toMatchObject({ abandon: 0, decline: 0 });
    expect(optionsOf('--units', '20000', '--decline', '0.2')).toMatchObject({ abandon: 0, decline: 0.2 });
    expect(optionsOf('--units', '19999')).toMatchObject({ abandon: 0.1, decline: 0.1 });
  });

  it('tell all faults at once', () => {
    expect(faultsOf('--units', 'x', '--seed', 'y')).toHaveLength(2);
  });

  it('refuse shares that are more than everybody', () => {
    expect(faultsOf('--abandon', '0.6', '--decline', '0.6')[0]).toMatch(/together must be at most 1/);
  });

  it.each([['--unit', '5'], ['5'], ['--once=yes'], ['--units']])(
    'refuse what they do not know: %j',
    (...args) => {
      expect(faultsOf(...args)).toHaveLength(1);
    },
  );

  it('are all explained by --help', () => {
    expect(parseOptions(['--help', '--units', 'x'])).toEqual({ kind: 'help' });
    for (const name of [
      'units',
      'buckets',
      'shoppers',
      'per-second',
      'abandon',
      'decline',
      'seed',
      'max-seconds',
    ]) {
      expect(HELP).toContain(`--${name} `);
    }
  });
});
