"""Requests as clients rarely send them, for each API that a host serves, with the answer that each must get."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
#: Fields as JSON knows them.
Fields = Mapping[str, Any]

MODEL = "vllm-fleet/lab-gpt-oss"
QUESTION, RIGHT = "What is the capital of Italy?", "Rome"
WEATHER = "What is the weather in Oslo?"
#: The value of a field that a row leaves out.
ABSENT = object()
#: What each API gets besides the fields of a row.
BASE: Mapping[str, Fields] = {
    COMPLETIONS: {"model": MODEL, "prompt": "1 2 3 4", "max_tokens": 8, "temperature": 0},
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 40, "temperature": 0},
    RESPONSES: {"model": MODEL, "input": QUESTION, "max_output_tokens": 40, "temperature": 0},
}


@dataclass(frozen=True)
class Unusual:
    """A request and its answer.

    Attributes:
        name: what is unusual.
        path: the API.
        body: what is sent.
        status: the status of the answer; 400 stands for every refusal, 400 to 499.
        holds: whether the answer, read as JSON or as the list of the events of a stream, contains what was asked for;
            not asked for status 500.
    """

    name: str
    path: str
    body: bytes
    status: int
    holds: Callable[[Any], bool]


def body_of(path: str, fields: Fields) -> bytes:
    whole = {key: value for key, value in {**BASE[path], **fields}.items() if value is not ABSENT}
    return json.dumps(whole).encode()


# What an answer contains.


def is_error(answer: Any) -> bool:
    return isinstance(answer, dict) and isinstance(answer["error"]["message"], str)


def is_parse_error(answer: Any) -> bool:
    """The gateway, or FastAPI before vLLM gives its errors their form, answers a body that is no JSON."""
    return is_error(answer) if "error" in answer else isinstance(answer["detail"], str)


def texts(answer: Any) -> list[str | None]:
    """The texts of an answer of any of the three APIs; of a stream, joined."""
    if isinstance(answer, list):
        deltas = [choice for event in answer for choice in event.get("choices", [])]
        if not deltas:
            return ["".join(event["delta"] for event in answer if event["type"] == "response.output_text.delta")]
        joined = {choice["index"]: "" for choice in deltas}
        for choice in deltas:
            joined[choice["index"]] += choice.get("text") or choice.get("delta", {}).get("content") or ""
        return [joined[index] for index in sorted(joined)]
    if "output" in answer:
        items = [item for item in answer["output"] if item["type"] == "message"]
        return ["".join(part["text"] for part in item["content"]) for item in items]
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in answer["choices"]]


def calls(answer: Any) -> list[tuple[str, Any]]:
    """The function calls of an answer: names and arguments."""
    if "output" in answer:
        found = [item for item in answer["output"] if item["type"] == "function_call"]
    else:
        found = [call["function"] for call in answer["choices"][0]["message"]["tool_calls"]]
    return [(call["name"], json.loads(call["arguments"])) for call in found]


def says(*wanted: str) -> Callable[[Any], bool]:
    return lambda answer: texts(answer) == list(wanted)


def says_one_of(*wanted: str) -> Callable[[Any], bool]:
    return lambda answer: len(texts(answer)) == 1 and texts(answer)[0] in wanted


def says_json_of(*wanted: Any) -> Callable[[Any], bool]:
    return lambda answer: json.loads(texts(answer)[0] or "") in wanted


def is_queued(answer: Any) -> bool:
    return bool(answer["status"] == "queued")


def answers(answer: Any) -> bool:
    """Any answer of the model: with odd sampling its text is not known."""
    if isinstance(answer, list):
        return len(answer) > 1
    return bool(answer.get("choices") or answer.get("output") or answer.get("status") == "incomplete")


def has_alternatives(number: int) -> Callable[[Any], bool]:
    """Whether every token of a completion or chat has its log-probability and as many alternatives, best first."""

    def holds(answer: Any) -> bool:
        for choice in answer["choices"]:
            if "text" in choice:
                values = choice["logprobs"]["token_logprobs"]
                rows = [sorted(row.values(), reverse=True) for row in choice["logprobs"]["top_logprobs"]]
            else:
                tokens = choice["logprobs"]["content"]
                values = [token["logprob"] for token in tokens]
                rows = [[top["logprob"] for top in token["top_logprobs"]] for token in tokens]
            if not values or any(value > 0 or not math.isfinite(value) for value in values):
                return False
            # The chosen token is one more alternative of a completion if it is not among the best.
            if any(not number <= len(row) <= number + ("text" in choice) for row in rows):
                return False
            if any(row != sorted(row, reverse=True) for row in rows):
                return False
        return True

    return holds


def has_prompt_logprobs(tokens: int, alternatives: int) -> Callable[[Any], bool]:
    def holds(answer: Any) -> bool:
        places = answer["choices"][0].get("prompt_logprobs") or answer["prompt_logprobs"]
        if len(places) < tokens or places[0] is not None:
            return False
        return all(alternatives <= len(place) <= alternatives + 1 for place in places[1:])

    return holds


# The rows: name -> fields.

TOOL = {
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def chat_tool(**changes: Any) -> Fields:
    return {"type": "function", "function": {**TOOL, **changes}}


def responses_tool(**changes: Any) -> Fields:
    return {"type": "function", **TOOL, **changes}


def user(content: Any) -> list[Fields]:
    return [{"role": "user", "content": content}]


def nested(depth: int) -> Any:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


CITIES: Fields = {"enum": ["Rome", "Oslo"]}
PATTERN = "(Rome|Oslo) [0-9]{3}"
TAG = {"type": "tag", "begin": "<a>", "content": {"type": "regex", "pattern": "[0-9]{3}"}, "end": "</a>"}
STRUCTURAL_TAG = {"type": "structural_tag", "format": TAG}


def is_tagged(answer: Any) -> bool:
    text = texts(answer)[0] or ""
    return text.startswith("<a>") and text.endswith("</a>") and text[3:-4].isdigit()


def follows_pattern(answer: Any) -> bool:
    city, _, number = (texts(answer)[0] or "").partition(" ")
    return city in CITIES["enum"] and len(number) == 3 and number.isdigit()


def _constrained(**constraint: Any) -> Fields:
    return {"structured_outputs": constraint}


#: Answered by all three APIs.
SERVED: Mapping[str, tuple[Fields, Callable[[Any], bool]]] = {
    "one of a choice": (_constrained(choice=["Rome", "Oslo"]), says_one_of("Rome", "Oslo")),
    "a pattern": ({**_constrained(regex=PATTERN)}, follows_pattern),
    "a grammar": (_constrained(grammar='root ::= "yes" | "no"'), says_one_of("yes", "no")),
    "a grammar that is recursive": (_constrained(grammar='root ::= "(" root ")" | "x"'), answers),
    "a schema": (_constrained(json=CITIES), says_json_of("Rome", "Oslo")),
    "a schema that cannot end in time": (_constrained(json={"type": "string", "minLength": 10**9}), answers),
    "a choice of two thousand": (_constrained(choice=[f"c{number}" for number in range(2000)]), answers),
    "temperature 2": ({"temperature": 2.0}, answers),
    "a temperature of almost nothing": ({"temperature": 1e-9}, answers),
    "temperature null": ({"temperature": None}, answers),
    "top_p of almost nothing": ({"temperature": 1, "top_p": 1e-9}, answers),
    "top_k 1": ({"temperature": 1, "top_k": 1}, answers),
    "top_k beyond 32 bits": ({"temperature": 1, "top_k": 2**33}, answers),
    "min_p 1": ({"temperature": 1, "min_p": 1}, answers),
    "presence penalty 2": ({"presence_penalty": 2}, answers),
    "presence penalty -2": ({"presence_penalty": -2}, answers),
    "frequency penalty 2": ({"frequency_penalty": 2}, answers),
    "frequency penalty -2": ({"frequency_penalty": -2}, answers),
    "repetition penalty beyond float32": ({"temperature": 1, "repetition_penalty": 1e39}, answers),
    "repetition penalty of almost nothing": ({"temperature": 1, "repetition_penalty": 1e-46}, answers),
    "every penalty at its end": (
        {"temperature": 1, "presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1e-30, "top_k": 3},
        answers,
    ),
    "a negative seed": ({"temperature": 1, "seed": -9}, answers),
    "the greatest seed": ({"temperature": 1, "seed": 2**63 - 1}, answers),
    "a bias that wins": ({"logit_bias": {"16": 100}}, answers),
    "a bias that is no number": ({"logit_bias": {"16": math.nan}}, answers),
    "a stop list": ({"stop": ["zzz", "\u0000", "\U0001f469"]}, answers),
    "an end that is ignored": ({"ignore_eos": True}, answers),
    "a key that is not known": ({"foo": {"bar": [1]}}, answers),
    "a long user": ({"user": "x" * 100_000}, answers),
    "an odd request id": ({"request_id": "../../x\n"}, answers),
}

#: Refused by all three APIs.
REFUSED: Mapping[str, Fields] = {
    "two constraints": _constrained(choice=["a"], regex="b"),
    "no constraint": _constrained(),
    "an empty choice": _constrained(choice=[]),
    "a pattern that does not end": _constrained(regex="("),
    "a grammar without its rule": _constrained(grammar="root ::= foo"),
    "a schema of no type": _constrained(json={"type": "nonsense"}),
    "a schema that is no JSON": _constrained(json="{"),
    "a schema that refers to nothing": _constrained(json={"$ref": "#/nope"}),
    "a deep schema": _constrained(json=nested(150)),
    # What llguidance makes of ten million items takes 1 GB.
    "a schema of ten million items": _constrained(json={"type": "array", "minItems": 10**7}),
    "a schema of properties without names": _constrained(json={"type": "object", "minProperties": 10**7}),
    "a pattern of a class of letters": _constrained(regex=r"\p{L}{3}"),
    "a pattern of two repetitions": _constrained(regex="a**"),
    "a pattern of a backward reference": _constrained(regex="(?P<x>a)(?P=x)"),
    "a negative temperature": {"temperature": -1},
    "a huge temperature": {"temperature": 1e9},
    "a temperature that is no number": {"temperature": math.nan},
    "a temperature without end": {"temperature": math.inf},
    "a temperature in words": {"temperature": "hot"},
    "top_p 0": {"top_p": 0},
    "top_p 1.5": {"top_p": 1.5},
    "top_k -5": {"top_k": -5},
    "min_p 2": {"min_p": 2},
    "presence penalty 3": {"presence_penalty": 3},
    "frequency penalty that is no number": {"frequency_penalty": math.nan},
    "repetition penalty 0": {"repetition_penalty": 0},
    "repetition penalty without end": {"repetition_penalty": math.inf},
    "a seed of 64 bits": {"seed": 2**63},
    "a bias of no token": {"logit_bias": {"300000": 1}},
    "a bias of a word": {"logit_bias": {"cat": 1}},
    "a bias as a list": {"logit_bias": [1]},
    "an empty stop": {"stop": [""]},
    "a stop of no token": {"stop_token_ids": [10**6]},
    "a model that is a number": {"model": 5},
    "a priority of 70 bits": {"priority": 2**70},
    "an empty salt": {"cache_salt": ""},
}

TOKENS_IN_CONTEXT = 2048

SERVED_BY: Mapping[str, Mapping[str, tuple[Fields, Callable[[Any], bool]]]] = {
    COMPLETIONS: {
        "log-probabilities": ({"logprobs": 0}, has_alternatives(0)),
        "twenty alternatives": ({"logprobs": 20}, has_alternatives(20)),
        "log-probabilities of the prompt": ({"prompt_logprobs": 3}, has_prompt_logprobs(7, 3)),
        "log-probabilities of a long prompt": (
            {"prompt": [16 + number % 7 for number in range(2047)], "max_tokens": 1, "prompt_logprobs": 20},
            has_prompt_logprobs(2047, 20),
        ),
        "echo": ({"echo": True}, says("1 2 3 4 5 6 7 8")),
        "echo with log-probabilities": (
            {"echo": True, "logprobs": 2},
            lambda answer: answer["choices"][0]["logprobs"]["token_logprobs"][0] is None,
        ),
        "three answers": ({"n": 3, "top_p": 1e-9, "temperature": 1}, says(*[" 5 6 7 8"] * 3)),
        "more answers than sequences": (
            {"n": 40, "max_tokens": 1, "temperature": 1},
            lambda answer: len(texts(answer)) == 40,
        ),
        # vLLM 0.32 has no best_of any more, and ignores keys that it does not know.
        "the best of three": ({"best_of": 3}, says(" 5 6 7 8")),
        "a beam": ({"use_beam_search": True, "n": 2}, lambda answer: texts(answer)[0] == " 5 6 7 8"),
        "several prompts": ({"prompt": ["1 2 3 4", "1 2 3 4"]}, says(" 5 6 7 8", " 5 6 7 8")),
        "token ids": ({"prompt": [16, 220, 17]}, answers),
        "the last token id": ({"prompt": [201087]}, answers),
        "almost the whole context": ({"prompt": [16] * (TOKENS_IN_CONTEXT - 1), "max_tokens": 1}, answers),
        "to the end of the context": (
            {"prompt": [16] * 2000, "max_tokens": 48, "ignore_eos": True},
            lambda answer: answer["usage"]["total_tokens"] == TOKENS_IN_CONTEXT,
        ),
        "a prompt cut to its end": ({"prompt": "word " * 5000, "truncate_prompt_tokens": 50}, answers),
        "a tag": ({**_constrained(structural_tag=json.dumps(STRUCTURAL_TAG)), "max_tokens": 20}, is_tagged),
        "a schema as OpenAI asks for it": (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": CITIES}}},
            says_json_of("Rome", "Oslo"),
        ),
        "a stream with log-probabilities": ({"stream": True, "logprobs": 1}, says(" 5 6 7 8")),
        "a stream of two answers": (
            {"stream": True, "n": 2, "temperature": 1, "top_p": 1e-9},
            says(" 5 6 7 8", " 5 6 7 8"),
        ),
        "a stream of a choice": ({"stream": True, **_constrained(choice=["Rome"])}, says("Rome")),
        "only one token": ({"allowed_token_ids": [16]}, says("11111111")),
        "no token that is left": ({"allowed_token_ids": [16], "bad_words": ["1"], "temperature": 1}, answers),
        "a bad word": ({"bad_words": [" 5"]}, lambda answer: " 5" not in (texts(answer)[0] or "")),
        "more tokens than the model wants": (
            {"min_tokens": 40, "max_tokens": 40},
            lambda answer: answer["usage"]["completion_tokens"] == 40,
        ),
        "unicode": ({"prompt": "\U0001f469\u200d\U0001f467 \u202e\u0000 \ufffe Z" + "\u0301" * 300}, answers),
        "deep JSON beside the prompt": ({"metadata": nested(200)}, says(" 5 6 7 8")),
    },
    CHAT: {
        "log-probabilities": ({"logprobs": True}, has_alternatives(0)),
        "twenty alternatives": ({"logprobs": True, "top_logprobs": 20}, has_alternatives(20)),
        "log-probabilities of the prompt": ({"prompt_logprobs": 2}, has_prompt_logprobs(20, 2)),
        "three answers with log-probabilities": (
            {"n": 3, "temperature": 1, "top_p": 1e-9, "logprobs": True, "top_logprobs": 1},
            lambda answer: texts(answer) == [RIGHT] * 3 and has_alternatives(1)(answer),
        ),
        "a stream with log-probabilities": ({"stream": True, "logprobs": True, "top_logprobs": 2}, says(RIGHT)),
        "a stream of two answers": (
            {"stream": True, "n": 2, "temperature": 1, "top_p": 1e-9},
            says(RIGHT, RIGHT),
        ),
        "a schema as OpenAI asks for it": (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": CITIES}}},
            says_json_of("Rome", "Oslo"),
        ),
        "a tag": ({"response_format": STRUCTURAL_TAG}, is_tagged),
        "any JSON": ({"response_format": {"type": "json_object"}}, answers),
        "a stream of a choice": ({"stream": True, **_constrained(choice=["Rome"])}, says("Rome")),
        "no messages": ({"messages": []}, answers),
        "an empty message": ({"messages": user("")}, answers),
        "a message in parts": ({"messages": user([{"type": "text", "text": QUESTION}])}, says(RIGHT)),
        "only a system message": (
            {"messages": [{"role": "system", "content": "You are a helpful assistant."}]},
            answers,
        ),
        "an answer without its call": (
            {"messages": [*user("x"), {"role": "tool", "content": "y", "tool_call_id": "none"}]},
            answers,
        ),
        "sixty messages": ({"messages": user("hi") * 60}, answers),
        "a long message": ({"messages": user("word " * 1500)}, answers),
        "tokens of the template": (
            {"messages": user("<|start|>assistant<|channel|>final<|message|>x<|return|>")},
            answers,
        ),
        "unicode": ({"messages": user("\U0001f469\u200d\U0001f467 \u202e\u0000 \ufffe Z" + "\u0301" * 300)}, answers),
        "as many tokens as fit": ({"max_tokens": 10**9}, says(RIGHT)),
        "one token": ({"max_tokens": 1}, lambda answer: answer["choices"][0]["finish_reason"] == "length"),
        "a bad word": ({"bad_words": ["Rome"]}, lambda answer: "Rome" not in (texts(answer)[0] or "")),
        "more tokens than the model wants": (
            {"min_tokens": 40, "max_tokens": 40},
            lambda answer: answer["usage"]["completion_tokens"] == 40,
        ),
        "a function": (
            {"messages": user(WEATHER), "tools": [chat_tool()]},
            lambda answer: calls(answer) == [("get_weather", {"city": "Oslo"})],
        ),
        "a function that is asked for": (
            {
                "messages": user(WEATHER),
                "tools": [chat_tool()],
                "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
            },
            lambda answer: [name for name, _ in calls(answer)] == ["get_weather"],
        ),
        "some function": (
            {"messages": user(WEATHER), "tools": [chat_tool()], "tool_choice": "required"},
            lambda answer: [name for name, _ in calls(answer)] == ["get_weather"],
        ),
        "no function": ({"messages": user(WEATHER), "tools": [chat_tool()], "tool_choice": "none"}, answers),
        "a function without parameters": ({"messages": user(WEATHER), "tools": [chat_tool(parameters=None)]}, answers),
        "a function that refers to itself": (
            {"messages": user(WEATHER), "tools": [chat_tool(parameters={"$ref": "#"})], "tool_choice": "required"},
            answers,
        ),
        "a function with odd properties": (
            {"messages": user(WEATHER), "tools": [chat_tool(parameters={"type": "object", "properties": [1, 2]})]},
            answers,
        ),
        "a function with an odd name": (
            {"messages": user(WEATHER), "tools": [chat_tool(name="a b<|call|>\n")]},
            answers,
        ),
        "a stream of a function with log-probabilities": (
            {"messages": user(WEATHER), "tools": [chat_tool()], "stream": True, "logprobs": True},
            answers,
        ),
        "a template that does not end": ({"chat_template": "{% for i in range(10**9) %}x{% endfor %}"}, says(RIGHT)),
    },
    RESPONSES: {
        "a stream": ({"stream": True}, says(RIGHT)),
        "alternatives that are not included": ({"top_logprobs": 5}, says(RIGHT)),
        "a schema as OpenAI asks for it": (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": CITIES}}},
            says_json_of("Rome", "Oslo"),
        ),
        "a stream of a choice": ({"stream": True, **_constrained(choice=["Rome"])}, says("Rome")),
        "a tag": (_constrained(structural_tag=json.dumps(STRUCTURAL_TAG)), is_tagged),
        "an empty input": ({"input": ""}, answers),
        "no items": ({"input": []}, answers),
        "a message in parts": ({"input": user([{"type": "input_text", "text": QUESTION}])}, says(RIGHT)),
        "a picture": (
            {"input": user([{"type": "input_image", "image_url": "http://127.0.0.1:9/x.png", "detail": "auto"}])},
            answers,
        ),
        "a long input": ({"input": "word " * 1500}, answers),
        "an input that is cut": ({"input": "word " * 5000, "truncation": "auto"}, answers),
        "unicode": ({"input": "\U0001f469\u200d\U0001f467 \u202e\u0000 \ufffe Z" + "\u0301" * 300}, answers),
        "one token": ({"max_output_tokens": 1}, lambda answer: answer["status"] == "incomplete"),
        "as many tokens as the model wants": ({"max_output_tokens": None}, says(RIGHT)),
        "a function": (
            {"input": WEATHER, "tools": [responses_tool()]},
            lambda answer: calls(answer) == [("get_weather", {"city": "Oslo"})],
        ),
        "a function that is asked for": (
            {
                "input": WEATHER,
                "tools": [responses_tool()],
                "tool_choice": {"type": "function", "name": "get_weather"},
            },
            lambda answer: [name for name, _ in calls(answer)] == ["get_weather"],
        ),
        "some function": (
            {"input": WEATHER, "tools": [responses_tool()], "tool_choice": "required"},
            lambda answer: [name for name, _ in calls(answer)] == ["get_weather"],
        ),
        "no function": ({"input": WEATHER, "tools": [responses_tool()], "tool_choice": "none"}, answers),
        "a function that refers to itself": (
            {"input": WEATHER, "tools": [responses_tool(parameters={"$ref": "#"})]},
            answers,
        ),
        "a stream of a function": ({"input": WEATHER, "tools": [responses_tool()], "stream": True}, answers),
        "an answer for later": ({"background": True}, is_queued),
    },
}

REFUSED_BY: Mapping[str, Mapping[str, Fields]] = {
    COMPLETIONS: {
        "too many alternatives": {"logprobs": 21},
        "the whole vocabulary as alternatives": {"prompt_logprobs": -1},
        "log-probabilities of the prompt of a stream": {"stream": True, "prompt_logprobs": 1},
        "several answers without chance": {"n": 3},
        "no answers": {"n": 0},
        "a million answers": {"n": 10**6},
        "a million beams": {"use_beam_search": True, "n": 10**6},
        "a stream of a beam": {"use_beam_search": True, "n": 2, "stream": True},
        "an empty prompt": {"prompt": ""},
        "no prompt": {"prompt": ABSENT},
        "no prompts": {"prompt": []},
        "one empty prompt of two": {"prompt": ["1 2 3", ""]},
        "a token id that is not there": {"prompt": [201088]},
        "a token id of 70 bits": {"prompt": [2**70]},
        "a negative token id": {"prompt": [-1]},
        "words and token ids": {"prompt": [1, "a"]},
        "a prompt that is an object": {"prompt": {"a": 1}},
        "the whole context": {"prompt": [16] * TOKENS_IN_CONTEXT, "max_tokens": 1},
        "more than the context": {"prompt": "word " * 5000},
        "three megabytes": {"prompt": "x" * 3_000_000},
        "no tokens": {"max_tokens": 0},
        "a billion tokens": {"max_tokens": 10**9},
        "half a token": {"max_tokens": 1.5},
        "more tokens than the most": {"min_tokens": 50},
        "an empty bad word": {"bad_words": [""]},
        "no allowed token": {"allowed_token_ids": []},
        "a suffix": {"suffix": "x"},
    },
    CHAT: {
        "too many alternatives": {"logprobs": True, "top_logprobs": 21},
        "alternatives without log-probabilities": {"top_logprobs": 3},
        "log-probabilities as a number": {"logprobs": 3},
        "a token id that is not there": {"logprobs": True, "logprob_token_ids": [10**6]},
        "an answer as XML": {"response_format": {"type": "xml"}},
        "messages that are null": {"messages": None},
        "no messages at all": {"messages": ABSENT},
        "a message that is a number": {"messages": user(5)},
        "a part of no kind": {"messages": user([{"type": "zzz"}])},
        "a role that is not there": {"messages": [{"role": "wizard", "content": "x"}]},
        "half a character": {"messages": user("\ud800")},
        "more than the context": {"messages": user("word " * 5000)},
        "no tokens": {"max_tokens": 0},
        "a function that is not there": {
            "tools": [chat_tool()],
            "tool_choice": {"type": "function", "function": {"name": "none"}},
        },
        "a choice of no kind": {"tools": [chat_tool()], "tool_choice": "zzz"},
        "a choice of no functions": {"tool_choice": "required"},
        "no functions": {"tools": []},
        "a function without a name": {"tools": [{"type": "function", "function": {}}]},
        "parameters that are a text": {"tools": [chat_tool(parameters="x")]},
        "deep parameters": {"tools": [chat_tool(parameters=nested(400))]},
        "effort that is not there": {"reasoning_effort": "zzz"},
    },
    RESPONSES: {
        "log-probabilities": {"top_logprobs": 5, "include": ["message.output_text.logprobs"]},
        "an inclusion that is not there": {"include": ["zzz"]},
        "an answer as XML": {"text": {"format": {"type": "xml"}}},
        "an input that is null": {"input": None},
        "no input": {"input": ABSENT},
        "an item of no kind": {"input": [{"type": "zzz"}]},
        "an answer without its call": {"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]},
        "half a character": {"input": "\ud800"},
        "more than the context": {"input": "word " * 5000},
        "no tokens": {"max_output_tokens": 0},
        "a billion tokens": {"max_output_tokens": 10**9},
        "a response that is not there": {"previous_response_id": "resp_none"},
        "a tool that is not there": {"input": WEATHER, "tools": [{"type": "web_search"}]},
        "a tool of a server that is not there": {
            "tools": [
                {"type": "mcp", "server_label": "x", "server_url": "http://127.0.0.1:9", "require_approval": "never"}
            ]
        },
        "a function that is not there": {
            "tools": [responses_tool()],
            "tool_choice": {"type": "function", "name": "none"},
        },
        "deep parameters": {"tools": [responses_tool(parameters=nested(400))]},
        "effort that is not there": {"reasoning": {"effort": "zzz"}},
    },
}

#: vLLM 0.32.0 answers these with status 500 and serves on.
FAILED: Mapping[str, Mapping[str, Fields]] = {
    # v1/structured_output/backend_guidance.py: what the library raises while it reads a schema is no ValueError.
    COMPLETIONS: {"a schema that is itself": _constrained(json={"$ref": "#"})},
    # v1/serial_utils.py: msgpack raises OverflowError for a number of more than 64 bits.
    CHAT: {"top_k of 70 bits": {"temperature": 1, "top_k": 2**70}},
    # openai_harmony, the regular expression of its tokenizer: the stack overflows, and PyO3 raises PanicException.
    RESPONSES: {"a word of three megabytes": {"input": "x" * 3_000_000}},
}

#: Python cannot read them, so FastAPI answers, before vLLM.
NO_JSON: Mapping[str, bytes] = {
    "another encoding": b'{"model":"\xff"}',
    "a hundred thousand lists": b"[" * 100_000 + b"]" * 100_000,
    "a number of five thousand digits": b'{"seed":' + b"9" * 5000 + b"}",
}
NO_OBJECT: Mapping[str, bytes] = {
    "half an object": b"{",
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"5",
}


def requests_to(path: str) -> Iterator[Unusual]:
    """Every row of an API."""
    for name, (fields, holds) in {**SERVED, **SERVED_BY[path]}.items():
        yield Unusual(name, path, body_of(path, fields), 200, holds)
    for name, fields in {**REFUSED, **REFUSED_BY[path]}.items():
        yield Unusual(name, path, body_of(path, fields), 400, is_error)
    for name, fields in FAILED[path].items():
        yield Unusual(name, path, body_of(path, fields), 500, bool)
    for name, body in NO_OBJECT.items():
        yield Unusual(name, path, body, 400, is_error)
    for name, body in NO_JSON.items():
        yield Unusual(name, path, body, 400, is_parse_error)
