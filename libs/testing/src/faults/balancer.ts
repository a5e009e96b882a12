import { Agent, request as httpRequest } from 'node:http';

const PROBE_EVERY_MS = 250;
const PROBE_WITHIN_MS = 2_000;

/** One gateway, as a load balancer sees it. */
export interface Backend {
  readonly shopUrl: string;
  readonly readyUrl: string;
  readonly agent: Agent;
  ready: boolean;
  /** Requests that were sent to it since the start. */
  sent: number;
  /** When it was last found not ready, and ready again, on the `performance.now()` scale; 0 for never. */
  ejectedAtMs: number;
  admittedAtMs: number;
}

/**
 * The load balancer in front of the gateways: sends each request to the next one that says it is ready. It is part of the
 * crowd's process, so that it costs no hop; connections are kept alive as those of an ingress are.
 */
export class Balancer {
  readonly backends: readonly Backend[];
  private readonly probes: NodeJS.Timeout[] = [];
  private turn = 0;

  constructor(
    gateways: readonly { readonly shopUrl: string; readonly readyUrl: string }[],
    mostConnections: number,
  ) {
    this.backends = gateways.map((gateway) => ({
      ...gateway,
      // The newest free connection first: those that are idle for long are closed by the other side.
      agent: new Agent({ keepAlive: true, maxSockets: mostConnections, scheduling: 'lifo' }),
      ready: false,
      sent: 0,
      ejectedAtMs: 0,
      admittedAtMs: 0,
    }));
  }

  async start(): Promise<void> {
    await Promise.all(this.backends.map((backend) => this.probe(backend)));
    for (const backend of this.backends) {
      let probing = false;
      const timer = setInterval(() => {
        if (probing) return;
        probing = true;
        void this.probe(backend).finally(() => (probing = false));
      }, PROBE_EVERY_MS);
      this.probes.push(timer);
    }
  }

  /** The gateway for the next request. With none ready, any: that there is nobody is for the caller to see. */
  next(): Backend {
    const ready = this.backends.filter((backend) => backend.ready);
    const among = ready.length > 0 ? ready : this.backends;
    this.turn = (this.turn + 1) % among.length;
    const backend = among[this.turn];
    if (!backend) throw new Error('a balancer has at least one gateway');
    return backend;
  }

  stop(): void {
    for (const timer of this.probes) clearInterval(timer);
    for (const { agent } of this.backends) agent.destroy();
  }

  private async probe(backend: Backend): Promise<void> {
    const ready = await answersOk(backend.readyUrl);
    if (ready === backend.ready) return;
    backend.ready = ready;
    if (ready) backend.admittedAtMs = performance.now();
    else backend.ejectedAtMs = performance.now();
  }
}

function answersOk(url: string): Promise<boolean> {
  return new Promise((resolve) => {
    const asking = httpRequest(url, { timeout: PROBE_WITHIN_MS }, (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    });
    asking.on('timeout', () => asking.destroy());
    asking.on('error', () => resolve(false));
    asking.end();
  });
}
