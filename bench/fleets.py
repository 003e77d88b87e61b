"""The fleets of the benchmark, as files: N gateways with N names and N loopback addresses."""

from __future__ import annotations

from pathlib import Path

from vllm_fleet.edge import keys
from vllm_fleet.fleet import api_keys_file

USER = "deploy"
#: Addresses in each of 127.0.1.x, 127.0.2.x, ...
_PER_NETWORK = 250
_MOST = 4 * _PER_NETWORK


def fleet_name(count: int) -> str:
    """The name of the fleet with that many hosts."""
    return f"bench-{count}"


def host_name(number: int) -> str:
    """The name of a host, counted from 1."""
    return f"gw-{number:03d}"


def address(number: int) -> str:
    """The loopback address of a host, counted from 1: 127.0.1.1 to 127.0.1.250, then 127.0.2.1 and on.

    Raises:
        ValueError: more hosts than the benchmark has addresses for.
    """
    if not 1 <= number <= _MOST:
        raise ValueError(f"the benchmark has addresses for 1 to {_MOST} hosts, not for {number}")
    network, place = divmod(number - 1, _PER_NETWORK)
    return f"127.0.{network + 1}.{place + 1}"


def addresses(count: int) -> dict[str, str]:
    """Host -> address, of the first hosts."""
    return {host_name(number): address(number) for number in range(1, count + 1)}


def _private_address(number: int) -> str:
    """An address inside the fleet, which a loopback address cannot be; nothing connects to it."""
    return address(number).replace("127.0", "192.168", 1)


def fleet_text(count: int, host_key: str, private_key: Path) -> str:
    """``fleet.yml`` for that many hosts.

    Args:
        count: how many hosts.
        host_key: their SSH host key, ``type base64``; all of them are one machine.
        private_key: the file of the private key that logs in.
    """
    lines = [
        "# Made by the benchmark: every host is a gateway, because a gateway needs no GPU and no model.",
        f"fleet: {fleet_name(count)}",
        "defaults: {model: vllm-fleet/lab-gpt-oss}",
        "pools:",
        "  none: {host_class: cpu-2, cloud: lab, hosts: 0}",
        "gateway:",
        "  static:",
    ]
    lines += [
        f"    {host_name(number)}: {{address: {address(number)}, private_address: {_private_address(number)}, "
        f'ssh_host_key: "{host_key}"}}'
        for number in range(1, count + 1)
    ]
    lines += ["access:", f"  ssh_user: {USER}", f"  ssh_private_key_file: {private_key}"]
    return "\n".join(lines) + "\n"


def benchmark_keys_text() -> str:
    """``api-keys.yml`` with the digest of a key that opens nothing."""
    return api_keys_file.api_keys_text("bench", keys.digest("benchmark"))


def known_hosts_text(count: int, host_key: str) -> str:
    """``known_hosts`` of a fleet, for the peers."""
    return "".join(f"{address(number)} {host_key}\n" for number in range(1, count + 1))


def write(folder: Path, count: int, host_key: str, private_key: Path) -> Path:
    """Writes the folder of a fleet below the folder of all fleets and returns it."""
    home = folder / fleet_name(count)
    home.mkdir(parents=True)
    (home / "fleet.yml").write_text(fleet_text(count, host_key, private_key), encoding="utf-8")
    (home / "api-keys.yml").write_text(benchmark_keys_text(), encoding="utf-8")
    (home / "known_hosts").write_text(known_hosts_text(count, host_key), encoding="utf-8")
    return home
