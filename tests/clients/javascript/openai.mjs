// OpenAI's JavaScript SDK: chat, completions and responses, plain and streamed, objects of a zod schema, tools, errors.
import assert from "node:assert/strict";
import OpenAI, { NotFoundError } from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, , model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is 2+2?" }];
const Vote = z.object({ answer: z.enum(["yes", "no"]), is_sure: z.boolean() });

async function texts(stream, textOf) {
  let joined = "";
  for await (const chunk of stream) joined += textOf(chunk) ?? "";
  return joined;
}

async function chat() {
  const asked = { model, messages, temperature: 0, max_completion_tokens: 12 };
  const answer = await client.chat.completions.create(asked);
  const text = answer.choices[0].message.content;
  assert.ok(text);
  assert.ok(answer.usage.completion_tokens > 0);
  const stream = await client.chat.completions.create({ ...asked, stream: true });
  assert.equal(await texts(stream, (chunk) => chunk.choices[0]?.delta.content), text);
  assert.equal(await client.chat.completions.stream(asked).finalContent(), text);
  const format = zodResponseFormat(Vote, "vote");
  const parsed = await client.chat.completions.parse({
    ...asked, response_format: format, max_completion_tokens: 200,
  });
  Vote.parse(parsed.choices[0].message.parsed);
}

async function tools() {
  const asked = { model, messages, temperature: 0, max_completion_tokens: 800, tool_choice: "required", parallel_tool_calls: false };
  const answer = await client.chat.completions.parse({
    ...asked, tools: [zodFunction({ name: "vote", parameters: Vote })],
  });
  Vote.parse(answer.choices[0].message.tool_calls[0].function.parsed_arguments);
}

async function completions() {
  const asked = { model, prompt: "1, 2, 3,", temperature: 0, max_tokens: 6 };
  const { text } = (await client.completions.create(asked)).choices[0];
  assert.ok(text);
  const stream = await client.completions.create({ ...asked, stream: true });
  assert.equal(await texts(stream, (chunk) => chunk.choices[0]?.text), text);
}

async function responses() {
  const asked = { model, input: messages, instructions: "Be kind.", temperature: 0, max_output_tokens: 12 };
  const answer = await client.responses.create(asked);
  assert.ok(answer.output_text);
  assert.equal((await client.responses.stream(asked).finalResponse()).output_text, answer.output_text);
  const text = { format: zodTextFormat(Vote, "vote") };
  const parsed = await client.responses.parse({ ...asked, text, max_output_tokens: 200 });
  Vote.parse(parsed.output_parsed);
}

assert.deepEqual((await client.models.list()).data.map((each) => each.id), [model]);
await chat();
await tools();
await completions();
await responses();
await assert.rejects(client.chat.completions.create({ model: "nothing", messages }), NotFoundError);
