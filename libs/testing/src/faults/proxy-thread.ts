import { resolve } from 'node:path';
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';
import { FaultProxy, type ProxyOptions } from './proxy.js';

/** What can be done to a proxy from outside. */
type Lever =
  | 'retarget'
  | 'delay'
  | 'silenceEstablished'
  | 'stall'
  | 'refuse'
  | 'cut'
  | 'lose'
  | 'pass'
  | 'figures'
  | 'stop';

/** A {@link FaultProxy} that runs elsewhere; each call resolves when it has been done. */
export type ProxyControl = { readonly port: number } & {
  readonly [Name in Lever]: (
    ...args: Parameters<FaultProxy[Name]>
  ) => Promise<Awaited<ReturnType<FaultProxy[Name]>>>;
};

interface Call {
  readonly id: number;
  /** None opens a new proxy. */
  readonly port?: number;
  readonly lever: Lever | 'open';
  readonly args: readonly unknown[];
}

type Answer = { readonly id: number } & ({ readonly result: unknown } | { readonly error: string });

const ROLE = 'fault proxies';

/**
 * A thread with proxies. What goes through them must not wait for the event loop of whoever plays the crowd, or every
 * figure taken would be about that.
 */
export class ProxyThread {
  private calls = 0;
  private readonly open = new Map<
    number,
    { resolve: (result: unknown) => void; reject: (error: Error) => void }
  >();

  private constructor(private readonly worker: Worker) {
    worker.on('message', (answer: Answer) => {
      const call = this.open.get(answer.id);
      this.open.delete(answer.id);
      if ('error' in answer) call?.reject(new Error(answer.error));
      else call?.resolve(answer.result);
    });
    worker.on('error', (error) => {
      for (const { reject } of this.open.values()) reject(error);
      this.open.clear();
    });
  }

  static start(): ProxyThread {
    // A thread runs what was built, also where a test imports this from its source.
    const file = resolve(import.meta.dirname, '../../dist/faults/proxy-thread.js');
    return new ProxyThread(new Worker(file, { workerData: ROLE }));
  }

  async proxy(options: ProxyOptions): Promise<ProxyControl> {
    const port = (await this.call({ lever: 'open', args: [options] })) as number;
    const lever =
      (name: Lever) =>
      (...args: unknown[]) =>
        this.call({ port, lever: name, args });
    return {
      port,
      retarget: lever('retarget'),
      delay: lever('delay'),
      silenceEstablished: lever('silenceEstablished'),
      stall: lever('stall'),
      refuse: lever('refuse'),
      cut: lever('cut'),
      lose: lever('lose'),
      pass: lever('pass'),
      figures: lever('figures'),
      stop: lever('stop'),
    } as ProxyControl;
  }

  /** Ends the thread, and with it all its proxies. */
  async stop(): Promise<void> {
    await this.worker.terminate();
  }

  private call(call: Omit<Call, 'id'>): Promise<unknown> {
    this.calls += 1;
    const id = this.calls;
    return new Promise((done, failed) => {
      this.open.set(id, { resolve: done, reject: failed });
      this.worker.postMessage({ id, ...call } satisfies Call, []);
    });
  }
}

function serve(): void {
  const proxies = new Map<number, FaultProxy>();
  const carryOut = async ({ port, lever, args }: Call): Promise<unknown> => {
    if (lever === 'open') {
      const opened = await FaultProxy.start(args[0] as ProxyOptions);
      proxies.set(opened.port, opened);
      return opened.port;
    }
    const proxy = proxies.get(port ?? 0);
    if (!proxy) throw new Error(`there is no proxy on port ${port}`);
    if (lever === 'stop') proxies.delete(port ?? 0);
    return (proxy[lever] as (...args: readonly unknown[]) => unknown).call(proxy, ...args);
  };
  parentPort?.on('message', (call: Call) => {
    carryOut(call).then(
      (result) => parentPort?.postMessage({ id: call.id, result } satisfies Answer, []),
      (error: Error) => parentPort?.postMessage({ id: call.id, error: error.message } satisfies Answer, []),
    );
  });
}

if (!isMainThread && workerData === ROLE) serve();
