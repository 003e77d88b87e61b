"""``vllm-fleet init``: makes a fleet of hosts that exist, after the user has confirmed their SSH host keys."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import TypeAdapter, ValidationError

from vllm_fleet import inventory
from vllm_fleet.base import paths, text_files
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.field_types import Name
from vllm_fleet.base.foreign_text import clean_text
from vllm_fleet.base.private_keys import private_key_fault
from vllm_fleet.catalogue import catalogue
from vllm_fleet.catalogue.catalogue import Catalog, SizedClass, raise_all
from vllm_fleet.cli import init_questions, passwords
from vllm_fleet.cli.init_questions import Asker
from vllm_fleet.cli.output import JsonOption, print_json, print_note, print_text
from vllm_fleet.edge import git, keys, ssh_scan
from vllm_fleet.fleet import plan
from vllm_fleet.fleet.api_keys_file import api_keys_text
from vllm_fleet.operate import enrol, new_fleet
from vllm_fleet.operate.enrol import FoundHost, Login
from vllm_fleet.operate.import_inventory import Imported, import_inventory
from vllm_fleet.operate.new_fleet import IdentifiedHost, Wishes
from vllm_fleet.resolve.resolve import Question, resolve
from vllm_fleet.schema.fleet_schema import schema_line

EPILOG = """\b
Examples:
  vllm-fleet init rack --host root@10.0.0.5 --host root@10.0.0.6 --gateway root@10.0.0.9
  vllm-fleet init rack --add --host root@10.0.0.7
\b
Another port, IPv6, a name, and a host of ~/.ssh/config:
  vllm-fleet init rack --host admin@10.0.0.5:2222 --host root@[fd00::5]:22 --host root@gpu-1.example.com --host gpu-2
\b
Hosts behind a bastion, which is written into fleet.yml and resolves their names; sudo asks for a password:
  vllm-fleet init rack --bastion ops@bastion.example.com --host admin@gpu-1.internal -K
\b
The hosts of an Ansible inventory:
  vllm-fleet init rack --from-inventory hosts.ini --group gpu --gateway-group lb
\b
Where the model comes from, by the keys of artifacts.models in fleet.yml:
  --model-from hub=hosts                       each host downloads it from the hub (the default)
  --model-from hub=mirror --mirror gateway-0   'vllm-fleet mirror' downloads it once, gateway-0 serves it
  --model-from on_host=/data/models/gpt-oss-120b
  --model-from huggingface_cache=/data/hf/hub
  --model-from url=https://storage.googleapis.com/models/gpt-oss-120b/
\b
Without a terminal, give the host keys that you know, and a file for the API key:
  vllm-fleet init rack --host root@10.0.0.5 --fingerprint 10.0.0.5=SHA256:… --yes --gateway … \\
      --api-key-file inventories/rack/api-key"""


#: Of more hosts the number is shown.
_SHOWN_NAMES = 8


def command(
    name: Annotated[str, typer.Argument(help="The new fleet: a folder under inventories/.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="A GPU host: [USER@]ADDRESS[:PORT], or its name in ssh's configuration. Repeat it for more."),
    ] = None,
    gateway: Annotated[
        list[str] | None, typer.Option(help="A gateway: [USER@]ADDRESS[:PORT]. Repeat it for more.")
    ] = None,
    from_inventory: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An Ansible inventory with the hosts.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="The group of the GPU hosts in that inventory. Default: all.")
    ] = None,
    gateway_group: Annotated[str | None, typer.Option(help="The group of the gateways in that inventory.")] = None,
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
    ask_become_pass: passwords.AskOption = False,
    become_password_file: passwords.FileOption = None,
    host_class: Annotated[
        str | None, typer.Option(help="The class of the GPU hosts, such as h200-8. Default: what their GPUs say.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model to serve. Default: the largest that fits.")] = None,
    model_from: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Where the model comes from; see below. Repeat it for more keys."),
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="HOST|URL", help="The fleet's mirror: a host of the fleet, or a URL.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Write the new API key to this file. Default: show it once, on the terminal.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing but the host keys: take the default of every question.")
    ] = False,
    add: Annotated[bool, typer.Option("--add", help="Add the hosts to an existing fleet.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a fleet.yml for hosts that exist already.

    Reads the hardware of the hosts over SSH, recognises their host classes and writes a commented fleet.yml. For a
    fleet with a gateway it makes an API key: api-keys.yml has its digest, and the key itself is shown once.
    """
    # No host is asked before every option is known to be right.
    _name(name)
    recipes = catalogue.load()
    folder = paths.inventories_dir() / name
    old = _existing(folder, add)
    _check_folder(folder)
    said_class = _said_class(recipes, host_class, model)
    asker = Asker(take_defaults=yes)
    wishes = Wishes(
        source=init_questions.parse_source(model_from or ()),
        mirror=init_questions.parse_mirror(mirror),
        encodings="" if old or mirror else init_questions.known_encodings(recipes),
    )
    imported = _imported(from_inventory, group, gateway_group)
    bastion = bastion if bastion is not None else imported.bastion
    typed = enrol.parse_hosts(host or (), gateway or (), bastion, imported.hosts)
    enrol.refuse_too_many(typed, old)
    for value, option in ((bastion, "--bastion"), (mirror, "--mirror")):
        if old and value is not None:
            _refuse_change(option)
    login = _login(key or (None if old else imported.key), ssh_config or (None if old else imported.config), old)
    login = replace(login, become_password=passwords.take_password(ask_become_pass, become_password_file))
    found = enrol.find_hosts(typed, login.config_file)
    door = found.pop() if bastion is not None else None
    if door or login.bastion:
        found = [replace(each, alias="", proxy="") for each in found]
    enrol.refuse_duplicates(found, old, paths.display(from_inventory) if from_inventory else None)
    fingerprints = enrol.parse_fingerprints(fingerprint or (), [*found, *([door] if door else [])])
    if not old and not wishes.source:
        asker.require("where the models come from", "--model-from hub=hosts")
    key_place = _KeyPlace.find(folder, old, api_key_file, needs_key=any(each.gateway for each in typed))
    if door:
        ((_, public),) = _trusted_keys([door], login, fingerprints)
        login = replace(login, bastion=enrol.bastion_target(door, public, login))
    keys_of_hosts = _trusted_keys(found, login, fingerprints)
    identified, errors = enrol.identify_hosts(keys_of_hosts, login, recipes, said_class)
    if errors:
        for member in identified:
            print_note(f"  {member.address}: {member.says or 'a gateway'}")
        raise_all(errors)
    classes = _new_classes(identified, old, model)
    wishes = replace(wishes, models=_choose_models(asker, model, classes, recipes))
    wishes = replace(wishes, source=_choose_source(asker, wishes, old, recipes))
    if old:
        before = text_files.read_text(folder / "fleet.yml")
        text = new_fleet.add_hosts(before, identified, recipes, wishes)
    else:
        before = ""
        text = schema_line(folder) + new_fleet.fleet_text(name, identified, recipes, wishes, enrol.access_record(login))
    enrol.validate_fleet_text(folder.name, text, folder)
    secret = key_place.write(folder, text)
    written = plan.load(folder, recipes)
    refusals = inventory.find_refusals(written, recipes)
    if json:
        records = [enrol.host_record(member) for member in identified]
        said = [refusal.error.record() for refusal in refusals]
        print_json({"fleet": name, "file": str(folder / "fleet.yml"), "hosts": records, "site_refuses": said})
    else:
        lines = difflib.unified_diff(before.splitlines(True), text.splitlines(True), "fleet.yml", "fleet.yml", n=2)
        print_text("".join(lines) if old else text, end="")
        _print_aliases(identified)
        _print_renamed(identified, written)
        print_text(f"\nwrote {paths.display(folder / 'fleet.yml')}")
        for refusal in refusals:
            print_text(f"site.yml will refuse: {refusal.error}")
        fixes = dict.fromkeys(refusal.error.hint or "mend what site.yml will refuse" for refusal in refusals)
        for fix in fixes:
            print_text(f"next: {fix}")
        ask = " -K" if login.become_password else ""
        site = f"ansible-playbook -i {_inventory(folder)} site.yml{ask}"
        print_text(f"{'then' if fixes else 'next'}: vllm-fleet plan --fleet {name}; {site}")
    if secret:
        print_note(f"\nThe API key of {name}, shown only now; api-keys.yml has its digest:\n  {secret}")


def _inventory(folder: Path) -> str:
    return paths.display(folder / "fleet.yml")


def _print_aliases(identified: list[IdentifiedHost]) -> None:
    if aliases := [member.ssh_alias for member in identified if member.ssh_alias]:
        print_note(
            f"\nYour own ssh configuration has the way to {', '.join(aliases)}. Others who run this fleet need it too:"
        )
        print_note("  keep it in a file with the fleet (--ssh-config), or name the bastion (--bastion).")


def _some(names: Sequence[str]) -> str:
    """The first names of many, and the number of the others."""
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"{', '.join(map(clean_text, names[:_SHOWN_NAMES]))}{more}"


def _print_renamed(identified: list[IdentifiedHost], fleet: plan.Plan) -> None:
    """Says which hosts of an inventory have another name in the fleet."""
    names = {(host.static.address, host.static.port): host.name for host in fleet.hosts if host.static}
    pairs = ((member.name, names.get((member.address, member.port))) for member in identified if member.name)
    if renamed := [f"{old} is {new}" for old, new in pairs if new not in (None, old)]:
        print_note(f"\nnames in fleet.yml: {_some(renamed)} (a name has a-z, 0-9 and '-', and is in the fleet once)")


def _imported(file: Path | None, group: str | None, gateway_group: str | None) -> Imported:
    """The hosts of an Ansible inventory; none without one."""
    if file is not None:
        imported = import_inventory(file, "all" if group is None else group, gateway_group)
        if group is None and imported.groups:
            taken = "; ".join(f"{name}: {_some(hosts)}" for name, hosts in imported.groups.items())
            print_note(f"{paths.display(file)}: all hosts become GPU hosts ({taken}); --group GROUP chooses a group")
        return imported
    for value, option in ((group, "--group"), (gateway_group, "--gateway-group")):
        if value is not None:
            raise FleetError("is a group of an Ansible inventory", "give --from-inventory too", key=option)
    return Imported(())


def _said_class(recipes: Catalog, host_class: str | None, model: str | None) -> SizedClass | None:
    """The class that the user says the hosts have.

    Raises:
        FleetError: there is no such class or model, or the class cannot serve it.
    """
    said = None
    with _errors_of("--model"):
        if model is not None:
            recipes.model(model)
    with _errors_of("--host-class"):
        if host_class is not None:
            said = recipes.host_class(host_class)
            new_fleet.fitting_models(recipes, said)
    with _errors_of("--model"):
        if said and model is not None:
            resolve(recipes, Question(said.id, model))
    return said


@contextmanager
def _errors_of(option: str) -> Iterator[None]:
    """Names an option in errors that name the key of fleet.yml which it becomes."""
    try:
        yield
    except FleetError as fault:
        for error in (fault, *fault.others):
            error.key = option
        raise


def _check_folder(folder: Path) -> None:
    """Checks that the fleet's folder is there and can be written, or can be made.

    Raises:
        FleetError: a file has its place, or that of a folder above it, or permissions forbid it.
    """
    if fault := paths.folder_fault(folder):
        # Else it is a folder that permissions close.
        if not os.path.isdir(fault.path):  # noqa: PTH112 - Path.is_dir raises where it may not look
            is_own = fault.path == folder
            hint = "choose another name" if is_own else "correct the variable VLLM_FLEET_INVENTORIES"
            fault = replace(fault, hint=hint)
        raise fault.error()


def _new_classes(identified: list[IdentifiedHost], old: plan.Plan | None, model: str | None) -> list[SizedClass]:
    """The classes of the hosts, each once, of which the fleet has no pool yet."""
    classes = {member.sized.id: member.sized for member in identified if member.sized}
    data = old.document.data if old else {}
    return [sized for sized in classes.values() if new_fleet.pool_of_class(data, sized.id, model) is None]


def _choose_models(asker: Asker, model: str | None, classes: list[SizedClass], recipes: Catalog) -> dict[str, str]:
    """The model of each new class."""
    return {sized.id: model or asker.model(sized, new_fleet.fitting_models(recipes, sized)) for sized in classes}


def _choose_source(asker: Asker, wishes: Wishes, old: plan.Plan | None, recipes: Catalog) -> Mapping[str, Any]:
    """Where the models of the new classes come from, but for those that the fleet has a source of.

    Raises:
        FleetError: the source cannot have the files of these models.
    """
    served = sorted(set(wishes.models.values()) - set(old.spec.artifacts.models if old else ()))
    source = wishes.source or (asker.source(served, recipes) if served else new_fleet.DEFAULT_SOURCE)
    init_questions.check_one_folder(served, source)
    init_questions.check_source(served, source, recipes)
    return source


@dataclass(frozen=True)
class _KeyPlace:
    """Where the digest of a new API key goes, and the key itself.

    Attributes:
        digests: the fleet's file of digests; None: no new key is made.
        own: the file for the key; None: the terminal.
    """

    digests: Path | None
    own: Path | None

    @staticmethod
    def find(folder: Path, old: plan.Plan | None, own: Path | None, *, needs_key: bool) -> _KeyPlace:
        """Finds out before a host is asked whether there is a place for the key.

        Raises:
            FleetError: there is no terminal to show it, or the file for it exists already or could be committed.
        """
        digests = folder / (old.gateway.api_keys_file if old else "api-keys.yml")
        if not needs_key or os.path.lexists(digests):
            if own:
                why = f"{paths.display(digests)} exists already" if needs_key else "there is no gateway"
                raise FleetError(f"no API key is made: {why}", "leave it out", key="--api-key-file")
            if needs_key:
                print_note(f"no new API key: {paths.display(digests)} has those of the fleet")
            return _KeyPlace(None, None)
        if own is None and not sys.stderr.isatty():
            raise FleetError(
                "there is no terminal to show the new API key, so nothing was written",
                "give a file for it",
                key="--api-key-file",
                code=ErrorCode.REFUSED,
            )
        if own and (fault := paths.new_file_fault(own)):
            raise fault.error(key="--api-key-file")
        if own and git.would_commit(own):
            ignored = folder / "api-key"
            other = "" if git.would_commit(ignored) else f", or {paths.display(ignored)}"
            raise FleetError(
                "is in a git checkout that does not ignore it, so the key could be committed",
                f"give a path outside the checkout{other}",
                paths.display(own),
                key="--api-key-file",
                code=ErrorCode.REFUSED,
            )
        return _KeyPlace(digests, own)

    def write(self, folder: Path, text: str) -> str:
        """Writes the fleet, and the key where one is made.

        Returns:
            The key to show on the terminal; empty where the key went to a file, or none was made.
        """
        if self.digests is None:
            write_atomically(folder / "fleet.yml", text)
            return ""
        secret = keys.api_key()
        made = [self.digests, *([self.own] if self.own else [])]
        try:
            if self.own:
                write_atomically(self.own, secret + "\n", 0o600)
            write_atomically(self.digests, api_keys_text(folder.name, keys.digest(secret)), 0o600)
            write_atomically(folder / "fleet.yml", text)
        except BaseException:
            for file in made:
                file.unlink(missing_ok=True)
            raise
        return "" if self.own else secret


def _name(name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as fault:
        raise FleetError(str(fault.errors()[0]["ctx"]["error"]), "choose another name", key="NAME") from None


def _existing(folder: Path, add: bool) -> plan.Plan | None:
    file = folder / "fleet.yml"
    if not add:
        if os.path.lexists(file):
            hint = "choose another name, or use --add to add the hosts to it"
            raise FleetError("this fleet exists already", hint, paths.display(file))
        return None
    if not os.path.lexists(file):
        hint = "correct the name, or leave --add out to make the fleet"
        raise FleetError(f"there is no fleet {folder.name} to add hosts to", hint, paths.display(file), key="--add")
    return plan.load(folder)


def _login(key: Path | None, ssh_config: Path | None, old: plan.Plan | None) -> Login:
    """How the hosts are logged in to: as the fleet says, or as the options say for a new one."""
    if old and (key or ssh_config):
        _refuse_change("--key" if key else "--ssh-config")
    if old:
        return enrol.login_of(old)
    files = [paths.absolute(paths.expand_user(file)) if file else None for file in (key, ssh_config)]
    key_file, config_file = files
    if key_file and (fault := private_key_fault(key_file)):
        raise fault.error(key="--key")
    if config_file and (fault := paths.file_fault(config_file)):
        raise fault.error(key="--ssh-config")
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
