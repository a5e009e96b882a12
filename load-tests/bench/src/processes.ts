import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';

/** Processes that are counted together, e.g. all gateways. */
export interface ProcessGroup {
  readonly name: string;
  readonly pids: readonly number[];
}

/** CPU time that a process has used so far. */
interface CpuTime {
  /** User and system time of all its threads, also of those that have ended, in steps of a clock tick, µs. */
  readonly totalMicros: number;
  /** On a CPU so far, by thread, ns: exact, but a thread that ends takes its count with it. Empty where the kernel keeps none. */
  readonly threadNanos: ReadonlyMap<string, number>;
}

/** Of each process at one moment. */
export type CpuReading = ReadonlyMap<number, CpuTime>;

/** @throws where the system has no `/proc` as Linux has it */
export function requireProc(): void {
  if (!existsSync('/proc/self/stat')) {
    throw new Error('CPU time and memory of other processes are read from /proc, which only Linux has');
  }
}

/** Reads what all these processes have used so far. @throws when one of them has ended */
export function readCpu(groups: readonly ProcessGroup[]): CpuReading {
  const reading = new Map<number, CpuTime>();
  for (const { name, pids } of groups) {
    for (const pid of pids) {
      try {
        reading.set(pid, cpuTimeOf(pid));
      } catch (error) {
        throw new Error(`a process of ${name} (${pid}) has ended`, { cause: error });
      }
    }
  }
  return reading;
}

/** What each group has used between two readings, µs. */
export function cpuBetween(
  groups: readonly ProcessGroup[],
  before: CpuReading,
  after: CpuReading,
): Record<string, number> {
  return Object.fromEntries(
    groups.map(({ name, pids }) => {
      const used = pids.map((pid) => {
        const [first, last] = [before.get(pid), after.get(pid)];
        if (!first || !last) throw new Error(`process ${pid} of ${name} was not read twice`);
        return usedMicros(first, last);
      });
      return [name, used.reduce((sum, micros) => sum + micros, 0)];
    }),
  );
}

/** The threads' own counts are exact; where a thread has ended meanwhile only the process's total knows what it did. */
export function usedMicros(before: CpuTime, after: CpuTime): number {
  const { threadNanos } = before;
  const allThere = [...threadNanos.keys()].every((thread) => after.threadNanos.has(thread));
  if (!allThere || threadNanos.size === 0) return after.totalMicros - before.totalMicros;
  let nanos = 0;
  for (const [thread, used] of after.threadNanos) nanos += used - (threadNanos.get(thread) ?? 0);
  return nanos / 1_000;
}

let microsPerTick: number | undefined;

function cpuTimeOf(pid: number): CpuTime {
  microsPerTick ??= 1e6 / Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }));
  const threadNanos = new Map<string, number>();
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    try {
      const nanos = nanosOfSchedstat(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'latin1'));
      threadNanos.set(thread, nanos);
    } catch {
      // It ended between the two lines, or the kernel keeps no such counts.
    }
  }
  // After the threads: what the total knows more is then never less than what they have said.
  const ticks = ticksOfStat(readFileSync(`/proc/${pid}/stat`, 'latin1'));
  return { totalMicros: ticks * microsPerTick, threadNanos };
}

/** User and system time of `/proc/PID/stat`, clock ticks. */
export function ticksOfStat(text: string): number {
  // The command's name, in parentheses, may itself have spaces and parentheses.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const [user, system] = [Number(fields[11]), Number(fields[12])];
  if (Number.isNaN(user) || Number.isNaN(system)) throw new Error(`not as in /proc/PID/stat: ${text}`);
  return user + system;
}

/** Time on a CPU of `/proc/PID/task/TID/schedstat`, ns. */
export function nanosOfSchedstat(text: string): number {
  const nanos = Number(/^\d+/.exec(text)?.[0] ?? Number.NaN);
  if (Number.isNaN(nanos)) throw new Error(`not as in /proc/PID/schedstat: ${text}`);
  return nanos;
}

/** From now on the peak counts anew, where the system allows that; else it is that of the process's whole life. */
export function forgetPeaks(groups: readonly ProcessGroup[]): void {
  for (const pid of groups.flatMap(({ pids }) => pids)) {
    try {
      // 5: the high-water mark of the resident set.
      writeFileSync(`/proc/${pid}/clear_refs`, '5');
    } catch {
      // Somebody else's process.
    }
  }
}

/** Resident memory, MiB: the peak, or what it is now; of all processes of a group together. */
export function memoryMiB(groups: readonly ProcessGroup[], which: 'peak' | 'now'): Record<string, number> {
  const field = which === 'peak' ? 'VmHWM' : 'VmRSS';
  return Object.fromEntries(
    groups.map(({ name, pids }) => [
      name,
      pids.reduce(
        (sum, pid) => sum + kibibytesOfStatus(readFileSync(`/proc/${pid}/status`, 'latin1'), field) / 1_024,
        0,
      ),
    ]),
  );
}

export function kibibytesOfStatus(text: string, field: string): number {
  const found = new RegExp(String.raw`^${field}:\s+(\d+) kB$`, 'm').exec(text)?.[1];
  if (found === undefined) throw new Error(`/proc/PID/status does not say ${field}`);
  return Number(found);
}
