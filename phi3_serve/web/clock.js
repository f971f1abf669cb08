// What is measured of an answer while it comes.

const SECOND = 1000;  // milliseconds

export class Clock {
  began = performance.now();
  first = null;  // when the first text came
  last = null;  // when the last text came
  tokens = null;  // the server tells their number at the end
  reason = null;  // why the server ended the answer: OpenAI's finish_reason

  count(chunk) {
    this.tokens = chunk.usage?.completion_tokens ?? this.tokens;
    this.reason = chunk.choices?.[0]?.finish_reason ?? this.reason;
    if (!chunk.choices?.some(choice => choice.delta?.content)) return;
    this.last = performance.now();
    this.first ??= this.last;
  }

  /** Milliseconds to the first text, or null. */
  get firstAfter() { return this.first === null ? null : Math.round(this.first - this.began) }

  /** Tokens per second after the first, or null if there are too few. */
  get rate() {
    const seconds = (this.last - this.first) / SECOND;
    return this.tokens > 1 && seconds > 0.005 ? Math.round((this.tokens - 1) / seconds) : null;
  }

  /** All of it in one line. */
  inWords(state) {
    if (this.first === null) return state === "whole" ? "no text" : state === "stopped" ? "stopped" : "";
    const length = this.tokens ? [this.tokens + " tokens", this.rate && this.rate + " tokens/s"] : [state === "whole" ? "" : state];
    return [...length, `first after ${this.firstAfter} ms`].filter(Boolean).join(" · ");
  }
}
