"""The second quick start of the README on bare lab hosts: ``init``, ``check``, ``plan``, ``site.yml``, a completion."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from first_contact_lab import Rack, bare_hosts

from vllm_fleet.base.digests import text_sha256
from vllm_fleet.edge.ssh_scan import fingerprint

pytestmark = [pytest.mark.root, pytest.mark.network]

SUBNET = "10.79.16"
GPU, GATEWAY = f"{SUBNET}.11", f"{SUBNET}.12"


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    with bare_hosts(tmp_path_factory.mktemp("rack"), "vf-first", SUBNET) as rack:
        yield rack


def test_hosts_serve_after_init_and_site(rack: Rack) -> None:
    """``--host-class`` and ``--model-from`` alone differ from the README: hosts of the lab have no GPU and no hub."""
    inventory = rack.folder / "hosts.ini"
    inventory.write_text(
        f"[gpu]\ncompute-1 ansible_host={GPU}\n[lb]\ndoor-1 ansible_host={GATEWAY}\n"
        f"[all:vars]\nansible_user=deploy\nansible_ssh_private_key_file={rack.key}\n"
    )
    known = [f"--fingerprint={address}={fingerprint(key)}" for address, key in rack.host_keys.items()]
    code, out, told = rack.fleet(
        "init",
        "rack",
        *("--from-inventory", str(inventory), "--group", "gpu", "--gateway-group", "lb", *known),
        *("--host-class", "cpu-2", "--model-from", "controller={cache}/lab-model/current"),
        *("--yes", "--api-key-file", str(rack.api_key_file)),
    )
    assert code == 0, told
    assert "site.yml will refuse" not in out
    for command in ("check", "plan"):
        code, out, told = rack.fleet(command, "--fleet", "rack", "--json")
        assert (code, json.loads(out)["site_refuses"]) == (0, []), told
    code, out, told = rack.site()
    assert code == 0, (out + told)[-6000:]
    assert rack.ask(GATEWAY) == "assistant"
    code, out, told = rack.site()
    assert (code, "changed=0" in out) == (0, True), (out + told)[-3000:]
    hosts = yaml.safe_load((rack.folder / "inventories/rack/fleet.yml").read_text())
    assert list(hosts["pools"]["cpu"]["static"]) == ["compute-1"]
    assert list(hosts["gateway"]["static"]) == ["door-1"]
    assert rack.secret not in out + told + "".join(
        file.read_text() for file in (rack.folder / "inventories/rack").iterdir() if file.is_file()
    )


def test_a_host_downloads_the_vocabularies_and_takes_no_other_file(rack: Rack, tmp_path: Path) -> None:
    """The role, with the address of a server of this machine in place of the official page."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "good.tiktoken").write_text("a vocabulary")
    (served / "bad.tiktoken").write_text("another file")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer((f"{SUBNET}.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    known = tmp_path / "known_hosts"
    known.write_text(f"{GPU} {rack.host_keys[GPU]}\n")
    reached = {
        "ansible_host": GPU,
        "ansible_user": "deploy",
        "ansible_ssh_private_key_file": str(rack.key),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={known}",
    }
    digest = text_sha256("a vocabulary")

    def run(name: str) -> tuple[int, str]:
        files = [{"name": name, "sha256": digest, "url": f"http://{SUBNET}.1:{server.server_port}/{name}"}]
        variables = {**reached, "harmony_encodings_files": files}
        (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"hosts": {"gpu-0": variables}}}))
        play = [{"hosts": "all", "become": True, "gather_facts": False, "roles": ["harmony_encodings"]}]
        (tmp_path / "play.yml").write_text(json.dumps(play))
        code, out, told = rack.run("ansible-playbook", "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml"))
        return code, out + told

    try:
        code, said = run("good.tiktoken")
        assert code == 0, said
        code, said = run("good.tiktoken")
        assert (code, "changed=0" in said) == (0, True), said
        code, said = run("bad.tiktoken")
        assert (code, "checksum" in said) == (2, True), said
    finally:
        server.shutdown()
        server.server_close()
