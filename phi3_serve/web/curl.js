// An answer as a line for a shell.

import {$} from "./elements.js";
import {bodyOf} from "./asking.js";
import {read} from "./storage.js";

/** Shows the line that asks for the answers of `turn` again, with the settings that gave them. */
export function showCurl(turn, turnsBefore) {
  $("curl").querySelector("pre").textContent = curl(bodyOf(turn.request, turnsBefore));
  $("curl").showModal();
}

function curl(body) {
  const data = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const key = read("key", "") ? " \\\n  -H 'Authorization: Bearer YOUR_KEY'" : "";
  return `curl ${new URL("v1/chat/completions", location.href)} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '${data}'`;
}
