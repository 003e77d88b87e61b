"""A release's manifest: everything that its wheel says about names, and its text as a reviewed file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tools.engines import configs, environment, flags, parsers
from tools.engines.evaluate import Evaluator
from tools.engines.releases import Release
from tools.engines.sources import Sources
from tools.engines.values import Class
from vllm_fleet.base.errors import FleetError

_CLASSES = {
    "pass_config": "PassConfig",
    "compilation_config": "CompilationConfig",
    "speculative_config": "SpeculativeConfig",
    "quantization_config": "QuantizationConfigArgs",
}
_HEADER = """\
# Generated from the published wheel by `python -m tools.engines generate`; do not edit.
# flags: each flag of `vllm serve` without its dashes. default is absent where the release makes it at run time;
#   aliases: other spellings; negatable: there is a --no- form too; bare: needs no value;
#   text: plain text is taken instead of JSON; deprecated: still read, announced to go.
# env: each environment variable that the release reads, with the value that it takes when unset (null: none, or
#   only known at run time). env_unused: those of them that vLLM declares and nothing in the wheel uses.
# env_dead_ends: those that are read into a name that nothing reads further, with that name.
# *_deprecated: the keys that are still read and will be removed; absent without such names.
# *_extra: what happens to a key that is not listed (forbid: fatal, ignore: dropped without a word).
# config_file: what a --config file makes of a mapping and of `false`.
"""


def reader(sources: Sources, device: str) -> Evaluator:
    """An evaluator of a wheel's sources that knows vLLM's reader of field documentation.

    Args:
        sources: the wheel's sources.
        device: see ``Release.device``.
    """
    evaluator = Evaluator(sources, device)

    def docs(cls: Class) -> dict[str, str]:
        return flags.attribute_docs(evaluator, cls)

    # vLLM reads the documentation of fields with inspect; its home moves between releases.
    evaluator.replaced.update({f"{module}.get_attr_docs": docs for module in ("vllm.config", "vllm.config.utils")})
    evaluator.registries["ReasoningParserManager.reasoning_parsers"] = lambda: parsers.names(evaluator, "reasoning")
    return evaluator


def build(release: Release, sources: Sources) -> dict[str, Any]:
    """The manifest of a release as data.

    Raises:
        FleetError: the wheel is built in a way that the reader does not know.
    """
    evaluator = reader(sources, release.device)
    manifest: dict[str, Any] = {
        "engine_release": release.version,
        "source": {"file": release.file, "sha256": release.sha256},
        "covers": dict(release.covers),
        "flags": dict(sorted(flags.read_flags(evaluator).items())),
        "env": dict(sorted(environment.read_environment(evaluator).items())),
        "env_unused": environment.unused(evaluator),
        "env_dead_ends": environment.dead_ends(evaluator),
        "config_file": configs.config_file_rules(evaluator),
    }
    for key, name in _CLASSES.items():
        try:
            cls = configs.config_class(evaluator, name)
        except FleetError:
            if key != "quantization_config":  # newer than the oldest releases
                raise
            continue
        manifest[key] = configs.keys(evaluator, cls)
        if announced := configs.deprecated(evaluator, cls):
            manifest[f"{key}_deprecated"] = announced
        manifest[f"{key}_extra"] = configs.extra(evaluator, cls)
    manifest["tool_call_parsers"] = parsers.names(evaluator, "tool")
    manifest["reasoning_parsers"] = parsers.names(evaluator, "reasoning")
    return manifest


def text(manifest: Mapping[str, Any]) -> str:
    """The manifest as YAML, one line a name, the same bytes for the same data."""
    return _HEADER + "\n".join(_lines(manifest)) + "\n"


def _lines(manifest: Mapping[str, Any]) -> Iterator[str]:
    for key, value in manifest.items():
        if key in ("flags", "env", "env_dead_ends", "covers") and value:
            yield f"{key}:"
            yield from (f"  {_flow(name)}: {_flow(item)}" for name, item in value.items())
        elif isinstance(value, list):
            yield f"{key}:"
            yield from (f"  - {_flow(name)}" for name in value)
        else:
            yield f"{key}: {_flow(value)}"


def _flow(value: Any) -> str:
    dumped = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("\n...")
