import { createConnection, type Connection, type RowDataPacket } from 'mysql2/promise';
import { UsageError } from './env.js';
import type { DeadLetterRow, LedgerLeg, MysqlFigures, Orphan, OrderRow } from './evidence.js';
import type { Spill } from './spill.js';

const PAGE_ROWS = 5_000;
const QUERY_TIMEOUT_MS = 60_000;

/** What every value of a numeric key column is greater than; for text that is the empty string. */
const BEFORE_THE_FIRST: Readonly<Record<string, string>> = {
  seq: '-1',
  partition_number: '-1',
  record_offset: '-1',
};

type Row = Record<string, unknown>;

/** Ids from the first on and before the second. */
interface Range {
  readonly from: string;
  readonly before: string;
}

/** What MySQL has of the attempts in one range. */
export interface SliceRows {
  readonly orders: OrderRow[];
  readonly ordersById: ReadonlyMap<string, OrderRow>;
  readonly ledger: Map<string, LedgerLeg[]>;
  readonly orphans: Orphan[];
}

/** Reads the sale's rows, all of them in one snapshot that is declared read-only. */
export class MysqlReader {
  private connection: Connection | null = null;

  constructor(private readonly url: string) {}

  /** @throws UsageError where the database does not answer */
  async connect(): Promise<void> {
    const { host, pathname } = new URL(this.url);
    try {
      this.connection = await createConnection({
        uri: this.url,
        connectTimeout: 5_000,
        timezone: 'Z',
        supportBigNumbers: true,
      });
    } catch (error) {
      throw new UsageError(
        `MySQL does not answer at ${host}${pathname} (${reasonOf(error)}); start it, or set MYSQL_URL to where the sale was written.`,
      );
    }
  }

  /** How many buckets the sale has. @throws UsageError where there is no such sale */
  async bucketCount(saleId: string): Promise<number> {
    return num((await this.saleRow(saleId))['bucket_count']);
  }

  /** Effects that Redis has not been told yet. */
  async unappliedEffects(saleId: string): Promise<number> {
    const [row] = await this.rows(
      'SELECT COUNT(*) AS n FROM effect WHERE sale_id = ? AND applied_at IS NULL',
      [saleId],
    );
    return num(row?.['n']);
  }

  /** What there was to sell and what is sold; nothing of both for a sale that was never warmed up. */
  async stock(saleId: string): Promise<MysqlFigures['stock']> {
    const [stock] = await this.rows('SELECT total, sold FROM sale_stock WHERE sale_id = ?', [saleId]);
    return { total: stock ? num(stock['total']) : 0, sold: stock ? num(stock['sold']) : 0 };
  }

  /** How many rows the sale has in `orders`. */
  async orderCount(saleId: string): Promise<number> {
    const [row] = await this.rows('SELECT COUNT(*) AS n FROM orders WHERE sale_id = ?', [saleId]);
    return num(row?.['n']);
  }

  /** Everything that is read from here on is of one moment; {@link endSnapshot} lets go of it. */
  async beginSnapshot(): Promise<void> {
    await this.rows('SET TRANSACTION ISOLATION LEVEL REPEATABLE READ');
    await this.rows('START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY');
  }

  async endSnapshot(): Promise<void> {
    await this.rows('COMMIT');
  }

  async close(): Promise<void> {
    await this.connection?.end();
  }

  /** The sale's row and what MySQL counts. */
  async figures(saleId: string, ordersTopic: string): Promise<MysqlFigures> {
    const sale = await this.saleRow(saleId);
    const [payments] = await this.rows(
      "SELECT COUNT(*) AS n FROM payment WHERE sale_id = ? AND state NOT IN ('captured', 'declined')",
      [saleId],
    );
    const [sales] = await this.rows('SELECT COUNT(*) AS n FROM sale');
    return {
      sale: {
        skuId: text(sale['sku_id']),
        unitPrice: num(sale['unit_price']),
        currency: text(sale['currency']),
        limitPerShopper: num(sale['limit_per_shopper']),
        bucketCount: num(sale['bucket_count']),
        allotment: num(sale['allotment']),
        phase: text(sale['phase']),
        epoch: num(sale['epoch']),
        opensAtMs: ms(sale['opens_at']),
        closesAtMs: ms(sale['closes_at']),
        createdAtMs: ms(sale['created_at']),
      },
      stock: await this.stock(saleId),
      orderCount: await this.orderCount(saleId),
      unappliedEffects: await this.unappliedEffects(saleId),
      openPayments: num(payments?.['n']),
      sales: num(sales?.['n']),
      deadLetters: await this.deadLetters(saleId, ordersTopic),
    };
  }

  /** The rows of all attempts in one range of ids. */
  async slice(saleId: string, range: Range): Promise<SliceRows> {
    const orders = await this.orders(saleId, range);
    const ordersById = new Map(orders.map((order) => [order.orderId, order]));
    const orphans: Orphan[] = [];
    const rowOf = (orderId: string, table: Orphan['table']) => {
      const order = ordersById.get(orderId);
      if (!order) orphans.push({ table, orderId });
      return order;
    };
    await this.addEvents(saleId, range, (id) => rowOf(id, 'order_event'));
    await this.addEffects(saleId, range, (id) => rowOf(id, 'effect'));
    await this.addPayments(saleId, range, (id) => rowOf(id, 'payment'));
    const ledger = new Map<string, LedgerLeg[]>();
    for await (const { entryId, leg } of this.ledger(saleId, range)) {
      if (leg.orderId !== null) rowOf(leg.orderId, 'ledger')?.entryIds.add(entryId);
      addLeg(ledger, entryId, leg);
    }
    return { orders, ordersById, ledger, orphans };
  }

  /** Ledger entries that belong to no order by their id: allotments, corrections. */
  async otherEntries(saleId: string): Promise<Map<string, LedgerLeg[]>> {
    const entries = new Map<string, LedgerLeg[]>();
    for await (const row of this.pages(
      `SELECT entry_id, account, order_id, amount, at FROM ledger
       WHERE sale_id = ? AND (entry_id < ? OR entry_id >= ?) AND (entry_id > ? OR (entry_id = ? AND account > ?))
       ORDER BY entry_id, account`,
      { values: [saleId, `${saleId}-`, `${saleId}-~`], after: ['entry_id', 'entry_id', 'account'] },
    )) {
      addLeg(entries, text(row['entry_id']), legOf(row));
    }
    return entries;
  }

  /** The legs of the entries whose ids lie in a range, those of one entry together. */
  async *ledger(
    saleId: string,
    { from, before }: Range,
  ): AsyncGenerator<{ readonly entryId: string; readonly leg: LedgerLeg }> {
    for await (const row of this.pages(
      `SELECT entry_id, account, order_id, amount, at FROM ledger
       WHERE sale_id = ? AND entry_id >= ? AND entry_id < ? AND (entry_id > ? OR (entry_id = ? AND account > ?))
       ORDER BY entry_id, account`,
      { values: [saleId, from, before], after: ['entry_id', 'entry_id', 'account'] },
    )) {
      yield { entryId: text(row['entry_id']), leg: legOf(row) };
    }
  }

  /** Puts the quota rows aside. */
  async readQuotas(saleId: string, spill: Spill): Promise<void> {
    for await (const row of this.pages(
      'SELECT shopper_id, used FROM quota WHERE sale_id = ? AND shopper_id > ? ORDER BY shopper_id',
      { values: [saleId], after: ['shopper_id'] },
    )) {
      const shopperId = text(row['shopper_id']);
      spill.put('quota', spill.slices.ofShopper(shopperId), [shopperId, num(row['used'])]);
    }
  }

  private async orders(saleId: string, { from, before }: Range): Promise<OrderRow[]> {
    const orders: OrderRow[] = [];
    for await (const row of this.pages(
      `SELECT order_id, shopper_id, sku_id, quantity, unit_price, currency, state, reason, epoch, token_expires_at,
         kafka_partition, kafka_offset, pay_before, version, created_at, updated_at
       FROM orders WHERE sale_id = ? AND order_id >= ? AND order_id < ? AND order_id > ? ORDER BY order_id`,
      { values: [saleId, from, before], after: ['order_id'] },
    )) {
      orders.push({
        orderId: text(row['order_id']),
        shopperId: text(row['shopper_id']),
        skuId: text(row['sku_id']),
        quantity: num(row['quantity']),
        unitPrice: num(row['unit_price']),
        currency: text(row['currency']),
        state: text(row['state']),
        reason: row['reason'] === null ? null : text(row['reason']),
        epoch: num(row['epoch']),
        tokenExpiresAtMs: optional(row['token_expires_at'], ms),
        kafkaPartition: optional(row['kafka_partition'], num),
        kafkaOffset: optional(row['kafka_offset'], num),
        payBeforeMs: optional(row['pay_before'], ms),
        version: num(row['version']),
        createdAtMs: ms(row['created_at']),
        updatedAtMs: ms(row['updated_at']),
        events: [],
        entryIds: new Set(),
        effects: [],
        payments: [],
      });
    }
    return orders;
  }

  /** Events do not carry the sale; their order's id begins with it, and its length tells `a` from `a-b`. */
  private async addEvents(saleId: string, { from, before }: Range, rowOf: RowOf): Promise<void> {
    for await (const row of this.pages(
      `SELECT order_id, seq, from_state, to_state, at FROM order_event
       WHERE order_id >= ? AND order_id < ? AND CHAR_LENGTH(order_id) = ? AND (order_id > ? OR (order_id = ? AND seq > ?))
       ORDER BY order_id, seq`,
      { values: [from, before, saleId.length + 23], after: ['order_id', 'order_id', 'seq'] },
    )) {
      rowOf(text(row['order_id']))?.events.push({
        seq: num(row['seq']),
        from: text(row['from_state']),
        to: text(row['to_state']),
        atMs: ms(row['at']),
      });
    }
  }

  private async addEffects(saleId: string, { from, before }: Range, rowOf: RowOf): Promise<void> {
    for await (const row of this.pages(
      `SELECT order_id, kind, created_at, applied_at FROM effect
       WHERE sale_id = ? AND order_id >= ? AND order_id < ? AND (order_id > ? OR (order_id = ? AND kind > ?))
       ORDER BY order_id, kind`,
      { values: [saleId, from, before], after: ['order_id', 'order_id', 'kind'] },
    )) {
      rowOf(text(row['order_id']))?.effects.push({
        kind: text(row['kind']),
        createdAtMs: ms(row['created_at']),
        appliedAtMs: optional(row['applied_at'], ms),
      });
    }
  }

  private async addPayments(saleId: string, { from, before }: Range, rowOf: RowOf): Promise<void> {
    for await (const row of this.pages(
      `SELECT p.payment_id, p.order_id, p.idempotency_key, p.amount, p.currency, p.state, r.amount AS refunded,
         r.state AS refund_state
       FROM payment p LEFT JOIN refund r ON r.payment_id = p.payment_id
       WHERE p.sale_id = ? AND p.order_id >= ? AND p.order_id < ?
         AND (p.order_id > ? OR (p.order_id = ? AND p.idempotency_key > ?))
       ORDER BY p.order_id, p.idempotency_key`,
      { values: [saleId, from, before], after: ['order_id', 'order_id', 'idempotency_key'] },
    )) {
      rowOf(text(row['order_id']))?.payments.push({
        paymentId: text(row['payment_id']),
        amount: num(row['amount']),
        currency: text(row['currency']),
        state: text(row['state']),
        refund:
          row['refunded'] === null
            ? null
            : { amount: num(row['refunded']), state: text(row['refund_state']) },
      });
    }
  }

  /** Dead letters of this sale, and those of the order topic whose attempt nobody could read. */
  private async deadLetters(saleId: string, ordersTopic: string): Promise<DeadLetterRow[]> {
    const rows: DeadLetterRow[] = [];
    const columns = 'topic, partition_number, record_offset, order_id, cause, schema_version, state, at';
    const add = (row: Row) =>
      rows.push({
        orderId: optional(row['order_id'], text),
        origin: `${text(row['topic'])}/${num(row['partition_number'])}/${num(row['record_offset'])}`,
        cause: text(row['cause']),
        schema: text(row['schema_version']),
        state: text(row['state']),
        atMs: ms(row['at']),
      });
    for await (const row of this.pages(
      `SELECT ${columns} FROM dead_letter WHERE order_id >= ? AND order_id < ? AND CHAR_LENGTH(order_id) = ?
         AND (order_id > ? OR (order_id = ? AND record_offset > ?)) ORDER BY order_id, record_offset`,
      {
        values: [`${saleId}-`, `${saleId}-~`, saleId.length + 23],
        after: ['order_id', 'order_id', 'record_offset'],
      },
    )) {
      add(row);
    }
    for await (const row of this.pages(
      `SELECT ${columns} FROM dead_letter WHERE order_id IS NULL AND topic = ?
         AND (partition_number > ? OR (partition_number = ? AND record_offset > ?))
       ORDER BY partition_number, record_offset`,
      { values: [ordersTopic], after: ['partition_number', 'partition_number', 'record_offset'] },
    )) {
      add(row);
    }
    return rows;
  }

  private async saleRow(saleId: string): Promise<Row> {
    const [sale] = await this.rows('SELECT * FROM sale WHERE sale_id = ?', [saleId]);
    if (sale) return sale;
    const known = await this.rows('SELECT sale_id FROM sale ORDER BY created_at DESC LIMIT 5');
    const names = known.map((row) => text(row['sale_id'])).join(', ');
    const { host, pathname } = new URL(this.url);
    throw new UsageError(
      `There is no sale "${saleId}" in ${host}${pathname}; ${names ? `its latest are ${names}` : 'it has none'}. Check --sale and MYSQL_URL.`,
    );
  }

  /**
   * Rows in the order of a key, 5,000 at a time. The statement's last placeholders are the columns of `after`: of the row
   * that was read last, and for the first page what every key is greater than.
   */
  private async *pages(
    sql: string,
    { values, after }: { values: readonly (string | number)[]; after: readonly string[] },
  ): AsyncGenerator<Row> {
    let last: Row | undefined;
    for (;;) {
      const from = after.map((column) => (last ? String(last[column]) : (BEFORE_THE_FIRST[column] ?? '')));
      const page = await this.rows(`${sql} LIMIT ${PAGE_ROWS}`, [...values, ...from]);
      yield* page;
      if (page.length < PAGE_ROWS) return;
      last = page.at(-1);
    }
  }

  private async rows(sql: string, values: readonly (string | number)[] = []): Promise<Row[]> {
    if (!this.connection) throw new Error('connect() first');
    try {
      const [rows] = await this.connection.query<RowDataPacket[]>({
        sql,
        values: [...values],
        timeout: QUERY_TIMEOUT_MS,
      });
      return rows;
    } catch (error) {
      const { host, pathname } = new URL(this.url);
      throw new UsageError(
        `MySQL at ${host}${pathname} could not be read (${reasonOf(error)}); is it the database of the suite?`,
      );
    }
  }
}

type RowOf = (orderId: string) => OrderRow | undefined;

function legOf(row: Row): LedgerLeg {
  return {
    account: text(row['account']),
    amount: num(row['amount']),
    orderId: optional(row['order_id'], text),
    atMs: ms(row['at']),
  };
}

export function addLeg(entries: Map<string, LedgerLeg[]>, entryId: string, leg: LedgerLeg): void {
  const legs = entries.get(entryId);
  if (legs) legs.push(leg);
  else entries.set(entryId, [leg]);
}

function optional<T>(value: unknown, read: (value: unknown) => T): T | null {
  return value === null || value === undefined ? null : read(value);
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : String(value);
}

/** A whole number; one that is too big to be exact would make every sum a lie. */
function num(value: unknown): number {
  const number = typeof value === 'number' ? value : Number(value);
  if (!Number.isSafeInteger(number))
    throw new Error(`${String(value)} is no whole number that can be counted with`);
  return number;
}

function ms(value: unknown): number {
  if (!(value instanceof Date)) throw new Error(`${String(value)} is no time`);
  return value.getTime();
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
