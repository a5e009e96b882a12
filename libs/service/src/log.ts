import type { LoggerService } from '@nestjs/common';
import { pino, type DestinationStream, type Level, type LevelWithSilent, type Logger } from 'pino';
import { LineWriter, stdoutWriter } from './line-writer.js';

/** The process's logger; one JSON object per line on stdout. No children: what they add to a line is not looked through. */
export type Log = Omit<Logger, 'child' | 'setBindings'>;

/** What must never be read in a log, wherever it is in a line: rights, and what shoppers told us about themselves. */
const HIDDEN_KEYS: ReadonlySet<string> = new Set([
  'authorization',
  'token',
  'purchaseToken',
  'accessToken',
  'ticket',
  'delivery',
  'phone',
  'card',
  'cookie',
  'secret',
  'password',
]);
const HIDDEN = '[hidden]';
/** What lies deeper in a line's fields is left out. */
const MAX_DEPTH = 4;
const MAX_STRING_LENGTH = 256;
const MAX_STACK_LENGTH = 4_096;

/**
 * The logger of a service. Times are ISO 8601, levels words; secrets are replaced by `[hidden]`, strings longer than 256
 * characters cut, so that no line carries a request body by accident.
 */
export function createLog(
  service: string,
  level: LevelWithSilent = 'info',
  destination: DestinationStream = stdoutWriter(),
): Log {
  const options = {
    level,
    base: { service },
    messageKey: 'message',
    timestamp: () => `,"time":"${new Date().toISOString()}"`,
    // Not by pino's paths: they cost five times as much, and every order has a line.
    formatters: { level: (label: string) => ({ level: label }), log: cleanFields },
    serializers: { err: describeError },
  };
  const log = pino(options, destination);
  if (destination instanceof LineWriter) {
    destination.onDropped = (lines) =>
      log.warn({ lines }, 'the reader of this log stood still, so lines of it were dropped');
  }
  return log;
}

/** Gives Nest our logger. What it says while it starts matters only to who debugs it. */
export function nestLog(log: Log): LoggerService {
  const say =
    (level: Level) =>
    (message: unknown, ...rest: unknown[]) => {
      const scope = rest.at(-1);
      const fields = { nest: typeof scope === 'string' ? scope : undefined };
      if (message instanceof Error) log[level]({ ...fields, err: message }, message.message);
      else log[level](fields, typeof message === 'string' ? message : JSON.stringify(message));
    };
  return {
    log: say('debug'),
    verbose: say('trace'),
    debug: say('trace'),
    warn: say('warn'),
    error: say('error'),
    fatal: say('fatal'),
  };
}

/** The fields without secrets and with long strings cut; a copy only where there is something to change. */
function cleanFields(fields: Record<string, unknown>, depth = 1): Record<string, unknown> {
  let copy: Record<string, unknown> | undefined;
  for (const key of Object.keys(fields)) {
    const value = fields[key];
    const clean = HIDDEN_KEYS.has(key) ? HIDDEN : cleanValue(value, depth);
    if (clean === value) continue;
    copy ??= { ...fields };
    copy[key] = clean;
  }
  return copy ?? fields;
}

function cleanValue(value: unknown, depth: number): unknown {
  if (typeof value === 'string') {
    return value.length > MAX_STRING_LENGTH ? `${value.slice(0, MAX_STRING_LENGTH)}…` : value;
  }
  // Errors are described by their serializer; what knows its own JSON, such as a date, is no bag of fields.
  if (typeof value !== 'object' || value === null || value instanceof Error || 'toJSON' in value)
    return value;
  if (depth === MAX_DEPTH) return '[deeper]';
  if (Array.isArray(value)) return value.map((one) => cleanValue(one, depth + 1));
  return cleanFields(value as Record<string, unknown>, depth + 1);
}

/** An error's facts and those of its causes; nothing else that a library may have attached, such as a request. */
function describeError(error: unknown, depth = 0): unknown {
  if (!(error instanceof Error)) return String(error).slice(0, MAX_STRING_LENGTH);
  return {
    type: error.name,
    message: error.message.slice(0, MAX_STRING_LENGTH),
    ...('code' in error && { code: error.code }),
    stack: error.stack?.slice(0, MAX_STACK_LENGTH),
    ...(error.cause !== undefined && depth < 3 && { cause: describeError(error.cause, depth + 1) }),
  };
}
