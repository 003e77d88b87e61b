"""Gives the names of a wheel's sources their values without importing or running the wheel.

What is static (literals, types, tables, defaults, calls of the wheel's own small functions) becomes a value; what
only exists at run time becomes ``UNKNOWN``. Environment variables count as unset, and the command line as one that
asks for the whole help, so that texts of help are read too.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tools.engines import calls, expressions, externals, fields
from tools.engines.reader import Scope
from tools.engines.sources import Binding, Sources
from tools.engines.values import (
    UNKNOWN,
    Bound,
    Class,
    External,
    FieldRecord,
    Function,
    Generic,
    Member,
    Module,
    NotStaticError,
    Super,
)

_PLATFORM = External("vllm.platforms.current_platform")


@dataclass
class Evaluator:
    """Gives expressions and names of one wheel their values.

    Attributes:
        sources: the wheel's sources.
        device: what ``current_platform.device_type`` is in this build (``cuda`` also for ROCm, or ``cpu``).
        replaced: functions of the wheel, by dotted name, that the reader answers itself.
        registries: tables of the wheel that fill up while it is imported, by ``Class.attribute``.
    """

    sources: Sources
    device: str = "cuda"
    replaced: dict[str, Callable[..., Any]] = field(default_factory=dict)
    registries: dict[str, Callable[[], Any]] = field(default_factory=dict)
    _names: dict[tuple[str, str], Any] = field(default_factory=dict)

    def name(self, module: str, name: str) -> Any:
        """The value of a module-level name; ``UNKNOWN`` when the wheel does not say."""
        key = (module, name)
        if key not in self._names:
            self._names[key] = UNKNOWN  # stops circular definitions
            self._names[key] = self._resolve(module, name)
        return self._names[key]

    def _resolve(self, module: str, name: str) -> Any:
        binding = self.sources.bindings(module).get(name)
        if binding is not None:
            return self.bound(binding, module)
        if self.sources.has(f"{module}.{name}"):
            return Module(f"{module}.{name}")
        # What is left are names behind a module's __getattr__: the platform, and the environment table.
        if name == "current_platform":
            return _PLATFORM
        if "environment_variables" in self.sources.bindings(module):
            table = self.name(module, "environment_variables")
            if isinstance(table, dict) and name in table:
                return self.call(table[name], [], {})
        return UNKNOWN

    def bound(self, binding: Binding, module: str) -> Any:
        """The value of a binding found in ``module``."""
        if binding.kind == "module":
            return Module(binding.module) if self.sources.has(binding.module) else External(binding.module)
        if binding.kind == "name":
            if self.sources.has(binding.module):
                return self.name(binding.module, binding.attribute)
            return externals.value(f"{binding.module}.{binding.attribute}")
        if isinstance(binding.node, ast.ClassDef):
            return Class(module, binding.node)
        if isinstance(binding.node, ast.FunctionDef | ast.AsyncFunctionDef):
            return Function(module, binding.node)
        return self.expression(binding.node, module, {}) if isinstance(binding.node, ast.expr) else UNKNOWN

    def expression(self, node: ast.expr, module: str, scope: Scope) -> Any:
        """The value of an expression of ``module`` with the local names of ``scope``.

        Raises:
            NotStaticError: an option of the argument parser cannot be read; it must not be lost silently.
        """
        try:
            return expressions.evaluate(self, node, module, scope)
        except calls.FAULTS as error:
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument"):
                raise NotStaticError(f"{module}:{node.lineno}: an option that cannot be read: {error}") from error
            return UNKNOWN

    def text(self, annotation: str, module: str) -> Any:
        """The value of an annotation that is written as text."""
        return self.expression(ast.parse(annotation, mode="eval").body, module, {})

    def attribute(self, owner: Any, name: str) -> Any:
        """``owner.name`` for any value of the reader."""
        if isinstance(owner, Module):
            return self.name(owner.name, name)
        if isinstance(owner, Class):
            return fields.class_attribute(self, owner, name)
        if isinstance(owner, Super):
            method = fields.method(self, owner.owner, name, skip_own=True)
            return method and Function(method.module, method.node, {}, method.owner, owner.bound)
        if isinstance(owner, External):
            if owner == _PLATFORM:
                return self.device if name == "device_type" else UNKNOWN
            return externals.attribute(owner, name)
        if isinstance(owner, Member | FieldRecord | externals.Recorder):
            return getattr(owner, name)
        if isinstance(owner, Generic) and name == "__module__":
            return "builtins" if getattr(owner.origin, "dotted", "").startswith("builtins.") else "typing"
        if isinstance(owner, str | list | dict | tuple | set | frozenset | int | float | bool):
            return Bound(owner, name)
        return UNKNOWN

    def call(self, function: Any, args: list[Any], options: dict[str, Any]) -> Any:
        """The result of a call; see ``calls.call``."""
        return calls.call(self, function, args, options)

    def assign(self, target: ast.expr, value: Any, module: str, scope: Scope) -> None:
        """Binds a value; see ``calls.assign``."""
        calls.assign(self, target, value, module, scope)

    def iterate(self, value: Any) -> Iterator[Any]:
        """Goes through a value that is known; the members of an enumeration included.

        Raises:
            TypeError: the value cannot be gone through, or is only known at run time.
        """
        return iter(fields.members(self, value)) if isinstance(value, Class) else iter(value)
