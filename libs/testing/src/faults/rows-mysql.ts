import { randomUUID } from 'node:crypto';
import type { Statements } from '@flash-sale/database';
import type { Seen } from './crowd.js';
import type { Scenario, Stage } from './scenario.js';
import { SUITE_USER } from './rig-mysql.js';

/** Orders are taken all through an outage of MySQL: it decides what Kafka remembers, later. */
async function acceptsMeanwhile({ crowd, expect, note, sleep }: Stage, whileMs: number): Promise<Seen> {
  const outage = crowd.window();
  await sleep(whileMs);
  const seen = await outage.end();
  const refused = seen.count({ op: 'order', http: 503 });
  note(`meanwhile ${seen.accepted} orders accepted, ${refused} refused`);
  expect(seen.accepted > 0, 'orders are accepted while MySQL is away', seen.answers);
  expect(seen.count({ http: 500 }) === 0, 'nobody got a 500', seen.count({ http: 500 }));
  return seen;
}

/** Something is decided again within so long, ms; measured from now and noted. */
async function decidesAgain(
  { crowd, until, note, slack }: Stage,
  withinMs: number,
  since: string,
): Promise<void> {
  const startedMs = performance.now();
  const paid = crowd.paid;
  await until('an order to be decided and paid', withinMs * slack, () => crowd.paid > paid);
  note(`orders are decided and paid ${Math.round(performance.now() - startedMs)} ms after ${since}`);
}

/** Nothing may end up with the dead letters because a server was away. */
async function noDeadLetters({ rig, world, saleId, scarceSaleId, expect }: Stage): Promise<void> {
  const [row] = await rig.mysql.database.query(
    `SELECT COUNT(*) AS dead FROM ${databaseOf(world.mysqlUrl)}.dead_letter
      WHERE order_id LIKE ? OR order_id LIKE ?`,
    [`${saleId}-%`, `${scarceSaleId}-%`],
  );
  expect(Number(row?.['dead']) === 0, 'no record became a dead letter', row?.['dead']);
}

const DEADLOCKS = 12;
const HELD_MS = 60_000;
/** Orders in Kafka that are not written: as many come in a few seconds, so that most of the hold lies beyond. */
const LAG_BOUND = 200;

/** Locks a sale's stock, the one row that every order of it needs, for {@link HELD_MS}. */
async function holdStock({ rig, world, saleId, sleep }: Stage): Promise<void> {
  await rig.mysql.database.transaction(async (statements) => {
    await statements.query(
      `SELECT sold FROM ${databaseOf(world.mysqlUrl)}.sale_stock WHERE sale_id = ? FOR UPDATE`,
      [saleId],
    );
    const untilMs = performance.now() + HELD_MS;
    while (performance.now() < untilMs) {
      await sleep(1_000);
      // The server ends who says nothing for too long, and its locks with it.
      await statements.query('SELECT 1');
    }
  });
}

function databaseOf(mysqlUrl: string): string {
  return new URL(mysqlUrl).pathname.slice(1);
}

const MOST_BATCHES = 400;

/** Inserts until there is no page left. */
async function takeFreePages(statements: Statements, table: string): Promise<void> {
  for (let batch = 0; batch < MOST_BATCHES; batch += 1) {
    const rows = Array.from({ length: 500 }, () => [
      randomUUID(),
      1,
      'queued',
      'expired',
      'ballast',
      new Date(),
    ]);
    const isFull = await statements.change(`INSERT INTO ${table} VALUES ?`, [rows]).then(
      () => false,
      () => true,
    );
    if (isFull) return;
  }
  throw new Error(`${table} does not become full`);
}

/** Faults of MySQL, which decides: without it orders wait, and nothing is lost. */
export const mysqlRows: readonly Scenario[] = [
  {
    name: 'mysql-kill',
    row: 'MySQL kill −9 / restart',
    shopperSees: 'the status stays `queued` for longer; 202 goes on',
    async run(stage) {
      const { rig, dice } = stage;
      await rig.mysql.kill();
      await acceptsMeanwhile(stage, 3_000 + 4_000 * dice());
      await rig.mysql.start();
      await decidesAgain(stage, 5_000, 'its return');
      await rig.mysql.shutDown();
      await rig.mysql.start();
      stage.healed();
      await decidesAgain(stage, 5_000, 'its restart');
      await noDeadLetters(stage);
    },
  },
  {
    name: 'mysql-read-only',
    row: 'MySQL read_only (1290/1836)',
    shopperSees: 'the status stays `queued` for longer; 202 goes on',
    async run(stage) {
      await stage.rig.mysql.configure('read_only', 1);
      await acceptsMeanwhile(stage, 8_000);
      await stage.heal();
      await decidesAgain(stage, 5_000, 'the end of it');
      await noDeadLetters(stage);
    },
  },
  {
    name: 'mysql-locks',
    row: 'deadlock 1213, lock wait 1205 (row held for 60 s)',
    shopperSees: 'the status stays `queued` for longer; 202 goes on below the lag’s bound, then 503',
    world: { env: { MAX_WRITER_LAG: String(LAG_BOUND) } },
    async run(stage) {
      const { rig, world, crowd, saleId, sleep, note, expect } = stage;
      const database = databaseOf(world.mysqlUrl);
      const logged = world.logOf('order-writer').length;
      const holding = holdStock(stage);
      const held = await acceptsMeanwhile(stage, HELD_MS - 1_000);
      note(`${crowd.undecided} orders wait as \`queued\``);
      expect(crowd.undecided > 0, 'orders wait for the row');
      expect(held.accepted >= LAG_BOUND / 2, 'orders are accepted below the bound of the lag', held.answers);
      expect(held.count({ op: 'order', http: 503 }) > 0, 'beyond it orders are answered 503', held.answers);
      expect(held.cut === 0, 'everybody gets an answer in time', held.answers);
      await holding;
      await decidesAgain(stage, 10_000, 'the release of the row');
      await rig.mysql.database.change('CREATE DATABASE IF NOT EXISTS rig');
      await rig.mysql.database.change('CREATE TABLE IF NOT EXISTS rig.weight (number INT)');
      for (let round = 0; round < DEADLOCKS; round += 1) {
        // Stock first, then the writer's rows: an order in which nobody in the suite takes locks.
        await rig.mysql.database
          .transaction(async (statements) => {
            // Of two that wait for each other, the one with fewer changes must give way.
            const weights = Array.from({ length: 3_000 }, (_, number) => [number]);
            await statements.change('INSERT INTO rig.weight VALUES ?', [weights]);
            await statements.query(`SELECT sold FROM ${database}.sale_stock WHERE sale_id = ? FOR UPDATE`, [
              saleId,
            ]);
            await sleep(200);
            await statements.query(`SELECT used FROM ${database}.quota WHERE sale_id = ? FOR UPDATE`, [
              saleId,
            ]);
            throw new Error('only the locks were wanted');
          })
          .catch(() => undefined);
      }
      stage.healed();
      const log = world.logOf('order-writer').slice(logged);
      const seen = (failure: string) => log.split(failure).length - 1;
      note(`the writer met ${seen('deadlock:')} deadlocks and ${seen('lock_wait:')} lock waits`);
      expect(seen('deadlock:') > 0, 'the writer met a deadlock');
      expect(seen('lock_wait:') > 0, 'the writer waited for a lock in vain');
      await decidesAgain(stage, 5_000, 'the deadlocks');
      await noDeadLetters(stage);
    },
  },
  {
    name: 'mysql-stop',
    row: 'MySQL SIGSTOP 10 s',
    shopperSees: 'a delay; status 503',
    async run(stage) {
      const { rig, undo } = stage;
      undo('let MySQL go on', () => rig.mysql.resume());
      rig.mysql.pause();
      await acceptsMeanwhile(stage, 10_000);
      rig.mysql.resume();
      stage.healed();
      await decidesAgain(stage, 5_000, 'its return');
      await noDeadLetters(stage);
    },
  },
  {
    name: 'mysql-closed',
    row: 'MySQL connections closed (wait_timeout)',
    shopperSees: 'nothing, or a short delay',
    async run(stage) {
      const { rig, sleep, note } = stage;
      let closed = 0;
      for (let round = 0; round < 10; round += 1) {
        closed += await rig.mysql.killConnectionsOf(SUITE_USER);
        await sleep(500);
      }
      note(`${closed} connections closed`);
      stage.healed();
      await decidesAgain(stage, 5_000, 'the last');
      await noDeadLetters(stage);
    },
  },
  {
    name: 'mysql-commit-lost',
    row: 'COMMIT reply lost (proxy)',
    shopperSees: 'a delay',
    async run(stage) {
      const { rig, dice, until, sleep, note } = stage;
      const LOSSES = 20;
      const before = (await rig.mysql.proxy.figures()).lost;
      for (let loss = 1; loss <= LOSSES; loss += 1) {
        await rig.mysql.proxy.lose({
          request: 'COMMIT',
          nth: 1 + Math.floor(10 * dice()),
          part: dice() < 0.7 ? 'reply' : 'request',
          connection: 'cut',
        });
        await until('the loss', 20_000, async () => (await rig.mysql.proxy.figures()).lost === before + loss);
        await sleep(200 * dice());
      }
      note(`${LOSSES} COMMITs or their replies lost`);
      stage.healed();
      await decidesAgain(stage, 5_000, 'the last');
      await noDeadLetters(stage);
    },
  },
  {
    name: 'mysql-disk-full',
    row: 'MySQL disk full (1021/1114)',
    shopperSees: 'the status stays `queued`; then 503',
    async run(stage) {
      const { rig, world, undo, note } = stage;
      undo('free the disk', () => rig.mysql.freeDisk());
      rig.mysql.fillDisk();
      // A table on a full disk still has free pages; who takes them, and gives them back by rolling back, decides when it is full.
      const room = Promise.withResolvers<void>();
      const taking = rig.mysql.database
        .transaction(async (statements) => {
          await takeFreePages(statements, `${databaseOf(world.mysqlUrl)}.order_event`);
          await room.promise;
          throw new Error('only the pages were wanted');
        })
        .catch(() => undefined);
      await acceptsMeanwhile(stage, 10_000);
      rig.mysql.freeDisk();
      room.resolve();
      await taking;
      const failures = world.logOf('order-writer').split('full:').length - 1;
      note(`the writer met ${failures} full tables`);
      stage.expect(failures > 0, 'the writer met a full table');
      if (!rig.mysql.isRunning()) {
        note('the server ended itself and was started again when there was room');
        await rig.mysql.start();
      }
      stage.healed();
      await decidesAgain(stage, 5_000, 'room on the disk');
      await noDeadLetters(stage);
    },
  },
  {
    name: 'mysql-silent',
    row: 'established MySQL sockets go silent',
    shopperSees: 'a delay',
    async run(stage) {
      await stage.rig.mysql.proxy.silenceEstablished();
      stage.healed();
      await decidesAgain(stage, 5_000, 'the silence');
    },
  },
];
