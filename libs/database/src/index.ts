export {
  Database,
  DatabaseError,
  isOlderThan,
  type DatabaseFailure,
  type DatabaseOptions,
  type SqlRow,
  type SqlValue,
  type Statements,
} from './database.js';
export { dropTestDatabase, migrate } from './migrate.js';
