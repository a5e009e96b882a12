import { createReadStream } from 'node:fs';
import { createRequire } from 'node:module';
import type { FastifyInstance } from 'fastify';
import { openApiDocument } from './openapi.js';

/** Files of Swagger UI that the page needs, with their types. */
const FILES = {
  'swagger-ui.css': 'text/css; charset=utf-8',
  'swagger-ui-bundle.js': 'text/javascript; charset=utf-8',
  'favicon-32x32.png': 'image/png',
};

const PAGE = `<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <title>Flash sale API</title>
    <link rel="stylesheet" href="/docs/swagger-ui.css" />
    <link rel="icon" href="/docs/favicon-32x32.png" />
  </head>
  <body>
    <div id="page"></div>
    <script src="/docs/swagger-ui-bundle.js"></script>
    <script>
      SwaggerUIBundle({ url: '/openapi.json', dom_id: '#page', validatorUrl: null });
    </script>
  </body>
</html>
`;

/**
 * `/openapi.json`, and `/docs` to read it; the page asks nobody else for anything. The document is made when it is first
 * asked for, and the files are read from Swagger UI's package, so that no start waits for either.
 */
export function serveDocument(fastify: FastifyInstance): void {
  const { resolve } = createRequire(import.meta.url);
  let document: object | undefined;
  fastify.get('/openapi.json', async () => (document ??= openApiDocument()));
  for (const address of ['/docs', '/docs/'])
    fastify.get(address, async (_request, reply) => reply.type('text/html; charset=utf-8').send(PAGE));
  for (const [file, type] of Object.entries(FILES)) {
    const path = resolve(`swagger-ui-dist/${file}`);
    fastify.get(`/docs/${file}`, async (_request, reply) => reply.type(type).send(createReadStream(path)));
  }
}
