import type { SaleReport } from '@flash-sale/contracts';
import type { Database, SqlRow } from '@flash-sale/database';
import { phaseAt } from '@flash-sale/domain';
import { hasPassed, type KafkaAdmin } from '@flash-sale/kafka';
import type { Account } from './keys.js';
import type { KnownSale } from './sale-book.js';
import type { LookOutcome, SaleState } from './sale-state.js';

interface MysqlFigures {
  /** As the report shows them. */
  readonly shown: SaleReport['mysql'];
  /** Units that the rows themselves say are sold. */
  readonly soldByRows: number;
  readonly quotaUsed: number;
  readonly ledgerSold: number;
  /** Over all accounts; what is moved from one to another adds up to 0. */
  readonly ledgerSum: number;
  /** Units that went back on sale, as the rows' states say. */
  readonly returnedByRows: number;
  /** Orders with another price, currency or SKU than the sale. */
  readonly mispriced: number;
  readonly shoppersOverLimit: number;
  /** Edges that orders took, as their versions say, and as they are on record. */
  readonly versions: number;
  readonly events: number;
  /** Minor units: what paid orders cost, and what was captured and not refunded. */
  readonly owed: number;
  readonly kept: number;
  readonly pendingDeadLetters: number;
  readonly openPayments: number;
}

/**
 * The reconciliation of a sale: what Redis, Kafka and MySQL say, each read on its own, and every difference in a sentence.
 * Reads only.
 */
export class Reports {
  constructor(
    private readonly database: Database,
    private readonly state: SaleState,
    private readonly kafka: Pick<KafkaAdmin, 'logBounds' | 'committedOffsets'>,
    private readonly options: {
      readonly ordersTopic: string;
      readonly ordersGroup: string;
      readonly nowMs?: () => number;
    },
  ) {}

  async report(sale: KnownSale): Promise<SaleReport> {
    const [view, kafka, figures] = await Promise.all([
      this.look(sale),
      this.readKafka(),
      this.readMysql(sale),
    ]);
    const differences = differencesOf(sale, view, figures);
    const open = openOf(view, kafka.lag, figures);
    const nowMs = (this.options.nowMs ?? Date.now)();
    return {
      saleId: sale.saleId,
      phase: phaseAt(sale, view !== 'unavailable' && view.soldOut, nowMs),
      allotment: sale.allotment,
      redis: redisOf(view),
      kafka: { endOffset: kafka.endOffset, committed: kafka.committed, lag: kafka.lag },
      mysql: figures.shown,
      differences,
      verdict: open.length > 0 ? 'settling' : differences.length > 0 ? 'differs' : 'balanced',
    };
  }

  /** What keeps a sale from being settled, in sentences; empty when nothing does. */
  async findUnresolved(sale: KnownSale): Promise<string[]> {
    const [view, kafka, figures] = await Promise.all([
      this.look(sale),
      this.readKafka(),
      this.readMysql(sale),
    ]);
    const awaiting = figures.shown.ordersByState['awaiting_payment'] ?? 0;
    const refunding = figures.shown.ordersByState['refunding'] ?? 0;
    return [
      ...openOf(view, kafka.lag, figures),
      ...(view === 'unavailable' ? ['Redis does not know the sale'] : []),
      ...(kafka.passed ? [] : [`the writer has ${kafka.lag} records of the topic to read`]),
      ...(awaiting > 0 ? [`${awaiting} orders wait for their payment`] : []),
      ...(refunding > 0 ? [`${refunding} orders are being refunded`] : []),
      ...(figures.openPayments > 0 ? [`${figures.openPayments} payments are pending`] : []),
    ];
  }

  private look(sale: KnownSale): Promise<LookOutcome> {
    return this.state.look(sale).catch(() => 'unavailable');
  }

  private async readKafka() {
    const { ends, lows } = await this.kafka.logBounds(this.options.ordersTopic);
    const committed = await this.kafka.committedOffsets(this.options.ordersGroup, this.options.ordersTopic);
    const sum = (offsets: Iterable<bigint>) => Number([...offsets].reduce((total, next) => total + next, 0n));
    const read = [...ends].map(([partition]) => committed.get(partition) ?? lows.get(partition) ?? 0n);
    return {
      endOffset: sum(ends.values()),
      committed: sum(read),
      lag: Math.max(0, sum(ends.values()) - sum(read)),
      passed: hasPassed(committed, ends, lows),
    };
  }

  private async readMysql(sale: KnownSale): Promise<MysqlFigures> {
    const one = async (sql: string) => (await this.database.query(sql, [sale.saleId]))[0] ?? {};
    const ofSale = 'order_id > ? AND order_id < ? AND CHAR_LENGTH(order_id) = ?';
    const idsOfSale = [`${sale.saleId}-`, `${sale.saleId}-~`, sale.saleId.length + 23];
    const [stock, orders, returned, effects, quota, ledger, dead, payments, events, kept, greedy] =
      await Promise.all([
        one('SELECT total, sold FROM sale_stock WHERE sale_id = ?'),
        this.database.query(
          `SELECT state, reason, COUNT(*) AS orders, SUM(quantity) AS units, SUM(version) AS versions,
           SUM(quantity * unit_price) AS amount, SUM(unit_price <> ? OR currency <> ? OR sku_id <> ?) AS mispriced
         FROM orders WHERE sale_id = ? GROUP BY state, reason`,
          [sale.unitPrice, sale.currency, sale.skuId, sale.saleId],
        ),
        one(
          `SELECT COALESCE(SUM(amount), 0) AS units FROM ledger
         WHERE sale_id = ? AND account = 'free' AND order_id IS NOT NULL AND amount > 0`,
        ),
        one('SELECT COUNT(*) AS effects FROM effect WHERE sale_id = ? AND applied_at IS NULL'),
        one('SELECT COALESCE(SUM(used), 0) AS used FROM quota WHERE sale_id = ?'),
        one(
          `SELECT COALESCE(SUM(CASE WHEN account = 'sold' THEN amount END), 0) AS sold,
           COALESCE(SUM(amount), 0) AS everything FROM ledger WHERE sale_id = ?`,
        ),
        one(
          `SELECT COUNT(*) AS pending FROM dead_letter
         WHERE state = 'pending' AND order_id LIKE CONCAT(REPLACE(?, '_', '\\\\_'), '-______________________')`,
        ),
        one(
          "SELECT COUNT(*) AS pending FROM payment WHERE sale_id = ? AND state NOT IN ('captured', 'declined')",
        ),
        this.database.query(`SELECT COUNT(*) AS events FROM order_event WHERE ${ofSale}`, idsOfSale),
        this.database.query(
          `SELECT COALESCE(SUM(amount), 0) AS kept FROM payment WHERE ${ofSale} AND state = 'captured'
           AND NOT EXISTS (SELECT 1 FROM refund WHERE refund.payment_id = payment.payment_id)`,
          idsOfSale,
        ),
        this.database.query('SELECT COUNT(*) AS shoppers FROM quota WHERE sale_id = ? AND used > ?', [
          sale.saleId,
          sale.limitPerShopper,
        ]),
      ]);
    const units = (state: string) => sumOf(orders, (row) => row['state'] === state, 'units');
    return {
      shown: {
        total: numberOf(stock, 'total'),
        sold: numberOf(stock, 'sold'),
        paid: units('paid'),
        returned: numberOf(returned, 'units'),
        ordersByState: countBy(orders, 'state'),
        rejectedByReason: countBy(
          orders.filter((row) => row['state'] === 'rejected' || row['state'] === 'expired'),
          'reason',
        ),
        unappliedEffects: numberOf(effects, 'effects'),
      },
      soldByRows: units('paid') + units('awaiting_payment'),
      quotaUsed: numberOf(quota, 'used'),
      ledgerSold: numberOf(ledger, 'sold'),
      ledgerSum: numberOf(ledger, 'everything'),
      returnedByRows: ['cancelled', 'unpaid', 'refunding', 'refunded'].reduce(
        (total, state) => total + units(state),
        0,
      ),
      mispriced: sumOf(orders, () => true, 'mispriced'),
      shoppersOverLimit: numberOf(greedy[0] ?? {}, 'shoppers'),
      versions: sumOf(orders, () => true, 'versions'),
      events: numberOf(events[0] ?? {}, 'events'),
      owed: sumOf(orders, (row) => row['state'] === 'paid', 'amount'),
      kept: numberOf(kept[0] ?? {}, 'kept'),
      pendingDeadLetters: numberOf(dead, 'pending'),
      openPayments: numberOf(payments, 'pending'),
    };
  }
}

/** What is still on its way, so that stores may rightly differ. */
function openOf(view: LookOutcome, lag: number, mysql: MysqlFigures): string[] {
  const unresolved = view === 'unavailable' ? 0 : view.unresolved;
  return [
    ...(unresolved > 0 ? [`${unresolved} holds, queued orders or transfers are not resolved`] : []),
    ...(lag > 0 ? [`${lag} records in Kafka are not written yet`] : []),
    ...(mysql.shown.unappliedEffects > 0
      ? [`${mysql.shown.unappliedEffects} decisions have not reached Redis yet`]
      : []),
    ...(mysql.pendingDeadLetters > 0 ? [`${mysql.pendingDeadLetters} dead letters are not decided`] : []),
  ];
}

function differencesOf(sale: KnownSale, view: LookOutcome, mysql: MysqlFigures): string[] {
  if (sale.storedPhase === 'draft') return [];
  const found: string[] = [];
  const expect = (what: string, is: number, other: string, should: number) => {
    if (is !== should) found.push(`${what} is ${is}, but ${other} is ${should}`);
  };
  expect('sale_stock.total in MySQL', mysql.shown.total, 'the allotment', sale.allotment);
  expect('the sum of sold orders', mysql.soldByRows, 'sale_stock.sold', mysql.shown.sold);
  expect('the sum of quotas', mysql.quotaUsed, 'sale_stock.sold', mysql.shown.sold);
  expect("the ledger's sold balance", mysql.ledgerSold, 'sale_stock.sold', mysql.shown.sold);
  expect('the sum of all ledger entries', mysql.ledgerSum, 'what was moved from one account to another', 0);
  expect('what the ledger gave back', mysql.shown.returned, 'the sum of ended orders', mysql.returnedByRows);
  expect('the number of orders with another price', mysql.mispriced, 'what there may be', 0);
  expect('the number of shoppers over the limit', mysql.shoppersOverLimit, 'what there may be', 0);
  expect('the number of order events', mysql.events, "the sum of the orders' versions", mysql.versions);
  expect('the money that was kept', mysql.kept, 'what paid orders cost', mysql.owed);
  if (view === 'unavailable') return [...found, 'Redis does not know the sale, or knows another epoch of it'];
  const { accounts } = view;
  const sum = (of: (account: Account) => number) =>
    accounts.reduce((total, account) => total + of(account), 0);
  expect(
    'the sum of what the buckets began with',
    sum((a) => a.initial),
    'the allotment',
    sale.allotment,
  );
  expect(
    'the units sold in Redis',
    sum((a) => a.sold),
    'sale_stock.sold',
    mysql.shown.sold,
  );
  expect('free and sold units in Redis', view.free + sum((a) => a.sold), 'the allotment', sale.allotment);
  accounts.forEach((a, bucket) => {
    const has = a.free + a.held + a.queued + a.sold;
    expect(`what bucket ${bucket} has`, has, 'what it got', a.initial + a.in - a.out);
  });
  return found;
}

function redisOf(view: LookOutcome): SaleReport['redis'] {
  const accounts = view === 'unavailable' ? [] : view.accounts;
  const sum = (name: 'free' | 'held' | 'queued' | 'sold' | 'openTransfers') =>
    accounts.reduce((total, account) => total + account[name], 0);
  return {
    available: view !== 'unavailable',
    free: sum('free'),
    held: sum('held'),
    queued: sum('queued'),
    sold: sum('sold'),
    openTransfers: sum('openTransfers'),
    buckets: accounts.map(({ initial, free, held, queued, sold, in: incoming, out }, bucket) => ({
      bucket,
      initial,
      free,
      held,
      queued,
      sold,
      in: incoming,
      out,
    })),
  };
}

/** SUM comes as a decimal in text, COUNT as a number or text. */
function numberOf(row: SqlRow, column: string): number {
  return Number(row[column] ?? 0);
}

function sumOf(rows: readonly SqlRow[], which: (row: SqlRow) => boolean, column: string): number {
  return rows.filter(which).reduce((total, row) => total + numberOf(row, column), 0);
}

function countBy(rows: readonly SqlRow[], column: string): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const row of rows) {
    const name = String(row[column] ?? 'none');
    counts[name] = (counts[name] ?? 0) + numberOf(row, 'orders');
  }
  return counts;
}
