"""Runs programs of the package ``on_host`` on hosts over SSH: one process for many hosts."""

from __future__ import annotations

import ast
import base64
import shlex
import zlib
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path

from vllm_fleet import on_host
from vllm_fleet.edge import openssh, remote_answer
from vllm_fleet.edge.connection import JumpHosts, NotPossibleError, connect
from vllm_fleet.edge.ssh_target import Target

_ON_HOST = on_host.__name__


@cache
def pack_program(name: str, *modules: str) -> str:
    """A module of ``on_host`` as one shell word: compressed source that Python unpacks and runs.

    Args:
        name: the module to run, as ``__main__``.
        modules: further modules of ``vllm_fleet.on_host`` that it imports as it runs. Those that a module imports at
            its top are added.
    """
    code = (
        "import base64,sys,types,zlib;u=lambda t:zlib.decompress(base64.b64decode(t))"
        f";h=types.ModuleType('{_ON_HOST}');sys.modules.update({{'vllm_fleet':types.ModuleType('vllm_fleet'),h.__name__:h}})"
    )
    for module in _with_imports((*modules, name))[:-1]:
        code += (
            f";m=sys.modules['{_ON_HOST}.{module}']=types.ModuleType('{_ON_HOST}.{module}')"
            f";exec(u('{_compress(module)}'),m.__dict__);h.{module}=m"
        )
    return shlex.quote(f"{code};exec(u('{_compress(name)}'))")


def _with_imports(modules: tuple[str, ...]) -> tuple[str, ...]:
    """The modules, each after those that it imports from ``vllm_fleet.on_host`` at its top."""
    ordered: dict[str, None] = {}
    for module in modules:
        imported: list[str] = []
        for node in ast.parse(_source(module)).body:
            if isinstance(node, ast.ImportFrom) and node.module == _ON_HOST:
                imported += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{_ON_HOST}."):
                imported.append(node.module.rpartition(".")[2])
        ordered |= dict.fromkeys(_with_imports(tuple(imported))) | {module: None}
    return tuple(ordered)


def _source(module: str) -> bytes:
    return (Path(on_host.__file__).parent / f"{module}.py").read_bytes()


def _compress(module: str) -> str:
    source = _source(module)
    return base64.b64encode(zlib.compress(source, 9)).decode()


def python_command(user: str, source: str, *, password: bool = False) -> str:
    """The command that runs a result of :func:`pack_program` on a host, as root.

    Args:
        user: the user who logs in; anyone but root uses sudo.
        source: the program.
        password: whether sudo may ask for the password, which the target then has.
    """
    command = f"/usr/bin/python3 -IS -c {source}"
    return command if user == "root" else remote_answer.sudo_command(command, password=password)


async def run_json(
    target: Target,
    command: str,
    text: str = "",
    jump_hosts: JumpHosts | None = None,
    files: remote_answer.Files = remote_answer.NO_FILES,
) -> str:
    """Runs a command on a host, after its host key is verified; the command must print one JSON object.

    Uses the program ``ssh`` where the way to the host or the login needs it.

    Args:
        target: the host.
        command: the command line for the host's shell.
        text: the standard input of the command.
        jump_hosts: the SSH gateways that this run shares; None opens its own connections.
        files: what follows the text, and where the bytes of a file in the answer go.

    Returns:
        What the command prints; what the shell prints around it is left out.

    Raises:
        NoAnswerError: the host cannot be reached, has another host key, refuses the user, or prints too much; or the
            command failed.
    """
    marked = remote_answer.mark_answer(command)
    async with AsyncExitStack() as stack:
        shared = jump_hosts if jump_hosts else await stack.enter_async_context(JumpHosts())
        if not await openssh.is_needed(target):
            try:
                async with connect(target, shared) as connection:
                    process = await connection.create_process(marked, encoding=None)
                    output = await remote_answer.exchange(process, target, text.encode(), files)
                    await process.wait_closed()
                    return remote_answer.find_answer(target, process.exit_status, output)
            except NotPossibleError:
                pass  # ssh may have an agent or another key for it, and its error is reported if it has none
        async with shared.processes:
            status, output = await openssh.run(target, marked, text, files)
    return remote_answer.find_answer(target, status, output)
