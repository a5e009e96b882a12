import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { aptScript, hasLua } from './software.js';

let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'flash-sale-software-test-'));
  for (const path of ['bin', 'usr/sbin', 'run/systemd/system'])
    mkdirSync(join(folder, path), { recursive: true });
});
afterEach(() => rmSync(folder, { recursive: true }));

/** Puts a program of this name in front of the machine's own. */
function play(name: string, script: string): string {
  const path = join(folder, 'bin', name);
  writeFileSync(path, `#!/bin/sh\n${script}\n`);
  chmodSync(path, 0o755);
  return path;
}

interface Machine {
  /** Packages that are installed. */
  readonly packages?: readonly string[];
  /** Services that systemd knows. */
  readonly services?: readonly string[];
  /** Packages that apt cannot install. */
  readonly unknown?: readonly string[];
}

/** Installs nginx and its modules on a machine that is played; gives what apt and systemd were told. */
function install({ packages = [], services = [], unknown = [] }: Machine) {
  const log = join(folder, 'log');
  writeFileSync(log, '');
  const oneOf = (names: readonly string[]) => (names.length > 0 ? names.join('|') : "''");
  play('dpkg', `case $2 in ${oneOf(packages)}) echo 'Status: install ok installed' ;; *) exit 1 ;; esac`);
  play(
    'apt-get',
    `echo "apt-get $*" >> ${log}\nfor last; do :; done\ncase $last in ${oneOf(unknown)}) exit 100 ;; esac`,
  );
  play(
    'systemctl',
    `echo "systemctl $*" >> ${log}\n[ "$1" != cat ] || case $2 in ${oneOf(services)}) ;; *) exit 1 ;; esac`,
  );
  const { status, stderr } = spawnSync(
    'sh',
    ['-c', aptScript(folder), 'install', 'brotli', 'nginx', 'lua', 'cjson'],
    { env: { PATH: `${join(folder, 'bin')}:${process.env['PATH'] ?? ''}` }, encoding: 'utf8' },
  );
  expect([status, stderr]).toEqual([0, '']);
  const lines = readFileSync(log, 'utf8').split('\n');
  return {
    installed: lines
      .filter((line) => line.startsWith('apt-get install'))
      .map((line) => line.replace(/^.*Timeout=\d+ /, '')),
    stopped: lines.filter((line) => /^systemctl .*(disable|stop|mask)/.test(line)),
  };
}

describe('installing with apt', () => {
  it('keeps the services of what it installs from running', () => {
    const { installed, stopped } = install({});
    expect(installed).toEqual(['nginx lua cjson', 'brotli']);
    expect(stopped).toContain('systemctl disable --now nginx.service');
  });

  it('leaves alone what was installed before, and its service', () => {
    const { installed, stopped } = install({ packages: ['nginx'], services: ['nginx.service'] });
    expect(installed).toEqual(['lua cjson', 'brotli']);
    expect(stopped.join()).not.toContain('nginx');
  });

  it('leaves alone a service that came by another way', () => {
    expect(install({ services: ['nginx.service'] }).stopped.join()).not.toContain('nginx');
  });

  it('goes on without what is optional', () => {
    expect(install({ unknown: ['brotli'] }).installed).toEqual(['nginx lua cjson', 'brotli']);
  });

  it('leaves no policy behind, and one that was there as it was', () => {
    const policy = join(folder, 'usr/sbin/policy-rc.d');
    install({});
    expect(() => readFileSync(policy)).toThrow('ENOENT');
    writeFileSync(policy, '#!/bin/sh\n');
    install({});
    expect(readFileSync(policy, 'utf8')).toBe('#!/bin/sh\n');
  });
});

describe('an nginx', () => {
  /** Plays one that takes the configuration and ends as Lua says. */
  const nginx = (script: string) => play('nginx', `[ "$1" != -V ] || exit 0\nconf="$2nginx.conf"\n${script}`);

  it('has Lua where it can load what the edge loads', () => {
    expect(hasLua(nginx('grep -q cjson.safe "$conf"'))).toBe(true);
  });

  it.each([
    ['does not know Lua', 'exit 1'],
    ['has Lua without cjson', 'grep -q cjson.safe "$conf" && exit 1'],
    ['is none', 'exit 127'],
  ])('does not have it where it %s', (_, script) => {
    expect(hasLua(nginx(script))).toBe(false);
  });
});
