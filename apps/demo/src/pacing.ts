/**
 * A waiting room for work: nothing leaves before it is due, and never more in a stretch of time than the rate allows, so
 * that twenty thousand people who all want to ask again cannot bury two cores. Time is passed in; nothing here waits.
 */
export class Pacer<Item> {
  /** A binary heap by due time. */
  readonly #heap: { readonly dueMs: number; readonly order: number; readonly item: Item }[] = [];
  #added = 0;
  #tokens: number;
  #refilledAtMs: number | undefined;

  /**
   * @param perSecond how many items may leave in a second; `Infinity` for no bound
   * @param burst how many may leave at once after a quiet time
   */
  constructor(
    private readonly perSecond: number,
    private readonly burst: number = Math.max(1, perSecond / 20),
  ) {
    this.#tokens = burst;
  }

  get size(): number {
    return this.#heap.length;
  }

  add(dueMs: number, item: Item): void {
    this.#heap.push({ dueMs, order: this.#added, item });
    this.#added += 1;
    this.#siftUp(this.#heap.length - 1);
  }

  /** Removes and returns what is due and within the rate, the longest due first; those equally due in order of arrival. */
  take(nowMs: number): Item[] {
    this.#refill(nowMs);
    const taken: Item[] = [];
    for (let top = this.#heap[0]; top && top.dueMs <= nowMs && this.#tokens >= 1; top = this.#heap[0]) {
      this.#tokens -= 1;
      this.#removeTop();
      taken.push(top.item);
    }
    return taken;
  }

  /** Removes and returns everything, due or not, in no particular order. */
  clear(): Item[] {
    return this.#heap.splice(0).map((entry) => entry.item);
  }

  #refill(nowMs: number): void {
    const elapsedMs = Math.max(0, nowMs - (this.#refilledAtMs ?? nowMs));
    this.#refilledAtMs = nowMs;
    if (this.perSecond === Infinity) this.#tokens = Infinity;
    else this.#tokens = Math.min(this.burst, this.#tokens + (elapsedMs * this.perSecond) / 1_000);
  }

  #removeTop(): void {
    const last = this.#heap.pop();
    if (last === undefined || this.#heap.length === 0) return;
    this.#heap[0] = last;
    this.#siftDown();
  }

  #siftUp(from: number): void {
    for (let at = from; at > 0;) {
      const parent = (at - 1) >> 1;
      if (!this.#swapIfLater(parent, at)) return;
      at = parent;
    }
  }

  #siftDown(): void {
    for (let at = 0; ;) {
      const left = 2 * at + 1;
      if (left >= this.#heap.length) return;
      const right = left + 1;
      const child = right < this.#heap.length && this.#isLater(left, right) ? right : left;
      if (!this.#swapIfLater(at, child)) return;
      at = child;
    }
  }

  #isLater(at: number, than: number): boolean {
    const [one, other] = [this.#heap[at], this.#heap[than]];
    if (!one || !other) return false;
    return one.dueMs > other.dueMs || (one.dueMs === other.dueMs && one.order > other.order);
  }

  #swapIfLater(parent: number, child: number): boolean {
    const [one, other] = [this.#heap[parent], this.#heap[child]];
    if (!one || !other || !this.#isLater(parent, child)) return false;
    this.#heap[parent] = other;
    this.#heap[child] = one;
    return true;
  }
}

/** First in, first out, without the cost of shifting an array. */
export class Fifo<Item> {
  #items: (Item | undefined)[] = [];
  #head = 0;

  get size(): number {
    return this.#items.length - this.#head;
  }

  push(item: Item): void {
    this.#items.push(item);
  }

  shift(): Item | undefined {
    if (this.#head === this.#items.length) return undefined;
    const item = this.#items[this.#head];
    this.#items[this.#head] = undefined;
    this.#head += 1;
    if (this.#head > 1_024 && this.#head * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    }
    return item;
  }
}
