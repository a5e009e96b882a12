export * from './decide-orders.js';
export * from './holder-filter.js';
export * from './ids.js';
export * from './order.js';
export * from './purchase-token.js';
export * from './sale.js';
export * from './stock-model.js';
