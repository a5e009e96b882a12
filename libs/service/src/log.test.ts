import { describe, expect, it } from '@jest/globals';
import { createLog } from './log.js';

function lineOf(say: (log: ReturnType<typeof createLog>) => void): Record<string, unknown> {
  const lines: string[] = [];
  say(createLog('test', 'info', { write: (line) => void lines.push(line) }));
  expect(lines).toHaveLength(1);
  return JSON.parse(lines[0] ?? '') as Record<string, unknown>;
}

describe('a line of the log', () => {
  it('hides secrets wherever they are, and leaves its arguments as they were', () => {
    const fields = { token: 't', a: { card: 'c', b: [{ phone: 'p', c: { cookie: 'k', kept: 1 } }] } };
    const before = structuredClone(fields);
    const line = lineOf((log) => log.info(fields, 'said'));
    expect(line).toMatchObject({
      service: 'test',
      level: 'info',
      message: 'said',
      token: '[hidden]',
      a: { card: '[hidden]', b: [{ phone: '[hidden]', c: '[deeper]' }] },
    });
    expect(fields).toEqual(before);
  });

  it('cuts long strings and keeps dates, errors and what is short', () => {
    const at = new Date(0);
    const line = lineOf((log) =>
      log.warn({ err: new Error('no', { cause: new Error('why') }), text: 'x'.repeat(300), at, n: null }, ''),
    );
    expect(line).toMatchObject({
      err: { type: 'Error', message: 'no', cause: { message: 'why' } },
      text: `${'x'.repeat(256)}…`,
      at: at.toISOString(),
      n: null,
    });
  });
});
