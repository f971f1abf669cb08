// One question under several settings or models, side by side.

import {Contestant} from "./contestant.js";
import {$} from "./elements.js";
import {chosenModel, servedModels} from "./models.js";
import {knownParameters} from "./parameters.js";
import {currentRequest, system} from "./settings.js";
import {read, write} from "./storage.js";
import {asLines} from "./typed.js";

const FEWEST = 2, MOST = 4;  // columns

let contestants = [];
let asked = {conversation: null, at: 0};  // the question is turn `at` of `conversation`, which is null if it begins one
let take = () => {};
let leave = () => {};

/** Connects the fixed parts. */
export function setUpComparison() {
  $("compare-form").onsubmit = event => { event.preventDefault(); contestants.forEach(askOne) };
  $("add-column").onclick = () => { add(contestants.at(-1).kept); update(); contestants.at(-1).settings.focus() };
  $("stop-all").onclick = stopAll;
  $("close-compare").onclick = () => $("compare").close();
  $("compare-question").onkeydown = event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("compare-form").requestSubmit() }
  };
  $("compare").onkeydown = event => {
    if (event.key !== "Escape" || !contestants.some(one => one.isRunning)) return;
    event.preventDefault();  // the dialog stays open
    stopAll();
  };
  $("compare").onclose = () => { stopAll(); leave($("compare-question").value.trim()) };
}

/**
 * Opens the comparison of a question that is turn `at` of `conversation`. The same question finds its answers again.
 * `acts`: `take` gets the question and the turn that the conversation goes on with; `leave` gets the question at the end.
 */
export function openComparison(question, conversation, at, acts) {
  const isSame = contestants.length && conversation === asked.conversation && at === asked.at
    && question.trim() === $("compare-question").value.trim();
  ({take, leave} = acts);
  if (!isSame) begin(question, conversation, at);
  $("compare").showModal();
  $("compare-question").focus();
}

function begin(question, conversation, at) {
  asked = {conversation, at};
  $("compare-question").value = question;
  const place = at ? `The question follows ${at} messages of “${conversation.title}”. ` : "";
  $("compare-place").textContent = place + (system().trim() ? "The system prompt is that of the settings. " : "") +
    "The columns are asked at the same time, so they share the server's speed.";
  clear();
  read("compare", usual()).slice(0, MOST).forEach(add);
  update();
}

/** The model and the settings of the page, and beside them another model, or another temperature. */
function usual() {
  const {model, generate_kwargs} = currentRequest(knownParameters());
  const other = servedModels().find(one => one.state === "ready" && one.id !== chosenModel());
  const varied = {...generate_kwargs, temperature: generate_kwargs.temperature === 0 ? 1 : 0};
  return [{model, settings: asLines(generate_kwargs)}, {model: other?.id ?? model, settings: asLines(other ? generate_kwargs : varied)}];
}

function add(kept) {
  const contestant = new Contestant(kept, {remove, change: update, askAgain: askOne, take: turn => {
    const question = $("compare-question").value.trim();
    clear();
    $("compare-question").value = "";
    $("compare").close();
    take(question, turn);
  }});
  contestants.push(contestant);
  $("contestants").append(contestant.box);
}

function clear() {
  stopAll();
  contestants = [];
  $("contestants").replaceChildren();
}

function remove(contestant) {
  contestant.stop();
  contestants = contestants.filter(one => one !== contestant);
  contestant.box.remove();
  update();
  $("add-column").focus();
}

function askOne(contestant) {
  const question = $("compare-question").value.trim();
  if (!question) { $("compare-question").focus(); return }
  const turns = asked.conversation?.turns.slice(0, asked.at) ?? [];
  contestant.ask([...turns, {role: "user", content: question}], system().trim() ? system() : "");
  update();
}

function stopAll() { contestants.forEach(one => one.stop()) }

/** Names the columns, keeps them for the next comparison, and shows what can be done. */
function update() {
  contestants.forEach((one, at) => one.name(at + 1, contestants.length > FEWEST));
  if (contestants.length) write("compare", contestants.map(one => one.kept));
  $("add-column").disabled = contestants.length >= MOST;
  const isRunning = contestants.some(one => one.isRunning), hadFocus = document.activeElement === $("stop-all");
  $("stop-all").hidden = !isRunning;
  if (!isRunning && hadFocus) $("ask-all").focus();
}
