import { randomUUID } from 'node:crypto';
import { decodeOrderEvent } from '@flash-sale/contracts';
import type { SqlValue, Statements } from '@flash-sale/database';
import {
  verifyPurchaseToken,
  type AttemptId,
  type PurchaseTokenClaims,
  type SigningKeys,
} from '@flash-sale/domain';

/**
 * Whose order a record is and for what, where it has a genuine token for this very attempt; a record of a version that
 * nobody here can read may have one too. Null otherwise.
 */
export function claimsIn(value: Buffer, orderId: AttemptId, keys: SigningKeys): PurchaseTokenClaims | null {
  let json: unknown;
  try {
    json = JSON.parse(value.toString('utf8'));
  } catch {
    return null;
  }
  const token = typeof json === 'object' && json !== null && 'token' in json ? json.token : null;
  const claims = typeof token === 'string' ? verifyPurchaseToken(token, keys) : null;
  return claims?.attemptId === orderId ? claims : null;
}

const MAX_EPOCH = 2 ** 31 - 1;
const HASH = /^[A-Za-z0-9_-]{22}$/;
/** ISO 4217's word for no currency: that of a sale that nobody made. */
const NO_CURRENCY = 'XXX';

/**
 * Inserts the row of a rejected order, with its event and its effect, unless the attempt has a row. Of the record only what
 * fits any column is used: something in it may be what the database refused.
 */
export async function reject(
  statements: Statements,
  claims: PurchaseTokenClaims,
  value: Buffer | null,
): Promise<{ readonly rejected: boolean }> {
  const { attemptId, saleId, shopperId, skuId, quantity, epoch } = claims;
  const batchId = randomUUID();
  const [sale] = await statements.query<{ unit_price: string; currency: string }>(
    'SELECT unit_price, currency FROM sale WHERE sale_id = ?',
    [saleId],
  );
  const decoded = decodeOrderEvent(value);
  const row: readonly SqlValue[] = [
    attemptId,
    saleId,
    shopperId,
    skuId,
    quantity,
    sale?.unit_price ?? 0,
    sale?.currency ?? NO_CURRENCY,
    batchId,
    Math.min(epoch, MAX_EPOCH),
    decoded.outcome === 'ok' && HASH.test(decoded.event.deliveryHash) ? decoded.event.deliveryHash : null,
  ];
  await statements.change(
    `INSERT INTO orders (order_id, sale_id, shopper_id, sku_id, quantity, unit_price, currency, batch_id, epoch,
        delivery_hash, state, reason, created_at, updated_at)
      VALUES (${row.map(() => '?').join(', ')}, 'rejected', 'poison', NOW(3), NOW(3))
      ON DUPLICATE KEY UPDATE order_id = order_id`,
    row,
  );
  const [mine] = await statements.query('SELECT 1 FROM orders WHERE order_id = ? AND batch_id = ?', [
    attemptId,
    batchId,
  ]);
  if (!mine) return { rejected: false };
  await statements.change(
    `INSERT INTO order_event (order_id, seq, from_state, to_state, cause, at)
      VALUES (?, 1, 'queued', 'rejected', 'dropped', NOW(3))`,
    [attemptId],
  );
  // Nobody would ever apply the effect of a sale that does not exist.
  if (sale) {
    await statements.change(
      `INSERT INTO effect (order_id, kind, sale_id, shopper_id, reason, created_at)
        VALUES (?, 'void', ?, ?, 'poison', NOW(3))`,
      [attemptId, saleId, shopperId],
    );
  }
  return { rejected: true };
}
