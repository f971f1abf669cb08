// The turn of a model: its answers, side by side if there are several, and what gave them.

import {copy} from "./clipboard.js";
import {button, element} from "./elements.js";
import {fill} from "./markdown.js";
import {shown} from "./parameters.js";
import {tokenView} from "./tokens.js";

const LONGEST_VALUE = 40;  // characters of a setting; the curl line has all of it

/**
 * An element for `turn`. `actions`: label → what a button under the answers does. `choose` gets the index of an answer.
 * `figures`: what was measured.
 */
export function answerTurn(turn, actions, choose = null, figures = figuresLine(turn)) {
  const box = element("article", {className: "turn assistant"},
    element("h2", {className: "out-of-sight", textContent: turn.request?.model ?? "The model"}), element("div", {className: "answers"}));
  box.classList.toggle("live", turn.state === "running");
  update(box, turn);
  if (turn.state === "running") {
    box.append(element("footer", {className: "doing"}, ...buttonsFor(actions)));
    return box;
  }
  if (turn.trouble) box.append(element("div", {className: "trouble", role: "alert", textContent: turn.trouble}));
  if (isSeveral(turn)) box.querySelectorAll(".answer").forEach((section, at) => addHead(section, turn, at, choose));
  box.append(footer(turn, box, actions, figures));
  return box;
}

/** Shows in the element `box` what has come of `turn`. */
export function update(box, turn) {
  const answers = box.querySelector(".answers");
  answers.classList.toggle("several", isSeveral(turn));
  box.ariaBusy = String(turn.state === "running");  // a screen reader waits for the whole answer
  turn.answers.forEach(({content}, at) => {
    const section = answers.children[at] ?? answers.appendChild(element("section", {className: "answer"}, element("div", {className: "text"})));
    fill(section.querySelector(".text"), content);
  });
}

/** Shows in the element `box` why the answer has not begun. */
export function showWait(box, reason) {
  const note = box.querySelector(".waiting") ?? element("div", {className: "trouble waiting"});
  note.textContent = reason;
  box.querySelector(".text").replaceChildren(note);
}

/** The model and the settings that gave `turn`. */
export function madeBy({request}) {
  if (!request) return "";
  const settings = Object.entries(request.generate_kwargs).map(([name, value]) => `${name} ${shortened(shown(value))}`);
  return [request.model, ...settings, ...(request.system ? ["system prompt"] : [])].join(" · ");
}

const isSeveral = turn => turn.answers.length > 1;

const shortened = text => text.length > LONGEST_VALUE ? text.slice(0, LONGEST_VALUE) + " …" : text;

function addHead(section, turn, at, choose) {
  const isChosen = at === turn.chosen;
  section.ariaLabel = `Answer ${at + 1} of ${turn.answers.length}`;
  section.classList.toggle("chosen", isChosen);
  const pick = choose && button("Choose", () => choose(at), {ariaPressed: String(isChosen), title: "The conversation goes on with this answer"});
  section.prepend(element("header", {className: "doing"}, element("span", {textContent: `Answer ${at + 1}`}), ...(pick ? [pick] : []),
    ...buttonsOf(turn.answers[at], section)));
}

function figuresLine(turn) {
  return element("p", {className: "figures", textContent: turn.state === "interrupted" ? "cut off when the page was left" : turn.figures});
}

function footer(turn, box, actions, figures) {
  return element("footer", {className: "doing"}, element("p", {className: "made-by", textContent: madeBy(turn)}), figures,
    ...(isSeveral(turn) ? [] : buttonsOf(turn.answers[0], box)),
    ...buttonsFor(actions));
}

const buttonsFor = actions => Object.entries(actions).map(([label, act]) => button(label, act));

function buttonsOf(answer, box) {
  const buttons = answer.content ? [button("Copy", event => copy(answer.content, event.target))] : [];
  if (answer.tokens) buttons.push(button("Probabilities", event => toggleTokens(event.target, answer, box.querySelector(".text")), {ariaPressed: "false"}));
  return buttons;
}

function toggleTokens(pressed, answer, text) {
  const isOn = pressed.ariaPressed === "false";
  pressed.ariaPressed = String(isOn);
  text.replaceChildren(...(isOn ? [tokenView(answer.tokens)] : []));
  if (!isOn) fill(text, answer.content);
}
