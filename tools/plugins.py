"""``python -m tools.plugins FLEET``: fetches the Pulumi plugins of a fleet's clouds, ahead of ``pulumi up``.

Just these, at the versions of the SDKs in this environment. A broken download is continued by the next run, and what is
there is not fetched again. Each archive is compared with a digest before anything of it is unpacked: with that of
``inventories/FLEET/plugins.sha256``, else with the one that the release publishes beside the archive. The digest of
what was installed is kept in that file: with the file, every machine gets the same bytes.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import ErrorCode, FleetError, list_errors
from vllm_fleet.base.heartbeat import Heartbeat
from vllm_fleet.catalogue.catalogue import load as load_catalog
from vllm_fleet.cli.output import fleet_directory
from vllm_fleet.edge import download, pulumi_cli, pulumi_plugins
from vllm_fleet.fleet import plan
from vllm_fleet.fleet.cloud_sdks import Plugin, list_plugins
from vllm_fleet.mirror.store import Artifact

#: The digests of archives that are known, as ``sha256sum`` prints them, in the fleet's folder.
DIGESTS = "plugins.sha256"
_HEAD = (
    "# SHA-256 of the archives of Pulumi's plugins, kept by 'make plugins' when it first installed them.\n"
    "# Commit it: on another machine 'make plugins' takes no other bytes.\n"
)
_SHA256_DIGITS = 64
_SHA1_DIGITS = 40


def fetch(fleet: str) -> list[str]:
    """Fetches what a fleet lacks.

    Args:
        fleet: its name.

    Returns:
        A line for each plugin.

    Raises:
        FleetError: there is no such fleet, an SDK is missing, a server does not answer, or a digest differs.
    """
    planned = plan.load(fleet_directory(fleet))
    plugins = list_plugins(planned, load_catalog())
    if not plugins:
        return [f"{fleet}: nothing to fetch: no cloud makes its hosts"]
    # Before a long download: without it nothing can be unpacked.
    pulumi_cli.pulumi_output("version")
    digests = _read_digests(planned.directory / DIGESTS)
    lines = []
    for plugin in plugins:
        if pulumi_plugins.is_installed(plugin):
            lines.append(f"{plugin}: is there")
            continue
        digests[pulumi_plugins.archive_name(plugin)] = sha256 = _install(plugin, digests)
        _write_digests(planned.directory / DIGESTS, digests)
        lines.append(f"{plugin}: installed in {paths.display(pulumi_plugins.plugins_dir())}, SHA-256 {sha256}")
    return lines


def _install(plugin: Plugin, digests: dict[str, str]) -> str:
    """Downloads, verifies and unpacks one plugin; returns the SHA-256 of its archive."""
    name = pulumi_plugins.archive_name(plugin)
    file = paths.cache_dir() / "pulumi-plugins" / name
    sha256 = _download(plugin, pulumi_plugins.find_origin(plugin), file, digests.get(name))
    with Heartbeat(f"unpacking {plugin}"):
        pulumi_cli.pulumi_output(
            *("plugin", "install", "resource", plugin.name, plugin.version, "--file", str(file), "--exact")
        )
    file.unlink()
    return sha256


def _download(plugin: Plugin, folder: str, file: Path, locked: str | None) -> str:
    """Downloads an archive from one folder of a server; returns its SHA-256, which was verified."""
    digest = locked or _published_digest(plugin, folder)
    url = f"{folder}/{file.name}"
    size = download.fetch_length(url)
    artifact = Artifact(
        file.name,
        sha256=digest if len(digest) == _SHA256_DIGITS else "",
        size=size,
        source=url,
        sha1=digest if len(digest) == _SHA1_DIGITS else "",
    )
    received = 0
    with Heartbeat(f"{plugin}: downloading {url}") as beat:

        def count(more: int) -> None:
            nonlocal received
            received += more
            beat.note = f"{received >> 20} of {size >> 20} MiB"

        return download.fetch_file(artifact, file, count).entry.sha256


def _published_digest(plugin: Plugin, folder: str) -> str:
    """The digest of an archive in the checksums of its release.

    They are SHA-1: the workflow that makes the releases runs ``shasum`` without ``-a`` (pulumi/pulumi-gcp,
    .github/workflows/publish.yml, "Calculate checksums"); a longer digest is taken as SHA-256.
    """
    name, file = pulumi_plugins.archive_name(plugin), pulumi_plugins.checksums_name(plugin)
    hint = f"write what sha256sum prints for a copy that you trust into {DIGESTS} in the fleet's folder"
    try:
        text = download.fetch_text(f"{folder}/{file}").text
    except FleetError as fault:
        raise FleetError(f"no digest of {name}: {fault.message}", hint, code=fault.code) from None
    digest = _parse_digests(text).get(name, "")
    if len(digest) not in (_SHA1_DIGITS, _SHA256_DIGITS):
        raise FleetError(f"{folder}/{file} has no digest of {name}", hint, code=ErrorCode.WORK_FAILED)
    return digest


def _parse_digests(text: str) -> dict[str, str]:
    """File name -> digest, from lines as ``sha256sum`` and ``shasum`` print them."""
    rows = re.findall(r"^([0-9a-f]+) [ *](?:\./)?(\S+)$", text, re.MULTILINE)
    return {name: digest for digest, name in rows}


def _read_digests(file: Path) -> dict[str, str]:
    return _parse_digests(file.read_text(encoding="utf-8")) if paths.is_there(file) else {}


def _write_digests(file: Path, digests: dict[str, str]) -> None:
    write_atomically(file, _HEAD + "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)), 0o644)


def main() -> int:
    """The command line; the exit code is 0, or that of the error."""
    parser = argparse.ArgumentParser(prog="python -m tools.plugins", description=__doc__)
    parser.add_argument("fleet", help="a folder under inventories/")
    chosen = parser.parse_args()
    try:
        print("\n".join(fetch(chosen.fleet)))
    except FleetError as fault:
        for error in list_errors(fault)[0]:
            print(f"error: {error}", file=sys.stderr)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
