import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from '@jest/globals';
import { ProxyThread } from './proxy-thread.js';
import { RigMysql } from './rig-mysql.js';

describe('a server of a rig that starts, but cannot be made ready', () => {
  it('is ended, and its disk unmounted, before its failure is told', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'flash-sale-rig-'));
    const proxies = ProxyThread.start();
    try {
      const launching = RigMysql.launch({
        name: 'mysql',
        folder: join(folder, 'mysql'),
        diskMegabytes: 768,
        proxy: await proxies.proxy({ protocol: 'mysql' }),
        // Such a server knows no users, so it cannot be told one more.
        settings: { 'skip-grant-tables': 'ON', 'init-file': '/dev/null' },
        log: () => undefined,
      });
      await expect(launching).rejects.toThrow('skip-grant-tables');
      expect(readFileSync('/proc/mounts', 'utf8')).not.toContain(folder);
    } finally {
      await proxies.stop();
      rmSync(folder, { recursive: true });
    }
  }, 120_000);
});
