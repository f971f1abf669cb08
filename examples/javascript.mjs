// Print an answer while it is generated, with fetch. Runs in Node 18 or later: node examples/javascript.mjs
// In a browser the server must allow the page's origin: http.cors_origins in docs/configuration.md.
const url = process.env.PHI3_SERVE_URL ?? "http://127.0.0.1:8000";
const model = process.env.PHI3_SERVE_MODEL ?? "phi-3-tiny";

const response = await fetch(`${url}/chat`, {
  method: "POST",
  headers: {
    "Content-Type": "application/json",
    Authorization: `Bearer ${process.env.PHI3_SERVE_API_KEY ?? "none"}`,
  },
  body: JSON.stringify({
    model,
    messages: [{ role: "user", content: "What is a castle?" }],
    stream: true,
  }),
});
if (!response.ok) throw new Error(`HTTP ${response.status}: ${(await response.json()).detail}`);

let rest = ""; // an event may arrive in several pieces
for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
  const lines = (rest + piece).split("\n");
  rest = lines.pop();
  for (const line of lines) {
    if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
    const event = JSON.parse(line.slice("data: ".length));
    if (event.detail) throw new Error(event.detail);
    if (event.Delta) process.stdout.write(event.Delta);
  }
}
process.stdout.write("\n");
