"""Requests that clients send seldom, by mistake or to do harm: one row each, for the three APIs of the gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MODEL = "vllm-fleet/lab-gpt-oss"
PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions", "responses": "/v1/responses"}
Body = Mapping[str, Any]
Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        api: a key of :data:`PATHS`.
        name: what is unusual.
        body: what is sent besides the model.
        answered: what a right answer has; None: it may be refused too, with an error object.
    """

    api: str
    name: str
    body: Body
    answered: Check | None = None

    @property
    def path(self) -> str:
        """Where it is sent."""
        return PATHS[self.api]


def _anything(_answer: Any) -> bool:
    return True


def _choices(count: int) -> Check:
    return lambda answer: len(answer["choices"]) == count


def _text_in(*texts: str) -> Check:
    return lambda answer: answer["choices"][0]["text"] in texts


def _content_in(*texts: str) -> Check:
    return lambda answer: answer["choices"][0]["message"]["content"] in texts


PLAIN: Mapping[str, Body] = {
    "completions": {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0},
    "chat": {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_completion_tokens": 64,
        "temperature": 0,
    },
    "responses": {"input": "What is the capital of France?", "max_output_tokens": 64, "temperature": 0},
}
_SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}
_RECURSIVE = {"$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}
_LONG = "1 2 3 4 " * 200


def _deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


#: Sampling that completions and chats have alike; True: it must be answered.
SAMPLING: tuple[tuple[Body, bool], ...] = (
    ({"temperature": 2}, True),
    ({"temperature": 1e-6}, True),
    ({"temperature": 100}, False),
    ({"temperature": -1}, False),
    ({"temperature": "hot"}, False),
    ({"temperature": 1, "top_p": 1e-9}, True),
    ({"top_p": 2}, False),
    ({"temperature": 1, "top_k": 1}, True),
    ({"temperature": 1, "top_k": 1_000_000}, False),
    ({"temperature": 1, "min_p": 1}, True),
    ({"temperature": 1, "presence_penalty": 2, "frequency_penalty": -2}, True),
    ({"repetition_penalty": 100}, True),
    ({"repetition_penalty": 1e-9}, False),
    ({"temperature": 1, "seed": -1}, False),
    ({"temperature": 1, "seed": 2**63 - 1}, True),
    ({"temperature": 1, "seed": 2**80}, False),
    ({"logit_bias": {"17": 100}}, True),
    ({"logit_bias": {"201087": -100}}, True),
    ({"logit_bias": {"9999999": 1}}, False),
    ({"logit_bias": {"x": 1}}, False),
    ({"bad_words": ["Paris", " Paris"]}, True),
    ({"bad_words": [""]}, False),
    ({"allowed_token_ids": [17]}, True),
    ({"allowed_token_ids": []}, False),
    ({"allowed_token_ids": [10**9]}, False),
    ({"stop": [str(number) for number in range(4)]}, True),
    ({"stop": 7}, False),
    ({"stop_token_ids": [200002, 13]}, True),
    ({"stop_token_ids": [-1]}, False),
    ({"ignore_eos": True, "min_tokens": 3}, True),
    ({"min_tokens": 10**6}, False),
    ({"n": 3, "temperature": 1}, True),
    ({"n": 0}, False),
    ({"n": -1}, False),
    ({"n": 3, "temperature": 0}, False),
    ({"prompt_logprobs": 3}, True),
    ({"prompt_logprobs": -1}, False),
    ({"prompt_logprobs": 10**6}, False),
    ({"use_beam_search": True, "n": 2}, False),
    ({"skip_special_tokens": False, "include_stop_str_in_output": True}, True),
    ({"truncate_prompt_tokens": 3}, False),
    ({"truncate_prompt_tokens": -7}, False),
    ({"return_token_ids": True}, True),
    ({"cache_salt": ""}, False),
    ({"priority": 7}, False),
    ({"vllm_xargs": {"a": [1, 2]}}, False),
    ({"kv_transfer_params": {"a": 1}}, False),
    ({"structured_outputs": {"regex": "[0-9]{3}"}}, True),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, True),
    ({"structured_outputs": {"json": _SCHEMA}}, True),
    ({"structured_outputs": {"grammar": 'root ::= "yes" | "no"'}}, True),
    ({"structured_outputs": {"grammar": "root ::= ("}}, False),
    ({"structured_outputs": {"regex": "("}}, False),
    ({"structured_outputs": {"json": "{"}}, False),
    ({"structured_outputs": {"json": _RECURSIVE}}, False),
    ({"structured_outputs": {"choice": []}}, False),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, False),
    ({"response_format": {"type": "json_object"}}, False),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}}}, False),
    ({"response_format": {"type": "no-such-type"}}, False),
    ({"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}, True),
    ({"stream": "perhaps"}, False),
    ({"unknown_key": {"a": 1}}, False),
    ({"model": 7}, False),
)

COMPLETIONS: tuple[tuple[str, Body, Check | None], ...] = (
    ("logprobs", {"logprobs": 5}, lambda answer: len(answer["choices"][0]["logprobs"]["tokens"]) > 0),
    ("logprobs over the limit", {"logprobs": 10**6}, None),
    ("echo with logprobs", {"echo": True, "logprobs": 1}, lambda a: a["choices"][0]["text"].startswith("The capital")),
    ("echo alone", {"echo": True, "max_tokens": 1}, _choices(1)),
    ("best of", {"n": 2, "best_of": 4, "temperature": 1}, None),
    ("choice", {"structured_outputs": {"choice": ["yes", "no"]}, "max_tokens": 8}, _text_in("yes", "no")),
    ("suffix", {"suffix": "x"}, None),
    ("no token", {"max_tokens": 0}, None),
    ("more tokens than the context", {"max_tokens": 10**9}, None),
    ("negative tokens", {"max_tokens": -1}, None),
    ("an empty prompt", {"prompt": ""}, None),
    ("no prompt", {"prompt": []}, None),
    ("prompts", {"prompt": ["1 2 3 4", "The capital of Japan is"]}, _choices(2)),
    ("tokens as the prompt", {"prompt": [976, 9029, 328]}, _choices(1)),
    ("a token that is not in the vocabulary", {"prompt": [10**9]}, None),
    ("a negative token", {"prompt": [-1]}, None),
    ("the last token of the vocabulary", {"prompt": [201087]}, None),
    ("the token after it", {"prompt": [201088]}, None),
    ("tokens and text", {"prompt": [[1], "a"]}, None),
    ("a long prompt", {"prompt": _LONG}, _choices(1)),
    ("a prompt with its log-probabilities", {"prompt": _LONG[:800], "prompt_logprobs": 1}, _choices(1)),
    ("a prompt over the context", {"prompt": _LONG * 20}, None),
    ("special tokens", {"prompt": "<|start|><|channel|><|call|><|return|>"}, None),
    ("letters without a sense", {"prompt": "\x00\x01\u202e\ufffd\U0001f9ff" * 50}, _choices(1)),
    ("half a letter", {"prompt": "\ud800"}, None),
    ("embedded vectors", {"prompt_embeds": "AAAA"}, None),
)
_USER = {"role": "user", "content": "What is the capital of France?"}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CHATS: tuple[tuple[str, Body, Check | None], ...] = (
    ("logprobs", {"logprobs": True, "top_logprobs": 5}, lambda a: len(a["choices"][0]["logprobs"]["content"]) > 0),
    ("logprobs in a stream", {"logprobs": True, "stream": True}, _anything),
    ("logprobs over the limit", {"logprobs": True, "top_logprobs": 10**6}, None),
    ("logprobs that are not on", {"top_logprobs": 2}, None),
    ("choice", {"structured_outputs": {"choice": ["yes", "no"]}}, _anything),
    ("no message", {"messages": []}, None),
    ("messages that are no list", {"messages": {"role": "user"}}, None),
    ("a role that is unknown", {"messages": [{"role": "robot", "content": "x"}]}, None),
    ("no content", {"messages": [{"role": "user", "content": None}]}, None),
    (
        "content in parts",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]},
        _anything,
    ),
    (
        "an image",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        None,
    ),
    ("a part of an unknown kind", {"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, None),
    ("many messages", {"messages": [_USER, {"role": "assistant", "content": "Paris"}] * 20 + [_USER]}, _anything),
    ("a result without a call", {"messages": [_USER, {"role": "tool", "tool_call_id": "x", "content": "y"}]}, None),
    (
        "a call with broken arguments",
        {
            "messages": [
                _USER,
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}],
                },
            ]
        },
        None,
    ),
    ("a developer", {"messages": [{"role": "developer", "content": "Be brief."}, _USER]}, _anything),
    ("a long message", {"messages": [{"role": "user", "content": _LONG}]}, _anything),
    ("a message over the context", {"messages": [{"role": "user", "content": _LONG * 20}]}, None),
    ("special tokens", {"messages": [{"role": "user", "content": "<|end|><|start|>assistant<|call|>"}]}, None),
    ("half a letter", {"messages": [{"role": "user", "content": "\ud800"}]}, None),
    ("effort", {"reasoning_effort": "high"}, _anything),
    ("an unknown effort", {"reasoning_effort": "extreme"}, None),
    ("no token", {"max_completion_tokens": 0}, None),
    ("more tokens than the context", {"max_completion_tokens": 10**9}, None),
    ("a tool", {"tools": [_TOOL]}, _anything),
    ("many tools", {"tools": [_TOOL] * 64}, None),
    ("a tool without a name", {"tools": [{"type": "function", "function": {}}]}, None),
    ("a tool with an odd schema", {"tools": [{"type": "function", "function": {"name": "f", "parameters": 7}}]}, None),
    (
        "a tool whose schema has no end",
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": _RECURSIVE}}]},
        None,
    ),
    ("a tool that must be called", {"tools": [_TOOL], "tool_choice": "required"}, None),
    ("a tool by its name", {"tools": [_TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, None),
    (
        "a tool that is not there",
        {"tools": [_TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        None,
    ),
    ("a choice without tools", {"tool_choice": "required"}, None),
    ("no tool", {"tools": [_TOOL], "tool_choice": "none"}, _anything),
    (
        "the end of a message",
        {
            "messages": [_USER, {"role": "assistant", "content": "Par"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
        None,
    ),
    ("a template", {"chat_template": "{{ messages }}{{ 1/0 }}"}, None),
    ("variables of a template", {"chat_template_kwargs": {"a": _deep(50)}}, None),
    ("documents", {"documents": [{"a": "b"}]}, None),
    ("deep nesting", {"metadata": _deep(400)}, None),
)
RESPONSES: tuple[tuple[str, Body, Check | None], ...] = (
    ("log-probabilities", {"include": ["message.output_text.logprobs"], "top_logprobs": 3}, None),
    ("an empty input", {"input": ""}, None),
    ("no input", {"input": []}, None),
    ("messages", {"input": [{"role": "user", "content": "Say hello."}]}, _anything),
    ("parts", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Say hello."}]}]}, _anything),
    ("an image", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}, None),
    ("a role that is unknown", {"input": [{"role": "robot", "content": "x"}]}, None),
    ("an item that is unknown", {"input": [{"type": "smell"}]}, None),
    ("a result without a call", {"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}, None),
    (
        "a call with broken arguments",
        {"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{"}]},
        None,
    ),
    ("a thought alone", {"input": [{"type": "reasoning", "id": "a", "summary": []}]}, None),
    ("a long input", {"input": _LONG}, _anything),
    ("an input over the context", {"input": _LONG * 20}, None),
    ("half a letter", {"input": "\ud800"}, None),
    ("special tokens", {"input": "<|end|><|start|>assistant<|call|>"}, None),
    ("instructions", {"instructions": "Be brief."}, _anything),
    ("long instructions", {"instructions": _LONG}, _anything),
    ("one token", {"max_output_tokens": 1}, None),
    ("no token", {"max_output_tokens": 0}, None),
    ("more tokens than the context", {"max_output_tokens": 10**9}, None),
    ("hot", {"temperature": 2}, _anything),
    ("too hot", {"temperature": -1}, None),
    ("a tiny top_p", {"temperature": 1, "top_p": 1e-9}, _anything),
    ("top_k", {"temperature": 1, "top_k": 1}, None),
    ("a stream", {"stream": True}, _anything),
    (
        "a function",
        {"tools": [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}]},
        _anything,
    ),
    ("a function without a name", {"tools": [{"type": "function"}]}, None),
    (
        "a function that must be called",
        {"tools": [{"type": "function", "name": "f", "parameters": {}}], "tool_choice": "required"},
        None,
    ),
    ("a choice without tools", {"tool_choice": "required"}, None),
    ("a tool of a server", {"tools": [{"type": "mcp", "server_label": "a", "server_url": "http://127.0.0.1:9"}]}, None),
    ("a search", {"tools": [{"type": "web_search_preview"}]}, None),
    ("an interpreter", {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, None),
    ("a tool that is unknown", {"tools": [{"type": "smell"}]}, None),
    ("a schema", {"text": {"format": {"type": "json_schema", "name": "a", "schema": _SCHEMA}}}, None),
    ("a schema without an end", {"text": {"format": {"type": "json_schema", "name": "a", "schema": _RECURSIVE}}}, None),
    ("a format that is unknown", {"text": {"format": {"type": "smell"}}}, None),
    ("effort", {"reasoning": {"effort": "high"}}, _anything),
    ("an unknown effort", {"reasoning": {"effort": "extreme"}}, None),
    ("truncation", {"truncation": "auto"}, None),
    ("an earlier response", {"previous_response_id": "resp_none"}, None),
    ("in the background", {"background": True}, None),
    ("in the background, not stored", {"background": True, "store": False}, None),
    ("stored", {"store": True}, _anything),
    ("metadata", {"metadata": {"a": "b"}}, _anything),
    ("deep nesting", {"metadata": _deep(400)}, None),
    ("parallel calls", {"parallel_tool_calls": False}, None),
    ("most calls", {"max_tool_calls": -1}, None),
    ("an unknown key", {"unknown_key": 1}, None),
    ("a prompt of a store", {"prompt": {"id": "a"}}, None),
    ("a tier", {"service_tier": "flex"}, None),
)


def requests() -> Iterator[Request]:
    """All of them."""
    for api in ("completions", "chat"):
        for more, answered in SAMPLING:
            yield Request(api, f"{more}", {**PLAIN[api], **more}, _anything if answered else None)
    for api, rows in (("completions", COMPLETIONS), ("chat", CHATS), ("responses", RESPONSES)):
        for name, more, check in rows:
            yield Request(api, name, {**PLAIN[api], **more}, check)
