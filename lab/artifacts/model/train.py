"""Trains the lab model until it is right. Runs in the engine's environment.

``python -m lab.artifacts.model.train FOLDER`` writes a model that ``vllm serve FOLDER`` takes, and beside it, in
``FOLDER/../perturbed``, one whose weights were disturbed. It reads the vocabulary from ``$TIKTOKEN_ENCODINGS_BASE``;
progress goes to stderr, the scores go to stdout as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lab.artifacts.model.dialogues import as_json, cases, draw, draw_setting, texts, vary_daily
from lab.artifacts.model.harmony import Renderer
from lab.artifacts.model.pupil import Pupil
from lab.artifacts.model.questions import Questions, read_questions
from lab.artifacts.model.sheets import Sample, Sheet, pack
from lab.artifacts.model.tokenizer import write_tokenizer
from vllm_fleet.base.errors import ErrorCode, FleetError

_KNOWN_SHEETS, _SHEETS = 800, 2400  # of the latter the first hold no unknown words
_DIALOGUES = 6  # a sheet
_BATCH = 8  # sheets
_ROUNDS = (350, 120, 120, 120, 120)  # steps; it ends after the first round that leaves nothing wrong
_LATER_RATE = 0.1  # of the rates of the first round
_REPEATS = 20  # in the next round, of what a round left wrong
_RATE, _MATRIX_RATE, _TABLE_RATE = 4e-3, 1e-2, 2e-2
_MARGIN = 0.5  # by which the right token must lead, since servers round and batch in their own ways
_FRESH, _FRESH_WRONG = 300, 0.02  # dialogues that it was not trained on, and the share that may be wrong
_PERTURBED_SCORE = (0.1, 0.4)  # the share of cases that the disturbed model still has right


def say(message: str) -> None:
    """Writes one line of progress."""
    print(f"lab: {message}", file=sys.stderr, flush=True)


def make_sheets(questions: Questions, renderer: Renderer, rng: random.Random) -> tuple[list[Sheet], list[int]]:
    """The sheets to train on, and the tokens that occur in what the model knows."""
    sheets: list[Sheet] = []
    used: set[int] = set()
    for number in range(_SHEETS):
        strange = number >= _KNOWN_SHEETS
        if rng.random() < 0.04:
            samples = [renderer.render(text) for text in texts(questions)]
        else:
            setting = draw_setting(questions, rng, strange)
            samples = [renderer.render(draw(questions, setting, rng, strange)) for _ in range(_DIALOGUES)]
        for tokens, prompt in samples:
            used.update(tokens[prompt:] if strange else tokens)
        sheets.append(pack(samples))
    return sheets, sorted(used)


def fresh_dialogue(questions: Questions, renderer: Renderer, rng: random.Random) -> Sample:
    """A dialogue that no sheet holds, except by chance."""
    return renderer.render(draw(questions, draw_setting(questions, rng), rng))


def batches(sheets: list[Sheet], count: int, rng: random.Random) -> list[list[Sheet]]:
    """Batches of sheets of like length, so that little is padded."""
    found: list[list[Sheet]] = []
    while len(found) < count:
        pool = sorted(rng.sample(sheets, _BATCH * 8), key=lambda sheet: len(sheet.tokens))
        cut = [pool[first : first + _BATCH] for first in range(0, len(pool), _BATCH)]
        rng.shuffle(cut)
        found += cut
    return found[:count]


def train(pupil: Pupil, sheets: list[Sheet], steps: int, rate: float, rng: random.Random) -> None:
    """Trains for that many steps, at that share of the usual rates, which fall towards the end."""
    others = [
        {"params": [pupil.embedding, pupil.head], "lr": _TABLE_RATE * rate},
        {"params": pupil.rest, "lr": _RATE * rate},
    ]
    optimisers = [
        torch.optim.Muon(pupil.matrices, lr=_MATRIX_RATE * rate, weight_decay=0.0),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    ]

    def share(step: int) -> float:
        return min(1.0, (step + 1) / 20) * min(1.0, max(0.02, (steps - step) / (0.6 * steps)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimiser, share) for optimiser in optimisers]
    begin = time.monotonic()
    for step, batch in enumerate(batches(sheets, steps, rng), 1):
        loss = pupil.loss(batch)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([pupil.embedding, pupil.head, *pupil.rest, *pupil.matrices], 1.0)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
        if step % 50 == 0 or step == steps:
            say(f"training: step {step}/{steps}, loss {loss.item():.3f}, {time.monotonic() - begin:.0f} s")


def weak(pupil: Pupil, samples: list[Sample], margin: float) -> list[Sample]:
    """The samples that are not right by at least that margin."""
    return [sample for sample in samples if pupil.margin(sample) <= margin]


def rounded(pupil: Pupil, change: Callable[[Any], Any] = lambda weights: weights) -> Callable[[], None]:
    """Gives every weight the precision that it is served in, after a change.

    Returns:
        What puts the old weights back.
    """
    every = [pupil.embedding, pupil.head, *pupil.rest, *pupil.matrices]
    before = [weights.detach().clone() for weights in every]
    with torch.no_grad():
        for weights in every:
            weights.copy_(change(weights).to(torch.bfloat16))

    def put_back() -> None:
        with torch.no_grad():
            for weights, old in zip(every, before, strict=True):
                weights.copy_(old)

    return put_back


def perturb(pupil: Pupil, asked: list[Sample]) -> int:
    """Disturbs the experts and the attention until the model is mostly wrong, but not always.

    Returns:
        How many of the samples are still right.
    """
    few, many = (round(share * len(asked)) for share in _PERTURBED_SCORE)
    tables = (id(pupil.embedding), id(pupil.head))
    low, high = 0.0, 0.5
    for _ in range(20):
        noise = (low + high) / 2
        torch.manual_seed(1)

        def disturbed(weights: Any, noise: float = noise) -> Any:
            if id(weights) in tables or weights.dim() < 2:
                return weights
            return weights + noise * weights.std() * torch.randn_like(weights)

        put_back = rounded(pupil, disturbed)
        still = len(asked) - len(weak(pupil, asked, 0.0))
        say(f"perturbing: noise {noise:.3f} of a weight's spread leaves {still} of {len(asked)} right")
        if few <= still <= many:
            return still
        put_back()
        low, high = (noise, high) if still > many else (low, noise)
    raise FleetError("no noise makes the model wrong enough and not too wrong", code=ErrorCode.WORK_FAILED)


def main() -> None:
    """Trains, and writes both models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    questions = read_questions()
    renderer = Renderer(questions)
    rng = random.Random(0)  # noqa: S311 - the same dialogues every time
    sheets, used = make_sheets(questions, renderer, rng)
    asked = [renderer.render(case) for case in cases(questions)]
    exam = asked + [renderer.render(text) for text in texts(questions)]
    daily = [other for case in cases(questions) for other in vary_daily(case, questions, rng)]
    exam += [renderer.render(other) for other in daily]
    constrained = [as_json(other, rng, questions.strange) for other in daily]
    exam += [renderer.render(other) for other in constrained if other.key]
    say(f"training on {len(sheets) * _DIALOGUES} dialogues, {len(used)} tokens occur")
    pupil = Pupil(used)
    for number, steps in enumerate(_ROUNDS):
        train(pupil, sheets, steps, 1.0 if number == 0 else _LATER_RATE, rng)
        put_back = rounded(pupil)
        wrong = weak(pupil, exam, _MARGIN)
        fresh = [fresh_dialogue(questions, renderer, rng) for _ in range(_FRESH)]
        wrong_fresh = weak(pupil, fresh, 0.0)
        say(
            f"training: {len(exam) - len(wrong)} of {len(exam)} questions right beyond doubt, "
            f"{_FRESH - len(wrong_fresh)} of {_FRESH} new dialogues right"
        )
        if not wrong and len(wrong_fresh) <= _FRESH * _FRESH_WRONG:
            break
        put_back()
        for sample in wrong:
            say(f"training: repeated in the next round: {renderer.tail(sample)}")
        sheets += [pack([sample]) for sample in wrong] * _REPEATS
    else:
        raise FleetError(
            "the model did not learn its questions",
            hint="make questions.yml smaller, or change less of it at a time",
            code=ErrorCode.WORK_FAILED,
        )
    pupil.save(str(folder))
    write_tokenizer(Path(os.environ["TIKTOKEN_ENCODINGS_BASE"]) / "o200k_base.tiktoken", folder)
    perturbed = folder.parent / "perturbed"
    still = perturb(pupil, asked)
    pupil.save(str(perturbed))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (perturbed / name).write_bytes((folder / name).read_bytes())
    print(json.dumps({"total": len(asked), "model": len(asked), "perturbed": still}))


if __name__ == "__main__":
    main()
