"""Serves a mirror's folder from this machine with nginx, in the foreground, until it is ended."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from vllm_fleet.errors import FleetError
from vllm_fleet.mirror import nginx
from vllm_fleet.mirror.store import Store
from vllm_fleet.plan import Plan


def run(store: Store, plan: Plan) -> None:
    """Runs nginx where the fleet's hosts look for their mirror.

    Raises:
        FleetError: the fleet's mirror is not on this machine, nginx is missing, or it ended with a fault.
    """
    where = plan.spec.mirror
    if where.url is None:
        raise plan.document.error(
            ("mirror", "url"),
            "does not say where to serve",
            "give the address of this machine, such as http://10.0.0.5:8070",
        )
    parts = urlsplit(where.url)
    if parts.scheme != "http":
        raise plan.document.error(
            ("mirror", "url"), "wants TLS, which --serve does not do", "serve it by means of your own"
        )
    with tempfile.TemporaryDirectory(prefix="vllm-fleet-mirror-") as state:
        code = start(store, f"{parts.hostname}:{parts.port or 80}", Path(state)).wait()
    if code:
        raise FleetError(f"nginx ended with {code}", "its own message is above", code="work-failed")


def start(store: Store, listen: str, state: Path) -> subprocess.Popen[bytes]:
    """Starts nginx.

    Args:
        store: the mirror.
        listen: address and port.
        state: an empty folder for its configuration, its log and its temporary files.

    Raises:
        FleetError: it is not installed.
    """
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        raise FleetError("nginx is not installed on this machine", "apt-get install nginx-light", code="refused")
    file = state / "nginx.conf"
    file.write_text(nginx.standalone(str(store.directory), listen, str(state)), encoding="utf-8")
    # Its workers are another user, who must be able to read the folder's path.
    return subprocess.Popen([program, "-e", "stderr", "-p", str(state), "-c", str(file)])
