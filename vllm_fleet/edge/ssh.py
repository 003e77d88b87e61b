"""Runs programs of the ``on_host`` package on hosts over SSH, from one process for many hosts."""

from __future__ import annotations

import asyncio
import base64
import shlex
import zlib
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path

from vllm_fleet import on_host
from vllm_fleet.edge.connection import CONNECT_SECONDS, NoAnswerError, Ways, connected
from vllm_fleet.edge.ssh_target import Target

_ON_HOST = on_host.__name__


@cache
def program(name: str, *modules: str) -> str:
    """A module of ``on_host`` as one shell word: compressed source that Python unpacks and runs.

    Args:
        name: the module that runs, as ``__main__``.
        modules: others that it may import from ``vllm_fleet.on_host``.
    """
    code = (
        "import base64,sys,types,zlib;u=lambda t:zlib.decompress(base64.b64decode(t))"
        f";h=types.ModuleType('{_ON_HOST}');sys.modules.update({{'vllm_fleet':types.ModuleType('vllm_fleet'),h.__name__:h}})"
    )
    for module in modules:
        code += f";m=types.ModuleType('{module}');exec(u('{_packed(module)}'),m.__dict__);h.{module}=m"
    return shlex.quote(f"{code};exec(u('{_packed(name)}'))")


def _packed(module: str) -> str:
    source = (Path(on_host.__file__).parent / f"{module}.py").read_bytes()
    return base64.b64encode(zlib.compress(source, 9)).decode()


def python(user: str, source: str) -> str:
    """The command that runs a :func:`program` on a host, as root."""
    sudo = "" if user == "root" else "sudo -n "
    return f"{sudo}/usr/bin/python3 -IS -c {source}"


def _answer(target: Target, exit_status: int | None, out: str, err: str) -> str:
    if exit_status == 0 and out.startswith("{"):
        return out
    last = err.strip().splitlines()[-1] if err.strip() else f"exit status {exit_status}"
    raise NoAnswerError(f"the probe failed on {target.address}: {last}")


async def ask(target: Target, command: str, text: str = "", ways: Ways | None = None) -> str:
    """Runs a command that prints one JSON object on a host that shows just the key that it should.

    Args:
        target: the host.
        command: the command, as its shell reads it.
        text: what the command reads from its standard input.
        ways: the gateways that other hosts of this run come through too.

    Returns:
        The JSON.

    Raises:
        NoAnswerError: the host cannot be reached, shows another key, refuses the user, or the command failed.
    """
    async with AsyncExitStack() as stack:
        through = ways if ways else await stack.enter_async_context(Ways())
        connection = await stack.enter_async_context(connected(target, through))
        done = await connection.run(command, input=text)
    return _answer(target, done.exit_status, str(done.stdout), str(done.stderr))


async def ask_openssh(target: Target, command: str, text: str = "") -> str:
    """Does what :func:`ask` does through the ``ssh`` program, for a target with arguments of its own for it.

    Args:
        target: the host.
        command: the command, as its shell reads it.
        text: what the command reads from its standard input.

    Returns:
        The JSON.

    Raises:
        NoAnswerError: the command failed, or printed no JSON.
    """
    words = [
        "ssh",
        *(target.command or ()),
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=yes",
        "-o",
        f"ConnectTimeout={CONNECT_SECONDS:.0f}",
        "-p",
        str(target.port),
        *(("-i", str(target.key_file)) if target.key_file else ()),
        f"{target.user}@{target.address}",
        command,
    ]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = await process.communicate(text.encode())
    return _answer(target, process.returncode, out.decode(), err.decode())
