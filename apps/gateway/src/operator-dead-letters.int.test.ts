import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';
import { LoneGateway, accessToken } from './fixtures/lone-gateway.js';

/** What the gateway itself refuses; nobody is behind it, so an honest call ends as `unavailable`. */
let world: LoneGateway;

beforeAll(async () => {
  world = await LoneGateway.start();
});
afterAll(() => world.stop());

async function send(call: string, body?: string, role = 'operator'): Promise<string> {
  const [method = '', path = ''] = call.split(' ');
  const response = await fetch(`${world.operatorUrl}/v1/operator/${path}`, {
    method,
    headers: {
      authorization: `Bearer ${accessToken('olga', { role })}`,
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
    },
    ...(body === undefined ? {} : { body }),
  });
  const { code } = (await response.json()) as { code: string };
  return `${response.status} ${code}`;
}

interface Sent {
  readonly call: string;
  readonly body?: string;
}

const LETTER = 'dead-letters/c63ed48c7a2d99e67cf2233d';

describe('calls about dead letters', () => {
  it.each<Sent>([
    { call: 'GET dead-letters' },
    { call: 'GET dead-letters?state=pending&cursor=MTIzLmFi' },
    { call: `POST ${LETTER}/replay` },
    { call: `POST ${LETTER}/replay`, body: '{}' },
    { call: `DELETE ${LETTER}`, body: '{"reason":"a test"}' },
    { call: 'GET audit-log?saleId=noon' },
  ])('pass where they are right: $call $body', async ({ call, body }) => {
    expect(await send(call, body)).toBe('503 unavailable');
  });

  it.each<Sent & { readonly answer: string }>([
    { call: 'GET dead-letters?state=open', answer: '400 malformed' },
    { call: 'GET dead-letters?state=pending&state=dropped', answer: '400 malformed' },
    { call: 'GET dead-letters?cursor=%27', answer: '400 malformed' },
    { call: 'GET audit-log?saleId=a%20b', answer: '400 malformed' },
    { call: 'GET audit-log?state=pending', answer: '422 invalid' },
    { call: 'POST dead-letters/a%27b/replay', answer: '400 malformed' },
    { call: `POST ${LETTER}/replay`, body: '{"force":true}', answer: '422 invalid' },
    { call: `DELETE ${LETTER}`, answer: '422 invalid' },
    { call: `DELETE ${LETTER}`, body: '{"reason":" "}', answer: '422 invalid' },
    { call: `DELETE ${LETTER}`, body: `{"reason":"${'x'.repeat(501)}"}`, answer: '422 invalid' },
    { call: `PUT ${LETTER}`, body: '{}', answer: '405 method_not_allowed' },
  ])('are refused where they are not: $call', async ({ call, body, answer }) => {
    expect(await send(call, body)).toBe(answer);
  });

  it('are for operators only', async () => {
    expect(await send('GET dead-letters', undefined, 'shopper')).toBe('403 forbidden');
    expect(await send('GET audit-log', undefined, 'shopper')).toBe('403 forbidden');
  });
});
