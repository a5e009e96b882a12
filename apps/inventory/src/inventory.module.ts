import { Module, type DynamicModule } from '@nestjs/common';
import { Blocklist } from './blocklist.js';
import { BlocklistController } from './blocklist.controller.js';
import { Effects } from './effects.js';
import { Reports } from './report.js';
import { SaleBook } from './sale-book.js';
import { SaleState } from './sale-state.js';
import { SalesController } from './sales.controller.js';
import { Sales } from './sales.js';
import { StockController } from './stock.controller.js';
import { Stock } from './stock.js';

/** What the controllers are handed; composed in {@link openInventory}. */
export interface InventoryParts {
  readonly stock: Stock;
  readonly effects: Effects;
  readonly sales: Sales;
  readonly reports: Reports;
  readonly book: SaleBook;
  readonly state: SaleState;
  readonly blocklist: Blocklist;
}

/** The gRPC side of inventory, on parts that exist already. */
@Module({})
export class InventoryModule {
  static with(parts: InventoryParts): DynamicModule {
    return {
      module: InventoryModule,
      controllers: [StockController, SalesController, BlocklistController],
      providers: [
        { provide: Stock, useValue: parts.stock },
        { provide: Effects, useValue: parts.effects },
        { provide: Sales, useValue: parts.sales },
        { provide: Reports, useValue: parts.reports },
        { provide: SaleBook, useValue: parts.book },
        { provide: SaleState, useValue: parts.state },
        { provide: Blocklist, useValue: parts.blocklist },
      ],
    };
  }
}
