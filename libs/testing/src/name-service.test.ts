import { Resolver } from 'node:dns/promises';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { NameService } from './name-service.js';

describe('the name service', () => {
  let names: NameService;
  let resolver: Resolver;
  beforeEach(async () => {
    names = await NameService.start();
    resolver = new Resolver({ timeout: 200, tries: 1 });
    resolver.setServers([names.url.replace('dns://', '')]);
  });
  afterEach(() => names.stop());

  it('knows the addresses of those who are there now', async () => {
    names.add('inventory.test', '127.0.1.1');
    names.add('inventory.test', '127.0.1.2');
    expect((await resolver.resolve4('inventory.test')).toSorted()).toEqual(['127.0.1.1', '127.0.1.2']);
    names.remove('inventory.test', '127.0.1.1');
    expect(await resolver.resolve4('inventory.test')).toEqual(['127.0.1.2']);
  });

  it('answers that a name has no address', async () => {
    await expect(resolver.resolve4('nobody.test')).rejects.toMatchObject({ code: 'ENODATA' });
    names.add('inventory.test', '127.0.1.1');
    await expect(resolver.resolve6('inventory.test')).rejects.toMatchObject({ code: 'ENODATA' });
  });

  it('can fall silent', async () => {
    names.add('inventory.test', '127.0.1.1');
    names.fallSilent(true);
    await expect(resolver.resolve4('inventory.test')).rejects.toMatchObject({ code: 'ETIMEOUT' });
    expect(names.ignored).toBeGreaterThan(0);
    names.fallSilent(false);
    expect(await resolver.resolve4('inventory.test')).toEqual(['127.0.1.1']);
  });
});
