// Vercel's ai with its provider for OpenAI, which asks responses by default.

import { createOpenAI } from "@ai-sdk/openai";
import { embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { LONG, MODEL, Place, QUESTIONS, Report, SHORT, called, report, weather } from "./cases.mjs";

const openai = createOpenAI({ baseURL: process.env.OPENAI_BASE_URL });
const responses = openai(MODEL);
const completions = openai.chat(MODEL);
const SETTINGS = { temperature: 0, maxRetries: 0, maxOutputTokens: SHORT };
const LONGER = { ...SETTINGS, maxOutputTokens: LONG, stopWhen: stepCountIs(4) };
const offered = { weather: tool({ description: "Weather.", inputSchema: Place, execute: weather }) };

async function answer(model) {
  const { text, usage } = await generateText({ ...SETTINGS, model, prompt: QUESTIONS[0] });
  return { text, usage: [usage.inputTokens, usage.outputTokens, usage.totalTokens] };
}

async function pieces(model) {
  const found = [];
  const onError = ({ error }) => { throw error; };
  const { textStream } = streamText({ ...SETTINGS, model, prompt: QUESTIONS[0], onError });
  for await (const piece of textStream) found.push(piece);
  return found;
}

async function toolRound(model) {
  const { text } = await generateText({ ...LONGER, model, prompt: QUESTIONS[0], tools: offered });
  return { called, answer: text };
}

async function object(model, schema, fields = {}) {
  const output = Output.object({ schema });
  return (await generateText({ ...LONGER, model, prompt: QUESTIONS[0], output, ...fields })).output;
}

async function conversation(model) {
  const messages = [];
  const answers = [];
  for (const question of QUESTIONS) {
    messages.push({ role: "user", content: question });
    const result = await generateText({ ...SETTINGS, model, messages });
    messages.push(...result.response.messages);
    answers.push(result.text);
  }
  return answers;
}

async function schema_of_records(model = responses) {
  return object(model, z.object({ degrees: z.record(z.string(), z.number()) }));
}

async function schema_of_sets(model = responses) {
  const days = z.array(z.enum(["Mon", "Tue"])).max(2).meta({ uniqueItems: true });
  return object(model, z.object({ days }));
}

async function schema_of_records_by_tools(model = responses) {
  const found = [];
  const inputSchema = z.object({ degrees: z.record(z.string(), z.number()) });
  const tools = { degrees: tool({ description: "Degrees.", inputSchema, execute: (given) => found.push(given) }) };
  await generateText({ ...LONGER, stopWhen: stepCountIs(1), model, prompt: QUESTIONS[0], tools, toolChoice: "required" });
  return found[0];
}

async function embeddings() {
  return (await embedMany({ model: openai.embedding(MODEL), values: QUESTIONS, maxRetries: 0 })).embeddings;
}

await report({
  chat: () => answer(completions), chat_by_responses: () => answer(responses),
  stream: () => pieces(completions), stream_by_responses: () => pieces(responses),
  tools: () => toolRound(completions), tools_by_responses: () => toolRound(responses),
  structured: () => object(completions, Report), structured_by_responses: () => object(responses, Report),
  combined: async () => ({ output: await object(completions, Report, { tools: offered }), called }),
  combined_by_responses: async () => ({ output: await object(responses, Report, { tools: offered }), called }),
  turns: () => conversation(completions), turns_by_items: () => conversation(responses),
  schema_of_records, schema_of_records_by_tools, schema_of_sets, embeddings,
});
