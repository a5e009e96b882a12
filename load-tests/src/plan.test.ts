import { readFileSync } from 'node:fs';
import { describe, expect, it } from '@jest/globals';
import {
  OUTCOMES,
  arrivalsBySecond,
  arrivalsOf,
  planSpike,
  spikeStages,
  spikeThresholds,
  unwitnessed,
  vusFor,
} from './plan.js';

const SCENARIO = readFileSync(new URL('scenarios/spike.ts', import.meta.url), 'utf8');
const settings = { scale: 1, baselinePerSecond: 4, iterationSeconds: 2 };
const target = {
  baseUrl: 'http://127.0.0.1:8080',
  saleId: 'loadtest-1',
  skuId: 'sku',
  run: '1',
  units: 100,
  summaryFile: '/tmp/summary.json',
};

describe('the spike', () => {
  it('is quiet, jumps three hundredfold within an instant, decays and recovers', () => {
    expect(spikeStages(settings)).toEqual([
      { target: 40, seconds: 10 },
      { target: 12_000, seconds: 0 },
      { target: 12_000, seconds: 15 },
      { target: 40, seconds: 5 },
      { target: 40, seconds: 10 },
    ]);
  });

  it('keeps its shape at a tenth of the scale, where the base is below one arrival a second', () => {
    const [quiet, , peak] = spikeStages({ ...settings, scale: 0.1 });
    expect([quiet?.target, peak?.target]).toEqual([4, 1_200]);
  });

  it('never asks for less than a rate that k6 can send', () => {
    expect(Math.min(...spikeStages({ ...settings, scale: 0.01 }).map((stage) => stage.target))).toBe(1);
  });

  it('asks for as many arrivals as its area says', () => {
    // 4/s × 10 s + 1200/s × 15 s + the mean of both × 5 s + 4/s × 10 s
    expect(arrivalsOf(spikeStages(settings))).toBe(40 + 18_000 + 3_010 + 40);
  });

  it('asks in each second for what belongs to it, the seconds adding up to the whole', () => {
    const stages = spikeStages(settings);
    const bySecond = arrivalsBySecond(stages);
    expect(bySecond).toHaveLength(40);
    expect(bySecond.slice(9, 11)).toEqual([4, 1_200]);
    expect(bySecond.reduce((sum, arrivals) => sum + arrivals, 0)).toBeCloseTo(arrivalsOf(stages), 6);
  });

  it('has VUs for the highest rate times the slowest visits, and a half more', () => {
    expect(vusFor(spikeStages(settings), 2)).toBe(1_200 * 2 * 1.5);
    expect(planSpike({ ...settings, scale: 0.1 }, target).vus).toBe(360);
  });
});

describe('its thresholds', () => {
  it('have a witness wherever a silent run would pass them', () => {
    expect(unwitnessed(spikeThresholds(1_000, 100))).toEqual([]);
    expect(unwitnessed(spikeThresholds(1_000, 5_000))).toEqual([]);
  });

  it('are found out when they have none', () => {
    expect(unwitnessed({ protocol_error: ['count==0'] })).toEqual(['protocol_error']);
    expect(unwitnessed({ oversold_units: ['count==0'], attempts: ['count>=10'] })).toEqual([
      'oversold_units',
    ]);
    expect(unwitnessed({ protocol_error: ['count==0'], http_reqs: ['count>=0'] })).toContain(
      'protocol_error',
    );
  });

  it('want everything sold and somebody refused where units are few, nobody refused where there are enough', () => {
    expect(spikeThresholds(1_000, 100)).toMatchObject({
      'attempts{outcome:accepted}': ['count>=99'],
      'attempts{outcome:sold_out}': ['count>0'],
    });
    expect(spikeThresholds(1_000, 5_000)).toMatchObject({
      'attempts{outcome:accepted}': ['count>=980'],
      'attempts{outcome:sold_out}': ['count==0'],
    });
  });

  it('are on metrics and tags that the scenario really sends', () => {
    const own = [...SCENARIO.matchAll(/new (?:Counter|Trend)\('(\w+)'/g)].map((match) => match[1]);
    const builtIn = ['http_reqs', 'http_req_failed', 'dropped_iterations'];
    for (const name of Object.keys(spikeThresholds(1_000, 100))) {
      const [, metric, outcome] = /^(\w+)(?:\{outcome:(\w+)\})?$/.exec(name) ?? [];
      expect([...own, ...builtIn]).toContain(metric);
      if (outcome !== undefined) expect(OUTCOMES).toContain(outcome);
    }
  });
});

describe('the scenario', () => {
  it('makes load by arrival rates only, never by a number of users who wait for answers', () => {
    const executors = [...SCENARIO.matchAll(/executor: '([\w-]+)'/g)].map((match) => match[1]);
    expect(executors.length).toBeGreaterThan(0);
    for (const executor of executors) expect(executor).toMatch(/arrival-rate$/);
    expect(SCENARIO).not.toMatch(/^\s*(vus|duration|iterations|stages):\s*[\d[]/m);
  });

  it('names every request by its route, so that series do not grow with the crowd', () => {
    expect(SCENARIO).toContain('tags: { name }');
    expect(SCENARIO.match(/http\.(get|post|put|del|patch|request|batch)\(/g)).toEqual(['http.request(']);
  });
});
