// The answer that comes in the conversation: one at a time, and kept while it comes.

import {ask} from "./asking.js";
import {save} from "./conversations.js";

const SAVED_EVERY = 1000;  // milliseconds; a reload loses no more

let running = null;  // an AbortController

export const isRunning = () => running !== null;

export function stop() {  // at once, so that the next question need not wait for this answer's end
  running?.abort();
  running = null;
}

/** Answers `turn`, the last of `conversation`. `request` and `acts`: as `ask` has them. */
export async function answer(conversation, turn, request, acts) {
  const control = running = new AbortController();
  const keep = () => save(conversation);
  const timer = setInterval(keep, SAVED_EVERY);
  addEventListener("pagehide", keep);
  keep();
  await ask(turn, conversation.turns.slice(0, -1), request, acts, control.signal);
  clearInterval(timer);
  removeEventListener("pagehide", keep);
  if (running === control) running = null;
}
