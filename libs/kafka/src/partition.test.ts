import { describe, expect, test } from '@jest/globals';
import { Partitioners, type PartitionMetadata } from 'kafkajs';
import { hasPassed } from './admin.js';
import { partitionOf } from './partition.js';

describe('partitionOf', () => {
  test("agrees with Java's client, as kafkajs copied it, for keys of every length", () => {
    const reference = Partitioners.DefaultPartitioner();
    const partitionMetadata = Array.from({ length: 12 }, (_, partitionId): PartitionMetadata => ({
      partitionId,
      leader: 0,
      replicas: [],
      isr: [],
      partitionErrorCode: 0,
    }));
    for (let length = 0; length < 64; length += 1) {
      for (const letter of ['a', 'Z', '_', 'é', '抢']) {
        const key = letter.repeat(length) + length;
        const expected = reference({ topic: 't', partitionMetadata, message: { key, value: null } });
        expect(partitionOf(key, 12)).toBe(expected);
      }
    }
  });
});

describe('hasPassed', () => {
  const offsets = (...values: (bigint | undefined)[]) =>
    new Map(values.flatMap((value, partition) => (value === undefined ? [] : [[partition, value] as const])));

  test('is true when every partition is committed up to its end', () => {
    expect(hasPassed(offsets(3n, 5n), offsets(3n, 5n), offsets(0n, 0n))).toBe(true);
    expect(hasPassed(offsets(3n, 4n), offsets(3n, 5n), offsets(0n, 0n))).toBe(false);
  });

  test('counts a partition without a commit as passed only if it is empty', () => {
    expect(hasPassed(offsets(undefined), offsets(0n), offsets(0n))).toBe(true);
    expect(hasPassed(offsets(undefined), offsets(1n), offsets(0n))).toBe(false);
  });

  test('counts what retention deleted as passed', () => {
    expect(hasPassed(offsets(undefined), offsets(7n), offsets(7n))).toBe(true);
    expect(hasPassed(offsets(2n), offsets(7n), offsets(7n))).toBe(true);
    expect(hasPassed(offsets(2n), offsets(8n), offsets(7n))).toBe(false);
  });
});
