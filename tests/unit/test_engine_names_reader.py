"""The static reader of wheels on small made-up sources."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from tools.engines import configs, environment, flags, manifest
from tools.engines.evaluate import Evaluator
from tools.engines.sources import Sources
from tools.engines.values import UNKNOWN
from vllm_fleet.base.errors import FleetError


def reader(*binary_names: str, **modules: str) -> Evaluator:
    """An evaluator of made-up modules; ``__`` in a name stands for the dot."""
    files = {f"{name.replace('__', '/')}.py": textwrap.dedent(text) for name, text in modules.items()}
    return manifest.reader(Sources(files, frozenset(binary_names)), "cuda")


EXPRESSIONS = [
    ("1 + 2 * 3", 7),
    ("'a' if False else 'b'", "b"),
    ("[x.upper() for x in ('a', 'b') if x != 'a']", ["B"]),
    ("{'a': 1, **{'b': 2}}", {"a": 1, "b": 2}),
    ("f\"{'x'}-{1}\"", "x-1"),
    ("int(os.getenv('NAME', '5'))", 5),
    ("os.environ.get('NAME')", None),
    ("'NAME' in os.environ", False),
    ("os.environ['NAME']", UNKNOWN),
    ("os.path.join(os.path.expanduser('~'), '.cache')", "~/.cache"),
    ("(lambda a, b=2: a * b)(4)", 8),
    ("{'1': True}.get(os.getenv('NAME', '').strip())", None),
    ("torch.cuda.device_count()", UNKNOWN),
    ("torch.cuda.device_count() + 1", UNKNOWN),
    ("not torch.cuda.is_available()", UNKNOWN),
    ("[c.value for c in Colour]", ["red", "green"]),
    ("Colour.RED.name", "RED"),
    ("helper('x')()", "x!"),
    ("sorted({'b', 'a'})", ["a", "b"]),
    ("VALUE", 3),
]


@pytest.mark.parametrize(("code", "value"), EXPRESSIONS, ids=[code for code, _ in EXPRESSIONS])
def test_expressions(code: str, value: Any) -> None:
    evaluator = reader(
        m=f"""
        import os
        import enum
        import torch
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            VALUE = 2
        else:
            VALUE = 3

        class Colour(enum.Enum):
            RED = "red"
            GREEN = "green"

        def helper(text):
            def inner():
                if text is None:
                    return "none"
                return text + "!"
            return inner

        RESULT = {code}
        """
    )
    assert evaluator.name("m", "RESULT") == value


CLI = """
from dataclasses import field
from typing import Literal, Optional
from pydantic import Field
from pydantic.dataclasses import dataclass
from vllm.options import get_kwargs, json_type

@dataclass
class Config:
    LIMIT = 4
    plain: int = 1
    bounded: float = Field(default=0.5, ge=0)
    made: list = field(default_factory=lambda: ["*"])
    limited: int = LIMIT
    choice: Literal["b", "a"] = "a"
    maybe: Optional[str] = None
    object: dict = field(default_factory=load_it)

class Args:
    @classmethod
    def change(cls, options):
        options["maybe"]["help"] = "[DEPRECATED] gone soon"
        return options

    @classmethod
    def add_cli_args(cls, parser):
        options = cls.change(get_kwargs(Config))
        group = parser.add_argument_group(title="Config")
        for key, value in options.items():
            group.add_argument(f"--{key.replace('_', '-')}", **value)
        return parser

def make_arg_parser(parser):
    parser.add_argument("model_tag", nargs="?")
    parser.add_argument("--on", "-o", action="store_true")
    parser.add_argument("--both", action=argparse.BooleanOptionalAction, default=None)
    if "--help=all" in sys.argv:
        parser.add_argument("--many", type=int, nargs="+")
    parser.add_argument("--mapping", type=json_type(json.loads), deprecated=True)
    return Args.add_cli_args(parser)
"""
OPTIONS = """
import dataclasses

def json_type(return_type):
    def _optional_type(value):
        return return_type(value)
    return _optional_type

def get_kwargs(cls):
    kwargs = {}
    for f in dataclasses.fields(cls):
        default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
        kwargs[f.name] = {"default": default}
    return kwargs
"""


def test_flags_of_a_made_up_release() -> None:
    head = "import argparse\nimport json\nimport sys\n"
    evaluator = reader(vllm__entrypoints__openai__cli_args=head + CLI, vllm__options=OPTIONS)
    assert flags.read_flags(evaluator) == {
        "on": {"type": "bool", "default": False, "aliases": ["-o"]},
        "both": {"type": "bool", "default": None, "negatable": True},
        "many": {"type": "list", "items": "int", "default": None},
        "mapping": {"type": "json", "default": None, "deprecated": True},
        "plain": {"type": "str", "default": 1},
        "bounded": {"type": "str", "default": 0.5},
        "made": {"type": "str", "default": ["*"]},
        "limited": {"type": "str", "default": 4},
        "choice": {"type": "str", "default": "a"},
        "maybe": {"type": "str", "default": None, "deprecated": True},
        "object": {"type": "str"},
    }


LOST = [
    "parser.add_argument('--a', **options_of(torch))",
    "for name in torch.names():\n        parser.add_argument(name)",
    "if torch.ready():\n        parser.add_argument('--a')",
]


@pytest.mark.parametrize("body", LOST)
def test_an_option_that_cannot_be_read_is_an_error_not_a_gap(body: str) -> None:
    code = f"import torch\ndef make_arg_parser(parser):\n    {body}\n    return parser\n"
    with pytest.raises(FleetError, match="cannot be read without running it"):
        flags.read_flags(reader(vllm__entrypoints__openai__cli_args=code))


def test_a_release_without_a_parser_is_an_error() -> None:
    with pytest.raises(FleetError, match="no make_arg_parser"):
        flags.read_flags(reader(vllm__other=""))


def test_the_environment_of_a_made_up_release() -> None:
    evaluator = reader(
        vllm__envs="""
        import os
        def choices(name, default):
            def read():
                value = os.getenv(name)
                if value is None:
                    return default
                return value.lower()
            return read
        environment_variables = {
            "TABLE_NUMBER": lambda: int(os.getenv("TABLE_NUMBER", "7")),
            "TABLE_CHOICE": choices("TABLE_CHOICE", "auto"),
            "TABLE_RUN_TIME": lambda: tempfile.gettempdir(),
        }
        """,
        vllm__a="""
        import os as system
        from os import environ, getenv
        from opentelemetry.sdk.environment_variables import OTEL_PROTOCOL
        KEY = "BY_CONSTANT"
        a = getenv("BY_GETENV", "1")
        b = environ["BY_ITEM"]
        c = environ.get(KEY)
        d = "BY_IN" in environ
        e = system.environ.setdefault("BY_SETDEFAULT", "x")
        f = getenv(OTEL_PROTOCOL)
        environ["ONLY_WRITTEN"] = "1"
        g = {}.get("NOT_ENVIRONMENT")
        def ask(name, default=None):
            return environ.get(name)
        for key in ("BY_LOOP_1", "BY_LOOP_2"):
            pass
        def loop():
            for key in ("BY_LOOP_1", "BY_LOOP_2"):
                getenv(key)
        """,
        vllm__b="from vllm.a import ask\nx = ask('BY_ARGUMENT')\ny = ask(name='BY_KEYWORD')\n",
    )
    assert environment.read_environment(evaluator) == {
        "TABLE_NUMBER": 7,
        "TABLE_CHOICE": "auto",
        "TABLE_RUN_TIME": None,
        "BY_GETENV": "1",
        "BY_ITEM": None,
        "BY_CONSTANT": None,
        "BY_IN": None,
        "BY_SETDEFAULT": "x",
        "OTEL_PROTOCOL": None,
        "BY_LOOP_1": None,
        "BY_LOOP_2": None,
        "BY_ARGUMENT": None,
        "BY_KEYWORD": None,
    }


def test_declared_variables_that_nothing_uses() -> None:
    names = ("VLLM_USED", "VLLM_UNUSED", "VLLM_COMPILED", "VLLM_TWICE", "VLLM_ROCM_ANY", "CUDA_HOME")
    entries = "".join(f'    "{name}": lambda: os.getenv("{name}"),\n' for name in names)
    evaluator = reader(
        "VLLM_COMPILED",
        vllm__envs=f'import os\nVLLM_UNUSED: str\nenvironment_variables = {{\n{entries}}}\nos.getenv("VLLM_TWICE")\n',
        vllm__a="import vllm.envs as envs\nx = envs.VLLM_USED\n",
    )
    assert environment.unused(evaluator) == ["VLLM_UNUSED"]


DEAD_ENDS = """
import os
import vllm.envs as envs
from vllm.envs import VLLM_IMPORTED
from functools import cache

KEPT = envs.VLLM_KEPT
LOST = envs.VLLM_LOST
if KEPT:
    os.abort()


class Ops:
    _ENABLED: bool = envs.VLLM_DEAD
    _SWITCH = envs.VLLM_ALIVE

    @classmethod
    def refresh(cls):
        cls._ENABLED = envs.VLLM_DEAD

    @classmethod
    @guarded
    def is_enabled(cls):
        return cls._ENABLED and envs.VLLM_RETURNED

    @app.get("/switch")
    def answer(self):
        return envs.VLLM_ANSWERED

    def is_on(self):
        return self._SWITCH

    def run(self):
        local = envs.VLLM_LOCAL
        return self.is_on() and local and VLLM_IMPORTED


def by_text():
    return getattr(envs, "VLLM_BY_TEXT")


def __getattr__(name):
    return envs.VLLM_DUNDER


Ops().run()
by_text()
"""


def test_a_variable_is_followed_to_where_nothing_reads_it_further() -> None:
    """As ``VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION`` in 0.32.0: a switch of a class, a method that nothing calls."""
    names = (
        "DEAD",
        "ALIVE",
        "KEPT",
        "LOST",
        "RETURNED",
        "ANSWERED",
        "LOCAL",
        "IMPORTED",
        "BY_TEXT",
        "DUNDER",
        "UNUSED",
    )
    entries = "".join(f'    "VLLM_{name}": lambda: os.getenv("VLLM_{name}"),\n' for name in (*names, "COMPILED"))
    evaluator = reader(
        "VLLM_COMPILED",
        vllm__envs=f"import os\nenvironment_variables = {{\n{entries}}}\n",
        vllm__ops=DEAD_ENDS,
        vllm__more="import vllm.envs as envs\nNOWHERE = envs.VLLM_COMPILED\n",
    )
    assert environment.dead_ends(evaluator) == {
        "VLLM_DEAD": "is_enabled",
        "VLLM_LOST": "LOST",
        "VLLM_RETURNED": "is_enabled",
    }


EXTRA = [
    ("@dataclass", "ignore"),
    ("@dataclass(config=ConfigDict(arbitrary_types_allowed=True))", "ignore"),
    ("@config\n@dataclass(config=ConfigDict(extra='forbid'))", "forbid"),
    ("@strict", "forbid"),
    ("@strict(config=ConfigDict(extra='ignore'))", "ignore"),
]


@pytest.mark.parametrize(("decorator", "answer"), EXTRA, ids=[decorator for decorator, _ in EXTRA])
def test_what_happens_to_an_unknown_key(decorator: str, answer: str) -> None:
    code = f"""
from typing import ClassVar
from dataclasses import field
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
def config(cls):
    return cls
def strict(cls=None, config=None):
    merged = ConfigDict(extra="forbid")
    return dataclass(cls, config=merged)
{decorator}
class PassConfig:
    shown: bool = False
    hidden: int = field(default=0, init=False)
    shared: ClassVar[int] = 1
    _private: int = 0
"""
    evaluator = reader(vllm__config__compilation=code)
    cls = configs.config_class(evaluator, "PassConfig")
    assert configs.extra(evaluator, cls) == answer
    assert configs.keys(evaluator, cls) == ["shown"]


def test_a_key_whose_documentation_says_so_is_deprecated() -> None:
    code = """
from pydantic.dataclasses import dataclass
@dataclass
class PassConfig:
    old: bool = False
    '''Deprecated in: v1. Use new instead.'''
    older: bool = False
    '''[DEPRECATED] goes with v2.'''
    new: bool = False
    '''Stands in the place of old, which is deprecated.'''
    bare: bool = False
    _deprecated: bool = False
    '''Deprecated, and no key.'''
"""
    evaluator = reader(vllm__config__compilation=code)
    assert configs.deprecated(evaluator, configs.config_class(evaluator, "PassConfig")) == ["old", "older"]
