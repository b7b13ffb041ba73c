// The openai SDK for Node as a client: `node openai_node.mjs NODE_MODULES BASE_URL REQUESTS`.
//
// So many requests in each mode; every answer must be the same in each. What was done is printed
// as JSON; whatever is not as it should be ends the program with an error.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { setTimeout } from "node:timers/promises";

const [folder, baseURL, requests] = process.argv.slice(2);
const load = createRequire(`${folder}/`);
const { OpenAI } = load("openai");
const { zodResponsesFunction, zodTextFormat } = load("openai/helpers/zod");
const { z } = load("zod");

const client = new OpenAI({ baseURL, apiKey: "made-up", maxRetries: 0 });
const Solution = z.object({ steps: z.array(z.string()), answer: z.number() });
const format = zodTextFormat(Solution, "solution");
const weather = zodResponsesFunction({
  name: "get_weather",
  parameters: z.object({ city: z.string() }),
});
const done = { plain: 0, stream: 0, background: 0, resumed: 0, parse: 0, tools: 0, stored: 0 };

async function stream(body) {
  let said = "";
  const events = client.responses.stream(body);
  events.on("response.output_text.delta", (event) => (said += event.delta));
  const final = await events.finalResponse();
  assert.equal(final.output_text, said);
  return final;
}

async function background(body) {
  let response = await client.responses.create({ ...body, background: true });
  while (["queued", "in_progress"].includes(response.status)) {
    await setTimeout(20);
    response = await client.responses.retrieve(response.id);
  }
  return response;
}

// Background as a stream that the client leaves and takes up again.
async function resumed(body) {
  const seen = [];
  for await (const event of await client.responses.create({
    ...body,
    background: true,
    stream: true,
  })) {
    seen.push(event);
    if (seen.length === 5) break;
  }
  const rest = { stream: true, starting_after: seen.at(-1).sequence_number };
  for await (const event of await client.responses.retrieve(seen[0].response.id, rest)) {
    seen.push(event);
  }
  seen.forEach((event, number) => assert.equal(event.sequence_number, number));
  const final = await client.responses.stream({ response_id: seen[0].response.id }).finalResponse();
  assert.equal(final.status, "completed");
  return await client.responses.retrieve(final.id);
}

async function parse(body) {
  const whole = await client.responses.parse({ ...body, text: { format } });
  Solution.parse(whole.output_parsed);
  const streamed = await client.responses.stream({ ...body, text: { format } }).finalResponse();
  Solution.parse(streamed.output_parsed);
  if (body.temperature === 0) assert.deepEqual(streamed.output_parsed, whole.output_parsed);
}

async function tools(body) {
  const asked = { ...body, tools: [weather] };
  const called = await client.responses.parse({ ...asked, tool_choice: "required" });
  const calls = called.output.filter((item) => item.type === "function_call");
  assert.ok(calls.length && calls.every((call) => typeof call.parsed_arguments.city === "string"));
  const input = calls.map(({ call_id }) => ({
    type: "function_call_output",
    call_id,
    output: "sunny",
  }));
  const answer = await client.responses.create({
    ...asked,
    input,
    previous_response_id: called.id,
  });
  assert.ok(answer.output_text);
}

async function stored(body) {
  const response = await client.responses.create({
    ...body,
    model: "gpt-4.1",
    include: ["message.output_text.logprobs"],
    top_logprobs: 2,
  });
  const { logprobs } = response.output[0].content[0];
  assert.equal(logprobs.map(({ token }) => token).join(""), response.output_text);
  assert.equal((await client.responses.retrieve(response.id)).output_text, response.output_text);
  const items = [];
  for await (const item of client.responses.inputItems.list(response.id)) items.push(item);
  assert.equal(items[0].content[0].text, body.input);
  await client.responses.delete(response.id);
  await assert.rejects(client.responses.retrieve(response.id), OpenAI.NotFoundError);
  await assert.rejects(
    client.responses.create({ ...body, previous_response_id: response.id }),
    (error) => error.status === 400 && error.code === "previous_response_not_found",
  );
}

async function one(row) {
  // A model that thinks takes no temperature, and so says something else each time.
  const thinks = row % 2;
  const asked = thinks ? { model: "gpt-6.1-terra" } : { model: "gpt-4.1", temperature: 0 };
  const body = { ...asked, input: `Row ${row} asks.` };
  const first = await client.responses.create(body);
  assert.equal(first.status, "completed");
  done.plain += 1;
  for (const mode of [stream, background, resumed]) {
    const again = await mode(body);
    assert.ok(again.output_text);
    if (!thinks) {
      assert.equal(again.output_text, first.output_text);
      assert.deepEqual(again.usage, first.usage);
    }
    done[mode.name] += 1;
  }
  await parse(body);
  done.parse += 1;
  await tools(body);
  done.tools += 1;
  await stored(body);
  done.stored += 1;
}

await Promise.all(Array.from({ length: Number(requests) }, (_, row) => one(row)));
console.log(JSON.stringify(done));
