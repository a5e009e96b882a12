import { randomBytes } from 'node:crypto';

const ACCEPTED = /^[A-Za-z0-9_-]{1,64}$/;

/** The caller's request id if it is harmless, else a new one. */
export function requestIdFrom(given: unknown): string {
  return typeof given === 'string' && ACCEPTED.test(given) ? given : uuidV7();
}

/** A UUID of version 7: its first 48 bits are the time in ms, so that ids sort by when they were made. */
export function uuidV7(nowMs = Date.now()): string {
  const bytes = randomBytes(16);
  bytes.writeUIntBE(nowMs, 0, 6);
  bytes.writeUInt8(0x70 | (bytes.readUInt8(6) & 0x0f), 6);
  bytes.writeUInt8(0x80 | (bytes.readUInt8(8) & 0x3f), 8);
  const hex = bytes.toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}
