import { describe, expect, it } from '@jest/globals';
import { kibibytesOfStatus, nanosOfSchedstat, ticksOfStat, usedMicros } from './processes.js';

describe('what Linux says of a process', () => {
  it('is read where the name of its command is odd', () => {
    const stat = '77 (node (a) b) S 1 77 77 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 11 0 2576431 3133440 411';
    expect(ticksOfStat(stat)).toBe(300);
    expect(() => ticksOfStat('77 (node) S')).toThrow(/stat/);
  });

  it('is read by thread to the nanosecond', () => {
    expect(nanosOfSchedstat('1295513 745350 7\n')).toBe(1_295_513);
    expect(() => nanosOfSchedstat('')).toThrow(/schedstat/);
  });

  it('tells memory in KiB', () => {
    const status = 'Name:\tnode\nVmHWM:\t  150000 kB\nVmRSS:\t  120000 kB\n';
    expect(kibibytesOfStatus(status, 'VmHWM')).toBe(150_000);
    expect(kibibytesOfStatus(status, 'VmRSS')).toBe(120_000);
    expect(() => kibibytesOfStatus(status, 'VmPin')).toThrow(/VmPin/);
  });
});

describe('the CPU time between two readings', () => {
  const reading = (totalMicros: number, threads: Record<string, number>) => ({
    totalMicros,
    threadNanos: new Map(Object.entries(threads)),
  });

  it('is what its threads have used, those that began meanwhile too', () => {
    const before = reading(10_000, { 1: 4_000_000, 2: 6_000_000 });
    const after = reading(20_000, { 1: 9_000_000, 2: 6_500_000, 3: 250_000 });
    expect(usedMicros(before, after)).toBe(5_750);
  });

  it('is that of the process where a thread has ended or none is counted', () => {
    const before = reading(10_000, { 1: 4_000_000, 2: 6_000_000 });
    expect(usedMicros(before, reading(30_000, { 1: 9_000_000 }))).toBe(20_000);
    expect(usedMicros(reading(10_000, {}), reading(40_000, {}))).toBe(30_000);
  });
});
