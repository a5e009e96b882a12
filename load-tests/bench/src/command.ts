export const USAGE_EXIT_CODE = 2;

type Misread = { readonly kind: 'help' } | { readonly kind: 'faults'; readonly faults: readonly string[] };

/** Says what a command's line was, where it is not to be run: help, or what is wrong with it. Its exit code. */
export function explain(parsed: Misread, help: string, command: string): number {
  if (parsed.kind === 'help') {
    process.stdout.write(help);
    return 0;
  }
  for (const fault of parsed.faults) process.stderr.write(`${fault}\n`);
  process.stderr.write(`${command} -- --help says what there is\n`);
  return USAGE_EXIT_CODE;
}

export const say = (line: string) => void process.stderr.write(`bench: ${line}\n`);

/** What was started, to be stopped in the opposite order. */
export class Started {
  private readonly stops: (() => unknown)[] = [];

  keep<Thing extends { stop(): unknown }>(thing: Thing): Thing {
    this.stops.push(() => thing.stop());
    return thing;
  }

  async stop(): Promise<void> {
    for (let stop = this.stops.pop(); stop; stop = this.stops.pop()) {
      await Promise.resolve(stop()).catch((error: unknown) => say(String(error)));
    }
  }
}

/** Runs a command that starts servers; whatever ends it, they are stopped. Its exit code. */
export async function commandWith(run: (started: Started) => Promise<void>): Promise<number> {
  const started = new Started();
  let stopping: Promise<void> | undefined;
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    // It comes twice: who keeps the servers kills them and sends it once more.
    process.on(signal, () => {
      stopping ??= started.stop().finally(() => process.exit(130));
    });
  }
  try {
    await run(started);
    return 0;
  } catch (error) {
    say(error instanceof Error ? (error.stack ?? error.message) : String(error));
    return 1;
  } finally {
    await started.stop();
  }
}
