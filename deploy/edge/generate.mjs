// Writes problems.lua, the edge's copy of libs/contracts/src/problem.ts, so that a refusal reads the same whoever makes it.
// `--check` writes nothing and fails when the copy is not what the contracts say.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PROBLEM_CODES, problemForStatus, problemOf } from '@flash-sale/contracts';

const file = join(import.meta.dirname, 'problems.lua');
/** What nginx may answer by itself (nginx.conf, `error_page`). */
const NGINX_STATUSES = [400, 403, 404, 405, 408, 413, 415, 429, 431, 500, 502, 503, 504];

/** The body without its request id, which ends it. A string of JSON is one of Lua too, as long as nothing in it is escaped. */
function bodyOf(code) {
  const { title, status } = problemOf(code);
  const body = JSON.stringify({ type: `urn:flash-sale:problem:${code}`, title, status, code });
  if (/[\\\]]/.test(body))
    throw new Error(`the title of ${code} has a character that Lua would read as another`);
  return `[[${body.slice(0, -1)},"requestId":"]]`;
}

function codeFor(status) {
  // Of these two the shopper knows nothing: there is no answer at the moment.
  if (status === 502 || status === 504) return problemForStatus(503);
  // Nothing here is anybody's; what may not be read is not there.
  if (status === 403) return problemForStatus(404);
  return problemForStatus(status);
}

const entries = PROBLEM_CODES.map((code) => {
  const { status, retryAfterSeconds } = problemOf(code);
  const retry = retryAfterSeconds === undefined ? '' : `, retry_after_seconds = ${retryAfterSeconds}`;
  return `    ${code} = { status = ${status}${retry}, body = ${bodyOf(code)} },`;
});
const statuses = NGINX_STATUSES.map((status) => `    [${status}] = "${codeFor(status)}",`);
const text = `-- Generated from libs/contracts/src/problem.ts by \`npm run generate\`; do not edit.
return {
  by_code = {
${entries.join('\n')}
  },
  -- The code for a status that nginx itself came to.
  by_status = {
${statuses.join('\n')}
  },
}
`;

if (!process.argv.includes('--check')) writeFileSync(file, text);
else if (readFileSync(file, 'utf8') !== text) {
  console.error('deploy/edge/problems.lua is stale. Run: npm run generate');
  process.exitCode = 1;
}
