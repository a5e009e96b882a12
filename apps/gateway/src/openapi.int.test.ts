import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { PROBLEM_CODES } from '@flash-sale/contracts';
import { z } from 'zod';
import { LoneGateway } from './fixtures/lone-gateway.js';
import { openApiDocument } from './openapi.js';

/** The document against the routes that a running gateway really has. */
let world: LoneGateway;
let webRoot: string;

beforeAll(async () => {
  webRoot = mkdtempSync(join(tmpdir(), 'flash-sale-web-'));
  writeFileSync(join(webRoot, 'index.html'), '<!doctype html><title>shop</title>');
  world = await LoneGateway.start({ WEB_ROOT: webRoot });
});

afterAll(async () => {
  await world.stop();
  rmSync(webRoot, { recursive: true });
});

const Operation = z.object({
  operationId: z.string(),
  summary: z.string(),
  parameters: z.array(z.looseObject({ in: z.string(), name: z.string() })),
  responses: z.record(
    z.string(),
    z.looseObject({
      description: z.string(),
      headers: z.looseObject({}).optional(),
      content: z.record(z.string(), z.looseObject({})).optional(),
    }),
  ),
});
const Document = z.looseObject({
  openapi: z.string().startsWith('3.1.'),
  paths: z.record(z.string(), z.record(z.string(), Operation)),
  components: z.looseObject({ schemas: z.record(z.string(), z.looseObject({})) }),
});

const document = () => Document.parse(openApiDocument());
const operations = () =>
  Object.entries(document().paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method, operation })),
  );

describe('the OpenAPI document', () => {
  it('describes every route, and every route is described', () => {
    const { shopper, operator } = world.gateway.routes;
    const routed = [...new Set([...shopper.list(), ...operator.list()])].filter(
      (route) => route.includes(' /v1/') && !route.startsWith('HEAD '),
    );
    const described = operations().map(
      ({ method, path }) => `${method.toUpperCase()} ${path.replaceAll(/\{(\w+)\}/g, ':$1')}`,
    );
    expect(described.sort()).toEqual(routed.sort());
    expect(routed.length).toBeGreaterThan(20);
  });

  it('is served, with a page to read it that asks nobody else', async () => {
    const served = await fetch(`${world.url}/openapi.json`);
    expect(served.headers.get('content-type')).toMatch(/^application\/json/);
    expect(await served.json()).toEqual(JSON.parse(JSON.stringify(openApiDocument())));
    const page = await (await fetch(`${world.url}/docs`)).text();
    expect(page).toContain('Flash sale API');
    expect(page.match(/(src|href)="https?:/g)).toBeNull();
    expect((await fetch(`${world.url}/docs/swagger-ui-bundle.js`)).status).toBe(200);
    expect((await fetch(`${world.operatorUrl}/openapi.json`)).status).toBe(200);
  });

  it('refers to nothing that is not there, and names each call once', () => {
    const text = JSON.stringify(document());
    for (const [, name] of text.matchAll(/"#\/components\/schemas\/(\w+)"/g)) {
      expect(Object.keys(document().components.schemas)).toContain(name);
    }
    const ids = operations().map(({ operation }) => operation.operationId);
    expect(new Set(ids).size).toBe(ids.length);
  });

  it('gives every path parameter, a Retry-After with every 429 and 503, and an example of every problem', () => {
    for (const { path, operation } of operations()) {
      const named = operation.parameters
        .filter((parameter) => parameter.in === 'path')
        .map(({ name }) => name);
      expect(named).toEqual([...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name));
      for (const [status, response] of Object.entries(operation.responses)) {
        if (status === '429' || status === '503') expect(response.headers).toHaveProperty('Retry-After');
        if (Number(status) >= 400) {
          expect(response.content?.['application/problem+json']).toHaveProperty('examples');
        }
      }
      expect(operation.responses).toHaveProperty('500');
      expect(operation.responses).toHaveProperty('429');
    }
  });

  it('has a place for every problem there is', () => {
    const text = JSON.stringify(document().paths);
    // A ticket of codes that no call of this document answers with would be a table entry nobody can meet.
    const missing = PROBLEM_CODES.filter((code) => !text.includes(`urn:flash-sale:problem:${code}`));
    expect(missing).toEqual([]);
  });

  it('is not served where it is switched off', async () => {
    const silent = await LoneGateway.start({ DOCS: 'false' });
    try {
      expect((await fetch(`${silent.url}/openapi.json`)).status).toBe(404);
      expect((await fetch(`${silent.url}/docs`)).status).toBe(404);
    } finally {
      await silent.stop();
    }
  });
});

describe('the shopper page', () => {
  it('is served at the root, beside the problems of every other address', async () => {
    const page = await fetch(`${world.url}/`);
    expect(page.status).toBe(200);
    expect(await page.text()).toContain('shop');
    expect(page.headers.get('cache-control')).toBe('no-cache');
    expect(page.headers.get('content-security-policy')).toContain("default-src 'self'");
    expect(page.headers.get('x-content-type-options')).toBe('nosniff');
    const missing = await fetch(`${world.url}/nothing.js`);
    expect([missing.status, missing.headers.get('content-type')]).toEqual([
      404,
      'application/problem+json; charset=utf-8',
    ]);
    expect((await fetch(`${world.url}/..%2f..%2fetc/passwd`)).status).toBe(404);
    expect((await fetch(`${world.operatorUrl}/`)).status).toBe(404);
  });
});
