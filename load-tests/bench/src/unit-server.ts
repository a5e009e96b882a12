import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { endWithParent } from './child.js';

/**
 * The unit of all costs, in a process of its own: a bare HTTP server that parses a small JSON body and answers with another.
 * Whatever a machine makes faster or slower it makes so for this too.
 */
const ANSWER = JSON.stringify({ state: 'accepted' });

endWithParent();
const server = createServer((request, response) => {
  let body = '';
  request.setEncoding('utf8');
  request.on('data', (text: string) => (body += text));
  request.on('end', () => {
    const { n } = JSON.parse(body) as { n?: number };
    response.writeHead(n === undefined ? 400 : 200, {
      'content-type': 'application/json',
      'content-length': ANSWER.length,
    });
    response.end(ANSWER);
  });
});
server.keepAliveTimeout = 65_000;
server.listen(0, '127.0.0.1', () => {
  process.send?.((server.address() as AddressInfo).port);
});
