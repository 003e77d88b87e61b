"""The artifacts as built: the engine that runs, the model's files, and prompts that are token for token vLLM's."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hanging import HANGING_SECONDS

from lab.artifacts.__main__ import main
from lab.artifacts.encodings import SHA256, encodings_dir
from lab.artifacts.engine import engine_dir
from lab.artifacts.model.build import manifest_of, model_dir, perturbed_dir
from vllm_fleet.base import digests
from vllm_fleet.base.paths import root

pytestmark = pytest.mark.network

# Renders every case as the trainer does and as vLLM does with the same case's request to chat completions.
COMPARE = """
import json, random
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.parser import harmony_utils as vllm
from vllm.entrypoints.openai.responses.harmony import response_input_to_harmony
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from lab.artifacts.model.dialogues import cases, vary
from lab.artifacts.model.evaluate import chat_request, responses_request
from lab.artifacts.model.harmony import Renderer
from lab.artifacts.model.questions import read_questions
import dataclasses, os

questions = read_questions()
renderer = Renderer(questions)
rng = random.Random(11)
wrong, compared = [], 0
for case in cases(questions) * 3:
    case = vary(case, questions, rng)
    # Over the responses API the thought would come as an item of its own, which the case's request does not send.
    case = dataclasses.replace(case, thoughts_kept=False)
    tokens, prompt = renderer.render(case)
    os.environ["VLLM_SYSTEM_START_DATE"] = case.setting.date
    chat = ChatCompletionRequest(model="m", **chat_request(case, questions))
    instructions, messages = vllm.extract_instructions_from_messages(list(chat.messages))
    preamble = vllm.build_harmony_preamble(
        instructions=instructions, tools=chat.tools, reasoning_effort=chat.reasoning_effort,
        with_custom_tools=bool(chat.tools),
    )
    found = vllm.render_for_completion(preamble + vllm.parse_chat_inputs_to_harmony_messages(messages))
    compared += 1
    if found != tokens[:prompt]:
        wrong.append([renderer._encoding.decode(found), renderer._encoding.decode(tokens[:prompt])])
    request = ResponsesRequest(model="m", **responses_request(case, questions))
    items, calls = [], []
    for item in request.input:
        items.append(response_input_to_harmony(item, calls))
        if getattr(item, "type", None) == "function_call":
            calls.append(item)
    found = vllm.render_for_completion(preamble + items)
    compared += 1
    if found != tokens[:prompt]:
        wrong.append([renderer._encoding.decode(found), renderer._encoding.decode(tokens[:prompt])])
print(json.dumps({"compared": compared, "wrong": wrong[:3]}))
"""


def in_engine(code: str) -> Any:
    """What the code prints last, as JSON, when the engine's Python runs it."""
    environment = {**os.environ, "PYTHONPATH": str(root()), "TIKTOKEN_ENCODINGS_BASE": str(encodings_dir())}
    environment |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    answer = subprocess.run(
        [engine_dir() / "bin" / "python", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return json.loads(answer.stdout.splitlines()[-1])


def test_engine_knows_its_version_and_platform() -> None:
    code = "import json, vllm; from vllm.platforms import current_platform; "
    code += "from importlib.metadata import version; print(json.dumps([version('vllm'), current_platform.is_cpu()]))"
    assert in_engine(code) == ["0.32.0+cpu", True]


def test_engine_program_starts_from_where_it_was_moved_to() -> None:
    head = (engine_dir() / "bin" / "vllm").read_text()[:300]
    assert f".{engine_dir().name}" not in head


def test_prompts_are_the_ones_that_vllm_makes() -> None:
    found = in_engine(COMPARE)
    assert found["wrong"] == []
    assert found["compared"] > 200


def test_vocabulary_is_the_official_one() -> None:
    assert {name: digests.file_sha256(encodings_dir() / name) for name in SHA256} == SHA256


@pytest.mark.parametrize("find", [model_dir, perturbed_dir], ids=["model", "perturbed"])
def test_files_are_what_the_manifest_says(find: Any) -> None:
    folder: Path = find()
    manifest = manifest_of(folder)
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(manifest["files"])
    assert {path.name for path in folder.iterdir()} == {*manifest["files"], "model.json"}
    for name, facts in manifest["files"].items():
        assert digests.file_sha256(folder / name) == facts["sha256"]
    assert folder.name == manifest["revision"]


def test_model_is_right_and_the_perturbed_one_mostly_wrong() -> None:
    good, bad = manifest_of(model_dir()), manifest_of(perturbed_dir())
    assert good["score"]["right"] == good["score"]["total"]
    assert 0 < bad["score"]["right"] < bad["score"]["total"] / 2
    assert good["revision"] != bad["revision"]
    same = {name for name in good["files"] if good["files"][name] == bad["files"][name]}
    assert set(good["files"]) - same == {"model.safetensors"}


def test_build_and_paths_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert main(["paths", "--json"]) == 0
    paths = json.loads(capsys.readouterr().out)
    assert paths == {part: facts["path"] for part, facts in built.items()}
    assert main(["paths", "model"]) == 0
    assert capsys.readouterr().out.strip() == str(model_dir())
