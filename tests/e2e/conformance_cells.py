"""The client surface of a gateway as data: what is sent, and the answer that each client must get.

The first rows are the guide's matrix of the harmony format; the others are what clients use besides. The tables of
docs/conformance.md and of the end of a test run are made of the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from e2e.api_clients import Answer, Call, Client, Fault
from e2e.unusual_requests import (
    MODEL,
    QUESTION,
    RIGHT,
    WEATHER,
    calls,
    chat_tool,
    has_alternatives,
    responses_tool,
    says,
    texts,
    user,
)

Fields = Mapping[str, Any]
Ask = Callable[[Client], Answer]

CHAT, CHAT_STREAM = "chat completions", "chat completions, stream"
RESPONSES, BACKGROUND, RESPONSES_STREAM = "responses", "responses, background", "responses, stream"
COMPLETIONS, COMPLETIONS_STREAM = "completions", "completions, stream"
STORED, MODELS, OTHER, ERRORS = "stored responses", "models", "other paths", "errors"
TEXT, STRUCTURED, DEMO, MCP, FUNCTIONS = (
    "text",
    "structured output",
    "tools, demo server",
    "tools, MCP server",
    "functions",
)
#: The rows and columns of the guide's matrix.
MATRIX_ROWS = (RESPONSES, BACKGROUND, RESPONSES_STREAM, CHAT, CHAT_STREAM)
MATRIX_COLUMNS = (TEXT, STRUCTURED, DEMO, MCP, FUNCTIONS)


@dataclass(frozen=True)
class Right:
    """An answer that is right where ``holds`` says so of its JSON, or of the list of the events of a stream."""

    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Different(Right):
    """An answer that is useful, but not the one of OpenAI's API.

    Attributes:
        reason: how it differs.
    """

    reason: str


@dataclass(frozen=True)
class Refused:
    """An explicit refusal.

    Attributes:
        error: the class of the exception, the same in both clients.
        status: of HTTP.
        words: a part of the message that the client gets.
        reason: the limit of this release, for the table.
        code: the code of the error object; None: not compared.
    """

    error: str
    status: int
    words: str
    reason: str
    code: str | None = None


Outcome = Right | Different | Refused


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        row: the API.
        column: the kind of request.
        name: what is special about it, unique in its row and column; empty: nothing.
        ask: sends it.
        expected: what must come back.
        stored: what must come back where the fleet keeps responses (``responses_store``); None: the same.
    """

    row: str
    column: str
    name: str
    ask: Ask
    expected: Outcome
    stored: Outcome | None = None

    def outcome(self, responses_store: bool) -> Outcome:
        """What must come back from a fleet."""
        return self.stored if responses_store and self.stored else self.expected

    @property
    def title(self) -> str:
        return ": ".join(filter(None, (f"{self.row}, {self.column}", self.name)))


def fault(outcome: Outcome, answer: Answer) -> str | None:
    """What is wrong with an answer; None if it is as it must be."""
    shown = f"{answer!r}"[:1500]
    if not isinstance(outcome, Refused):
        try:
            return None if not isinstance(answer, Fault) and outcome.holds(answer) else shown
        except (ValueError, KeyError, IndexError, TypeError, StopIteration) as error:
            return f"{error!r} in {shown}"
    if not isinstance(answer, Fault):
        return f"it was not refused: {shown}"
    matches = (answer.name, answer.status) == (outcome.error, outcome.status) and answer.has_form
    matches = matches and outcome.words.lower() in (answer.message or "").lower()
    return None if matches and outcome.code in (None, answer.code) else shown


# What is sent.


def chat(**fields: Any) -> Ask:
    body = {"model": MODEL, "messages": user(QUESTION), "max_tokens": 60, "temperature": 0, **fields}
    return lambda client: client.send(Call("chat.completions.create", body))


def completion(**fields: Any) -> Ask:
    body = {"model": MODEL, "prompt": "1 2 3 4", "max_tokens": 8, "temperature": 0, **fields}
    return lambda client: client.send(Call("completions.create", body))


def response(**fields: Any) -> Ask:
    return lambda client: client.send(_response(**fields))


def _response(**fields: Any) -> Call:
    body = {"model": MODEL, "input": QUESTION, "max_output_tokens": 60, "temperature": 0, **fields}
    return Call("responses.create", body)


def background(**fields: Any) -> Ask:
    """A response for later, retrieved until it is there."""

    def ask(client: Client) -> Answer:
        answer = client.send(_response(background=True, **fields))
        return answer if isinstance(answer, Fault) else _finished(client, answer["id"])

    return ask


def _finished(client: Client, response_id: str) -> Answer:
    while True:
        answer = client.send(Call("responses.retrieve", arguments=(response_id,)))
        if isinstance(answer, Fault) or answer["status"] not in ("queued", "in_progress"):
            return answer


def of_stored(method: str, body: Fields | None = None) -> Ask:
    """A method that names a response that was created before."""

    def ask(client: Client) -> Answer:
        answer = client.send(_response(store=True))
        return client.send(Call(method, body, (answer["id"],)))

    return ask


def resumed(client: Client) -> Answer:
    """The events of a response for later, and those after the third one, asked for again."""
    events = client.send(_response(background=True, stream=True))
    if isinstance(events, Fault):
        return events
    response_id = events[0]["response"]["id"]
    rest = client.send(Call("responses.retrieve", {"stream": True, "starting_after": 2}, (response_id,)))
    return rest if isinstance(rest, Fault) else {"all": events, "rest": rest}


def cancelled(client: Client) -> Answer:
    """A long response for later that is cancelled."""
    asked = _response(background=True, input="Tell me a story.", max_output_tokens=1500, ignore_eos=True)
    answer = client.send(asked)
    if isinstance(answer, Fault):
        return answer
    return client.send(Call("responses.cancel", arguments=(answer["id"],)))


RESULT = '{"celsius": 12, "sky": "sunny"}'
TOLD = "It is 12 degrees and sunny in Oslo."


def told_by_chat(client: Client) -> Answer:
    """The function is called, and its result is sent with the whole conversation."""
    answer = chat(messages=user(WEATHER), tools=[chat_tool()])(client)
    if isinstance(answer, Fault):
        return answer
    call = answer["choices"][0]["message"]["tool_calls"][0]
    call = {name: call[name] for name in ("id", "type", "function")}
    messages = [
        *user(WEATHER),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": RESULT},
    ]
    return chat(messages=messages, tools=[chat_tool()])(client)


def told_by_responses(remembered: bool) -> Ask:
    """The function is called, and its result is sent: alone, or with the whole conversation."""

    def ask(client: Client) -> Answer:
        answer = client.send(_response(input=WEATHER, tools=[responses_tool()]))
        if isinstance(answer, Fault):
            return answer
        call = next(item for item in answer["output"] if item["type"] == "function_call")
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": RESULT}
        if remembered:
            more: Fields = {"input": [result], "previous_response_id": answer["id"]}
        else:
            names = ("type", "call_id", "name", "arguments")
            more = {"input": [*user(WEATHER), {name: call[name] for name in names}, result]}
        return client.send(_response(tools=[responses_tool()], **more))

    return ask


# What comes back.


def last_response(answer: Any) -> Any:
    """The response of an answer or of a stream."""
    return answer[-1]["response"] if isinstance(answer, list) else answer


def says_json(wanted: Any) -> Callable[[Any], bool]:
    """The JSON document itself, complete to its end."""

    def holds(answer: Any) -> bool:
        ended = True
        if isinstance(answer, list) and "choices" in answer[0]:
            reasons = [choice["finish_reason"] for event in answer for choice in event["choices"]]
            ended = reasons[-1] == "stop"
        elif isinstance(answer, dict) and "choices" in answer:
            ended = answer["choices"][0]["finish_reason"] == "stop"
        else:
            ended = last_response(answer)["status"] == "completed"
        return ended and json.loads(texts(answer)[0] or "") == wanted

    return holds


def streamed_calls(events: Any) -> list[tuple[str, Any]]:
    """The function calls of a stream of chat completions, joined."""
    joined: dict[int, dict[str, str]] = {}
    for event in events:
        for choice in event["choices"]:
            for part in choice["delta"].get("tool_calls") or []:
                call = joined.setdefault(part["index"], {"name": "", "arguments": ""})
                for name in call:
                    call[name] += part["function"].get(name) or ""
    return [(call["name"], json.loads(call["arguments"])) for call in joined.values()]


def calls_weather(answer: Any) -> bool:
    wanted = [("get_weather", {"city": "Oslo"})]
    if not isinstance(answer, list):
        return calls(answer) == wanted
    if "choices" in answer[0]:
        return streamed_calls(answer) == wanted
    joined = "".join(event["delta"] for event in answer if event["type"] == "response.function_call_arguments.delta")
    return calls(last_response(answer)) == wanted and json.loads(joined) == wanted[0][1]


def calls_some(answer: Any) -> bool:
    """A call that the client demands of a question that needs none; only its form is known."""
    is_chat = isinstance(answer, list) and "choices" in answer[0]
    found = streamed_calls(answer) if is_chat else calls(last_response(answer))
    return [name for name, _ in found] == ["get_weather"] and isinstance(found[0][1]["city"], str)


def has_reasoning(answer: Any) -> bool:
    if isinstance(answer, list):
        if "choices" in answer[0]:
            deltas = [choice["delta"] for event in answer for choice in event["choices"]]
            return "".join(delta.get("reasoning") or "" for delta in deltas) == "Easy."
        deltas = [event for event in answer if event["type"] == "response.reasoning_text.delta"]
        return "".join(event["delta"] for event in deltas) == "Easy."
    if "choices" in answer:
        return bool(answer["choices"][0]["message"]["reasoning"] == "Easy.")
    (item,) = [item for item in answer["output"] if item["type"] == "reasoning"]
    return bool(item["content"][0]["text"] == "Easy.")


def has_no_reasoning(answer: Any) -> bool:
    return says(RIGHT)(answer) and not answer["choices"][0]["message"].get("reasoning")


def has_usage(answer: Any) -> bool:
    if isinstance(answer, list):
        answer = answer[-1] if "choices" in answer[0] else last_response(answer)
    usage = answer["usage"]
    read = usage.get("prompt_tokens", usage.get("input_tokens"))
    written = usage.get("completion_tokens", usage.get("output_tokens"))
    return read > 0 and written > 0 and usage["total_tokens"] == read + written


def rest_is_the_end(answer: Any) -> bool:
    kinds = [[event["type"] for event in answer[name]] for name in ("all", "rest")]
    numbers = [event["sequence_number"] for event in answer["rest"]]
    return (
        kinds[1] == kinds[0][3:] and numbers == list(range(3, 3 + len(numbers))) and kinds[1][-1].endswith("completed")
    )


def is_incomplete(answer: Any) -> bool:
    return bool(answer["status"] == "incomplete" and answer["incomplete_details"]["reason"] == "max_output_tokens")


def calls_of(answer: Any) -> Any:
    return answer["choices"][0]["message"].get("tool_calls")


def has_streamed_logprobs(answer: Any) -> bool:
    values = [choice["logprobs"] for event in answer for choice in event["choices"] if choice.get("logprobs")]
    return all(token["logprob"] <= 0 for value in values for token in value["content"]) and bool(values)


def twice(ask: Callable[..., Ask], **fields: Any) -> Ask:
    """The same request twice."""
    return lambda client: [ask(**fields)(client), ask(**fields)(client)]


def is_same(answers: Any) -> bool:
    first, second = (texts(answer) for answer in answers)
    return bool(first == second and first[0])


def lists_the_model(answer: Any) -> bool:
    return [model["id"] for model in answer["data"]] == [MODEL]


# The rows.

#: "1 2 3 4" in the vocabulary of gpt-oss.
TOKEN_IDS = [16, 220, 17, 220, 18, 220, 19]
#: Paths of the OpenAI API that no vLLM with gpt-oss serves.
OTHER_METHODS: Mapping[str, tuple[str, Fields | None]] = {
    "embeddings": ("embeddings.create", {"model": MODEL, "input": "a", "encoding_format": "float"}),
    "speech": ("audio.speech.create", {"model": MODEL, "voice": "alloy", "input": "a"}),
    "images": ("images.generate", {"model": MODEL, "prompt": "a"}),
    "moderations": ("moderations.create", {"model": MODEL, "input": "a"}),
    "files": ("files.list", None),
    "batches": ("batches.list", None),
    "fine-tuning": ("fine_tuning.jobs.list", None),
    "assistants": ("beta.assistants.list", None),
}

SCHEMA: Fields = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CHAT_FORMATS: Mapping[str, tuple[Fields, Any]] = {
    "json_schema": (
        {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}},
        {"city": RIGHT},
    ),
    "json_object": ({"type": "json_object"}, {"answer": RIGHT}),
}
RESPONSES_FORMATS: Mapping[str, tuple[Fields, Any]] = {
    "json_schema": ({"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}, {"city": RIGHT}),
    "json_object": ({"type": "json_object"}, {"answer": RIGHT}),
}
BUILT_IN: Mapping[str, Fields] = {
    "code_interpreter": {"type": "code_interpreter", "container": {"type": "auto"}},
    "web_search_preview": {"type": "web_search_preview"},
}
MCP_SERVER: Fields = {
    "type": "mcp",
    "server_label": "python",
    "server_url": "http://127.0.0.1:9/sse",
    "require_approval": "never",
}

OTHER_TOOLS: Mapping[str, Fields] = {
    "web_search": {"type": "web_search"},
    "file_search": {"type": "file_search", "vector_store_ids": ["vs_1"]},
    "image_generation": {"type": "image_generation"},
    "local_shell": {"type": "local_shell"},
    "custom": {"type": "custom", "name": "x"},
}
IGNORES_PICTURE = Different(says(RIGHT), "vLLM ignores pictures in prompts of gpt-oss")

NO_TOOL_SERVER = "the fleet has no tool server; vLLM would ignore the tool and answer without it"
NOT_IN_CHAT = "vLLM takes only functions in chat completions"
STORE_OFF = "the fleet keeps no responses (responses_store)"
NO_METHOD = "vLLM 0.32 has no such method"


def no_tools() -> Refused:
    return Refused("BadRequestError", 400, "tool server", NO_TOOL_SERVER, "no_tool_server")


def no_store(words: str = "background") -> Refused:
    return Refused("BadRequestError", 400, words, STORE_OFF)


def matrix() -> Iterator[Case]:
    """The cells of the guide's matrix."""
    for row in (RESPONSES, BACKGROUND, RESPONSES_STREAM):
        for column, name, fields, expected in _of_responses():
            if row == RESPONSES_STREAM:
                yield Case(row, column, name, response(stream=True, **fields), expected)
            elif row == RESPONSES:
                yield Case(row, column, name, response(**fields), expected)
            else:
                yield Case(row, column, name, background(**fields), no_store("background"), expected)
    for row, stream in ((CHAT, {}), (CHAT_STREAM, {"stream": True})):
        for column, name, fields, expected in _of_chat():
            yield Case(row, column, name, chat(**fields, **stream), expected)


def _of_responses() -> Iterator[tuple[str, str, Fields, Outcome]]:
    yield TEXT, "", {}, Right(says(RIGHT))
    for name, (form, wanted) in RESPONSES_FORMATS.items():
        yield STRUCTURED, name, {"text": {"format": form}}, Right(says_json(wanted))
    for name, tool in BUILT_IN.items():
        yield DEMO, name, {"tools": [tool]}, no_tools()
    yield MCP, "", {"tools": [MCP_SERVER]}, no_tools()
    weather: Fields = {"input": WEATHER, "tools": [responses_tool()]}
    yield FUNCTIONS, "auto", weather, Right(calls_weather)
    yield FUNCTIONS, "required", {**weather, "tool_choice": "required"}, Right(calls_some)
    named = {"type": "function", "name": "get_weather"}
    yield FUNCTIONS, "a named one", {**weather, "tool_choice": named}, Right(calls_some)


def _of_chat() -> Iterator[tuple[str, str, Fields, Outcome]]:
    yield TEXT, "", {}, Right(says(RIGHT))
    for name, (form, wanted) in CHAT_FORMATS.items():
        yield STRUCTURED, name, {"response_format": form}, Right(says_json(wanted))
    refused = Refused("BadRequestError", 400, "tools", NOT_IN_CHAT)
    for name, tool in BUILT_IN.items():
        yield DEMO, name, {"tools": [tool]}, refused
    yield MCP, "", {"tools": [MCP_SERVER]}, refused
    weather: Fields = {"messages": user(WEATHER), "tools": [chat_tool()]}
    yield FUNCTIONS, "auto", weather, Right(calls_weather)
    yield FUNCTIONS, "required", {**weather, "tool_choice": "required"}, Right(calls_some)
    named = {"type": "function", "function": {"name": "get_weather"}}
    yield FUNCTIONS, "a named one", {**weather, "tool_choice": named}, Right(calls_some)


def others() -> Iterator[Case]:
    """What clients use besides."""
    weather_of_chat: Fields = {"messages": user(WEATHER), "tools": [chat_tool()]}
    yield Case(CHAT, FUNCTIONS, "a result that is sent back", told_by_chat, Right(says(TOLD)))
    yield Case(
        CHAT, FUNCTIONS, "none", chat(**weather_of_chat, tool_choice="none"), Right(lambda answer: not calls_of(answer))
    )
    yield Case(
        CHAT, FUNCTIONS, "one at a time", chat(**weather_of_chat, parallel_tool_calls=False), Right(calls_weather)
    )
    yield Case(CHAT, "reasoning", "", chat(), Right(has_reasoning))
    yield Case(CHAT, "reasoning", "an effort", chat(reasoning_effort="high"), Right(has_reasoning))
    yield Case(CHAT, "reasoning", "not sent", chat(include_reasoning=False), Right(has_no_reasoning))
    yield Case(CHAT, "usage", "", chat(), Right(has_usage))
    yield Case(CHAT, "log-probabilities", "", chat(logprobs=True, top_logprobs=3), Right(has_alternatives(3)))
    yield Case(
        CHAT, "several answers", "", chat(n=3, temperature=0.1, seed=1), Right(lambda answer: len(texts(answer)) == 3)
    )
    counts: Fields = {"messages": user("Count to five.")}
    kept = Different(says("1 2 3 4"), "vLLM keeps the stop text of a chat with gpt-oss")
    yield Case(CHAT, "stop", "", chat(**counts, stop=["4"]), kept)
    picture = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}]
    yield Case(
        CHAT, "pictures", "", chat(messages=user([{"type": "text", "text": QUESTION}, *picture])), IGNORES_PICTURE
    )
    yield Case(CHAT, "seed", "", twice(chat, seed=7, temperature=1.5), Right(is_same))
    yield Case(
        CHAT,
        "max_tokens",
        "",
        chat(max_tokens=1),
        Right(lambda answer: answer["choices"][0]["finish_reason"] == "length"),
    )
    yield Case(CHAT, "unknown parameter", "", chat(a_parameter_that_is_not_there=1), Right(says(RIGHT)))
    yield Case(CHAT_STREAM, "reasoning", "", chat(stream=True), Right(has_reasoning))
    usage: Fields = {"stream": True, "stream_options": {"include_usage": True}}
    yield Case(CHAT_STREAM, "usage", "", chat(**usage), Right(has_usage))
    yield Case(CHAT_STREAM, "log-probabilities", "", chat(stream=True, logprobs=True), Right(has_streamed_logprobs))

    yield Case(
        RESPONSES, FUNCTIONS, "a result that is sent back", told_by_responses(remembered=False), Right(says(TOLD))
    )
    yield Case(RESPONSES, "reasoning", "", response(), Right(has_reasoning))
    yield Case(
        RESPONSES,
        "instructions",
        "",
        response(input="Say hello.", instructions="Answer in French."),
        Right(says("Bonjour !")),
    )
    yield Case(RESPONSES, "usage", "", response(), Right(has_usage))
    yield Case(RESPONSES, "max_output_tokens", "", response(max_output_tokens=1), Right(is_incomplete))
    picture = [{"type": "input_image", "image_url": "http://127.0.0.1:9/x.png", "detail": "auto"}]
    parts = [{"type": "input_text", "text": QUESTION}, *picture]
    yield Case(RESPONSES, "pictures", "", response(input=user(parts)), IGNORES_PICTURE)
    ignored = Different(says(RIGHT), "vLLM ignores the conversation")
    yield Case(RESPONSES, "conversation", "", response(conversation="conv_1"), ignored)
    no_prompts = Refused("BadRequestError", 400, "prompt template is not supported", "vLLM has no prompt templates")
    yield Case(RESPONSES, "prompt", "", response(prompt={"id": "pmpt_1"}), no_prompts)
    for kind, tool in OTHER_TOOLS.items():
        refused = Refused("BadRequestError", 400, f"'{kind}' is not supported", "vLLM has no such tool for gpt-oss")
        yield Case(RESPONSES, "other tools", kind, response(tools=[tool]), refused)
    included = {"include": ["message.output_text.logprobs"], "top_logprobs": 3}
    yield Case(
        RESPONSES,
        "log-probabilities",
        "",
        response(**included),
        Refused(
            "BadRequestError",
            400,
            "logprobs are not supported",
            "vLLM has no log-probabilities for gpt-oss in responses",
        ),
    )
    yield Case(RESPONSES, "unknown parameter", "", response(a_parameter_that_is_not_there=1), Right(says(RIGHT)))
    yield Case(RESPONSES_STREAM, "reasoning", "", response(stream=True), Right(has_reasoning))
    yield Case(RESPONSES_STREAM, "usage", "", response(stream=True), Right(has_usage))

    yield Case(COMPLETIONS, TEXT, "", completion(), Right(says(" 5 6 7 8")))
    yield Case(COMPLETIONS, "token ids", "", completion(prompt=TOKEN_IDS), Right(says(" 5 6 7 8")))
    yield Case(COMPLETIONS, "stop", "", completion(stop=["7"]), Right(says(" 5 6 ")))
    yield Case(COMPLETIONS, "echo", "", completion(echo=True), Right(says("1 2 3 4 5 6 7 8")))
    suffix = Refused("BadRequestError", 400, "suffix", "gpt-oss fills no middle")
    yield Case(COMPLETIONS, "suffix", "", completion(suffix="x"), suffix)
    yield Case(COMPLETIONS, "log-probabilities", "", completion(logprobs=2), Right(has_alternatives(2)))
    yield Case(COMPLETIONS_STREAM, TEXT, "", completion(stream=True), Right(says(" 5 6 7 8")))
    yield from _of_the_store()
    yield from _of_models()
    yield from _of_other_paths()
    yield from _errors()


def _of_the_store() -> Iterator[Case]:
    gone = Refused("NotFoundError", 404, "keeps no responses", STORE_OFF, "response_not_found")
    follow = told_by_responses(remembered=True)
    yield Case(STORED, "previous_response_id", "", follow, no_store("previous_response_id"), Right(says(TOLD)))
    retrieve = of_stored("responses.retrieve")
    yield Case(STORED, "retrieve", "", retrieve, gone, Right(says(RIGHT)))
    yield Case(STORED, "resume a stream", "", resumed, no_store("background"), Right(rest_is_the_end))
    cancel = Right(lambda answer: answer["status"] == "cancelled")
    yield Case(STORED, "cancel", "", cancelled, no_store("background"), cancel)
    ended = Refused("BadRequestError", 400, "cannot cancel", "the response has ended")
    yield Case(STORED, "cancel", "one that has ended", of_stored("responses.cancel"), gone, ended)
    unknown = Call("responses.retrieve", arguments=("resp_0123456789abcdef",))
    not_found = Refused("NotFoundError", 404, "not found", "the response is not there")
    yield Case(STORED, "retrieve", "an unknown one", lambda client: client.send(unknown), gone, not_found)
    # HTTP has no exception of its own for 405 in these clients.
    delete = Refused("APIStatusError", 405, "method", "vLLM deletes no response")
    yield Case(STORED, "delete", "", of_stored("responses.delete"), gone, delete)
    items = Refused("NotFoundError", 404, "does not serve", "vLLM lists no input items")
    yield Case(STORED, "input items", "", of_stored("responses.input_items.list"), gone, items)


def _of_models() -> Iterator[Case]:
    listed = Call("models.list")
    yield Case(MODELS, "list", "", lambda client: client.send(listed), Right(lists_the_model))
    one = Call("models.retrieve", arguments=(MODEL,))
    yield Case(MODELS, "retrieve", "", lambda client: client.send(one), Right(lambda answer: answer["id"] == MODEL))
    unknown = Call("models.retrieve", arguments=("none",))
    refused = Refused("NotFoundError", 404, "does not exist", "the model is not there", "model_not_found")
    yield Case(MODELS, "retrieve", "an unknown one", lambda client: client.send(unknown), refused)


def _of_other_paths() -> Iterator[Case]:
    for name, (method, body) in OTHER_METHODS.items():
        call = Call(method, body)
        refused = Refused("NotFoundError", 404, "does not serve", "the fleet has no model for it")
        yield Case(OTHER, name, "", lambda client, call=call: client.send(call), refused)


def _errors() -> Iterator[Case]:
    """Requests that are wrong, each with the exception that clients catch."""

    def bad(name: str, ask: Ask, words: str, reason: str) -> Case:
        return Case(ERRORS, name, "", ask, Refused("BadRequestError", 400, words, reason))

    model = Refused("NotFoundError", 404, "does not exist", "the model is not there")
    asks = [
        (row, ask, stream)
        for row, ask in ((CHAT, chat), (RESPONSES, response), (COMPLETIONS, completion))
        for stream in (False, True)
    ]
    for row, ask, stream in asks:
        name = f"{row}, stream" if stream else row
        yield Case(ERRORS, "unknown model", name, ask(model="none", stream=stream), model)
    for row, ask, stream in asks:
        name = f"{row}, stream" if stream else row
        wrong = Refused("BadRequestError", 400, "temperature", "the value is wrong")
        yield Case(ERRORS, "wrong type", name, ask(temperature="warm", stream=stream), wrong)
    role = [{"role": "wizard", "content": QUESTION}]
    yield bad("unknown role", chat(messages=role), "Input should be 'user'", "the value is wrong")
    yield bad(
        "too long", chat(messages=user("word " * 5000)), "2048", "the text is longer than the context of the model"
    )
    yield bad(
        "wrong schema",
        chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}),
        "specification",
        "the schema is wrong",
    )
    yield bad("too many log-probabilities", chat(logprobs=True, top_logprobs=21), "logprobs", "vLLM gives at most 20")
    yield bad(
        "unknown function",
        chat(
            messages=user(WEATHER), tools=[chat_tool()], tool_choice={"type": "function", "function": {"name": "none"}}
        ),
        "tool",
        "the function is not among the tools",
    )
    denied = Refused("AuthenticationError", 401, "API key", "the key is wrong", "invalid_api_key")
    yield Case(ERRORS, "wrong key", "", lambda client: client.send(Call("models.list", api_key="wrong")), denied)


def cases() -> tuple[Case, ...]:
    """Every row, in the order of the table."""
    return (*matrix(), *others())
