"""The Python sources of one wheel: modules as syntax trees, and what each name at module level is bound to."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Binding:
    """What a module-level name is bound to.

    Attributes:
        kind: ``value`` (an expression), ``definition`` (a class or function), ``name`` (a name imported from a
            module) or ``module`` (an imported module).
        node: the expression or definition.
        module: the module imported, or imported from.
        attribute: the name in that module.
    """

    kind: str
    node: ast.AST | None = None
    module: str = ""
    attribute: str = ""


@dataclass
class Sources:
    """The ``.py`` files of a wheel, parsed when they are first asked for.

    Attributes:
        files: text of each file by its path inside the wheel.
        binary_names: names in the form of vLLM's variables that the wheel's compiled files hold.
    """

    files: Mapping[str, str]
    binary_names: frozenset[str] = frozenset()
    _trees: dict[str, ast.Module] = field(default_factory=dict)
    _bindings: dict[str, dict[str, Binding]] = field(default_factory=dict)

    def path(self, module: str) -> str | None:
        """The path of a module's file inside the wheel, or None when the wheel has no such module."""
        base = module.replace(".", "/")
        return next((path for path in (f"{base}.py", f"{base}/__init__.py") if path in self.files), None)

    def has(self, module: str) -> bool:
        """Whether the wheel holds this module (a folder without ``__init__.py`` counts as one)."""
        folder = module.replace(".", "/") + "/"
        return self.path(module) is not None or any(path.startswith(folder) for path in self.files)

    def tree(self, module: str) -> ast.Module:
        """The syntax tree of a module; an empty one for a folder without ``__init__.py``."""
        if module not in self._trees:
            path = self.path(module)
            self._trees[module] = ast.parse(self.files[path]) if path else ast.Module(body=[], type_ignores=[])
        return self._trees[module]

    def bindings(self, module: str) -> dict[str, Binding]:
        """Each module-level name with its binding; where a name is bound twice, the last one counts."""
        if module not in self._bindings:
            path = self.path(module) or ""
            package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
            self._bindings[module] = {}  # modules may import all names of each other
            self._bindings[module] = {
                **dict(self._all_names(module, package)),
                **dict(_bind(self.tree(module).body, package)),
            }
        return self._bindings[module]

    def _all_names(self, module: str, package: str) -> Iterator[tuple[str, Binding]]:
        """What ``from ... import *`` binds: the public names of the other module; its ``__all__`` is not read."""
        for node in self.tree(module).body:
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                other = _module_of(node, package)
                for name in self.bindings(other):
                    if not name.startswith("_"):
                        yield name, Binding("name", module=other, attribute=name)


def module_of(path: str) -> str:
    """The module that a path inside the wheel is; :meth:`Sources.path` is the way back."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _bind(body: list[ast.stmt], package: str) -> Iterator[tuple[str, Binding]]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, Binding("definition", node)
        elif isinstance(node, ast.Assign):
            yield from ((t.id, Binding("value", node.value)) for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.AnnAssign) and node.value and isinstance(node.target, ast.Name):
            yield node.target.id, Binding("value", node.value)
        elif isinstance(node, ast.Import):
            yield from imported_modules(node)
        elif isinstance(node, ast.ImportFrom):
            yield from imported_names(node, package)
        elif isinstance(node, ast.If):
            yield from _branch(node, package)
        elif isinstance(node, ast.Try):
            # The first choice of an optional import is what a complete installation has.
            for handler in node.handlers:
                yield from _bind(handler.body, package)
            yield from _bind(node.body, package)


def _branch(node: ast.If, package: str) -> Iterator[tuple[str, Binding]]:
    if not _is_type_checking(node.test):
        yield from _bind(node.orelse, package)
        yield from _bind(node.body, package)
        return
    # Names that only type checkers see still name the right thing for annotations given as text;
    # what the running program binds comes second, so that it wins.
    yield from _bind(node.body, package)
    yield from _bind(node.orelse, package)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imported_modules(node: ast.Import) -> Iterator[tuple[str, Binding]]:
    """The names that an ``import`` statement binds."""
    for alias in node.names:
        target = alias.name if alias.asname else alias.name.partition(".")[0]
        yield alias.asname or target, Binding("module", module=target)


def imported_names(node: ast.ImportFrom, package: str) -> Iterator[tuple[str, Binding]]:
    """The names that a ``from ... import`` statement binds.

    Args:
        node: the statement.
        package: the package of the module that holds it, for relative imports.
    """
    module = _module_of(node, package)
    for alias in node.names:
        if alias.name != "*":
            yield alias.asname or alias.name, Binding("name", module=module, attribute=alias.name)


def _module_of(node: ast.ImportFrom, package: str) -> str:
    module = node.module or ""
    if not node.level:
        return module
    parents = package.split(".")
    base = ".".join(parents[: len(parents) - node.level + 1])
    return f"{base}.{module}" if module else base
