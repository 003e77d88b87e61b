"""``vllm-fleet init``: makes a fleet of hosts that exist, after the user has confirmed their SSH host keys."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from vllm_fleet.base import paths, yaml_document
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.field_types import Name
from vllm_fleet.catalogue import catalogue
from vllm_fleet.catalogue.catalogue import raise_all
from vllm_fleet.cli.output import JsonOption, print_json, print_note, print_text
from vllm_fleet.edge import keys, ssh_scan
from vllm_fleet.fleet import plan
from vllm_fleet.fleet.api_keys_file import api_keys_text
from vllm_fleet.operate import enrol, new_fleet
from vllm_fleet.operate.enrol import NamedHost, parse_hosts
from vllm_fleet.schema.fleet_schema import schema_line

EPILOG = """\b
Examples:
  vllm-fleet init rack --host root@10.0.0.5 --host root@10.0.0.6 --gateway root@10.0.0.9
  vllm-fleet init rack --add --host root@10.0.0.7
Without a terminal, give the host keys that you know:
  vllm-fleet init rack --host root@10.0.0.5 --fingerprint 10.0.0.5=SHA256:…"""


def command(
    name: Annotated[str, typer.Argument(help="The new fleet: a folder under inventories/.")],
    host: Annotated[list[str] | None, typer.Option(help="A GPU host: USER@ADDRESS[:PORT]. Repeat it for more.")] = None,
    gateway: Annotated[
        list[str] | None, typer.Option(help="A gateway: USER@ADDRESS[:PORT]. Repeat it for more.")
    ] = None,
    fingerprint: Annotated[
        list[str] | None, typer.Option(help="A host key that you know: ADDRESS=SHA256:…. Repeat it.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The private SSH key. Default: ssh's own configuration.")] = None,
    model: Annotated[str | None, typer.Option(help="The model to serve. Default: the largest that fits.")] = None,
    add: Annotated[bool, typer.Option("--add", help="Add the hosts to an existing fleet.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a fleet.yml for hosts that exist already.

    Reads the hardware of the hosts over SSH, recognises their host classes and writes a commented fleet.yml.
    """
    _name(name)
    recipes = catalogue.load()
    folder = paths.inventories_dir() / name
    old = _existing(folder, add)
    wanted = parse_hosts(host or (), gateway or (), new_fleet.static_addresses(old.data) if old else {})
    private = _private_key(key, folder, old)
    fingerprints = enrol.parse_fingerprints(fingerprint or (), wanted)
    shown = enrol.scan_keys(wanted)
    _confirm(shown, fingerprints)
    identified = enrol.identify_hosts(shown, private, recipes)
    if old:
        before = (folder / "fleet.yml").read_text(encoding="utf-8")
        text = new_fleet.add_hosts(before, identified, recipes, model)
    else:
        before = ""
        text = schema_line(folder) + new_fleet.fleet_text(
            name, identified, recipes, model, str(private) if private else None
        )
    _write(folder, text, has_gateway=any(member.sized is None for member in identified))
    if json:
        records = [enrol.host_record(member) for member in identified]
        print_json({"fleet": name, "file": str(folder / "fleet.yml"), "hosts": records})
        return
    lines = difflib.unified_diff(before.splitlines(True), text.splitlines(True), "fleet.yml", "fleet.yml", n=2)
    print_text("".join(lines) if old else text, end="")
    print_text(f"\nwrote {paths.display(folder / 'fleet.yml')}; next: vllm-fleet plan --fleet {name}")


def _name(name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as fault:
        raise FleetError(str(fault.errors()[0]["ctx"]["error"]), "choose another name", key="NAME") from None


def _existing(folder: Path, add: bool) -> yaml_document.Document | None:
    file = folder / "fleet.yml"
    if not add:
        if file.exists():
            hint = "choose another name, or use --add to add the hosts to it"
            raise FleetError("this fleet exists already", hint, paths.display(file))
        return None
    plan.load(folder)
    return yaml_document.read(file)


def _private_key(key: Path | None, folder: Path, old: yaml_document.Document | None) -> Path | None:
    if old and key:
        raise FleetError("--key is for a new fleet", "with --add the fleet's own key is used", key="--key")
    own = (old.data.get("access") or {}).get("ssh_private_key_file") if old else None
    file = key.expanduser().resolve() if key else (folder / own).resolve() if own else None
    if file and not file.is_file():
        raise FleetError(f"there is no private key {paths.display(file)}", "correct the path", key="--key")
    return file


def _confirm(shown: list[tuple[NamedHost, str]], known: dict[ssh_scan.Address, str]) -> None:
    """Compares the keys with the fingerprints that were given, and asks the user to confirm the others.

    Raises:
        FleetError: a key differs, there is no terminal to confirm it, or the user answers no.
    """
    errors, unknown = [], []
    for named, public in shown:
        seen = ssh_scan.fingerprint(public)
        given = known.get((named.address, named.port))
        if given and given != seen:
            text = f"shows the host key {seen}, not {given}: it is another machine, or the connection is intercepted"
            errors.append(FleetError(text, "compare on the host's console", host=named.address, code=ErrorCode.REFUSED))
        elif not given:
            unknown.append((named, public.split()[0], seen))
    raise_all(errors)
    if not unknown:
        return
    print_note("The hosts show these SSH host keys. Compare each on the host's own console with")
    print_note("  ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub")
    for named, kind, seen in unknown:
        print_note(f"  {named.address} port {named.port}  {seen}  ({kind})")
    if not sys.stdin.isatty():
        hint = (
            "give --fingerprint ADDRESS=SHA256:… for each host, from a source that you trust; no option skips the check"
        )
        raise FleetError(
            "there is no terminal to confirm the host keys, so nothing was written", hint, code=ErrorCode.REFUSED
        )
    if not typer.confirm("Are these the keys of your hosts?", default=False, err=True):
        raise FleetError("the host keys were not confirmed, so nothing was written", code=ErrorCode.REFUSED)


def _write(folder: Path, text: str, *, has_gateway: bool) -> None:
    """Writes the fleet, and a first API key where it has a gateway and no keys yet."""
    enrol.validate_fleet_text(folder.name, text, folder)
    if has_gateway and not (folder / "api-keys.yml").exists():
        secret = keys.api_key()
        write_atomically(folder / "api-key", secret, 0o600)
        write_atomically(folder / "api-keys.yml", api_keys_text(folder.name, keys.digest(secret)))
    write_atomically(folder / "fleet.yml", text)
