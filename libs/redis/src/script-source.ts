import { readFileSync } from 'node:fs';
import { basename, dirname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

/** A script as Redis gets it, and for each of its lines where that came from. */
export interface ScriptSource {
  /** The name of the outermost file. */
  readonly name: string;
  readonly text: string;
  /** Line n of `text` (from 1) came from `origins[n - 1]`. */
  readonly origins: readonly { readonly file: string; readonly line: number }[];
}

const INCLUDE = /^\s*--@include\b(.*)$/;

/**
 * Reads a Lua file and puts, in place of each line `--@include "name.lua"`, that file (found relative to the including
 * one), once per script, so that scripts can share local functions. Everything else is left as it is.
 *
 * @throws when a file is missing, an include is misspelled or files include each other; the message names file and line
 */
export function flattenScript(file: URL | string): ScriptSource {
  const path = file instanceof URL ? fileURLToPath(file) : resolve(file);
  const lines: string[] = [];
  const origins: { file: string; line: number }[] = [];
  const included = new Set<string>();

  const add = (path: string, text: string, open: readonly string[]) => {
    included.add(path);
    text.split('\n').forEach((line, index) => {
      const where = `${basename(path)}:${index + 1}`;
      const directive = INCLUDE.exec(line);
      if (!directive) {
        lines.push(line);
        origins.push({ file: basename(path), line: index + 1 });
        return;
      }
      const name = /^\s+"([^"]+)"\s*$/.exec(directive[1] ?? '')?.[1];
      if (name === undefined) throw new Error(`${where}: write --@include "name.lua", not ${line.trim()}`);
      const target = resolve(dirname(path), name);
      if (open.includes(target)) {
        const circle = [...open.slice(open.indexOf(target)), target].map((entry) => basename(entry));
        throw new Error(`${where}: files include each other: ${circle.join(' → ')}`);
      }
      if (!included.has(target)) add(target, read(target, where), [...open, target]);
    });
  };

  add(path, read(path, undefined), [path]);
  return { name: basename(path), text: lines.join('\n'), origins };
}

function read(path: string, includedFrom: string | undefined): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (cause) {
    const reason = (cause as NodeJS.ErrnoException).code === 'ENOENT' ? 'no such file' : String(cause);
    throw new Error(`${includedFrom ? `${includedFrom} includes ` : ''}${path}: ${reason}`, { cause });
  }
}
