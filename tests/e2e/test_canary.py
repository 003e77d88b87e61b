"""A release with a disturbed model on real vLLM: its canary is refused, and nothing else is touched."""

from __future__ import annotations

import json
import re

from openai import OpenAI

from e2e.running_lab import Lab
from lab.artifacts.model.build import perturbed_dir


def started(lab: Lab, host: str) -> str:
    return lab.on(host, "systemctl show -P ActiveEnterTimestampMonotonic vllm@0").stdout.strip()


def test_the_first_release_has_left_its_reference(lab: Lab) -> None:
    """Two equal hosts: the second one was compared with it."""
    (file,) = (lab.folder / "references").glob("*/*.json")
    record = json.loads(file.read_text())
    assert record["host"] == "lab-0"
    assert len(record["logprobs"]) == 3
    assert record["speed"] is None, "this fleet waives it"


def test_a_disturbed_model_is_refused_by_its_numbers_and_the_host_serves_the_old_one(lab: Lab, client: OpenAI) -> None:
    """It loads, starts and answers; the gates that would refuse it before are waived here."""
    path, before = lab.folder / "fleet.yml", started(lab, "lab-1")
    text = path.read_text()
    changed = text.replace("{cache}/lab-model/current", str(perturbed_dir()))
    changed = changed.replace("waive: {", 'waive: {tools: "a test", questions: "a test", ')
    assert changed.count("a test") == 2
    try:
        path.write_text(changed)
        done = lab.playbook()
    finally:
        path.write_text(text)
    told = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2, told
    assert "lab-0 serves its last good release, since the new one was refused at the gate numerics" in told
    found = re.search(r"in nats: the mean is ([0-9.]+), over 0\.3", told)
    assert found, told
    assert float(found[1]) > 1
    assert started(lab, "lab-1") == before, "the other host was not touched"
    answers = {ask(client) for _ in range(4)}
    assert answers == {"Paris"}
    assert lab.drift()[0] == 0


def ask(client: OpenAI) -> str:
    question = {"role": "user", "content": "What is the capital of France?"}
    answer = client.chat.completions.create(
        model="vllm-fleet/lab-gpt-oss",
        messages=[question],  # type: ignore[list-item]
        temperature=0,
    )
    return str(answer.choices[0].message.content)
