"""Certificates by ACME on lab hosts: the role and the timer's unit, a real CA, and two gateways behind one name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import acme_lab
import pytest
from acme_lab import CLIENT, NAME, OTHER, PLACE, PORT, Authority, configure, served
from driver_lab import DriverLab
from hanging import HANGING_SECONDS
from made_certificates import certificate_text

from vllm_fleet.host import acme
from vllm_fleet.host.manifest import gateway_items
from vllm_fleet.host.manifest_items import Item

pytestmark = [pytest.mark.root, pytest.mark.network]
FOLDERS = " ".join(f"--{name}-dir /var/lib/vllm-gateway/certbot/{name}" for name in ("config", "work", "logs"))
BUNDLE = "REQUESTS_CA_BUNDLE=/var/lib/vllm-gateway/certbot/authority.pem"
RENEW = f"{BUNDLE} certbot renew --force-renewal --no-random-sleep-on-renew {FOLDERS}"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DriverLab, Authority]]:
    with acme_lab.opened(tmp_path_factory.mktemp("acme")) as opened:
        yield opened


def states(lab: DriverLab, name: str, certificate: acme.Certificate) -> dict[str, str]:
    """The drift of the certificate and of what renews it."""
    items: tuple[Item, ...] = gateway_items("", "", "", certificate)
    bare = gateway_items("", "", "")
    report = lab.probe(name, tuple(item for item in items if item not in bare), {})
    assert not report.error
    return {f"{item.kind} {item.what}": str(item.state) for item in report.drift}


def account(lab: DriverLab, authority: Authority) -> acme.Certificate:
    return acme_lab.plan_tls(lab, {"acme": acme_lab.asked(authority)})


def test_a_ca_that_is_down_fails_the_play_with_its_reason(hosts: tuple[DriverLab, Authority]) -> None:
    lab, authority = hosts
    certificate = account(lab, authority)
    done = configure(lab)
    told = done.stdout + done.stderr
    assert done.returncode == 2, told
    assert "/usr/local/libexec/vllm-certificate" in told
    assert "Connection refused" in told
    # HAProxy runs on all gateways with a certificate of its own, which is drift.
    for name in PLACE.gateways:
        assert "BEGIN CERTIFICATE" in served(name)
        found = states(lab, name, certificate)
        assert found["certificate /etc/haproxy/vllm-fleet.pem"] == "self_signed"


def test_the_role_gets_certificates_and_a_second_run_changes_nothing(hosts: tuple[DriverLab, Authority]) -> None:
    lab, authority = hosts
    authority.start()
    first = {name: served(name) for name in PLACE.gateways}
    done = configure(lab)
    assert done.returncode == 0, done.stdout + done.stderr
    certificate = account(lab, authority)
    for name in PLACE.gateways:
        assert served(name) != first[name]
        assert states(lab, name, certificate) == {}
        lab.on(name, f"openssl x509 -in /etc/haproxy/vllm-fleet.pem -noout -checkhost {NAME} | grep 'does match'")
        assert lab.on(name, "stat -c '%a %U %G' /etc/haproxy/vllm-fleet.pem").split() == ["640", "root", "haproxy"]
    assert served("gateway-0") != served("gateway-1"), "no key leaves its gateway"
    done = configure(lab)
    assert (done.returncode, done.stdout.count("changed=0")) == (0, 2), done.stdout


def test_a_renewal_through_the_other_gateway_loses_no_stream(hosts: tuple[DriverLab, Authority]) -> None:
    lab, authority = hosts
    authority.resolve(PLACE.addresses["gateway-1"])
    before, worker = served("gateway-0"), lab.on("gateway-0", "pgrep -f 'haproxy.*-sf|haproxy -Ws' | sort")
    url = f"https://{PLACE.addresses['gateway-0']}:{PORT}/v1/completions"
    with subprocess.Popen([sys.executable, "-c", CLIENT, url], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout
        assert client.stdout.readline() == "piece\n"
        lab.on("gateway-0", RENEW)
        assert served("gateway-0") != before
        lab.on(acme_lab.SERVING, "touch /run/enough")
        rest, _ = client.communicate(timeout=HANGING_SECONDS)
        assert int(rest) == 5999
    assert lab.on("gateway-0", "pgrep -f 'haproxy.*-sf|haproxy -Ws' | sort") == worker, "it was reloaded"
    authority.resolve(*PLACE.addresses.values())


def test_the_unit_of_the_timer_renews_under_its_hardening(hosts: tuple[DriverLab, Authority]) -> None:
    lab, _ = hosts
    before = served("gateway-0")
    conf = "/var/lib/vllm-gateway/certbot/config/renewal/vllm-fleet.conf"
    lab.on("gateway-0", f"sed -i '1i renew_before_expiry = 200 days' {conf}; systemctl start vllm-certificate.service")
    assert served("gateway-0") != before
    assert lab.on("gateway-0", "systemctl is-active vllm-certificate.timer").strip() == "active"
    score = lab.on("gateway-0", "systemd-analyze security --no-pager vllm-certificate.service | tail -1")
    assert float(score.split(":")[1].split()[0]) < 3.0, score


def test_another_name_and_another_address_reach_the_ca(hosts: tuple[DriverLab, Authority]) -> None:
    lab, authority = hosts
    asked = {**acme_lab.asked(authority), "names": [NAME, OTHER], "email": "you@example.com"}
    certificate = acme_lab.plan_tls(lab, {"acme": asked})
    assert states(lab, "gateway-0", certificate) == {
        "certificate /etc/haproxy/vllm-fleet.pem": "wrong_names",
        "file /etc/haproxy/vllm-fleet-acme.json": "wrong_content",
    }
    done = configure(lab, ["gateway-0"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(lab, "gateway-0", certificate) == {}
    assert "you@example.com" in lab.on("gateway-0", "cat /var/lib/vllm-gateway/certbot/account.json")


def test_a_ca_that_is_down_leaves_the_certificate(hosts: tuple[DriverLab, Authority]) -> None:
    lab, authority = hosts
    authority.stop()
    before = served("gateway-0")
    said = lab.on("gateway-0", "systemctl start vllm-certificate.service 2>&1; systemctl is-failed vllm-certificate")
    assert said.split()[-1] == "failed"
    assert "Connection refused" in lab.on("gateway-0", "journalctl -u vllm-certificate --no-pager")
    assert served("gateway-0") == before


def test_a_file_takes_the_place_of_the_ca_and_is_loaded(hosts: tuple[DriverLab, Authority], tmp_path: Path) -> None:
    lab, _ = hosts
    for days, state in (((-1, 89), {}), ((-80, 10), {"certificate /etc/haproxy/vllm-fleet.pem": "renewal_due"})):
        text = certificate_text(days, (NAME,))
        (tmp_path / "own.pem").write_text(text, encoding="utf-8")
        certificate = acme_lab.plan_tls(lab, {"certificate_file": str(tmp_path / "own.pem")})
        done = configure(lab)
        assert done.returncode == 0, done.stdout + done.stderr
        for name in PLACE.gateways:
            assert text.startswith(served(name))
            assert states(lab, name, certificate) == state
            assert lab.on(name, "ls /etc/haproxy/ /var/lib/vllm-gateway /etc/systemd/system").count("acme") == 0
            assert "vllm-certificate" not in lab.on(name, "systemctl list-timers --all --no-pager")
