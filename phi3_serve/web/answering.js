// Asks the server for an answer and writes it into a turn while it comes.

import {said, save} from "./conversations.js";
import {chatCompletion} from "./server.js";

const SAVED_EVERY = 1000;  // milliseconds; a reload loses no more
const SECOND = 1000;

const LEAVING = 3000;  // milliseconds in which a page that is left is gone

let running = null;  // an AbortController
let leftAt = -Infinity;  // a reload fails what is under way before the page is gone

addEventListener("beforeunload", () => { leftAt = performance.now() });

export const isRunning = () => running !== null;

export function stop() {  // at once, so that the next question need not wait for this answer's end
  running?.abort();
  running = null;
}

/** A turn that waits for its answer. */
export function emptyTurn() {
  return {role: "assistant", state: "running", request: null, answers: [{content: ""}], chosen: 0, figures: "", trouble: ""};
}

/** The body of the request that gave, or gives, a turn after `turns`. */
export function bodyOf({model, system, generate_kwargs}, turns) {
  const messages = turns.map(turn => ({role: turn.role, content: said(turn)})).filter(message => message.content);
  return {model, messages: [...(system ? [{role: "system", content: system}] : []), ...messages],
    ...(Object.keys(generate_kwargs).length ? {generate_kwargs} : {})};
}

/**
 * Answers `turn`, the last of `conversation`. `request` is a promise of settings.currentRequest(). Calls `onProgress`
 * when text has come, and `onWait` with a reason to wait.
 */
export async function answer(conversation, turn, request, {onProgress, onWait}) {
  const control = running = new AbortController();
  const clock = new Clock();
  const keep = () => save(conversation);
  const timer = setInterval(keep, SAVED_EVERY);
  addEventListener("pagehide", keep);
  keep();
  try {
    turn.request = await request;
    await untilReady(async () => {
      for await (const chunk of chatCompletion(bodyOf(turn.request, conversation.turns.slice(0, -1)), control.signal)) {
        clock.count(chunk);
        if (add(turn, chunk)) onProgress();
      }
    }, turn, onWait, control.signal);
    turn.state = "whole";
  } catch (error) {
    turn.state = control.signal.aborted ? "stopped" : performance.now() - leftAt < LEAVING ? "interrupted" : "failed";
    if (turn.state === "failed") turn.trouble = error instanceof TypeError ? "The server cannot be reached." : error.message;
  } finally {
    turn.figures = clock.figures(turn.state);
    clearInterval(timer);
    removeEventListener("pagehide", keep);
    if (running === control) running = null;
  }
}

/** Adds a chunk of a stream to `turn`; whether it had text. */
function add(turn, chunk) {
  let hasText = false;
  for (const {index, delta, logprobs} of chunk.choices ?? []) {
    while (turn.answers.length <= index) turn.answers.push({content: ""});
    const answer = turn.answers[index];
    if (logprobs?.content) (answer.tokens ??= []).push(...logprobs.content.map(asToken));
    if (!delta?.content) continue;
    answer.content += delta.content;
    hasText = true;
  }
  return hasText;
}

const rounded = logprob => Math.round(logprob * 1e4) / 1e4;  // the browser's room is small

function asToken({token, logprob, top_logprobs}) {
  return [token, rounded(logprob), top_logprobs.map(other => [other.token, rounded(other.logprob)])];
}

/** Does `ask` again as long as the model is starting. */
async function untilReady(ask, turn, onWait, signal) {
  for (;;) {
    try { return await ask() } catch (error) {
      const isStarting = error.status === 503 && error.after > 0 && !said(turn);
      if (!isStarting) throw error;
      await countDown(error, onWait, signal);
    }
  }
}

async function countDown(error, onWait, signal) {
  for (let left = Math.ceil(error.after); left > 0; left--) {
    onWait(`${error.message} Asking again in ${left} s.`);
    await sleep(SECOND, signal);
  }
  onWait(error.message + " Asking again …");
}

function sleep(milliseconds, signal) {
  return new Promise((done, failed) => {
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); failed(signal.reason) }, {once: true});
  });
}

/** Times of the first and the last text, and the number of tokens that the server tells at the end. */
class Clock {
  began = performance.now();
  first = null;
  last = null;
  tokens = null;

  count(chunk) {
    this.tokens = chunk.usage?.completion_tokens ?? this.tokens;
    if (!chunk.choices?.some(choice => choice.delta?.content)) return;
    this.last = performance.now();
    this.first ??= this.last;
  }

  figures(state) {
    if (this.first === null) return state === "whole" ? "no text" : state === "stopped" ? "stopped" : "";
    const seconds = (this.last - this.first) / SECOND;
    const rate = this.tokens > 1 && seconds > 0.005 ? [Math.round((this.tokens - 1) / seconds) + " tokens/s"] : [];
    const length = this.tokens ? [this.tokens + " tokens", ...rate] : [state === "whole" ? "" : state];
    return [...length, "first after " + Math.round(this.first - this.began) + " ms"].filter(Boolean).join(" · ");
  }
}
