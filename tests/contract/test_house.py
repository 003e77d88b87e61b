"""The rules of the house that a test can see."""

from __future__ import annotations

import subprocess

import grimp

from vllm_fleet.base import paths

ROOT = paths.root()


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
