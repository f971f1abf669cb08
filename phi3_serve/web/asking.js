// Asks the server for an answer and writes it into a turn while it comes.

import {Clock} from "./clock.js";
import {said} from "./conversations.js";
import {chatCompletion} from "./server.js";

const SECOND = 1000;  // milliseconds
const LEAVING = 3000;  // milliseconds in which a page that is left is gone

let leftAt = -Infinity;  // a reload fails what is under way before the page is gone

addEventListener("beforeunload", () => { leftAt = performance.now() });

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
 * Answers `turn`, which comes after `turns`, and gives its clock. What goes wrong becomes the turn's trouble. `request` is a
 * promise of a turn's request. Calls `onProgress` when text has come, and `onWait` with a reason to wait.
 */
export async function ask(turn, turns, request, {onProgress, onWait}, signal) {
  const clock = new Clock();
  try {
    turn.request = await request;
    await untilReady(async () => {
      for await (const chunk of chatCompletion(bodyOf(turn.request, turns), signal)) {
        clock.count(chunk);
        if (add(turn, chunk)) onProgress();
      }
    }, turn, onWait, signal);
    turn.state = "whole";
  } catch (error) {
    turn.state = signal.aborted ? "stopped" : performance.now() - leftAt < LEAVING ? "interrupted" : "failed";
    if (turn.state === "failed") turn.trouble = error instanceof TypeError ? "The server cannot be reached." : error.message;
  }
  turn.figures = clock.inWords(turn.state);
  return clock;
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
