// Calls of OpenAI's client for JavaScript: one JSON object a line on standard input, its result a line on standard output.
//
// A call: {"method": "chat.completions.create", "arguments": [...], "body": {...} or null, "api_key": "..." or absent}.
// A result: {"value": ...}, the events of a stream as a list, or {"error": {"name", "status", "body", "message"}}.
// The environment has CLIENT_MODULES (the folder with node_modules), OPENAI_BASE_URL, OPENAI_API_KEY, TIMEOUT_SECONDS.
import { createInterface } from "node:readline";
import { createRequire } from "node:module";

const { OpenAI, APIError } = createRequire(`${process.env.CLIENT_MODULES}/`)("openai");
const camelCase = (name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());

async function result({ method, arguments: given, body, api_key: apiKey }) {
  const timeout = Number(process.env.TIMEOUT_SECONDS) * 1000;
  const client = new OpenAI({ maxRetries: 0, timeout, ...(apiKey === undefined ? {} : { apiKey }) });
  const path = method.split(".").map(camelCase);
  const name = path.pop();
  const owner = path.reduce((part, key) => part[key], client);
  const answer = await owner[name](...given, ...(body === null ? [] : [body]));
  if (body?.stream) {
    const events = [];
    for await (const event of answer) events.push(event);
    return events;
  }
  return name === "list" ? { data: answer.data } : (answer ?? null);
}

function failure(error) {
  if (!(error instanceof APIError)) throw error;
  // APIError with a status is what the client for Python calls APIStatusError.
  const kind = error.constructor === APIError && error.status ? "APIStatusError" : error.constructor.name;
  const status = error.status ?? null;
  return { name: kind, status, body: error.error ?? null, message: error.message };
}

for await (const line of createInterface({ input: process.stdin })) {
  let said;
  try {
    said = { value: await result(JSON.parse(line)) };
  } catch (error) {
    said = { error: failure(error) };
  }
  process.stdout.write(`${JSON.stringify(said)}\n`);
}
