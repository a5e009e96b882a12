import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import { readJson } from './read-json.js';

const read = (text: string) => readJson(Buffer.from(text));

describe('readJson', () => {
  it('reads what JSON.parse reads', () => {
    fc.assert(
      fc.property(
        fc.dictionary(
          fc.string({ maxLength: 10 }).filter((key) => !/^(__proto__|constructor|prototype)$/.test(key)),
          fc.oneof(
            fc.string({ unit: 'grapheme' }),
            fc.integer(),
            fc.boolean(),
            fc.constant(null),
            fc.array(fc.string()),
          ),
          { maxKeys: 20 },
        ),
        (value) => {
          const text = JSON.stringify(value);
          expect(read(text)).toEqual({ outcome: 'ok', value: JSON.parse(text) });
        },
      ),
    );
  });

  it.each([
    ['a key twice', '{"quantity":1,"quantity":2}'],
    ['a key twice, once escaped', '{"quantity":1,"quantit\\u0079":2}'],
    ['a key twice, deep inside', '{"delivery":{"name":"a","name":"b"}}'],
    ['a byte order mark', '\u{feff}{}'],
    ['half of a surrogate pair', '{"name":"\\ud800"}'],
    ['nesting', '['.repeat(1_000) + ']'.repeat(1_000)],
    [
      '100,000 keys',
      JSON.stringify(Object.fromEntries(Array.from({ length: 100_000 }, (_, i) => [`k${i}`, 1]))),
    ],
    ['a trailing comma', '{"a":1,}'],
    ['single quotes', "{'a':1}"],
    ['NaN', '{"quantity":NaN}'],
    ['two values', '{} {}'],
    ['an open string', '{"a'],
    ['an open escape', '{"a\\'],
    ['a lone colon', ':'],
    ['a colon in an array', '["a":1]'],
    ['unbalanced brackets', ']]]}}}'],
    ['a comment', '{/* */}'],
    ['nothing but a space', ' '],
  ])('refuses %s', (_, text) => {
    expect(read(text)).toMatchObject({ outcome: 'malformed' });
  });

  it.each([
    '{"__proto__":{"isAdmin":true}}',
    '{"\\u005f_proto__":1}',
    '{"a":{"constructor":{"prototype":{}}}}',
  ])('forbids the key in %s', (text) => {
    expect(read(text)).toMatchObject({ outcome: 'forbidden' });
  });

  it('refuses bytes that are not UTF-8', () => {
    expect(readJson(Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d]))).toMatchObject({
      outcome: 'malformed',
    });
    // An overlong slash and an encoded surrogate are not UTF-8 either.
    expect(readJson(Buffer.from([0x22, 0xc0, 0xaf, 0x22]))).toMatchObject({ outcome: 'malformed' });
    expect(readJson(Buffer.from([0x22, 0xed, 0xa0, 0x80, 0x22]))).toMatchObject({ outcome: 'malformed' });
  });

  it('never throws, whatever the bytes', () => {
    fc.assert(
      fc.property(
        fc.oneof(
          fc.uint8Array({ maxLength: 200 }),
          fc.string().map((text) => Buffer.from(text)),
        ),
        (bytes) => {
          const { outcome } = readJson(Buffer.from(bytes));
          expect(['ok', 'malformed', 'forbidden']).toContain(outcome);
        },
      ),
    );
  });

  it('takes no longer for hostile than for honest text', () => {
    const startedMs = performance.now();
    for (const text of [
      '"'.repeat(16_000),
      '\\'.repeat(16_000),
      '{"a":'.repeat(3_000),
      `"${'\\u0061'.repeat(2_600)}"`,
    ])
      read(text);
    expect(performance.now() - startedMs).toBeLessThan(100);
  });
});
