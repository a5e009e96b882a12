import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startEdge, type Edge } from '@flash-sale/edge';
import { chooseFreePorts } from '@flash-sale/stack';
import type { ProcessGroup } from './processes.js';

/** A gateway behind the edge, by the URLs where shoppers find it and where it says whether it is ready. */
export interface BehindEdge {
  readonly shopUrl: string;
  readonly readyUrl: string;
}

const HOST = '127.0.0.1';

/** nginx in front of the gateways. */
export class RunningEdge {
  private constructor(
    private readonly edge: Edge,
    private readonly folder: string,
    private readonly port: number,
    private readonly opsPort: number,
  ) {}

  static async start(gateways: readonly BehindEdge[]): Promise<RunningEdge> {
    const [port = 0, opsPort = 0] = await chooseFreePorts(2);
    const folder = mkdtempSync(join(tmpdir(), 'flash-sale-bench-edge-'));
    const hosts = (urls: readonly string[]) => urls.map((url) => new URL(url).host).join(',');
    try {
      const edge = await startEdge({
        variables: {
          GATEWAYS: hosts(gateways.map(({ shopUrl }) => shopUrl)),
          GATEWAY_FEEDS: hosts(gateways.map(({ readyUrl }) => readyUrl)),
          HOST,
          PORT: String(port),
          OPS_PORT: String(opsPort),
          EDGE_HOME: folder,
          // The folder is this user's. All shoppers are one address here; by shopper it limits as it does for everybody.
          EDGE_USER: 'root',
          RATE_LIMIT_PER_ADDRESS_PER_SECOND: '0',
          CONNECTIONS_PER_ADDRESS: '0',
        },
      });
      return new RunningEdge(edge, folder, port, opsPort);
    } catch (error) {
      rmSync(folder, { recursive: true, force: true });
      throw error;
    }
  }

  get origin(): string {
    return `http://${HOST}:${this.port}`;
  }

  /** nginx' first process and its workers. */
  get group(): ProcessGroup {
    const { pid } = this.edge;
    if (pid === undefined) throw new Error('the edge does not run');
    const workers = readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1').trim().split(' ');
    return { name: 'edge', pids: [pid, ...workers.filter(Boolean).map(Number)] };
  }

  /** How many calls it has answered so far without asking a gateway. */
  async answeredItself(): Promise<number> {
    const answer = await fetch(`http://${HOST}:${this.opsPort}/metrics`, {
      signal: AbortSignal.timeout(5_000),
    });
    const counts = (await answer.text()).matchAll(/^edge_answers_total\{code="[^"]*"\} (\d+)$/gm);
    return [...counts].reduce((sum, [, count]) => sum + Number(count), 0);
  }

  async stop(): Promise<void> {
    await this.edge.stop();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
