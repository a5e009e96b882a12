import { randomUUID } from 'node:crypto';

const ACCEPTED = /^[A-Za-z0-9_-]{1,64}$/;

/** The caller's request id if it is harmless, else a new one. */
export function requestIdFrom(given: unknown): string {
  return typeof given === 'string' && ACCEPTED.test(given) ? given : uuidV7();
}

/**
 * A UUID of version 7: its first 48 bits are the time in ms, so that ids sort by when they were made. The rest is that of a
 * random one, for which node asks the system for many at once: asked for each, that alone took a tenth of a request.
 */
export function uuidV7(nowMs = Date.now()): string {
  const time = nowMs.toString(16).padStart(12, '0');
  return `${time.slice(0, 8)}-${time.slice(8)}-7${randomUUID().slice(15)}`;
}
