// Vercel's AI SDK: @ai-sdk/openai-compatible and @ai-sdk/openai (responses, chat, completions), streams, objects, tools.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const [url, , model] = process.argv.slice(2);
const settings = { baseURL: `${url}/v1`, apiKey: "none" };
const openai = createOpenAI(settings);
const compatible = createOpenAICompatible({ name: "phi", supportsStructuredOutputs: true, ...settings });
const Vote = z.object({ answer: z.enum(["yes", "no"]), is_sure: z.boolean() });

async function check(languageModel, { objects }) {
  const options = { model: languageModel, temperature: 0, maxRetries: 0 };
  const asked = { ...options, instructions: "Be kind.", prompt: "What is 2+2?", maxOutputTokens: 12 };
  const { text, usage } = await generateText(asked);
  assert.ok(text);
  assert.ok(usage.outputTokens > 0);
  let streamed = "";
  for await (const piece of streamText(asked).textStream) streamed += piece;
  assert.equal(streamed, text);
  if (objects) {
    const output = Output.object({ schema: Vote });
    const shaped = await generateText({ ...options, prompt: "Is 2+2 four?", output, maxOutputTokens: 200 });
    Vote.parse(shaped.output);
    const tools = { vote: tool({ description: "Votes.", inputSchema: Vote }) };
    const called = await generateText({
      ...options, prompt: "Is 2+2 four?", tools, toolChoice: "required", maxOutputTokens: 800,
    });
    Vote.parse(called.toolCalls[0].input);
  }
}

await check(compatible(model), { objects: true });
await check(compatible.completionModel(model), { objects: false });
await check(openai(model), { objects: true });
await check(openai.chat(model), { objects: true });
await check(openai.completion(model), { objects: false });
