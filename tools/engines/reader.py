"""What the parts of the static reader know of each other: the interface of :class:`tools.engines.evaluate.Evaluator`.

Expressions hold calls, calls run statements with expressions in them: the parts need the whole reader, and the reader
needs its parts. They import this interface, so that only ``evaluate`` imports them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, Protocol

from tools.engines.sources import Binding

#: The local names around an expression or a statement, with their values.
Scope = MutableMapping[str, Any]


class Reader(Protocol):
    """Gives expressions and names of one wheel their values; ``UNKNOWN`` for what only exists at run time."""

    @property
    def replaced(self) -> Mapping[str, Callable[..., Any]]:
        """Functions of the wheel, by dotted name, that the reader answers itself."""

    @property
    def registries(self) -> Mapping[str, Callable[[], Any]]:
        """Tables of the wheel that fill up while it is imported, by ``Class.attribute``."""

    def name(self, module: str, name: str) -> Any:
        """The value of a module-level name."""

    def bound(self, binding: Binding, module: str) -> Any:
        """The value of a binding of ``module``."""

    def expression(self, node: ast.expr, module: str, scope: Scope) -> Any:
        """The value of an expression of ``module`` with the local names of ``scope``."""

    def text(self, annotation: str, module: str) -> Any:
        """The value of an annotation that is written as text."""

    def attribute(self, owner: Any, name: str) -> Any:
        """``owner.name`` for any value of the reader."""

    def call(self, function: Any, args: list[Any], options: dict[str, Any]) -> Any:
        """The result of a call."""

    def assign(self, target: ast.expr, value: Any, module: str, scope: Scope) -> None:
        """Binds a value to a name, to an item, or to the names of a tuple."""

    def iterate(self, value: Any) -> Iterator[Any]:
        """Goes through a value that is known; the members of an enumeration included."""
