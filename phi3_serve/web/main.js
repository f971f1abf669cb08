// The chat page: draws what is kept, then does what its reader asks.

import {answer, isRunning, stop} from "./answering.js";
import {emptyTurn} from "./asking.js";
import {copy} from "./clipboard.js";
import {openComparison, setUpComparison} from "./comparison.js";
import * as conversations from "./conversations.js";
import {$, oncePerFrame} from "./elements.js";
import {drawLastTurn, drawLog, drawProgress, drawWait} from "./log.js";
import {choose, untilChosen, watchModels} from "./models.js";
import {describeParameters, drawFields, knownParameters} from "./parameters.js";
import * as settings from "./settings.js";
import {closeSidebar, drawSidebar, setUpSidebar} from "./sidebar.js";
import {read, write} from "./storage.js";
import {applyTheme, nextTheme} from "./theme.js";

const acts = {send, resend, regenerate, choose: chooseAnswer, compare: compareQuestion};

applyTheme();
setUpSidebar(stop);
setUpQuestion();
setUpComparison();
setUpSettings();
setUpKeys();
conversations.onChange(draw);
draw(true);
watchModels();
const described = describeParameters().catch(() => { $("usual").textContent = "The server did not describe its parameters." });

function draw(alsoTurns) {
  drawSidebar();
  if (alsoTurns) drawLog(acts);
}

// --- asking

function send(text) {
  if (isRunning() || !text.trim()) return;
  const conversation = conversations.current() ?? conversations.begin(text);
  conversation.turns.push({role: "user", content: text});
  answerNext(conversation);
}

function resend(at, text) {
  stop();
  conversations.current().turns.length = at;
  send(text);
}

function regenerate(at) {
  stop();
  conversations.current().turns.length = at;
  answerNext(conversations.current());
}

function chooseAnswer(at, index) {
  const conversation = conversations.current();
  conversation.turns[at].chosen = index;
  keep(conversation);
  drawLastTurn(acts);
  $("log").querySelector(".turn:last-child .chosen button").focus({preventScroll: true});
}

async function answerNext(conversation) {
  const turn = emptyTurn();
  conversation.turns.push(turn);
  draw(true);
  // Until the server has described its parameters and its models, it is not known what it takes.
  const request = described.then(untilChosen).then(() => settings.currentRequest(knownParameters()));
  const whole = answer(conversation, turn, request, {onProgress: oncePerFrame(drawProgress), onWait: drawWait});
  showBusy();
  await whole;
  if (conversation.turns.includes(turn)) {  // it was not asked anew meanwhile
    keep(conversation);
    if (conversation === conversations.current()) drawLastTurn(acts);
  }
  showBusy();
}

function keep(conversation) { $("full").hidden = conversations.save(conversation) }

function showBusy() {
  const isElsewhere = document.activeElement !== document.body && !$("ask").contains(document.activeElement);
  const isSelecting = !getSelection().isCollapsed;  // a new focus would end it
  $("send").hidden = isRunning();
  $("compare-this").hidden = isRunning();
  $("stop").hidden = !isRunning();
  if (!isRunning() && !isElsewhere && !isSelecting) $("prompt").focus({preventScroll: true});
}

// --- comparing

function compareQuestion(at) {
  const conversation = conversations.current();
  openComparison(conversation.turns[at].content, conversation, at, {take: goOnWith(at), leave: () => {}});
}

function compareNext() {
  const conversation = conversations.current(), at = conversation?.turns.length ?? 0;
  openComparison($("prompt").value, conversation, at, {take: goOnWith(at), leave: setPrompt});
}

/** Makes a question and its answer the last turns, from turn `at` on. */
function goOnWith(at) {
  return (question, turn) => {
    stop();
    const conversation = conversations.current() ?? conversations.begin(question);
    conversation.turns.splice(at, Infinity, {role: "user", content: question}, turn);
    keep(conversation);
    draw(true);
    showBusy();
  };
}

// --- the fixed parts of the page

function setPrompt(text) {
  $("prompt").value = text;
  fitPrompt();
}

function fitPrompt() {
  $("prompt").style.height = "auto";
  $("prompt").style.height = $("prompt").scrollHeight + "px";
}

function setUpQuestion() {
  $("ask").onsubmit = event => {
    event.preventDefault();
    const text = $("prompt").value;
    if (isRunning() || !text.trim()) return;
    setPrompt("");
    send(text);
  };
  $("prompt").oninput = fitPrompt;
  $("prompt").onkeydown = event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("ask").requestSubmit() }
  };
  $("stop").onclick = stop;
  $("compare-this").onclick = compareNext;
  $("copy-curl").onclick = event => copy($("curl").querySelector("pre").textContent, event.target);
  $("close-curl").onclick = () => $("curl").close();
}

function setUpSettings() {
  $("open-settings").onclick = () => showSettings($("settings").hidden);
  $("close-settings").onclick = () => showSettings(false);
  $("model").onchange = choose;
  $("system").value = settings.system();
  $("system").onchange = () => settings.setSystem($("system").value);
  $("reset").onclick = () => { settings.reset(); $("system").value = ""; drawFields() };
  $("key").value = read("key", "");
  $("key").onchange = () => { write("key", $("key").value.trim()); location.reload() };
  $("theme").onclick = nextTheme;
}

function showSettings(areShown) {
  $("settings").hidden = !areShown;
  $("open-settings").setAttribute("aria-expanded", String(areShown));
  (areShown ? $("system") : $("open-settings")).focus();
}

function setUpKeys() {
  $("open-side").onclick = () => $("side").classList.toggle("open");
  $("log").onclick = closeSidebar;
  document.addEventListener("keydown", event => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]") || $("menu").matches(":popover-open")) return;
    if (isRunning()) stop();
    else if (!$("settings").hidden) showSettings(false);
    else closeSidebar();
  });
}
