import { createHash } from 'node:crypto';
import type { RedisClient } from './connect.js';
import { UnexpectedReply, isRedisError } from './failure.js';
import { flattenScript, type ScriptSource } from './script-source.js';

export interface ScriptContract<Reply> {
  /** How many KEYS the script takes; all of one hash slot. */
  readonly keys: number;
  /** Turns a reply into a value of a closed union; throws on anything it does not know. */
  readonly decode: (reply: unknown) => Reply;
}

/** One Lua script: a file with a contract in its header, a number of KEYS and a decoder of its replies. */
export interface RedisScript<Reply> {
  /** The file's name, e.g. `grant.lua`. */
  readonly name: string;
  /** What Redis knows the script by. */
  readonly sha1: string;
  /** The script with all that it includes. */
  readonly source: string;
  /**
   * Runs the script once. Numbers are sent as decimal text.
   *
   * A rejection with a Redis error (see {@link isRedisError}) means that the server refused; any other rejection leaves open
   * whether the script ran.
   *
   * @throws UnexpectedReply when the decoder does not know the reply
   */
  run(
    client: RedisClient,
    keys: readonly string[],
    args: readonly (string | number | Buffer)[],
  ): Promise<Reply>;
}

/**
 * Reads a script from a file, with the files it includes by `--@include "name.lua"` (see {@link flattenScript}). Done once,
 * when a module is loaded: a script that cannot be read stops the start, not a sale.
 *
 * @param file of the .lua file, e.g. `new URL('../src/scripts/grant.lua', import.meta.url)`
 */
export function defineScript<Reply>(file: URL | string, contract: ScriptContract<Reply>): RedisScript<Reply> {
  const script = flattenScript(file);
  const sha1 = createHash('sha1').update(script.text).digest('hex');
  return {
    name: script.name,
    sha1,
    source: script.text,
    async run(client, keys, args) {
      if (keys.length !== contract.keys) {
        throw new Error(`${script.name} takes ${contract.keys} keys, got ${keys.length}`);
      }
      const reply = await evaluate(client, script, sha1, [...keys], [...args]);
      try {
        return contract.decode(reply);
      } catch (cause) {
        throw new UnexpectedReply(script.name, reply, { cause });
      }
    },
  };
}

/**
 * Always one single call, never in a pipeline or MULTI: there the second call after NOSCRIPT would run out of order, or
 * fail. After a flush or a failover, or on a cluster's node that never saw it, the script goes as a whole once.
 */
async function evaluate(
  client: RedisClient,
  script: ScriptSource,
  sha1: string,
  keys: string[],
  args: (string | number | Buffer)[],
): Promise<unknown> {
  try {
    try {
      return await client.evalsha(sha1, keys.length, ...keys, ...args);
    } catch (error) {
      // The server did not run anything, so calling again repeats nothing.
      if (!isRedisError(error) || !error.message.startsWith('NOSCRIPT')) throw error;
      return await client.eval(script.text, keys.length, ...keys, ...args);
    }
  } catch (error) {
    if (isRedisError(error)) error.message = `${script.name}: ${withOrigin(error.message, script)}`;
    throw error;
  }
}

/** Redis counts lines of the flattened text; the reader knows only the files. */
function withOrigin(message: string, script: ScriptSource): string {
  return message.replace(/user_script:(\d+)/g, (found, line: string) => {
    const origin = script.origins[Number(line) - 1];
    return origin ? `${origin.file}:${origin.line}` : found;
  });
}
