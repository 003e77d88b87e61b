"""An HTTP server for the duration of a block: it stands in for servers that the lab cannot reach."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Handler = Callable[..., BaseHTTPRequestHandler]


@contextmanager
def serving(handler: Handler, address: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serves at a free port until the block ends.

    Args:
        handler: handles the requests.
        address: an address of this machine.
        context: its certificate; None: without TLS.

    Yields:
        The URL, without a slash at its end.
    """
    with ThreadingHTTPServer((address, 0), handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        # It looks for its end 50 times a second; the default, twice a second, delays the end of each block.
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http{'s' if context else ''}://{address}:{server.server_port}"
        finally:
            server.shutdown()


def files(folder: Path) -> Handler:
    """A handler that serves the files of a folder."""
    return partial(SimpleHTTPRequestHandler, directory=str(folder))
