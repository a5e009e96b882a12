import type { FastifyInstance } from 'fastify';

interface Route {
  readonly pattern: string;
  readonly matches: RegExp;
  readonly methods: Set<string>;
}

/**
 * What is routed, as the router says it: to tell a wrong method (405) from a wrong address (404), and for the test that the
 * document describes every route.
 */
export class RouteTable {
  private readonly routes = new Map<string, Route>();

  /** Must be called before routes are registered. */
  watch(fastify: FastifyInstance): void {
    fastify.addHook('onRoute', ({ url, method }) => {
      if (url.includes('*')) return;
      const route = this.routes.get(url) ?? {
        pattern: url,
        matches: expressionOf(url),
        methods: new Set<string>(),
      };
      for (const one of [method].flat()) route.methods.add(one);
      this.routes.set(url, route);
    });
  }

  /** The methods that an address takes; none where there is no such address. */
  methodsFor(url: string): string[] {
    const [path = ''] = url.split('?');
    const methods = [...this.routes.values()]
      .filter((route) => route.matches.test(path))
      .flatMap((route) => [...route.methods]);
    return [...new Set(methods)].sort();
  }

  /** `METHOD /pattern` of each route, sorted. */
  list(): string[] {
    return [...this.routes.values()]
      .flatMap(({ pattern, methods }) => [...methods].map((method) => `${method} ${pattern}`))
      .sort();
  }
}

function expressionOf(pattern: string): RegExp {
  const parts = pattern
    .split('/')
    .map((part) => (part.startsWith(':') ? '[^/]+' : part.replace(/[^A-Za-z0-9_-]/g, '\\$&')));
  return new RegExp(`^${parts.join('/')}$`);
}
