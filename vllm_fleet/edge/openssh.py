"""The program ``ssh``, for hosts that only it can reach: by its configuration, ProxyCommand, agents, hardware keys."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_fleet.edge import remote_answer, ssh_options
from vllm_fleet.edge.connection import CONNECT_SECONDS, NoAnswerError
from vllm_fleet.edge.remote_answer import Output
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.fleet.ssh_routes import Hop, Route, known_name, option_value

#: The exit status of ``ssh`` for an error of its own.
CONNECTION_FAILED = 255
_CONSEQUENCES = ("Connection closed by UNKNOWN", "kex_exchange", "stdio forwarding failed")
_NOISE = re.compile(r"^(Warning: |Pseudo-terminal |debug\d: |\*\* |@@@|\s*$)")


@dataclass(frozen=True)
class Result:
    """The end of a command on a host."""

    exit_status: int | None
    out: str
    err: str


@dataclass(frozen=True)
class NamedSettings:
    """How ``ssh`` reaches a host by its name in ssh's configuration.

    Attributes:
        address: the host name or address that it connects to.
        port: the port there.
        user: who logs in.
        proxy: the command whose input and output are the connection; empty: directly.
        needs_name: whether the address alone is reached in another way: without the proxy or the keys of the name.
    """

    address: str
    port: int
    user: str
    proxy: str = ""
    needs_name: bool = False


async def is_needed(target: Target) -> bool:
    """Whether a target must be reached with ``ssh``, since its configuration or its arguments change the way.

    Args:
        target: the host.

    Raises:
        NoAnswerError: ssh's configuration cannot be read.
    """
    if target.alias not in ("", target.address) or target.program != "ssh":
        return True
    if not ssh_options.are_harmless(target.arguments):
        return True
    if ssh_options.have_settings(target.config_file):
        login = _login_words(target)
        own, plain = await asyncio.gather(
            print_settings(target.address, [*_config_words(target.config_file), *login]),
            print_settings(target.address, ["-F", "none", *login]),
        )
        if ssh_options.differ(own, plain):
            return True
    return target.jump is not None and await is_needed(target.jump)


def _config_words(config_file: Path | None) -> list[str]:
    return ["-F", str(config_file)] if config_file else []


def _login_words(target: Target) -> list[str]:
    key = ["-o", f"IdentityFile={option_value(target.key_file)}"] if target.key_file else []
    return ["-o", f"User={target.user}", "-p", str(target.port), *key]


async def print_settings(name: str, words: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """The settings with which ``ssh`` reaches a host: keyword -> values. Connects to nothing.

    Args:
        name: the host, as it is given to ``ssh``.
        words: further arguments.

    Raises:
        NoAnswerError: ssh's configuration cannot be read.
    """
    done = await _run(["ssh", "-T", "-G", *words, "--", name], "")
    if done.exit_status != 0:
        reasons = [line.strip() for line in done.err.splitlines() if not _NOISE.match(line)]
        raise NoAnswerError(f"ssh cannot read its configuration: {(reasons or ['ssh -G failed'])[0]}")
    return ssh_options.parse_settings(done.out)


async def find_settings(name: str, login: Sequence[str], default_user: str, config_file: Path | None) -> NamedSettings:
    """How ssh's configuration reaches a host by a name.

    Args:
        name: the name or address, as it is given to ``ssh``.
        login: the options of ``ssh`` for the user and the port, as far as they are given.
        default_user: who logs in where neither ``login`` nor the configuration says so.
        config_file: the configuration; None uses those of the user and the system.

    Raises:
        NoAnswerError: ssh's configuration cannot be read, or its ProxyCommand needs what is known only to ``ssh``.
    """
    files = [config_file] if config_file else [ssh_options.user_home() / ".ssh/config", Path("/etc/ssh/ssh_config")]
    with tempfile.TemporaryDirectory(prefix="vllm-fleet-ssh-") as scratch:
        # The first value counts, so the last line is the default.
        with_default = Path(scratch) / "config"
        includes = "".join(f"Include {option_value(file)}\n" for file in files)
        with_default.write_text(f"{includes}Match all\n  User {default_user}\n", encoding="utf-8")
        found = await print_settings(name, ["-F", str(with_default), *login])
        address, port, user = (found[keyword][0] for keyword in ("hostname", "port", "user"))
        by_address = await print_settings(address, ["-F", str(with_default), "-p", port, "-o", f"User={user}"])
    names = {"host": ()}
    proxy = _proxy_of(found, address, port, config_file)
    return NamedSettings(
        address, int(port), user, proxy, ssh_options.differ({**found, **names}, {**by_address, **names})
    )


def _proxy_of(settings: Mapping[str, tuple[str, ...]], address: str, port: str, config_file: Path | None) -> str:
    command = settings.get("proxycommand", ("none",))[0]
    if jumps := settings.get("proxyjump", ("none",))[0].replace("none", ""):
        *before, last = jumps.split(",")
        words = [
            "ssh",
            *_config_words(config_file),
            "-o",
            "BatchMode=yes",
            *(["-J", ",".join(before)] if before else []),
        ]
        # A jump host is written as ssh takes it: user@host:port.
        command = f"{shlex.join(words)} -W '[%h]:%p' {shlex.quote(f'ssh://{last}')}"
    if command == "none":
        return ""
    tokens = {"%h": address, "%p": port, "%n": settings["host"][0], "%r": settings["user"][0], "%%": "%"}

    def expand(match: re.Match[str]) -> str:
        if match[0] not in tokens:
            raise NoAnswerError(
                f"its ProxyCommand has {match[0]}; write the host with 'ssh_alias' into fleet.yml instead"
            )
        return tokens[match[0]]

    return re.sub(r"%.", expand, command)


async def run(
    target: Target, command: str, text: str, files: remote_answer.Files = remote_answer.NO_FILES
) -> tuple[int | None, Output]:
    """Runs a command on a host with ``ssh``. Only the keys of the target are accepted, and nothing is asked.

    Args:
        target: the host.
        command: the command line for the host's shell.
        text: the standard input of the command.
        files: what follows it, and where the bytes of a file in the answer go.

    Returns:
        Its exit status and its output, which :mod:`vllm_fleet.edge.remote_answer` limits.

    Raises:
        NoAnswerError: the host cannot be reached, has another host key, refuses the user, or sends too much.
    """
    with tempfile.TemporaryDirectory(prefix="vllm-fleet-ssh-") as scratch:
        known = Path(scratch) / "known_hosts"
        known.write_text(known_hosts_text(target), encoding="utf-8")
        process = await _start(command_words(target, known, command))
        try:
            output = await remote_answer.exchange(process, target, text.encode(), files)
            if process.stdin:
                process.stdin.close()
            status = await process.wait()
        finally:
            await _end(process)
    # A command may end with 255 too, and prints its first mark before.
    if status == CONNECTION_FAILED and not output.out:
        raise NoAnswerError(explain_failure(target, output.err.decode(errors="replace")))
    return status, output


def known_hosts_text(target: Target) -> str:
    """The keys of a target and of the way to it, in the format of ``known_hosts``."""
    name = target_known_name(target)
    lines = [f"{name} {key}\n" for key in target.host_keys]
    lines += [f"@cert-authority {name} {key}\n" for key in target.authorities]
    if target.jump:
        lines += [f"{known_name(target.jump.address, target.jump.port)} {key}\n" for key in target.jump.host_keys]
    return "".join(lines)


def target_known_name(target: Target) -> str:
    """The name of a target in its ``known_hosts``; a certificate is made out to the address, without a port."""
    return known_name(target.address, target.port if target.host_keys else 22)


def hop_of(target: Target) -> Hop:
    """A target as a jump to others."""
    return Hop(target.name, target.user, target.address, target.port, target.host_keys, target.keys_file)


def command_words(target: Target, known: Path, command: str, options: Sequence[str] = ()) -> list[str]:
    """The words of ``ssh`` that run a command on a host. Only the keys of the target are accepted.

    Args:
        target: the host.
        known: a file with :func:`known_hosts_text`.
        command: the command line for the host's shell.
        options: further options of ``ssh``, which do not change the way to the host.
    """
    hop = hop_of(target.jump) if target.jump else None
    route = Route(known, target_known_name(target), target.key_file, target.config_file, hop)
    own = {
        "BatchMode": "yes",
        "ClearAllForwardings": "yes",
        # A connection that is open already may have been checked against other keys.
        "ControlMaster": "no",
        "ControlPath": "none",
        "UpdateHostKeys": "no",
    }
    # The first value of an option counts: what keeps the host key strict comes before the user's arguments.
    strict = [word for name, value in own.items() for word in ("-o", f"{name}={value}")]
    strict += route.strict_words(route.known_name)
    way = [*_login_words(target), *target.arguments, *route.way_words()]
    limit = ["-o", f"ConnectTimeout={CONNECT_SECONDS:.0f}"]
    own_options = [*strict, *way, *limit, *options]
    return [target.program, "-T", "-a", "-x", *own_options, "--", target.alias or target.address, command]


async def _run(words: Sequence[str], text: str) -> Result:
    """Runs ``ssh`` for something that it does on this machine alone."""
    process = await _start(words)
    try:
        out, err = await process.communicate(text.encode())
    finally:
        await _end(process)
    return Result(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


async def _start(words: Sequence[str]) -> asyncio.subprocess.Process:
    """Starts ``ssh`` where it can ask for nothing: without a terminal, and without a window for a passphrase."""
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "SSH_ASKPASS")}
    pipe = asyncio.subprocess.PIPE
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *words,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env={**environment, "SSH_ASKPASS_REQUIRE": "never"},
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except FileNotFoundError:
        raise NoAnswerError(f"there is no program {words[0]} on this machine") from None
    except asyncio.CancelledError:
        # asyncio would end ssh alone here, and wait for its ProxyCommand without end.
        await _end(await starting)
        raise


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends ``ssh`` if it still runs, and its ProxyCommand with it."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        # asyncio waits for a program until its pipes are closed, and closes those with output in them only so.
        process._transport.close()  # type: ignore[attr-defined]
        await process.wait()


def explain_failure(target: Target, err: str) -> str:
    """Why ``ssh`` could not run a command.

    Args:
        target: the host.
        err: what ``ssh`` and its ProxyCommand wrote to standard error.
    """
    name = re.escape(target_known_name(target))
    if re.search(rf"host key is known for {name} |Host key for {name} has changed|certificate.*{name}", err):
        return target.changed_key_error
    way = target.jump
    if way and re.search(rf"(?:known for|Host key for) {re.escape(known_name(way.address, way.port))} ", err):
        return f"cannot be reached through {way.name}: {way.changed_key_error}"
    if match := re.search(r"No (\S+) host key is known for (\S+) and you have requested strict", err):
        return (
            f"the host key of {match[2]}, which the connection passes through, is in none of your known_hosts files: "
            f"compare and accept it with 'ssh {match[2]}', or write the host as access.bastion in fleet.yml"
        )
    if match := re.search(r"Host key for (\S+) has changed", err):
        return (
            f"{match[1]}, which the connection passes through, shows another host key than your known_hosts files have"
        )
    if "Permission denied" in err:
        return explain_refusal(target)
    reason = _last_line(err) or "ssh failed without a message"
    return f"cannot be reached at {target.alias or target.address} port {target.port}: {reason}"


def explain_refusal(target: Target) -> str:
    """Why a host refuses a login, as far as the private key shows it."""
    refusal = f"{target.user}@{target.address} refuses the key"
    if target.key_file and has_passphrase(target.key_file):
        return (
            f"{refusal}: {target.key_file} has a passphrase, and no agent holds the key; "
            f"run 'ssh-add {target.key_file}', with ssh-agent running"
        )
    return refusal


def has_passphrase(key_file: Path) -> bool:
    """Whether a private key is encrypted."""
    import asyncssh

    try:
        # A key without a passphrase is read all the same.
        asyncssh.read_private_key(str(key_file), passphrase="\0")  # noqa: S106 - no key has it
    except asyncssh.KeyEncryptionError:
        return True
    except (asyncssh.KeyImportError, OSError):
        return False
    return False


def _last_line(err: str) -> str:
    lines = [line.strip() for line in err.splitlines() if not _NOISE.match(line)]
    # The last line of a failed ProxyCommand only says that the connection ended.
    telling = [line for line in lines if not line.startswith(_CONSEQUENCES)]
    return (telling or lines or [""])[-1]
