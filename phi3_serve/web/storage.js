// What this browser keeps. Each value is JSON under its own name, so one change writes one value.

const PREFIX = "phi3.";

export function read(name, otherwise = null) {
  try { return JSON.parse(localStorage.getItem(PREFIX + name)) ?? otherwise } catch { return otherwise }
}

/** False if the browser is full, or keeps nothing. */
export function write(name, value) {
  try { localStorage.setItem(PREFIX + name, JSON.stringify(value)) } catch { return false }
  return true;
}

export function remove(name) {
  try { localStorage.removeItem(PREFIX + name) } catch { /* it keeps nothing */ }
}

/** The values whose names begin with `start`. */
export function readAll(start) {
  let names = [];
  try { names = Object.keys(localStorage) } catch { /* it keeps nothing */ }
  return names.filter(name => name.startsWith(PREFIX + start)).map(name => read(name.slice(PREFIX.length))).filter(Boolean);
}

/** Calls `act` with the name of a value that another tab has changed. */
export function onChangeElsewhere(act) {
  addEventListener("storage", event => { if (event.key?.startsWith(PREFIX)) act(event.key.slice(PREFIX.length)) });
}
