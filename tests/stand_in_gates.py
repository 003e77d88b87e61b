"""What the gates ask the small engine of tests/infra/rollout_engine.py, in the form of ``recipes/gates.yml``."""

from __future__ import annotations

from typing import Any

TOOL = {"name": "say", "description": "Say words.", "parameters": {"type": "object", "properties": {"words": {}}}}
QUESTIONS: dict[str, Any] = {
    "vocabulary": [{"prompt": "abc", "tokens": [97, 98, 99]}],
    "prompts": ["one three five seven", "two four"],
    "numerics": {"same": {"mean": 0.05, "median": 0.02}, "other": {"mean": 0.3, "median": 0.1}},
    "speed": {
        "streams": 2,
        "prompt_tokens": 8,
        "tokens": 20,
        "rounds": 2,
        # It sleeps between tokens, on a machine that may be busy with other tests.
        "noise": 0.9,
        "budget": {"ttft": 0.9, "tokens_per_second": 0.9},
        "least_ttft_seconds": 1.0,
    },
    "questions": [
        {"ask": "What is 2 + 3?", "answer": "^5$"},
        {"ask": "Say hello.", "tools": [TOOL], "call": {"name": "say", "arguments": {"words": "hello"}}},
    ],
    "share": 1.0,
}
