import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { LineWriter } from './line-writer.js';

let folder: string;
let file: string;
let fd: number;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'flash-sale-lines-'));
  file = join(folder, 'log');
  fd = openSync(file, 'a');
});
afterEach(() => {
  closeSync(fd);
  rmSync(folder, { recursive: true });
});

const written = () => readFileSync(file, 'utf8');
const nextTurn = () => new Promise((resolve) => setImmediate(resolve));

describe('LineWriter', () => {
  it('writes the lines of one turn together at its end, in their order', async () => {
    const writer = new LineWriter({ fd });
    writer.write('one\n');
    writer.write('two\n');
    await Promise.resolve().then(() => writer.write('three\n'));
    expect(written()).toBe('');
    await nextTurn();
    expect(written()).toBe('one\ntwo\nthree\n');
    writer.write('four\n');
    await nextTurn();
    expect(written()).toBe('one\ntwo\nthree\nfour\n');
  });

  it('drops nothing of a turn that says much', async () => {
    const writer = new LineWriter({ fd, maxWaitingBytes: 100_000 });
    const dropped: number[] = [];
    writer.onDropped = (lines) => dropped.push(lines);
    const lines = Array.from({ length: 5_000 }, (_, line) => `${line} ${'x'.repeat(100)}\n`);
    for (const line of lines) writer.write(line);
    await nextTurn();
    expect(written()).toBe(lines.join(''));
    expect(dropped).toEqual([]);
  });

  it('writes what a turn has said so far when the process ends within it', () => {
    const writer = new LineWriter({ fd });
    writer.write('last words\n');
    writer.finish();
    expect(written()).toBe('last words\n');
  });
});
