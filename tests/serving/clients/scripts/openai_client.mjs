// OpenAI's own client for JavaScript.

import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { LONG, MODEL, Place, QUESTIONS, Report, SHORT, called, report, weather } from "./cases.mjs";

const client = new OpenAI({ maxRetries: 0 });
const CHAT = { model: MODEL, temperature: 0, max_tokens: SHORT };
const RESPONSE = { model: MODEL, temperature: 0, max_output_tokens: SHORT };
const said = (text) => [{ role: "user", content: text }];

async function chat() {
  const answer = await client.chat.completions.create({ ...CHAT, messages: said(QUESTIONS[0]) });
  const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
  return { text: answer.choices[0].message.content, usage: [prompt_tokens, completion_tokens, total_tokens] };
}

async function chat_by_responses() {
  const answer = await client.responses.create({ ...RESPONSE, input: QUESTIONS[0] });
  const { input_tokens, output_tokens, total_tokens } = answer.usage;
  return { text: answer.output_text, usage: [input_tokens, output_tokens, total_tokens] };
}

async function stream() {
  const pieces = [];
  const chunks = await client.chat.completions.create({ ...CHAT, messages: said(QUESTIONS[0]), stream: true });
  for await (const chunk of chunks) pieces.push(chunk.choices[0].delta.content ?? "");
  return pieces;
}

async function stream_by_helper() {
  const pieces = [];
  const events = client.chat.completions.stream({ ...CHAT, messages: said(QUESTIONS[0]) });
  events.on("content", (piece) => pieces.push(piece));
  if ((await events.finalContent()) !== pieces.join("")) throw new Error("the pieces are not the answer");
  return pieces;
}

async function stream_by_responses() {
  const pieces = [];
  const events = client.responses.stream({ ...RESPONSE, input: QUESTIONS[0] });
  events.on("response.output_text.delta", (event) => pieces.push(event.delta));
  if ((await events.finalResponse()).output_text !== pieces.join("")) throw new Error("the pieces are not the answer");
  return pieces;
}

const offered = () => zodFunction({ name: "weather", parameters: Place, function: weather, description: "Weather." });

async function tools() {
  const fields = { ...CHAT, max_tokens: LONG, messages: said(QUESTIONS[0]), tools: [offered()] };
  const answer = await client.chat.completions.runTools(fields, { maxChatCompletions: 4 }).finalContent();
  return { called, answer };
}

const responseTool = () => zodResponsesFunction({ name: "weather", parameters: Place, description: "Weather." });

function results(answer) {
  const calls = answer.output.filter((item) => item.type === "function_call");
  return calls.map((call) => ({
    type: "function_call_output",
    call_id: call.call_id,
    output: weather(call.parsed_arguments ?? JSON.parse(call.arguments)),
  }));
}

async function tools_by_responses() {
  const fields = { ...RESPONSE, max_output_tokens: LONG, tools: [responseTool()] };
  const first = await client.responses.create({ ...fields, input: QUESTIONS[0] });
  const history = [...said(QUESTIONS[0]), ...first.output, ...results(first)];
  const last = await client.responses.create({ ...fields, input: history });
  return { called, answer: last.output_text };
}

async function structured() {
  const format = zodResponseFormat(Report, "report");
  const fields = { ...CHAT, max_tokens: LONG, messages: said(QUESTIONS[0]), response_format: format };
  return (await client.chat.completions.parse(fields)).choices[0].message.parsed;
}

async function structured_by_responses() {
  const text = { format: zodTextFormat(Report, "report") };
  const fields = { ...RESPONSE, max_output_tokens: LONG, input: QUESTIONS[0], text };
  return (await client.responses.parse(fields)).output_parsed;
}

async function schema_of_formats() {
  const wanted = z.object({ mail: z.email(), page: z.url(), time: z.iso.datetime(), number: z.int() });
  const fields = { ...RESPONSE, max_output_tokens: LONG, input: QUESTIONS[0], text: { format: zodTextFormat(wanted, "f") } };
  return (await client.responses.parse(fields)).output_parsed;
}

async function combined() {
  const fields = { ...CHAT, max_tokens: LONG, tools: [offered()], response_format: zodResponseFormat(Report, "report") };
  const messages = said(QUESTIONS[0]);
  const answer = await client.chat.completions.runTools({ ...fields, messages }, { maxChatCompletions: 4 }).finalContent();
  return { called, output: JSON.parse(answer) };
}

async function combined_by_responses() {
  const text = { format: zodTextFormat(Report, "report") };
  const fields = { ...RESPONSE, max_output_tokens: LONG, tools: [responseTool()], text };
  const first = await client.responses.parse({ ...fields, input: QUESTIONS[0] });
  const last = await client.responses.parse({ ...fields, input: results(first), previous_response_id: first.id });
  return { called, output: last.output_parsed };
}

async function embeddings() {
  const answer = await client.embeddings.create({ model: MODEL, input: QUESTIONS });
  return answer.data.map((row) => row.embedding);
}

async function turns() {
  const history = [];
  for (const question of QUESTIONS) {
    history.push(...said(question));
    history.push((await client.chat.completions.create({ ...CHAT, messages: history })).choices[0].message);
  }
  return history.filter((_, place) => place % 2 === 1).map((message) => message.content);
}

async function turns_by_responses() {
  const answers = [];
  for (const question of QUESTIONS) {
    const previous_response_id = answers.at(-1)?.id;
    answers.push(await client.responses.create({ ...RESPONSE, input: question, previous_response_id }));
  }
  return answers.map((answer) => answer.output_text);
}

async function turns_by_items() {
  const history = [];
  const answers = [];
  for (const question of QUESTIONS) {
    history.push(...said(question));
    const answer = await client.responses.create({ ...RESPONSE, input: history, store: false });
    history.push(...answer.output);
    answers.push(answer.output_text);
  }
  return answers;
}

await report({
  chat, chat_by_responses, stream, stream_by_helper, stream_by_responses, tools, tools_by_responses, structured,
  structured_by_responses, schema_of_formats, combined, combined_by_responses, embeddings, turns, turns_by_responses, turns_by_items,
});
