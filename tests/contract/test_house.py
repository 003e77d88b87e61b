"""The rules of the house that a test can see."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from vllm_fleet.base import paths

ROOT = paths.root()
MOST_PARAMETERS = 5


def test_host_keys_are_checked_everywhere() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = ("StrictHostKeyChecking=" + "no", "host_key_checking = " + "False", "known_hosts=" + "None")
    for name in listed.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix not in (".lock", ".sum"):
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not any(word in text for word in words), name


def circles(graph: grimp.ImportGraph) -> set[frozenset[str]]:
    """The groups of modules that import each other, directly or through others.

    import-linter compares the packages of one level; this compares modules, a package and its own modules included.
    """
    below = {module: graph.find_upstream_modules(module) for module in graph.modules}
    return {
        frozenset(other for other in below if other in below[module] and module in below[other]) | {module}
        for module in below
        if any(module in below[imported] for imported in graph.find_modules_directly_imported_by(module))
    }


def test_no_modules_import_each_other() -> None:
    assert not circles(grimp.build_graph("vllm_fleet", "infra", "lab", "tools", "bench", cache_dir=None))


def test_a_circle_is_found() -> None:
    graph = grimp.ImportGraph()
    for importer, imported in (("a", "a.b"), ("a.b", "a.c"), ("a.c", "a"), ("a.d", "a")):
        graph.add_import(importer=importer, imported=imported)
    assert circles(graph) == {frozenset({"a", "a.b", "a.c"})}


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """All parameters of a function but ``self`` and ``cls``."""
    spec = function.args
    rest = [arg for arg in (spec.vararg, spec.kwarg) if arg]
    return [arg for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *rest) if arg.arg not in ("self", "cls")]


def is_option(parameter: ast.arg) -> bool:
    """Whether typer reads a parameter from the command line, which it cannot do for the fields of a record."""
    text = ast.unparse(parameter.annotation) if parameter.annotation else ""
    return "typer.Option(" in text or "typer.Argument(" in text or text.endswith("Option")


def too_many(source: str) -> Iterator[str]:
    """The functions of a module that take more parameters than a reader can hold; commands of typer may."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            taken = parameters(node)
            if len(taken) > MOST_PARAMETERS and not all(map(is_option, taken)):
                yield f"{node.name} takes {len(taken)}"


@pytest.mark.parametrize("path", sorted((ROOT / "vllm_fleet").rglob("*.py")), ids=lambda path: path.stem)
def test_no_function_takes_more_than_five_parameters(path: Path) -> None:
    assert list(too_many(path.read_text(encoding="utf-8"))) == [], "give it a record of what belongs together"


def test_the_rule_of_five_parameters_sees_all_kinds_and_spares_only_commands() -> None:
    options = ", ".join(f"o{number}: Annotated[str, typer.Option()]" for number in range(6))
    assert list(too_many(f"def command({options}, json: JsonOption) -> None: ...")) == []
    assert list(too_many(f"def command({options}, other: str) -> None: ...")) == ["command takes 7"]
    assert list(too_many("class A:\n    async def f(self, a, /, b, c, *d, e, **g): ...")) == ["f takes 6"]
    assert list(too_many("class A:\n    def f(self, a, b, c, d, e): ...")) == []
