// The models of the server and the state of the chosen one.

import {$, element} from "./elements.js";
import {get} from "./server.js";
import {read, write} from "./storage.js";

const STATES = {ready: "ready", loading: "loading", scaled_to_zero: "asleep; starts when asked", unplaceable: "cannot run here",
  failed: "could not be started", away: "the server does not answer"};
const SECONDS = 1000;

let models = [];

/** What the server says of each of its models. */
export const servedModels = () => models;

export const chosenModel = () => $("model").value;

/** Asks the server for its models, now and again and again. */
export async function watchModels() {
  let wait = 5 * SECONDS;
  try {
    await askForModels();
    if (models.every(model => model.state !== "loading")) wait = 15 * SECONDS;
  } catch (error) {
    const detail = error.status === 401 ? error.message : "";
    models = models.map(model => ({...model, state: "away", detail}));
    if (!models.length) show("away", detail ? detail + " Settings has a place for it." : STATES.away);
  }
  drawList();
  drawState();
  setTimeout(watchModels, wait);
}

async function askForModels() { models = (await get("v1/models")).data }

/** Waits until there is a chosen model. Throws what keeps the server from saying which models it has. */
export async function untilChosen() {
  if (chosenModel()) return;
  await askForModels();
  drawList();
}

export function choose() {
  write("model", chosenModel());
  drawState();
}

function drawList() {
  const chosen = chosenModel() || read("model");
  const labels = models.map(model => model.id + (model.state === "ready" ? "" : " · " + (STATES[model.state] ?? model.state)));
  const shown = [...$("model").options].map(option => option.textContent);
  if (labels.join() !== shown.join())  // an open list would close
    $("model").replaceChildren(...models.map((model, at) => element("option", {value: model.id, textContent: labels[at]})));
  const best = models.find(model => model.id === chosen) ?? models.find(model => model.state === "ready") ?? models[0];
  if (best) $("model").value = best.id;
}

function drawState() {
  const model = models.find(one => one.id === chosenModel());
  if (!model) return;
  const context = model.state === "ready" && model.max_model_len ? " · context " + model.max_model_len.toLocaleString() : "";
  show(model.state, [STATES[model.state] ?? model.state, model.detail].filter(Boolean).join(": ") + context);
}

function show(state, text) {
  $("state").dataset.state = state;
  if ($("state").textContent !== text) $("state").textContent = text;
}
