import { LRUCache } from 'lru-cache';

/** Two clicks further apart than systems take for a double click are two intentions. */
const DOUBLE_CLICK_MS = 500;
/** A bound for memory, about 5 MB: what a gateway answers in that time when it is very busy. */
const KEPT_ANSWERS = 5_000;

interface First<Answer> {
  readonly body: string;
  readonly answer: Promise<Answer>;
}

/**
 * The first answers to requests that a double click repeats: who sends the same again while the first is under way, or for
 * a moment after it, meets the first one's answer, at the price of nothing. Failures are shared while they are under way
 * and then forgotten, and so is what might be better a moment later.
 */
export class FirstAnswers<Answer> {
  private readonly firsts = new LRUCache<string, First<Answer>>({ max: KEPT_ANSWERS });

  /** @param isLasting whether an answer is still the right one a moment later */
  constructor(private readonly isLasting: (answer: Answer) => boolean) {}

  /**
   * The answer to a request that has come before; undefined where it has not.
   *
   * @param key which names the request
   * @param body what must be the same as well; another one under the same key is judged for itself
   */
  find(key: string, body: string): Promise<Answer> | undefined {
    const first = this.firsts.get(key);
    return first?.body === body ? first.answer : undefined;
  }

  /** Notes what a request that was not {@link find | found} is about to be answered. Gives the answer back. */
  keep(key: string, body: string, answer: Promise<Answer>): Promise<Answer> {
    // Whoever came first keeps the place.
    if (this.firsts.has(key)) return answer;
    const first: First<Answer> = { body, answer };
    this.firsts.set(key, first);
    const settle = (isLasting: boolean) => {
      if (this.firsts.peek(key) !== first) return;
      if (isLasting) this.firsts.set(key, first, { ttl: DOUBLE_CLICK_MS });
      else this.firsts.delete(key);
    };
    answer.then(
      (value) => settle(this.isLasting(value)),
      () => settle(false),
    );
    return answer;
  }

  /** Forgets an answer that something has just made wrong. */
  forget(key: string): void {
    this.firsts.delete(key);
  }
}
