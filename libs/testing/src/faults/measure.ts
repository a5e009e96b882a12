import type { ServiceName, World } from '../world.js';
import type { Seen } from './crowd.js';
import type { Stage } from './scenario.js';

/** How late timers fired in a service's first process since this was asked last: 99th percentile, ms. */
export async function loopDelayMs(world: World, name: ServiceName): Promise<number> {
  const seconds = await world.metric(name, String.raw`nodejs_eventloop_delay\{[^\n]*quantile="0.99"[^\n]*\}`);
  return Math.round(seconds * 1_000);
}

/** Waits until an order that is sent from now on is answered 202, and notes how long that took; throws when it is too long. */
export async function acceptsAgain(
  { crowd, note, slack }: Stage,
  withinMs: number,
  since: string,
): Promise<void> {
  note(`accepts again ${Math.round(await crowd.accepting(withinMs * slack))} ms after ${since}`);
}

/**
 * For faults that nobody may notice: no request is cut, none fails, none is refused.
 *
 * @param refusedBelow the share of requests that may be answered 503 all the same, for rows that have a reason
 */
export function mustNotShow(seen: Seen, expect: Stage['expect'], refusedBelow = 0): void {
  expect(seen.cut === 0, 'no request is cut', seen.answers);
  expect(seen.count({ http: 500 }) === 0, 'no request fails', seen.answers);
  const refused = seen.count({ http: 503 });
  const most = Math.floor(refusedBelow * seen.count());
  expect(refused <= most, `no more than ${most} requests are answered 503`, seen.answers);
}
