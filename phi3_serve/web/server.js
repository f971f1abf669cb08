// The server that the page came from.

import {read} from "./storage.js";

function headers() {
  const key = read("key", "");
  if (/[^\x20-\xff]/.test(key)) throw Object.assign(new Error("The API key has a character that a header of HTTP cannot carry."), {status: 401});
  return {"Content-Type": "application/json", ...(key ? {Authorization: "Bearer " + key} : {})};
}

/** The error that `response` tells, with its `status` and the seconds `after` which to ask again. */
async function failure(response) {
  const body = await response.json().catch(() => ({}));
  const said = body.error?.message ?? body.detail ?? response.statusText;
  const after = Number(response.headers.get("Retry-After"));
  return Object.assign(new Error(typeof said === "string" ? said : JSON.stringify(said)), {status: response.status, after});
}

export async function get(path) {
  const response = await fetch(path, {headers: headers()});
  if (!response.ok) throw await failure(response);
  return response.json();
}

/** The chunks of a streamed chat completion. */
export async function* chatCompletion(body, signal) {
  const asked = JSON.stringify({...body, stream: true, stream_options: {include_usage: true}});
  const response = await fetch("v1/chat/completions", {method: "POST", headers: headers(), body: asked, signal});
  if (!response.ok) throw await failure(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) throw new Error("The answer broke off before its end.");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter(line => line.startsWith("data: ")).map(line => line.slice(6)).join("\n");
      if (!data) continue;  // a comment keeps the connection alive
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}
