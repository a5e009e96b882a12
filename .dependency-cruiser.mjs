/**
 * The direction of dependencies, as a program. `npm test` runs it over the whole tree, and shows on a deliberate
 * violation per rule that each one bites (libs/testing/src/boundaries.test.ts).
 */
const SOURCES = '^(apps|libs|deploy|load-tests)/';
const TESTS = '\\.test\\.ts$';
const own = (name) => `(^|/)node_modules/${name}/`;

/** @type {import('dependency-cruiser').IConfiguration} */
export default {
  forbidden: [
    {
      name: 'no-circle',
      comment: 'A circle means that two files are one thought; join them or turn one arrow round.',
      severity: 'error',
      from: {},
      to: { circular: true },
    },
    {
      name: 'unresolvable',
      comment: 'An import must name something that exists and that its own package.json lists.',
      severity: 'error',
      from: { path: SOURCES },
      to: { couldNotResolve: true, pathNot: '\\.css$' },
    },
    {
      name: 'apps-stand-alone',
      comment: 'Apps meet on the wire, never in each other’s sources.',
      severity: 'error',
      from: { path: '^apps/([^/]+)/' },
      to: { path: '^apps/', pathNot: '^apps/$1/' },
    },
    {
      name: 'libs-know-no-apps',
      severity: 'error',
      from: { path: '^libs/' },
      to: { path: '^(apps|load-tests)/' },
    },
    {
      name: 'domain-is-pure',
      comment: 'Rules do no I/O: domain imports zod and node:crypto and nothing else.',
      severity: 'error',
      from: { path: '^libs/domain/src/', pathNot: TESTS },
      to: { pathNot: ['^libs/domain/', own('zod'), '^(node:)?crypto$'] },
    },
    {
      name: 'contracts-and-database-know-domain-only',
      severity: 'error',
      from: { path: '^libs/(contracts|database)/src/' },
      to: { path: '^(libs|deploy)/', pathNot: '^libs/(domain|$1)/' },
    },
    {
      name: 'adapters-know-no-suite',
      comment: 'redis and kafka are plain adapters; they could serve any other project.',
      severity: 'error',
      from: { path: '^libs/(redis|kafka)/src/', pathNot: TESTS },
      to: { path: '^(libs|apps|deploy)/', pathNot: '^libs/$1/' },
    },
    {
      name: 'ioredis-in-one-place',
      severity: 'error',
      from: { pathNot: ['^libs/redis/', '^apps/auditor/', TESTS] },
      to: { path: own('ioredis') },
    },
    {
      name: 'kafkajs-in-one-place',
      severity: 'error',
      from: { pathNot: ['^libs/kafka/', '^apps/auditor/', TESTS] },
      to: { path: own('kafkajs') },
    },
    {
      name: 'mysql-in-one-place',
      severity: 'error',
      from: { pathNot: ['^libs/database/', '^apps/auditor/', TESTS] },
      to: { path: own('(typeorm|mysql2)') },
    },
    {
      name: 'auditor-shares-nothing',
      comment: 'A checker that shares the rules it checks would share their mistakes.',
      severity: 'error',
      from: { path: '^apps/auditor/src/', pathNot: TESTS },
      to: { path: '^(libs|deploy)/' },
    },
    {
      name: 'nest-at-the-edges',
      comment:
        'Nest belongs into main, modules, controllers and the chassis; rules and I/O are plain classes.',
      severity: 'error',
      from: {
        path: '^(apps|libs)/',
        pathNot: ['^libs/service/', '(main|module|controller|guard|http|openapi|problems)\\.ts$', TESTS],
      },
      to: { path: own('@nestjs/[^/]+') },
    },
    {
      name: 'testing-in-tests-only',
      severity: 'error',
      from: { path: '^(apps|libs)/', pathNot: ['^libs/testing/', TESTS] },
      to: { path: '^libs/testing/' },
    },
    {
      name: 'tests-are-nobodys-dependency',
      severity: 'error',
      from: {},
      to: { path: TESTS },
    },
  ],
  options: {
    doNotFollow: { path: ['node_modules', '/dist/'] },
    exclude: { path: ['^(apps|libs|deploy)/[^/]+/dist/.*\\.map$', '/gen/'] },
    tsPreCompilationDeps: true,
    moduleSystems: ['es6'],
    enhancedResolveOptions: {
      exportsFields: ['exports'],
      conditionNames: ['import', 'node', 'default'],
    },
  },
};
