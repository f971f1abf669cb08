// A column of a comparison: a model with settings, and how it answers.

import {answerTurn, showWait, update} from "./answer.js";
import {ask, emptyTurn} from "./asking.js";
import {said} from "./conversations.js";
import {showCurl} from "./curl.js";
import {button, element, oncePerFrame} from "./elements.js";
import {servedModels} from "./models.js";
import {fromLines} from "./typed.js";

let made = 0;

export class Contestant {
  #control = null;  // an AbortController while it answers
  #turn = null;
  #turnsBefore = [];
  #clock = null;
  #acts;

  /**
   * `kept`: {model, settings as lines}. `acts`: what its buttons do: `remove`, `askAgain` and `take`, which gets the turn;
   * `change` is called after each change.
   */
  constructor({model, settings}, acts) {
    const id = ++made;
    this.#acts = acts;
    this.model = element("select", {id: `contestant-model-${id}`, onchange: acts.change},
      ...servedModels().map(one => element("option", {textContent: one.id})));
    if (servedModels().some(one => one.id === model)) this.model.value = model;
    this.settings = element("textarea", {id: `contestant-settings-${id}`, rows: 3, value: settings, spellcheck: false,
      onchange: acts.change, placeholder: "temperature=0.3"});
    this.settings.setAttribute("aria-describedby", "compare-hint");
    this.title = element("h3");
    this.remover = button("✕", () => acts.remove(this));
    this.place = element("div", {className: "place", ariaLive: "polite"});
    this.box = element("section", {className: "contestant"},
      element("header", {}, this.title, this.remover),
      element("label", {htmlFor: this.model.id, textContent: "Model"}), this.model,
      element("label", {htmlFor: this.settings.id, textContent: "Settings"}), this.settings,
      this.place);
  }

  get kept() { return {model: this.model.value, settings: this.settings.value} }

  get isRunning() { return this.#control !== null }

  name(number, canBeRemoved) {
    this.title.textContent = this.box.ariaLabel = `Column ${number}`;
    this.remover.ariaLabel = `Remove column ${number}`;
    this.remover.disabled = !canBeRemoved;
  }

  stop() { this.#control?.abort() }

  /** Answers the question that is the last of `turns`. */
  async ask(turns, system) {
    this.stop();
    const control = this.#control = new AbortController(), turn = this.#turn = emptyTurn();
    this.#turnsBefore = turns;
    this.#draw();
    const isShown = () => this.#turn === turn;
    const clock = await ask(turn, turns, this.#request(system), {
      onProgress: oncePerFrame(() => { if (isShown() && this.isRunning) update(this.place.firstElementChild, turn) }),
      onWait: reason => { if (isShown()) showWait(this.place.firstElementChild, reason) },
    }, control.signal);
    if (!isShown()) return;  // it was asked anew meanwhile
    this.#control = null;
    this.#clock = clock;
    this.#draw();
    this.#acts.change();
  }

  async #request(system) {
    return {model: this.model.value, system, generate_kwargs: fromLines(this.settings.value)};
  }

  #draw() {
    const hadFocus = this.place.contains(document.activeElement), turn = this.#turn;
    const choose = index => { turn.chosen = index; this.#draw() };
    this.place.replaceChildren(this.isRunning ? answerTurn(turn, {"Stop": () => this.stop()})
      : answerTurn(turn, this.#actions(turn), choose, figures(turn, this.#clock)));
    if (hadFocus) this.place.querySelector("footer button")?.focus();
  }

  #actions(turn) {
    return {
      ...(said(turn) ? {"Continue with this answer": () => this.#acts.take(turn)} : {}),
      "Ask again": () => this.#acts.askAgain(this),
      ...(turn.request ? {"Show as curl": () => showCurl(turn, this.#turnsBefore)} : {}),
    };
  }
}

/** What was measured, as a list of names and values. */
function figures(turn, clock) {
  const rows = {
    "Tokens": clock.tokens,
    "First token": clock.firstAfter === null ? null : clock.firstAfter + " ms",
    "Tokens/s": clock.rate,
    "Probability of a token": probability(turn.answers[turn.chosen].tokens),
    "Ended": ended(turn, clock),
  };
  const shown = Object.entries(rows).filter(([, value]) => value !== null);
  return element("dl", {className: "figures"}, ...shown.flatMap(([name, value]) =>
    [element("dt", {textContent: name}), element("dd", {textContent: value})]));
}

/** The geometric mean of the probabilities of `tokens`: how sure the model was. Null if it was not asked for them. */
function probability(tokens) {
  if (!tokens?.length) return null;
  const mean = tokens.reduce((sum, [, logprob]) => sum + logprob, 0) / tokens.length;
  return Math.round(100 * Math.exp(mean)) + " %";
}

function ended(turn, clock) {
  if (turn.state !== "whole") return turn.state === "stopped" ? "stopped" : "with an error";
  return clock.reason === "length" ? "at its maximum length" : "by itself";
}
