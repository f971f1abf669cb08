// What the next question is asked with.

import {chosenModel} from "./models.js";
import {read, write} from "./storage.js";

const NONE = {system: "", values: {}};

let settings = read("settings", NONE);

export const system = () => settings.system;

export const value = name => settings.values[name];

export function setSystem(text) { change({system: text}) }

export function setValue(name, given) { change({values: {...settings.values, [name]: given}}) }  // undefined is not stored

export function reset() { change(NONE) }

function change(changed) {
  settings = {...settings, ...changed};
  write("settings", settings);
}

/** A request without its messages. `known`: the parameters of the server; it refuses others. */
export function currentRequest(known) {
  const given = Object.entries(settings.values).filter(([name, value]) => known[name] && value !== undefined);
  return {model: chosenModel(), system: settings.system.trim() ? settings.system : "", generate_kwargs: Object.fromEntries(given)};
}
