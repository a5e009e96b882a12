/** The little that an adapter needs of a logger; pino's fits. */
export interface AdapterLog {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

const say = () => {};

/** Says nothing. */
export const silentLog: AdapterLog = { debug: say, info: say, warn: say, error: say };
