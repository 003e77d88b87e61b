"""``python -m bench.artifacts``: the bytes that N hosts take from the origin of their artifacts, and the time.

Boots four lab hosts. A role of the project copies the same files to one, two and four of them and verifies them: each
host from the origin, then all from a mirror that has fetched them once. The origin counts its bytes. Writes
``docs/artifacts-performance.md``; removes the hosts at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import load, machine, origin
from bench.markdown import markdown, paragraph
from bench.measure import busy_processors
from bench.results import Runs
from lab import cleanup, host, network, packages, shell, state
from lab.spec import HostSpec, NetworkSpec
from lab.tree import ensure_tree, tree_digest
from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.edge import keys
from vllm_fleet.mirror.parts import Encoding
from vllm_fleet.mirror.store import Store
from vllm_fleet.operate import fill_mirror, serve_mirror

SIZES = (1, 2, 4)
FILES = 3
FILE_BYTES = 32 << 20
#: Bytes per second of the origin's uplink, which all hosts share; the network of the hosts has no limit.
RATE = 16 << 20
DIRECT, MIRRORED = "each host from the origin", "from a mirror"
_BRIDGE = "vf-artifacts"
_SUBNET = "10.79.78"
_PORT = 8070
_FOLDER = "/var/lib/vllm/encodings"


@dataclass(frozen=True)
class Sample:
    """One run.

    Attributes:
        sent: bytes that the origin sent.
        fill: seconds until the mirror had all files; 0 without a mirror.
        seconds: until every host had verified every file, including the time to fill the mirror.
        load: processors that were busy just before; None if that was not measured.
    """

    sent: int
    fill: float
    seconds: float
    load: float | None = None


class Row(Runs[Sample]):
    """All runs of one way on one number of hosts."""

    @property
    def mib(self) -> float:
        """Median MiB that the origin sent."""
        return self.median(lambda sample: sample.sent) / 2**20

    @property
    def seconds(self) -> float:
        """Median seconds until every host had all files."""
        return self.median(lambda sample: sample.seconds)

    @property
    def fill(self) -> float:
        """Median seconds to fill the mirror."""
        return self.median(lambda sample: sample.fill)

    def record(self) -> dict[str, Any]:
        """The row as plain data."""
        figures = {"origin_mib": self.mib, "seconds": self.seconds, "mirror_seconds": self.fill}
        return {**super().record(), **{name: round(value, 1) for name, value in figures.items()}}


@dataclass(frozen=True)
class _Hosts:
    """The booted hosts, and the folder with the key and the host keys to reach them."""

    folder: Path

    def play(self, count: int, url: str, files: Mapping[str, bytes]) -> None:
        """Copies the files to the first hosts with the role, which verifies them.

        Raises:
            FleetError: the role failed.
        """
        wanted = [{"name": name, "sha256": _sha256(body), "source": "/"} for name, body in files.items()]
        self._run(count, [{"role": "harmony_encodings", "harmony_encodings_files": wanted}], url)

    def clear(self, count: int) -> None:
        """Removes the files."""
        self._run(count, [], "")

    def _run(self, count: int, roles: Sequence[Mapping[str, Any]], url: str) -> None:
        gone = {"name": "Remove the files", "ansible.builtin.file": {"path": _FOLDER, "state": "absent"}}
        play: dict[str, Any] = {"hosts": "all", "gather_facts": False, "become": True}
        play |= {"roles": list(roles)} if roles else {"tasks": [gone]}
        common = f"-o UserKnownHostsFile={self.folder / 'known_hosts'} -o StrictHostKeyChecking=yes"
        hosts = {f"h{number}": {"ansible_host": _address(number)} for number in range(count)}
        variables = {
            "ansible_user": "deploy",
            "ansible_ssh_private_key_file": str(self.folder / "key"),
            "ansible_ssh_common_args": common,
            "harmony_encodings_mirror_url": url,
        }
        # JSON is YAML.
        (self.folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts, "vars": variables}}))
        (self.folder / "play.yml").write_text(json.dumps([play]))
        words = ["ansible-playbook", "-i", str(self.folder / "hosts.yml"), str(self.folder / "play.yml")]
        own = {"ANSIBLE_CONFIG": str(paths.root() / "ansible.cfg"), "ANSIBLE_ROLES_PATH": str(paths.root() / "roles")}
        done = subprocess.run(words, env={**os.environ, **own}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FleetError(f"the role failed on {count} hosts: {done.stdout[-800:]}", code=ErrorCode.WORK_FAILED)


@contextlib.contextmanager
def _booted(folder: Path, count: int) -> Iterator[_Hosts]:
    """Boots hosts on a bridge of their own; removes what a killed run left first, and all of them at the end."""
    shell.require()
    ensure_tree()
    cleanup.down(_BRIDGE)
    private, public = keys.ssh_key_pair()
    (folder / "key").touch(0o600)
    (folder / "key").write_text(private, encoding="utf-8")
    try:
        network.create(NetworkSpec(_BRIDGE, f"{_SUBNET}.0/24", str(folder), count))
        known = []
        for number in range(count):
            own, host_key = keys.ssh_key_pair()
            known.append(f"{_address(number)} {host_key}\n")
            spec = HostSpec(
                bridge=_BRIDGE,
                name=f"h{number}",
                address=_address(number),
                subnet=f"{_SUBNET}.0/24",
                user="deploy",
                authorised_key=public,
                host_key=host_key,
                tree=tree_digest(),
                peers={},
                binds={},
                disk_gib=1,
            )
            host.create(spec, own)
        (folder / "known_hosts").write_text("".join(known), encoding="utf-8")
        yield _Hosts(folder)
    finally:
        cleanup.down(_BRIDGE)


def _address(number: int) -> str:
    return f"{_SUBNET}.{11 + number}"


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def measure_all(sizes: Sequence[int], runs: int) -> list[Row]:
    """Measures both ways on each number of hosts, in turns.

    Args:
        sizes: how many hosts.
        runs: how often.

    Raises:
        FleetError: a host did not come up, or a run failed.
    """
    files = {f"{number}.tiktoken": os.urandom(FILE_BYTES) for number in range(FILES)}
    samples: dict[tuple[str, int], list[Sample]] = {}
    # nginx reads the mirror as another user, who cannot enter a home.
    with tempfile.TemporaryDirectory(prefix="vllm-fleet-bench-") as name, state.locked("bench-artifacts"):
        folder = Path(name)
        folder.chmod(0o755)
        with _booted(folder, max(sizes)) as hosts:
            source = origin.Origin({f"/{name}": body for name, body in files.items()}, RATE)
            with origin.serving(source, f"{_SUBNET}.1"):
                hosts.clear(max(sizes))  # the first connection to a host is slower, so it is not measured
                for count in [*sizes] * runs:
                    for way, measure in ((DIRECT, _direct), (MIRRORED, _mirrored)):
                        before = busy_processors()
                        sample = replace(measure(hosts, count, source, files), load=before)
                        samples.setdefault((way, count), []).append(sample)
                        print(f"bench: {count} hosts, {way}: {sample.seconds:.1f} s", file=sys.stderr)
                        hosts.clear(count)
    return [Row(way, count, tuple(taken)) for (way, count), taken in samples.items()]


def _direct(hosts: _Hosts, count: int, source: origin.Origin, files: Mapping[str, bytes]) -> Sample:
    sent, began = source.sent, time.monotonic()
    hosts.play(count, source.url, files)
    return Sample(source.sent - sent, 0.0, time.monotonic() - began)


def _mirrored(hosts: _Hosts, count: int, source: origin.Origin, files: Mapping[str, bytes]) -> Sample:
    with tempfile.TemporaryDirectory(dir=hosts.folder) as name:
        base = Path(name)
        base.chmod(0o755)
        store = Store(base / "mirror")
        (base / "state").mkdir(mode=0o755)
        sent, began = source.sent, time.monotonic()
        fill_mirror.fill_store(
            store, [Encoding(file, _sha256(body), f"{source.url}/{file}") for file, body in files.items()]
        )
        filled = time.monotonic() - began
        server = serve_mirror.start_nginx(store, f"{_SUBNET}.1:{_PORT}", base / "state", str(packages.nginx()))
        try:
            hosts.play(count, f"http://{_SUBNET}.1:{_PORT}/encodings", files)
        finally:
            server.terminate()
            server.wait()
        return Sample(source.sent - sent, filled, time.monotonic() - began)


def table(rows: Sequence[Row]) -> list[str]:
    """Both ways side by side, a line for each number of hosts."""
    by_way = {(row.name, row.hosts): row for row in rows}
    lines: list[tuple[str, ...]] = [
        (
            "hosts",
            "bytes: no mirror [MiB]",
            "with one [MiB]",
            "time: no mirror [s]",
            "with one [s]",
            "of it filling [s]",
        )
    ]
    for count in sorted({row.hosts for row in rows}):
        direct, mirrored = by_way[DIRECT, count], by_way[MIRRORED, count]
        figures = (direct.mib, mirrored.mib, direct.seconds, mirrored.seconds, mirrored.fill)
        lines.append((str(count), *(f"{figure:.1f}" for figure in figures)))
    return markdown(lines, right={0, 1, 2, 3, 4, 5})


def _load(rows: Sequence[Row]) -> float | None:
    return load.worst(sample.load for row in rows for sample in row.samples)


def document(rows: Sequence[Row]) -> str:
    """The text of ``docs/artifacts-performance.md``."""
    runs = len(rows[0].samples)
    blocks = [
        ["# Artifacts: bytes from the origin, and time"],
        ["Written by `make bench`; run it again instead of editing this file."],
        paragraph(
            f"{FILES} files of {FILE_BYTES >> 20} MiB are copied to lab hosts by a role of this project "
            "(harmony_encodings), which verifies each by its SHA-256: once by each host from the origin, once from a "
            "mirror that is empty at first, filled by the code of `vllm-fleet mirror` and served by nginx. "
            f"{'One run' if runs == 1 else f'Median of {runs} runs, in turns'}. The origin counts the bytes; the "
            "time includes Ansible and the filling of the mirror."
        ),
        table(rows),
        paragraph(
            f"The origin is a stand-in on this machine with an uplink of {RATE >> 20} MiB/s, and the network between "
            "mirror and hosts is the machine's memory. The bytes are the same elsewhere; the times depend on these two "
            "speeds. With one host a mirror saves nothing: every byte travels twice. "
            f"{load.describe_load(_load(rows), 'before each run')}"
        ),
        [f"Machine: {machine.processors()}."],
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code is 0, or that of the error."""
    parser = argparse.ArgumentParser(prog="python -m bench.artifacts", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print data instead of the table")
    parser.add_argument("--runs", type=int, default=1, help="how often each way is run on each number of hosts")
    parser.add_argument("--no-write", action="store_true", help="leave docs/artifacts-performance.md as it is")
    chosen = parser.parse_args(arguments)
    try:
        rows = measure_all(SIZES, chosen.runs)
    except FleetError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    if not chosen.no_write:
        write_atomically(paths.root() / "docs" / "artifacts-performance.md", document(rows))
    print(json.dumps([row.record() for row in rows], indent=2) if chosen.json else "\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
