import type { LoggerService } from '@nestjs/common';
import { pino, type DestinationStream, type Level, type LevelWithSilent, type Logger } from 'pino';
import { LineWriter, stdoutWriter } from './line-writer.js';

/** The process's logger; one JSON object per line on stdout. */
export type Log = Logger;

/** What must never be read in a log, wherever it is in a line: rights, and what shoppers told us about themselves. */
const REDACTED_KEYS = [
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
];
const REDACTED_PATHS = REDACTED_KEYS.flatMap((key) => [key, `*.${key}`, `*.*.${key}`, `*.*.*.${key}`]);
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
    redact: { paths: REDACTED_PATHS, censor: '[hidden]' },
    formatters: {
      level: (label: string) => ({ level: label }),
      log: (fields: Record<string, unknown>) => cutStrings(fields),
    },
    serializers: { err: describeError },
  };
  const log = pino(options, destination);
  if (destination instanceof LineWriter) {
    destination.onDropped = (lines) =>
      log.warn({ lines }, 'the reader of this log stood still, so lines of it were dropped');
  }
  return log;
}

/** A logger that adds the shopper's request id, so that one request can be followed through all services. */
export function logOf(log: Log, requestId: string | undefined): Log {
  return requestId ? log.child({ requestId }) : log;
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

function cutStrings(fields: Record<string, unknown>): Record<string, unknown> {
  let copy: Record<string, unknown> | undefined;
  for (const [key, value] of Object.entries(fields)) {
    if (typeof value !== 'string' || value.length <= MAX_STRING_LENGTH) continue;
    copy ??= { ...fields };
    copy[key] = `${value.slice(0, MAX_STRING_LENGTH)}…`;
  }
  return copy ?? fields;
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
