"""Real SSH servers for tests that need no host: they run what they are told and let others through."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncssh

ADDRESS = "127.0.0.1"


@dataclass
class Server:
    """An SSH server that runs what it is told, and lets others through to where they want."""

    port: int
    key: str
    logins: list[str]
    passed: list[tuple[str, int]]


class Loop:
    """SSH servers in a thread of their own."""

    def __init__(self, client: asyncssh.SSHKey, tools: Path | None = None) -> None:
        path = f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin" if tools else "/usr/sbin:/usr/bin:/sbin:/bin"
        self._environment = {"PATH": path}
        self._loop = asyncio.new_event_loop()
        self._client = asyncssh.import_authorized_keys(client.export_public_key().decode())
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def server(self, address: str = ADDRESS) -> Server:
        return asyncio.run_coroutine_threadsafe(self._listen(address), self._loop).result(30)

    async def _listen(self, address: str) -> Server:
        key = asyncssh.generate_private_key("ssh-ed25519")
        found = Server(0, " ".join(key.export_public_key().decode().split()[:2]), [], [])

        class Door(asyncssh.SSHServer):
            def begin_auth(self, username: str) -> bool:
                found.logins.append(username)
                return True

            def connection_requested(self, dest_host: str, dest_port: int, *_origin: object) -> bool:
                found.passed.append((dest_host, dest_port))
                return True

        async def handle(process: asyncssh.SSHServerProcess[bytes]) -> None:
            pipe = asyncio.subprocess.PIPE
            command = await asyncio.create_subprocess_shell(
                str(process.command), stdin=pipe, stdout=pipe, stderr=pipe, env=self._environment
            )
            assert command.stdin and command.stdout and command.stderr
            sink, source = command.stdin, command.stdout

            async def feed() -> None:
                while block := await process.stdin.read(1 << 15):
                    sink.write(block)
                sink.close()

            async def pass_on(origin: asyncio.StreamReader, to: asyncssh.SSHWriter[bytes]) -> None:
                while block := await origin.read(1 << 15):
                    to.write(block)
                    await to.drain()

            feeding = asyncio.ensure_future(feed())
            # A client may go before a program ends.
            with suppress(OSError, asyncssh.Error):
                await asyncio.gather(pass_on(source, process.stdout), pass_on(command.stderr, process.stderr))
                process.exit(await command.wait())
            feeding.cancel()  # a client that has nothing to say need not end its input
            command._transport.close()  # ends a program that still has something to say

        listener = await asyncssh.listen(
            address,
            0,
            server_host_keys=[key],
            authorized_client_keys=self._client,
            server_factory=Door,
            process_factory=handle,
            encoding=None,
        )
        found.port = listener.get_port()
        return found

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _end(self) -> None:
        """Lets the programs of clients that have gone end first."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
