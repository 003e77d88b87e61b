"""``vllm-fleet init``: makes a fleet of hosts that exist, after the user has confirmed their SSH host keys."""

from __future__ import annotations

import difflib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import TypeAdapter, ValidationError

from vllm_fleet.base import paths
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
from vllm_fleet.operate.enrol import FoundHost, Login
from vllm_fleet.schema.fleet_schema import schema_line

EPILOG = """\b
Examples:
  vllm-fleet init rack --host root@10.0.0.5 --host root@10.0.0.6 --gateway root@10.0.0.9
  vllm-fleet init rack --add --host root@10.0.0.7
\b
Another port, IPv6, a name, and a host of ~/.ssh/config:
  vllm-fleet init rack --host admin@10.0.0.5:2222 --host root@[fd00::5]:22 --host root@gpu-1.example.com --host gpu-2
\b
Hosts behind a bastion, which is written into fleet.yml and resolves their names:
  vllm-fleet init rack --bastion ops@bastion.example.com --host root@gpu-1.internal
\b
Without a terminal, give the host keys that you know:
  vllm-fleet init rack --host root@10.0.0.5 --fingerprint 10.0.0.5=SHA256:…"""


def command(
    name: Annotated[str, typer.Argument(help="The new fleet: a folder under inventories/.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="A GPU host: [USER@]ADDRESS[:PORT], or its name in ssh's configuration. Repeat it for more."),
    ] = None,
    gateway: Annotated[
        list[str] | None, typer.Option(help="A gateway: [USER@]ADDRESS[:PORT]. Repeat it for more.")
    ] = None,
    bastion: Annotated[
        str | None, typer.Option(help="The host through which all of them are reached: [USER@]ADDRESS[:PORT].")
    ] = None,
    fingerprint: Annotated[
        list[str] | None, typer.Option(help="A host key that you know: ADDRESS=SHA256:…. Repeat it.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The private SSH key. Default: ssh's own configuration.")] = None,
    ssh_config: Annotated[
        Path | None, typer.Option(help="The configuration of ssh for this fleet. Default: ~/.ssh/config.")
    ] = None,
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
    typed = enrol.parse_hosts(host or (), gateway or (), bastion)
    if old and bastion:
        _refuse_change("--bastion")
    login = _login(key, ssh_config, old)
    found = enrol.find_hosts(typed, login.config_file)
    door = found.pop() if bastion is not None else None
    if door or login.bastion:
        found = [replace(each, alias="", proxy="") for each in found]
    enrol.refuse_duplicates(found, new_fleet.static_addresses(old.document.data) if old else {})
    fingerprints = enrol.parse_fingerprints(fingerprint or (), [*found, *([door] if door else [])])
    if door:
        ((_, public),) = _trusted_keys([door], login, fingerprints)
        login = replace(login, bastion=enrol.bastion_target(door, public, login))
    keys_of_hosts = _trusted_keys(found, login, fingerprints)
    identified, errors = enrol.identify_hosts(keys_of_hosts, login, recipes)
    if errors:
        for member in identified:
            print_note(f"  {member.address}: {member.says or 'a gateway'}")
        raise_all(errors)
    if old:
        before = (folder / "fleet.yml").read_text(encoding="utf-8")
        text = new_fleet.add_hosts(before, identified, recipes, model)
    else:
        before = ""
        text = schema_line(folder) + new_fleet.fleet_text(name, identified, recipes, model, enrol.access_record(login))
    _write(folder, text, has_gateway=any(member.sized is None for member in identified))
    if json:
        records = [enrol.host_record(member) for member in identified]
        print_json({"fleet": name, "file": str(folder / "fleet.yml"), "hosts": records})
        return
    lines = difflib.unified_diff(before.splitlines(True), text.splitlines(True), "fleet.yml", "fleet.yml", n=2)
    print_text("".join(lines) if old else text, end="")
    if aliases := [member.ssh_alias for member in identified if member.ssh_alias]:
        print_note(
            f"\nYour own ssh configuration has the way to {', '.join(aliases)}. Others who run this fleet need it too:"
        )
        print_note("  keep it in a file with the fleet (--ssh-config), or name the bastion (--bastion).")
    print_text(f"\nwrote {paths.display(folder / 'fleet.yml')}; next: vllm-fleet plan --fleet {name}")


def _name(name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as fault:
        raise FleetError(str(fault.errors()[0]["ctx"]["error"]), "choose another name", key="NAME") from None


def _existing(folder: Path, add: bool) -> plan.Plan | None:
    file = folder / "fleet.yml"
    if not add:
        if file.exists():
            hint = "choose another name, or use --add to add the hosts to it"
            raise FleetError("this fleet exists already", hint, paths.display(file))
        return None
    return plan.load(folder)


def _login(key: Path | None, ssh_config: Path | None, old: plan.Plan | None) -> Login:
    """How the hosts are logged in to: as the fleet says, or as the options say for a new one."""
    if old and (key or ssh_config):
        _refuse_change("--key" if key else "--ssh-config")
    if old:
        return enrol.login_of(old)
    files = [file.expanduser().resolve() if file else None for file in (key, ssh_config)]
    names = (("private key", "--key"), ("configuration of ssh", "--ssh-config"))
    for file, (what, option) in zip(files, names, strict=True):
        if file and not file.is_file():
            raise FleetError(f"there is no {what} {paths.display(file)}", "correct the path", key=option)
    key_file, config_file = files
    return Login(key_file, config_file)


def _refuse_change(option: str) -> NoReturn:
    raise FleetError(f"{option} is for a new fleet", "with --add the fleet's own access is used", key=option)


def _trusted_keys(
    hosts: list[FoundHost], login: Login, fingerprints: dict[ssh_scan.Address, str]
) -> list[tuple[FoundHost, str]]:
    """The host keys of hosts, after the user has confirmed them.

    Raises:
        FleetError: a host cannot be reached, or a key is not confirmed; the keys of the others are shown then.
    """
    shown, errors = enrol.scan_keys(hosts, login)
    if errors:
        for host, public in shown:
            print_note(f"  {_key_line(host, public)}")
        raise_all(errors)
    _confirm(shown, fingerprints)
    return shown


def _key_line(host: FoundHost, public: str) -> str:
    name = host.named.name
    at = host.address if name == host.address else f"{name} ({host.address})"
    return f"{at} port {host.port}  {ssh_scan.fingerprint(public)}  ({public.split()[0]})"


def _confirm(shown: list[tuple[FoundHost, str]], known: dict[ssh_scan.Address, str]) -> None:
    """Compares the keys with the fingerprints that were given, and asks the user to confirm the others.

    Raises:
        FleetError: a key differs, there is no terminal to confirm it, or the user answers no.
    """
    errors, unknown = [], []
    for named, public in shown:
        seen = ssh_scan.fingerprint(public)
        given = known.get(named.at)
        if given and given != seen:
            text = f"shows the host key {seen}, not {given}: it is another machine, or the connection is intercepted"
            errors.append(FleetError(text, "compare on the host's console", host=named.address, code=ErrorCode.REFUSED))
        elif not given:
            unknown.append((named, public))
    raise_all(errors)
    if not unknown:
        return
    print_note("The hosts show these SSH host keys. Compare each on the host's own console with")
    print_note("  ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub")
    for named, public in unknown:
        print_note(f"  {_key_line(named, public)}")
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
