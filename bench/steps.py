"""The steps of a probe on a host: login, sudo, the start of Python. The benchmark runs this module."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from bench import fleets

#: Name -> command; each includes the one before it. The probe itself comes last.
STEPS = {
    "SSH connection and login": "true",
    "sudo": "sudo -n true",
    "start of Python": "sudo -n /usr/bin/python3 -IS -c pass",
}
PROBE = "the probe itself"
_AT_A_TIME = 64


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one step on N hosts."""
    parser = argparse.ArgumentParser(prog="python -m bench.steps", description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("count", type=int, help="number of hosts")
    parser.add_argument("key", type=Path, help="private key")
    parser.add_argument("known_hosts", type=Path)
    chosen = parser.parse_args(arguments)
    asyncio.run(_run_on_all(STEPS[chosen.step], chosen.count, chosen.key, chosen.known_hosts))


async def _run_on_all(command: str, count: int, key: Path, known_hosts: Path) -> None:
    import asyncssh

    gate = asyncio.Semaphore(_AT_A_TIME)
    private = asyncssh.read_private_key(str(key))
    known = asyncssh.read_known_hosts(str(known_hosts))

    async def run(number: int) -> None:
        async with (
            gate,
            asyncssh.connect(
                fleets.address(number),
                username=fleets.USER,
                client_keys=[private],
                known_hosts=known,
                agent_path=None,
                config=None,
            ) as connection,
        ):
            await connection.run(command, check=True)

    await asyncio.gather(*(run(number) for number in range(1, count + 1)))


if __name__ == "__main__":
    main()
