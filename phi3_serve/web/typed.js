// Settings as they are typed: NAME=VALUE, one a line.

import {parsed, shown} from "./parameters.js";

/** `values`, name → value, as lines. */
export function asLines(values) {
  return Object.entries(values).map(([name, value]) => `${name}=${inOneLine(value)}`).join("\n");
}

/** The values in `text`. Throws an error that says which line is none. */
export function fromLines(text) {
  const lines = text.split("\n").map(line => line.trim()).filter(Boolean);
  return Object.fromEntries(lines.map(line => {
    const [name, ...value] = line.split("=");
    if (!name.trim() || !value.join("").trim()) throw new Error(`The setting “${line}” must be NAME=VALUE, for example temperature=0.3.`);
    return [name.trim(), parsed(name.trim(), value.join("=").trim())];
  }));
}

const inOneLine = value => typeof value === "string" && value.includes("\n") ? JSON.stringify(value) : shown(value);
