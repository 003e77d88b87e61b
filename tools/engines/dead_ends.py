"""Variables that a release reads into something that nothing reads further: setting one has no effect."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tools.engines.sources import Sources, module_of

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
#: Decorators, beside those with a bare name, that leave it to the callers whether a function runs.
_WRAPPERS = frozenset({"functools.cache", "functools.cached_property", "functools.lru_cache", "lru_cache(maxsize=1)"})
#: A value that goes further than this is taken as read.
_STEPS = 4


@dataclass(frozen=True)
class _Use:
    """One place where a name is read: the names that carry the value on; none where the place makes use of it."""

    carriers: tuple[str, ...] = ()


@dataclass
class DeadEnds:
    """Follows what a release makes of its variables.

    Attributes:
        sources: the wheel's sources.
        table: the module that declares the variables, whose own uses do not count.
    """

    sources: Sources
    table: str
    _uses: dict[str, list[_Use]] = field(default_factory=dict)

    def find(self, variables: Iterable[str]) -> dict[str, str]:
        """Each variable whose every use ends in a name that nothing reads, with that name.

        A variable that nothing uses at all is not here. A compiled file that holds a variable's name reads it.

        Args:
            variables: names that the release declares.
        """
        own = sorted(set(variables) - self.sources.binary_names)
        names = own
        for _ in range(_STEPS):
            self._collect(names)
            names = sorted({name for each in names for name in self._carriers_of(each)} - set(self._uses))
        ends = {name: self._end(name, ()) for name in own if self._uses[name]}
        return {name: end for name, end in ends.items() if end}

    def _carriers_of(self, name: str) -> Iterator[str]:
        uses = self._uses[name]
        if all(use.carriers for use in uses):
            yield from (carrier for use in uses for carrier in use.carriers)

    def _end(self, name: str, above: tuple[str, ...]) -> str | None:
        """The name at the end of all uses of a name; None where one of them is live, or too far away."""
        if name not in self._uses:
            return None
        ends = [name]
        for use in self._uses[name]:
            if not use.carriers:
                return None
            for carrier in use.carriers:
                if carrier not in (name, *above):
                    end = self._end(carrier, (*above, name))
                    if end is None:
                        return None
                    ends.append(end)
        return ends[-1]

    def _collect(self, names: Sequence[str]) -> None:
        """Finds the uses of names, in one pass over the sources."""
        self._uses.update({name: [] for name in names})
        if not names:
            return
        any_of = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\b")
        home = self.sources.path(self.table)
        for path, content in self.sources.files.items():
            if path != home and (there := frozenset(any_of.findall(content))):
                for name, use in _uses(self.sources.tree(module_of(path)), there):
                    self._uses[name].append(use)


def _uses(tree: ast.Module, names: frozenset[str]) -> Iterator[tuple[str, _Use]]:
    """Each place in a file that reads one of the names: as a name, as an attribute, or by its text."""
    pending: list[tuple[ast.AST, ast.stmt | None, ast.FunctionDef | ast.AsyncFunctionDef | None]] = [(tree, None, None)]
    while pending:
        node, statement, function = pending.pop()
        if isinstance(node, ast.stmt):
            statement = node
        if (name := _read(node)) in names:
            yield name, _Use(_carriers(statement, function))
        for child in ast.iter_child_nodes(node):
            inside = node if isinstance(node, _FUNCTIONS) and child in node.body else function
            pending.append((child, statement, inside))


def _read(node: ast.AST) -> str:
    """The name that a node reads; empty where it reads none."""
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
        return node.id if isinstance(node, ast.Name) else node.attr
    if isinstance(node, ast.alias) and node.asname not in (None, node.name):  # it goes on under another name
        return node.name
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _carriers(statement: ast.stmt | None, function: ast.FunctionDef | ast.AsyncFunctionDef | None) -> tuple[str, ...]:
    """Where a statement puts what it reads; nothing where it makes use of it."""
    if isinstance(statement, ast.Return) and function:
        plain = all(isinstance(each, ast.Name) or ast.unparse(each) in _WRAPPERS for each in function.decorator_list)
        return (function.name,) if plain and not function.name.startswith("__") else ()
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    else:
        return ()
    names = [_name_of(target, function is not None) for target in targets]
    return tuple(name for name in names if name) if all(names) else ()


def _name_of(target: ast.expr, is_in_function: bool) -> str | None:
    """The name of a target that outlives its statement; a local name is followed no further."""
    if isinstance(target, ast.Name) and not is_in_function:
        return target.id
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
        return target.attr
    return None
