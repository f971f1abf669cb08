// The parameters of an answer, as the server describes them, and their fields in the settings.

import {$, element} from "./elements.js";
import {get} from "./server.js";
import {setValue, value} from "./settings.js";

const USUAL = ["temperature", "top_p", "top_k", "min_p", "max_new_tokens", "repetition_penalty", "num_beams", "num_return_sequences",
  "top_logprobs", "seed"];
const DEFAULTS = {temperature: "1", top_p: "1", top_k: "0", min_p: "off", max_new_tokens: "what the context holds",
  repetition_penalty: "1", num_beams: "1", num_return_sequences: "1", top_logprobs: "none", seed: "another each time"};
// Where the server's description is of fields that the page does not show.
const DESCRIPTIONS = {
  num_return_sequences: "Number of answers, shown side by side: with beam search at most num_beams, otherwise drawn one by one.",
  top_logprobs: "Keep the probability of each token and of this many likely ones, for the button “Probabilities” under an answer. " +
    "Not with beam search.",
};
const NOT_SHOWN = new Set(["output_scores", "return_dict_in_generate", "prompt_logprobs"]);

let schemas = {};

/** Name → JSON schema. */
export const knownParameters = () => schemas;

/** Asks the server for its parameters and makes their fields. */
export async function describeParameters() {
  const described = (await get("openapi.json")).components.schemas.GenerationParameters.properties;
  schemas = Object.fromEntries(Object.entries(described).filter(([name]) => !NOT_SHOWN.has(name)));
  drawFields();
}

export function drawFields() {
  $("usual").replaceChildren(...USUAL.filter(name => schemas[name]).map(field));
  $("others").replaceChildren(...Object.keys(schemas).filter(name => !USUAL.includes(name)).map(field));
}

function field(name) {
  const id = "p-" + name;
  const input = isSwitch(name) ? choice(id) : text(id, name);
  input.value = shown(value(name));
  const description = DESCRIPTIONS[name] ?? schemas[name].description.replace(/\s+/g, " ");
  const about = [description, range(name)].filter(Boolean).join("\n");
  input.setAttribute("aria-describedby", id + "-about");
  const box = element("div", {className: "field"}, element("label", {htmlFor: id, textContent: name}), input,
    element("p", {id: id + "-about", textContent: about}));
  input.onchange = () => {
    const given = parsed(name, input.value.trim());
    setValue(name, given);
    const isWrong = typeof given === "string" && !takes(name, given);
    box.classList.toggle("wrong", isWrong);
    input.setAttribute("aria-invalid", String(isWrong));
  };
  return box;
}

function choice(id) {
  return element("select", {id}, ...["default", "true", "false"].map(label =>
    element("option", {value: label === "default" ? "" : label, textContent: label})));
}

function text(id, name) {
  const placeholder = DEFAULTS[name] ? "default: " + DEFAULTS[name] : "default";
  return element("input", {id, placeholder, autocomplete: "off", spellcheck: false});
}

const isSwitch = name => kinds(name).length === 1 && kinds(name)[0].type === "boolean";

const kinds = name => (schemas[name].anyOf ?? [schemas[name]]).filter(kind => kind.type !== "null");

/** The range of a number in words; empty if the parameter takes no number. */
function range(name) {
  const kind = kinds(name).find(one => one.type === "number" || one.type === "integer");
  const low = kind?.minimum ?? kind?.exclusiveMinimum, high = kind?.maximum ?? kind?.exclusiveMaximum;
  const inWords = number => Math.abs(number) >= 1e9 ? number.toExponential(0) : String(number);
  if (low === undefined) return high === undefined ? "" : `Up to ${inWords(high)}.`;
  const start = (kind.exclusiveMinimum === undefined ? "From " : "Above ") + inWords(low);
  return start + (high === undefined ? "." : ` to ${inWords(high)}.`);
}

/** What was typed for the parameter `name`: JSON, or a text without quotes, such as the digits of a stop string. */
export function parsed(name, given) {
  if (given === "") return undefined;
  let value;
  try { value = JSON.parse(given) } catch { return given }
  return value !== null && !takes(name, value) && takes(name, given) ? given : value;
}

function takes(name, value) {
  const type = Array.isArray(value) ? "array" : typeof value;
  return Boolean(schemas[name]) && kinds(name).some(kind => kind.type === type || (kind.type === "integer" && type === "number"));
}

export function shown(value) {
  return value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value);
}
