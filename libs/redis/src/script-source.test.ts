import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from '@jest/globals';
import { flattenScript } from './script-source.js';

const folders: string[] = [];
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true });
});

function folderOf(files: Record<string, string>): (name: string) => string {
  const folder = mkdtempSync(join(tmpdir(), 'flash-sale-lua-'));
  folders.push(folder);
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  return (name) => join(folder, name);
}

describe('flattenScript', () => {
  test('puts an included file in place of its directive, once', () => {
    const at = folderOf({
      'grant.lua': '--@include "now.lua"\n--@include "pack.lua"\nreturn now()',
      'pack.lua': '--@include "now.lua"\nlocal pack = 1',
      'now.lua': 'local function now() return 1 end',
    });
    const script = flattenScript(at('grant.lua'));
    expect(script.text).toBe('local function now() return 1 end\nlocal pack = 1\nreturn now()');
    expect(script.name).toBe('grant.lua');
    expect(script.origins.map(({ file, line }) => `${file}:${line}`)).toEqual([
      'now.lua:1',
      'pack.lua:2',
      'grant.lua:3',
    ]);
  });

  test('names the files of a circle', () => {
    const at = folderOf({
      'a.lua': '-- a\n--@include "b.lua"',
      'b.lua': '--@include "a.lua"',
    });
    expect(() => flattenScript(at('a.lua'))).toThrow(
      'b.lua:1: files include each other: a.lua → b.lua → a.lua',
    );
  });

  test('says which line includes a file that does not exist', () => {
    const at = folderOf({ 'a.lua': '\n--@include "gone.lua"' });
    expect(() => flattenScript(at('a.lua'))).toThrow(/^a\.lua:2 includes .*gone\.lua: no such file$/);
  });

  test('refuses a misspelled directive rather than sending it as a comment', () => {
    const at = folderOf({ 'a.lua': '--@include b.lua' });
    expect(() => flattenScript(at('a.lua'))).toThrow('a.lua:1: write --@include "name.lua"');
  });
});
