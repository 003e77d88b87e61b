"""Where engines, encodings, models and caches lie on a host."""

from __future__ import annotations

ENGINES = "/opt/vllm/engines"
ENCODINGS = "/var/lib/vllm/encodings"
MODELS = "/var/lib/vllm/models"
CACHE = "/var/cache/vllm"


def model_folder(model: str) -> str:
    """A model's name as one word of a path."""
    return model.replace("/", "--")


def model_directory(model: str, revision: str) -> str:
    """Where a revision of a model stands on a host."""
    return f"{MODELS}/{model_folder(model)}/{revision}"


def cache_directory(key: str) -> str:
    """The directory of the caches of a key: the home of its instances, as libraries know no other place."""
    return f"{CACHE}/{key}"
