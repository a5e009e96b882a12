/**
 * Reads a JSON body so that no two programs can read it differently: strict UTF-8, no byte order mark, no key twice in an
 * object, no half of a surrogate pair, and no deeper than any body of ours could be.
 */
export type ReadJson =
  | { readonly outcome: 'ok'; readonly value: unknown }
  | { readonly outcome: 'malformed' | 'forbidden'; readonly detail: string };

const MAX_DEPTH = 8;
const MAX_KEYS = 200;
/** No field of ours has these names; programs that copy objects carelessly change all objects by them. */
const FORBIDDEN_KEYS = new Set(['__proto__', 'constructor', 'prototype']);
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

export function readJson(bytes: Buffer): ReadJson {
  let text: string;
  try {
    text = utf8.decode(bytes);
  } catch {
    return malformed('The body is not UTF-8.');
  }
  if (text.startsWith('\u{feff}')) return malformed('The body starts with a byte order mark.');
  // Before parsing, because a deeply nested text is what makes parsing dear.
  const fault = shapeFault(text);
  if (fault) return fault;
  try {
    return { outcome: 'ok', value: JSON.parse(text) };
  } catch {
    return malformed('The body is not JSON.');
  }
}

type Fault = Exclude<ReadJson, { outcome: 'ok' }>;

function malformed(detail: string): Fault {
  return { outcome: 'malformed', detail };
}

/**
 * Walks over the text once, without recursion, and looks at what JSON.parse would let pass. On a text that is not JSON it
 * may find nothing; JSON.parse then does.
 *
 * @returns what is wrong, or `null`
 */
function shapeFault(text: string): Fault | null {
  /** For each open bracket: the keys seen in it, or `null` for an array. */
  const open: (Set<string> | null)[] = [];
  let keys = 0;
  let lastString: string | null = null;
  for (let at = 0; at < text.length; at += 1) {
    switch (text.charAt(at)) {
      case '"': {
        const end = endOfString(text, at);
        if (end === -1) return malformed('The body is not JSON.');
        lastString = unescaped(text.slice(at, end + 1));
        if (lastString === null) return malformed('The body is not JSON.');
        if (!lastString.isWellFormed()) return malformed('The body has half of a surrogate pair.');
        at = end;
        break;
      }
      case ':': {
        const seen = open.at(-1);
        if (lastString === null || !seen) return malformed('The body is not JSON.');
        if (FORBIDDEN_KEYS.has(lastString))
          return { outcome: 'forbidden', detail: 'The body has a forbidden key.' };
        if (seen.has(lastString)) return malformed('The body has a key twice.');
        seen.add(lastString);
        keys += 1;
        if (keys > MAX_KEYS) return malformed(`The body has more than ${MAX_KEYS} keys.`);
        lastString = null;
        break;
      }
      case '{':
      case '[':
        open.push(text[at] === '{' ? new Set() : null);
        if (open.length > MAX_DEPTH) return malformed(`The body is nested deeper than ${MAX_DEPTH} levels.`);
        break;
      case '}':
      case ']':
        open.pop();
        break;
      default:
        break;
    }
  }
  return null;
}

function endOfString(text: string, start: number): number {
  for (let at = start + 1; at < text.length; at += 1) {
    if (text[at] === '\\') at += 1;
    else if (text[at] === '"') return at;
  }
  return -1;
}

function unescaped(literal: string): string | null {
  if (!literal.includes('\\')) return literal.slice(1, -1);
  try {
    return JSON.parse(literal) as string;
  } catch {
    return null;
  }
}
