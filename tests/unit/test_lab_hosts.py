"""The lab's hosts as data: addresses, files, site configuration, and what a property bag keeps."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from lab import host, rootfs, surroundings
from lab.spec import HostSpec, NetworkSpec, Placement
from lab.tree import PACKAGES, require_disk, tree_digest
from vllm_fleet.base.errors import FleetError

PLACE = {"bridge": "vf-a", "subnet": "10.70.0.0/28"}
HOST = HostSpec(
    bridge="vf-a",
    name="lab-0",
    address="10.70.0.11",
    subnet="10.70.0.0/28",
    user="deploy",
    authorised_key="ssh-ed25519 DEPLOY",
    host_key="ssh-ed25519 HOST",
    tree="0123",
    peers={"lab-0": "10.70.0.11", "gateway-0": "10.70.0.2"},
    binds={"/cache": "/var/cache/uv"},
    disk_gib=7,
)


def test_addresses_follow_the_ordinal() -> None:
    placement = Placement.parse(PLACE, 11)
    assert [placement.address(ordinal) for ordinal in range(3)] == ["10.70.0.11", "10.70.0.12", "10.70.0.13"]
    assert Placement.parse({**PLACE, "first": 5}, 11).address(0) == "10.70.0.5"


def test_the_broadcast_address_is_no_host_s() -> None:
    placement = Placement.parse(PLACE, 11)
    assert placement.address(3) == "10.70.0.14"
    with pytest.raises(FleetError, match="no address for place 15"):
        placement.address(4)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"zone": "a"}, "zone"),
        ({"bridge": None}, "bridge"),
        ({"bridge": "sixteen-letters-"}, "bridge"),
        ({"bridge": "br; reboot"}, "bridge"),
        ({"subnet": "10.70.0.1/24"}, "subnet"),
        ({"subnet": "8.8.8.0/24"}, "subnet"),
        ({"subnet": "10.70.0.0/30"}, "subnet"),
        ({"subnet": None}, "subnet"),
        ({"first": 1}, "first"),
        ({"first": True}, "first"),
        ({"first": "11"}, "first"),
    ],
)
def test_an_impossible_placement_names_its_key(change: dict[str, object], key: str) -> None:
    with pytest.raises(FleetError) as fault:
        Placement.parse({**PLACE, **change}, 11)
    assert fault.value.key == key
    assert fault.value.hint


def test_property_bags_come_back_as_they_went() -> None:
    # The engine's numbers are floats, and it adds keys of its own.
    bag = {**HOST.properties(), "disk_gib": 7.0, "__provider": "x", "private_host_key": "SECRET"}
    assert HostSpec.from_properties(bag) == HOST
    network = NetworkSpec("vf-a", "10.70.0.0/28", "/fleets/a", 15)
    assert NetworkSpec.from_properties({**network.properties(), "disk_gib": 15.0, "damage": ""}) == network
    assert network.gateway == "10.70.0.1"


def test_a_host_of_an_earlier_release_runs_no_containers() -> None:
    bag = HOST.properties()
    del bag["containers"]
    assert HostSpec.from_properties(bag) == HOST
    with_docker = HostSpec.from_properties({**bag, "containers": True})
    assert HostSpec.from_properties(with_docker.properties()) == with_docker


def test_only_a_host_of_containers_may_do_what_they_need(tmp_path: Path) -> None:
    with_docker = replace(HOST, binds={}, containers=True)
    plain, special = (host._arguments(spec, tmp_path) for spec in (replace(HOST, binds={}), with_docker))
    assert set(special) - set(plain) == {
        "--capability=all",
        "--system-call-filter=add_key keyctl bpf",
        f"--bind={tmp_path / 'images'}:/var/lib/docker",
    }
    assert (tmp_path / "images").is_dir()
    more = set(rootfs.host_files(with_docker, "", "")) - set(rootfs.host_files(HOST, "", ""))
    assert more == set(rootfs.container_files())
    (link,) = set(rootfs.host_links(with_docker)) - set(rootfs.host_links(HOST))
    assert rootfs.host_links(with_docker)[link].removeprefix("/") in more


def test_the_private_host_key_is_in_one_file_that_only_root_reads() -> None:
    files = rootfs.host_files(HOST, "SECRET", "0" * 32)
    assert [(name, file.mode, file.owner) for name, file in files.items() if "SECRET" in file.text] == [
        ("etc/ssh/ssh_host_ed25519_key", 0o600, 0)
    ]
    assert "SECRET" not in str(HOST.properties())


def test_a_host_knows_itself_and_its_peers() -> None:
    hosts = rootfs.changeable_files(HOST)["etc/hosts"].text.splitlines()
    assert hosts[2:] == ["10.70.0.2 gateway-0", "10.70.0.11 lab-0"]
    network = rootfs.host_files(HOST, "", "")["etc/systemd/network/10-lab.network"].text
    assert "Address=10.70.0.11/28\nGateway=10.70.0.1\n" in network


@pytest.mark.parametrize(
    ("user", "home", "root_login"), [("deploy", "home/deploy", "no"), ("root", "root", "prohibit-password")]
)
def test_only_the_key_of_the_user_logs_in(user: str, home: str, root_login: str) -> None:
    spec = HostSpec.from_properties({**HOST.properties(), "user": user})
    files = rootfs.host_files(spec, "", "")
    assert files[f"{home}/.ssh/authorized_keys"].text == "ssh-ed25519 DEPLOY\n"
    sshd = files["etc/ssh/sshd_config.d/10-lab.conf"].text
    assert "PasswordAuthentication no\n" in sshd
    assert f"PermitRootLogin {root_login}\n" in sshd


def test_a_new_user_is_not_locked_and_has_no_password() -> None:
    passwd, shadow, group = rootfs.with_user(
        "deploy", "root:x:0:0::/root:/bin/bash\n", "root:*:1::::::\n", "root:x:0:\n"
    )
    assert passwd.splitlines()[-1] == "deploy:x:1000:1000::/home/deploy:/bin/sh"
    assert shadow.splitlines()[-1].startswith("deploy:*:")
    assert group.splitlines()[-1] == "deploy:x:1000:"
    assert rootfs.with_user("deploy", passwd, shadow, group) == (passwd, shadow, group)
    assert rootfs.with_user("root", passwd, shadow, group) == (passwd, shadow, group)


def test_files_are_written_with_mode_and_links_replace_what_is_there(tmp_path: Path) -> None:
    own = tmp_path.stat().st_uid
    rootfs.write_files(tmp_path, {"etc/deep/secret": rootfs.File("x", 0o600, own)})
    assert (tmp_path / "etc/deep/secret").stat().st_mode & 0o777 == 0o600
    (tmp_path / "etc/unit").write_text("old", encoding="utf-8")
    rootfs.write_links(tmp_path, {"etc/unit": "/dev/null"})
    assert (tmp_path / "etc/unit").readlink() == Path("/dev/null")
    assert [path.name for path in (tmp_path / "etc/deep").iterdir()] == ["secret"], "no temporary file stays"


def test_the_tree_s_name_hangs_on_what_is_in_it() -> None:
    assert tree_digest() == tree_digest(tuple(reversed(PACKAGES)))
    assert tree_digest() != tree_digest((*PACKAGES, "haproxy"))
    assert tree_digest() != tree_digest(suite="trixie")


def test_a_small_disk_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    require_disk(tmp_path / "not" / "there", 0)
    with pytest.raises(FleetError, match="needs 1000000 GiB") as fault:
        require_disk(tmp_path / "not" / "there", 1_000_000)
    assert "VLLM_FLEET_CACHE" in fault.value.hint
    assert not (tmp_path / "not").exists()


ONE_LINE = "deb [arch=amd64 signed-by=/k] http://mirror.test/debian/ bookworm main contrib\n"
DEB822 = """\
Types: deb
# a comment between the fields
URIs: http://mirror.test/security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://other.test/tool
Suites: bookworm
Components: tool
"""


@pytest.mark.parametrize(
    ("texts", "mirrors"),
    [
        ([ONE_LINE, DEB822], ("http://mirror.test/debian", "http://mirror.test/security")),
        ([DEB822], ("http://own.test/debian", "http://mirror.test/security")),
        (
            ["deb http://archive.ubuntu.com/ubuntu noble main"],
            ("http://own.test/debian", "http://own.test/debian-security"),
        ),
        (
            ["# deb http://mirror.test/debian bookworm main"],
            ("http://own.test/debian", "http://own.test/debian-security"),
        ),
    ],
)
def test_the_machine_s_mirrors_of_the_same_release_are_taken_over(texts: list[str], mirrors: tuple[str, str]) -> None:
    assert surroundings.debian_mirrors(texts, 'x=1\nDEF_MIRROR="http://own.test/debian"\n') == mirrors


def test_without_any_mirror_the_error_says_where_to_name_one() -> None:
    with pytest.raises(FleetError, match="no mirror of Debian"):
        surroundings.debian_mirrors([], "")


def test_the_first_resolver_that_a_host_can_reach_is_taken() -> None:
    stub, real = "nameserver 127.0.0.53\n", "search x\nnameserver 192.0.2.53\n"
    assert surroundings.usable_resolver(stub, real) == real
    assert surroundings.usable_resolver("nameserver fe80::1%eth0\n") == "nameserver fe80::1%eth0\n"
    with pytest.raises(FleetError, match="no name server"):
        surroundings.usable_resolver(stub, "")


def test_site_files_carry_mirrors_certificates_and_indexes() -> None:
    site = surroundings.Site(
        mirrors=("http://m/debian", "http://m/security"),
        ca_bundle="PEM",
        own_certificates={"own.crt": "OWN"},
        resolv_conf="nameserver 192.0.2.53\n",
        pip=surroundings.pip_indexes("[global]\nindex-url = https://i/%(x)s\ntimeout = 3\n"),
        uv='index-url = "https://i/simple"\n',
        environment={"https_proxy": "http://p:3128", "http_proxy": "http://p:3128"},
    )
    files = surroundings.site_files(site)
    sources = files["etc/apt/sources.list.d/debian.sources"]
    assert sources.count("Signed-By:") == 2
    assert "URIs: http://m/security\nSuites: bookworm-security\n" in sources
    assert files["etc/ssl/certs/ca-certificates.crt"] == "PEM"
    assert files["usr/local/share/ca-certificates/own.crt"] == "OWN"
    assert files["etc/pip.conf"].splitlines()[2:] == ["index-url = https://i/%(x)s"]
    assert tomllib.loads(files["etc/uv/uv.toml"]) == {"system-certs": True, "index-url": "https://i/simple"}
    assert 'https_proxy="http://p:3128"\n' in files["etc/environment"]
    assert files["etc/apt/apt.conf.d/80-lab-proxy"] == 'Acquire::http::Proxy "http://p:3128";\n'


def test_a_site_s_own_choice_of_certificates_for_uv_stays() -> None:
    site = surroundings.Site(("m", "s"), "", {}, "", {}, "native-tls = false\n", {})
    files = surroundings.site_files(site)
    assert files["etc/uv/uv.toml"] == "native-tls = false\n"
    assert "etc/apt/apt.conf.d/80-lab-proxy" not in files
