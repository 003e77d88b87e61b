"""Where engines, encodings, models and caches are on a host."""

from __future__ import annotations

ENGINES = "/opt/vllm/engines"
ENCODINGS = "/var/lib/vllm/encodings"
MODELS = "/var/lib/vllm/models"
#: Models that are on a host already are mounted here.
ADOPTED = "/var/lib/vllm/adopted"
CACHE = "/var/cache/vllm"


def model_folder(model: str) -> str:
    """A model's name as the name of a folder."""
    return model.replace("/", "--")


def model_directory(model: str, revision: str) -> str:
    """The directory of a revision of a model."""
    return f"{MODELS}/{model_folder(model)}/{revision}"


def cache_directory(key: str) -> str:
    """The directory of the caches of a key; it is the home of the instances, since some libraries cache only there."""
    return f"{CACHE}/{key}"
