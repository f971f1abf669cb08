// ollama's JavaScript client: chat and generate, plain and streamed, a JSON schema, the lists of models, errors.
import assert from "node:assert/strict";
import { Ollama } from "ollama";
import { z } from "zod";

const [url, , model] = process.argv.slice(2);
const client = new Ollama({ host: url });
const messages = [{ role: "user", content: "What is 2+2?" }];
const options = { temperature: 0, num_predict: 12 };
const Vote = z.object({ answer: z.enum(["yes", "no"]), is_sure: z.boolean() });

async function texts(stream, textOf) {
  let joined = "";
  for await (const part of stream) joined += textOf(part);
  return joined;
}

const answer = await client.chat({ model, messages, options });
assert.ok(answer.message.content);
const chunks = await client.chat({ model, messages, options, stream: true });
assert.equal(await texts(chunks, (part) => part.message.content), answer.message.content);
const asked = { model, prompt: "What is 2+2?", system: "Be kind.", options };
const { response } = await client.generate(asked);
assert.equal(await texts(await client.generate({ ...asked, stream: true }), (part) => part.response), response);
const format = z.toJSONSchema(Vote);
const shaped = await client.chat({ model, messages, format, options: { temperature: 0, num_predict: 200 } });
Vote.parse(JSON.parse(shaped.message.content));
assert.deepEqual((await client.list()).models.map((each) => each.name), [`${model}:latest`]);
assert.equal((await client.ps()).models.length, 1);
assert.ok((await client.show({ model })).capabilities.includes("completion"));
assert.ok((await client.version()).version);
await assert.rejects(client.chat({ model: "nothing", messages }), { status_code: 404 });
