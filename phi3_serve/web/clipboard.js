// Copies text. A page that came over plain HTTP from another machine has no `navigator.clipboard`.

import {element} from "./elements.js";

const SHOWN_FOR = 1200;  // milliseconds

/** Copies `text`, and says so on the button that was pressed. */
export async function copy(text, pressed) {
  try { await navigator.clipboard.writeText(text) } catch { copyBySelection(text) }
  const label = pressed.textContent;
  if (label === "Copied") return;
  pressed.textContent = "Copied";
  setTimeout(() => { pressed.textContent = label }, SHOWN_FOR);
}

function copyBySelection(text) {
  const area = element("textarea", {value: text, className: "out-of-sight"});
  (document.querySelector("dialog[open]") ?? document.body).append(area);  // outside of an open dialog nothing is selected
  area.select();
  document.execCommand("copy");
  area.remove();
}
