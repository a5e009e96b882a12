import { describe, expect, it } from '@jest/globals';
import { connect } from 'node:net';
import { startRedisCluster } from './redis-cluster.js';

/** One command, its whole reply; no client library, so that what is tested is the cluster itself. */
function ask(url: string, command: string): Promise<string> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve, reject) => {
    const socket = connect({ host: hostname, port: Number(port) }, () =>
      socket.write(`${command}\r\nQUIT\r\n`),
    );
    let reply = '';
    socket.setTimeout(3_000, () => socket.destroy(new Error('no reply')));
    socket.on('data', (chunk) => (reply += chunk.toString()));
    socket.once('error', reject);
    socket.once('close', () => resolve(reply));
  });
}

describe('a Redis Cluster for tests', () => {
  it('has three masters that agree that all slots are served, and is gone after stop', async () => {
    const cluster = await startRedisCluster({ masters: 3 });
    try {
      expect(cluster.nodes).toHaveLength(3);
      for (const node of cluster.nodes) {
        const info = await ask(node, 'CLUSTER INFO');
        expect(info).toContain('cluster_state:ok');
        expect(info).toContain('cluster_slots_ok:16384');
        expect(info).toContain('cluster_size:3');
      }
      // The slot of "foo" is 12182: the last third.
      const answers = await Promise.all(cluster.nodes.map((node) => ask(node, 'SET foo bar')));
      expect(answers.filter((answer) => answer.startsWith('+OK'))).toHaveLength(1);
      expect(answers.filter((answer) => answer.startsWith('-MOVED 12182'))).toHaveLength(2);
    } finally {
      await cluster.stop();
    }
    for (const node of cluster.nodes) await expect(ask(node, 'PING')).rejects.toThrow('ECONNREFUSED');
  });

  it('is refused with fewer than three', async () => {
    await expect(startRedisCluster({ masters: 2 })).rejects.toThrow('at least 3 masters');
  });
});
