import { describe, expect, it } from '@jest/globals';
import { DatabaseError } from '@flash-sale/database';
import { UnexpectedReply } from '@flash-sale/redis';
import { isStoreAway } from './store-away.js';

describe('isStoreAway', () => {
  it.each([
    ['a lost connection of MySQL', new DatabaseError('connection', new Error('x')), true],
    ['wrong SQL', new DatabaseError('defect', new Error('x')), false],
    ['a silent Redis', new Error('Command timed out'), true],
    [
      'a Redis that is gone',
      new Error("Stream isn't writeable and enableOfflineQueue options is false"),
      true,
    ],
    ['a Kafka that is gone', new Error('reading the offsets of t at Kafka b:1 failed: x'), true],
    ['a reply that nobody knows', new UnexpectedReply('grant.lua', ['OK', 1]), false],
    ['a broken assumption', new Error('units do not add up'), false],
    ['something thrown that is no error', 'x', false],
  ])('of %s', (_, error, away) => {
    expect(isStoreAway(error)).toBe(away);
  });
});
