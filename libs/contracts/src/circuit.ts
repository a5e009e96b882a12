import {
  BrokenCircuitError,
  ConsecutiveBreaker,
  circuitBreaker,
  handleWhen,
  type CircuitBreakerPolicy,
} from 'cockatiel';
import { NotSent } from './coalescer.js';

const FAILURES_BEFORE_OPEN = 5;
/** An open circuit lets one call try after this long. Short: what is behind it may be back, and shoppers wait. */
const TRY_AGAIN_AFTER_MS = 300;

/**
 * Keeps calls from a dependency that does not answer: after five failures in a row they are refused at once, save one every
 * 300 ms that looks whether it is back. One circuit per method, so that orders that cannot be placed do not take payments away.
 */
export class Circuit {
  private breaker: CircuitBreakerPolicy;
  private openedMs = 0;

  /**
   * @param name for the message, e.g. `Stock.Grant`
   * @param isFailure of what a call rejected with; anything else says nothing about the dependency
   */
  constructor(
    private readonly name: string,
    private readonly isFailure: (error: unknown) => boolean,
  ) {
    this.breaker = this.closed();
  }

  /** @throws NotSent where the call was not begun */
  async run<Reply>(call: () => Promise<Reply>): Promise<Reply> {
    try {
      return await this.breaker.execute(call);
    } catch (error) {
      if (!(error instanceof BrokenCircuitError)) throw error;
      // cockatiel counts by the wall clock; set back by minutes, it would keep the circuit open for as long.
      if (performance.now() - this.openedMs > 2 * TRY_AGAIN_AFTER_MS) this.breaker = this.closed();
      throw new NotSent(`${this.name}: its last ${FAILURES_BEFORE_OPEN} calls had no answer`);
    }
  }

  private closed(): CircuitBreakerPolicy {
    const breaker = circuitBreaker(handleWhen(this.isFailure), {
      breaker: new ConsecutiveBreaker(FAILURES_BEFORE_OPEN),
      halfOpenAfter: TRY_AGAIN_AFTER_MS,
    });
    breaker.onBreak(() => {
      this.openedMs = performance.now();
    });
    return breaker;
  }
}
