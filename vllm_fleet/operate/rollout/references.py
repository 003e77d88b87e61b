"""What accepted releases have measured, kept in the fleet's folder: later releases are compared with it."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.digests import text_sha256
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.paths import display
from vllm_fleet.operate.rollout.record import Kept

#: A file or a folder of references.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class Measured(BaseModel):
    """What a load has measured on an instance.

    Attributes:
        ttft_seconds: to the first token, the median.
        tokens_per_second: of all streams together.
        noise: how far the rounds lie apart, as a share.
        rounds: how many there were.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttft_seconds: _Finite = Field(ge=0)
    tokens_per_second: _Finite = Field(ge=0)
    noise: _Finite = Field(ge=0)
    rounds: int = Field(ge=0)


class Reference(BaseModel):
    """What one accepted release has measured.

    Attributes:
        host_class: the class of the host.
        engine: the engine.
        host: where it was measured.
        at: when, in seconds since 1970.
        logprobs: digest of a prompt -> the log-probabilities of its tokens, from the second one on.
        speed: under the short load; None if it was not measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host_class: str
    engine: str
    host: str
    at: float
    logprobs: dict[str, list[_Finite]]
    speed: Measured | None = None

    def text(self) -> str:
        """The file of it."""
        record = self.model_dump()
        logprobs = record.pop("logprobs")
        # A line for each prompt, so that a change can be read.
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(values)}" for key, values in sorted(logprobs.items()))
        head = json.dumps(record, indent=1, sort_keys=True)[:-2]
        return f'{head},\n "logprobs": {{\n{lines}\n }}\n}}\n'


def digest_of_prompt(prompt: str) -> str:
    """The name of a prompt in a reference."""
    return text_sha256(prompt)[:16]


def read_reference(path: Path) -> Reference | None:
    """A reference; None if the release has none.

    Raises:
        FleetError: the file is not one.
    """
    try:
        return Reference.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, OSError, UnicodeDecodeError):
        raise FleetError(
            "is no reference of a release",
            "restore it from your repository, or remove it: the next release that is accepted writes it anew",
            display(path),
        ) from None


def find_reference(path: Path) -> tuple[Reference | None, bool]:
    """The reference to compare a release with.

    Args:
        path: where the reference of this release is kept, beside those of others of the same model.

    Returns:
        The reference, and whether it is of the same build. Without one of its own, the newest one of the same class
        counts, then the newest one.

    Raises:
        FleetError: a file is no reference.
    """
    if own := read_reference(path):
        return own, True
    host_class = path.name.partition("--")[0]
    others = [each for file in sorted(path.parent.glob("*.json")) if (each := read_reference(file))]
    others.sort(key=lambda each: (each.host_class == host_class, each.at))
    return (others[-1] if others else None), False


def take_over(folder: Path, event: Kept) -> None:
    """Keeps a reference that a worker has sent.

    Args:
        folder: the references of the fleet.
        event: what the worker has sent.

    Raises:
        FleetError: it cannot be read, or its name is not that of a reference.
    """
    names = (event.folder, event.file)
    try:
        reference = Reference.model_validate_json(event.text)
    except ValidationError:
        reference = None
    if reference is None or not all(map(_NAME.fullmatch, names)):
        raise FleetError("the worker has sent a reference that cannot be used", "look at the worker", host=event.host)
    write_reference(folder.joinpath(*names), reference)


def write_reference(path: Path, reference: Reference) -> None:
    """Keeps what an accepted release has measured.

    Args:
        path: the file.
        reference: what is kept; a speed that is not measured leaves the one that is there.
    """
    before = read_reference(path)
    if before and before.speed and not reference.speed:
        reference = reference.model_copy(update={"speed": before.speed})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, reference.text())


def judge_numerics(
    found: Mapping[str, Sequence[float]], reference: Reference, limits: Mapping[str, float]
) -> tuple[dict[str, Any], str]:
    """Compares the log-probabilities of prompts.

    Args:
        found: digest of a prompt -> the log-probabilities of its tokens.
        reference: those of an accepted release.
        limits: ``mean`` and ``median`` of what they may differ by, in nats.

    Returns:
        The figures, and what is wrong; empty if nothing is. Prompts that the reference does not have are left out.
    """
    differences: list[float] = []
    for prompt, values in found.items():
        known = reference.logprobs.get(prompt)
        if known is None:
            continue
        if len(known) != len(values):
            text = f"a prompt has {len(values) + 1} tokens, and {len(known) + 1} with the accepted release"
            return {"tokens": len(values) + 1}, text
        differences += [abs(one - other) for one, other in zip(values, known, strict=True)]
    if not differences:
        return {"compared": 0}, ""
    figures = {
        "compared": len(differences),
        "mean": round(statistics.mean(differences), 4),
        "median": round(statistics.median(differences), 4),
        "most": round(max(differences), 4),
    }
    over = [f"the {name} is {figures[name]}, over {limit}" for name, limit in limits.items() if figures[name] > limit]
    against = f"{reference.engine} on {reference.host_class}, measured on {reference.host}"
    text = f"log-probabilities differ from those of {against}, in nats: {', '.join(over)}" if over else ""
    return {**figures, "against": against}, text


def judge_speed(new: Measured, old: Measured, rules: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Compares the speed of two releases.

    Args:
        new: of the release on trial.
        old: of the one before.
        rules: ``speed`` of ``recipes/gates.yml``.

    Returns:
        The figures, and what is wrong; empty if nothing is.
    """
    noise, budget = max(new.noise, old.noise), rules["budget"]
    slower = 1 - new.tokens_per_second / old.tokens_per_second if old.tokens_per_second else 0.0
    later = new.ttft_seconds - old.ttft_seconds
    figures = {"slower": round(slower, 4), "later_seconds": round(later, 4), "noise": round(noise, 4)}
    if noise > rules["noise"]:
        return figures, (
            f"rounds of the same load lie {noise:.0%} apart, more than {rules['noise']:.0%}: it cannot be told whether "
            "the release is slower"
        )
    if slower > budget["tokens_per_second"] + noise:
        return figures, (
            f"{new.tokens_per_second:.1f} tokens/s, {slower:.0%} fewer than the {old.tokens_per_second:.1f} of the "
            f"release before; the budget is {budget['tokens_per_second']:.0%}, the noise {noise:.0%}"
        )
    if later > max(rules["least_ttft_seconds"], old.ttft_seconds * (budget["ttft"] + noise)):
        return figures, (
            f"{new.ttft_seconds:.3f} s to the first token, {old.ttft_seconds:.3f} s with the release before; the "
            f"budget is {budget['ttft']:.0%}"
        )
    return figures, ""
