"""What ``vllm-fleet init`` asks: the model of each class, where it comes from. Every question has an option."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.paths import cache_dir
from vllm_fleet.base.yaml_document import Document, parse
from vllm_fleet.catalogue.catalogue import Catalog, SizedClass, raise_all
from vllm_fleet.cli.output import print_note
from vllm_fleet.operate import new_fleet
from vllm_fleet.schema.mirror import Mirror
from vllm_fleet.schema.model_source import FORMS

#: Sources that are a folder of one model.
_OF_ONE_MODEL = ("controller", "on_host", "url")
#: Each choice: its text, and the source; or the key of the source and the question for its value.
_CHOICES: Sequence[tuple[str, Mapping[str, str], str, str]] = (
    ("the hub, downloaded by each host", {"hub": "hosts"}, "", ""),
    ("the hub, downloaded once by this machine with 'vllm-fleet mirror'", {"hub": "mirror"}, "", ""),
    ("a folder on each host, or a network file system mounted there", {}, "on_host", "The folder on the hosts"),
    (
        "a Hugging Face cache on each host",
        {},
        "huggingface_cache",
        "The folder on the hosts that contains models--ORG--NAME",
    ),
    ("object storage, over HTTPS", {}, "url", "The address of the folder with the files"),
    (
        "a folder on this machine with a model.json, copied to the hosts",
        {},
        "controller",
        "The folder on this machine",
    ),
)
#: Sources that need a commit at the hub, or the digests of one.
_OF_THE_HUB = ("hub", "huggingface_cache", "url")


class Asker:
    """Asks on the terminal, or takes defaults.

    Args:
        take_defaults: answers every question with its default.
    """

    def __init__(self, take_defaults: bool) -> None:
        self._defaults = take_defaults
        self._can_ask = sys.stdin.isatty()

    def require(self, question: str, option: str) -> bool:
        """Whether a question is asked; otherwise its default is taken.

        Raises:
            FleetError: there is no terminal, and defaults were not asked for.
        """
        if self._defaults:
            return False
        if not self._can_ask:
            raise FleetError(
                f"there is no terminal to ask {question}, so nothing was written",
                f"give {option}, or --yes for the default",
                key=option.split()[0],
                code=ErrorCode.REFUSED,
            )
        return True

    def model(self, sized: SizedClass, fitting: Sequence[str]) -> str:
        """The model of a class, by its name or its number."""
        if len(fitting) == 1 or not self.require(f"which model {sized.id} serves", "--model NAME"):
            return fitting[0]
        print_note(f"Which model do the hosts of the class {sized.id} serve?")
        for number, name in enumerate(fitting, 1):
            print_note(f"  {number}  {name}")
        numbers = [str(number) for number in range(1, len(fitting) + 1)]
        return fitting[int(_choose("Choice", numbers)) - 1]

    def source(self, models: Sequence[str], catalog: Catalog) -> Mapping[str, str]:
        """Where the models come from; the hub is no choice for one whose recipe does not name its files there."""
        option = f"--model-from {'controller=FOLDER' if _not_at_hub(models, catalog) else 'hub=hosts'}"
        if not self.require(f"where {' and '.join(models)} come from", option):
            return new_fleet.DEFAULT_SOURCE
        print_note(f"Where do the hosts get {' and '.join(models)} from?")
        left_out = _OF_ONE_MODEL if len(models) > 1 else ()
        offered = [choice for choice in _CHOICES if choice[2] not in left_out]
        if _not_at_hub(models, catalog):
            offered = [choice for choice in offered if choice[2] not in ("", *_OF_THE_HUB)]
            # A folder on the hosts needs a list of digests too.
            offered.sort(key=lambda choice: choice[2] != "controller")
        if not offered:
            raise FleetError(
                f"no one source has {' and '.join(models)}",
                "add the hosts of each class in a run of its own with --add",
            )
        choices = {str(number): choice for number, choice in enumerate(offered, 1)}
        for number, (text, *_) in choices.items():
            print_note(f"  {number}  {text}")
        _, source, form, question = choices[_choose("Choice", list(choices))]
        if not form:
            return source

        def check(value: str) -> dict[str, str]:
            try:
                new_fleet.check_model_source(models[0], {form: value.strip()})
            except FleetError as fault:
                raise typer.BadParameter(str(fault)) from None
            return {form: value.strip()}

        answer: dict[str, str] = typer.prompt(question, value_proc=check, err=True)
        return answer


def _choose(text: str, choices: Sequence[str]) -> str:
    def check(value: str) -> str:
        if value.strip() not in choices:
            raise typer.BadParameter(f"{value[:80]!r} is not one of {', '.join(choices)}")
        return value.strip()

    return str(typer.prompt(text, default=choices[0], value_proc=check, err=True))


def parse_source(texts: Sequence[str]) -> dict[str, str]:
    """Parses ``KEY=VALUE`` of ``--model-from``, with the keys of ``artifacts.models`` in fleet.yml.

    Raises:
        FleetError: one has another form; it carries all of them.
    """
    errors: list[FleetError] = []
    source: dict[str, str] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not value or not key.isidentifier():
            forms = ", ".join(f"{form}={'hosts' if form == 'hub' else '…'}" for form in FORMS)
            errors.append(FleetError(f"{text[:200]!r} is not KEY=VALUE", f"give one of {forms}", key="--model-from"))
        elif key in source:
            errors.append(FleetError(f"{key!r} is given twice", "leave one out", key="--model-from"))
        else:
            source[key] = value
    raise_all(errors)
    if source:
        try:
            new_fleet.check_model_source("a model", source)
        except FleetError as fault:
            for error in (fault, *fault.others):
                error.key = "--model-from"
            raise
    return source


def parse_mirror(text: str | None) -> dict[str, Any]:
    """``mirror`` of a fleet: a URL, or the name of a host of the fleet.

    Raises:
        FleetError: it is neither.
    """
    if text is None:
        return {}
    mirror = {"url": text} if "://" in text else {"host": text}
    try:
        parse(Document("", mirror), Mirror)
    except FleetError as fault:
        raise FleetError(fault.message, fault.hint, key="--mirror") from None
    return mirror


def check_one_folder(models: Sequence[str], source: Mapping[str, str]) -> None:
    """Refuses a folder of one model for two.

    Raises:
        FleetError: the hosts serve more models than the source has.
    """
    form = next((form for form in _OF_ONE_MODEL if form in source), None)
    if form and len(models) > 1:
        raise FleetError(
            f"{form} has the files of one model, and these hosts serve {' and '.join(models)}",
            "give --model, or add the hosts of each class in a run of its own with --add",
            key="--model-from",
        )


def _not_at_hub(models: Sequence[str], catalog: Catalog) -> list[str]:
    """The models whose recipes name no files at the hub."""
    return [name for name in models if catalog.model(name).weights is None]


def check_source(models: Sequence[str], source: Mapping[str, str], catalog: Catalog) -> None:
    """Refuses the hub for a model whose recipe names no files there, where the source pins no commit either.

    Raises:
        FleetError: there is such a model.
    """
    form = next((form for form in _OF_THE_HUB if form in source), None)
    elsewhere = _not_at_hub(models, catalog)
    enough = {"revision", "digests"} if form == "url" else {"revision"}
    if form and elsewhere and not enough & set(source):
        raise FleetError(
            f"{form!r} needs a commit at the hub, and the recipe of {elsewhere[0]} pins none",
            "give controller=FOLDER, a folder on this machine with a model.json; or on_host=FOLDER, a folder on the "
            "hosts, with digests=FILE",
            key="--model-from",
        )


def known_encodings(catalog: Catalog) -> str:
    """The folder of the vocabularies on this machine, as fleet.yml names it; empty where it is not complete."""
    folder = cache_dir() / "encodings"
    for name, entry in catalog.encodings.encodings.items():
        file = folder / name
        if not file.is_file() or file_sha256(file) != entry.sha256:
            return ""
    return "{cache}/encodings"
