// The turns of the conversation that is shown.

import {answerTurn, showWait, update} from "./answer.js";
import {isRunning} from "./answering.js";
import {copy} from "./clipboard.js";
import {current} from "./conversations.js";
import {showCurl} from "./curl.js";
import {$, button, element, isAtEnd} from "./elements.js";

const TRIES = ["What is the meaning of life?", "How to explain Internet for a medieval knight?", "What is 347 + 285?",
  "Name three fruits"];

/** Draws all turns. `acts`: what buttons do, as main.js has it. */
export function drawLog(acts) {
  const turns = current()?.turns ?? [];
  const shown = turns.length ? turns.map((turn, at) => drawTurn(turn, at, turns, acts)) : [welcome(acts)];
  $("log").replaceChildren(element("div", {className: "column"}, ...shown));
  scrollToEnd();
}

/** Draws the last turn anew. A reader who has scrolled up stays there. */
export function drawLastTurn(acts) {
  const turns = current().turns, at = turns.length - 1;
  whileFollowing(() => lastBox().replaceWith(drawTurn(turns[at], at, turns, acts)));
}

/** Shows what has come of the last turn. */
export function drawProgress() {
  const turn = current()?.turns.at(-1);
  if (turn?.state === "running") whileFollowing(() => update(lastBox(), turn));
}

export function drawWait(reason) {
  if (isRunning()) whileFollowing(() => showWait(lastBox(), reason));
}

const lastBox = () => $("log").querySelector(".turn:last-child");

function scrollToEnd() { $("log").scrollTop = $("log").scrollHeight }

function whileFollowing(act) {
  const follows = isAtEnd($("log")), top = $("log").scrollTop;
  act();
  if (follows) scrollToEnd();
  else $("log").scrollTop = top;
}

function welcome(acts) {
  return element("div", {className: "welcome"}, element("h2", {textContent: "Ask Phi-3 something"}),
    element("p", {className: "quiet", textContent: `Answered by ${location.host}. What you type goes there and nowhere else.`}),
    element("div", {className: "tries"}, ...TRIES.map(text => button(text, () => acts.send(text)))));
}

function drawTurn(turn, at, turns, acts) {
  if (turn.role === "user") return questionTurn(turn, at, acts);
  const isLast = at === turns.length - 1;
  const actions = {
    "Regenerate": () => acts.regenerate(at),
    ...(turn.request ? {"Show as curl": () => showCurl(turn, turns.slice(0, at))} : {}),
  };
  return answerTurn(turn, actions, isLast ? index => acts.choose(at, index) : null);
}

function questionTurn(turn, at, acts) {
  const box = element("article", {className: "turn user"}, element("h2", {className: "out-of-sight", textContent: "You"}),
    element("div", {className: "text", dir: "auto", textContent: turn.content}));
  box.append(element("footer", {className: "doing"}, button("Copy", event => copy(turn.content, event.target)),
    button("Edit", event => edit(box, turn, text => acts.resend(at, text), event.target)),
    button("Compare", () => acts.compare(at))));
  return box;
}

/** Shows a field for the text of `turn` in the place of `box`. `opener`: the button that was pressed. */
function edit(box, turn, resend, opener) {
  const shown = [...box.children];
  const cancel = () => { box.replaceChildren(...shown); opener.focus() };
  const area = element("textarea", {className: "edit", dir: "auto", value: turn.content, ariaLabel: "Edit your message"});
  const send = () => { if (area.value.trim()) resend(area.value.trim()) };
  area.onkeydown = event => {
    if (event.key === "Escape") { event.stopPropagation(); cancel() }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send() }
  };
  box.replaceChildren(area, element("div", {className: "doing"}, button("Send again", send, {className: "main-button"}), button("Cancel", cancel)));
  area.focus();
}
