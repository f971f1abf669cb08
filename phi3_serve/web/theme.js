// Light, dark, or as the system is.

import {read, write} from "./storage.js";

const NEXT = {undefined: "dark", dark: "light", light: null};

export function applyTheme(chosen = read("theme")) {
  if (chosen) document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
}

export function nextTheme() {
  const chosen = NEXT[document.documentElement.dataset.theme];
  write("theme", chosen);
  applyTheme(chosen);
}
