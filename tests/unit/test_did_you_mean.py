"""Names that are nearly right: the errors propose what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from vllm_fleet.base import did_you_mean, yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli import app
from vllm_fleet.fleet import plan
from vllm_fleet.schema.fleet import Fleet

LARGE = "openai/gpt-oss-120b"


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        (("--host-class", "H100-8", "--model", LARGE), "h100-8"),
        (("--host-class", "h100_8", "--model", LARGE), "h100-8"),
        (("--host-class", "mi300-8", "--model", LARGE), "mi300x-8 or mi300a-8 or mi350x-8"),
        (("--host-class", "h100-8", "--model", "gpt-oss-20b"), "openai/gpt-oss-20b"),
        (("--host-class", "h100-8", "--model", LARGE, "--engine", "0.12.0"), "vllm-0.12.0-cuda"),
        (("--host-class", "h100-8", "--model", LARGE, "--profile", "latency"), "min-latency"),
        (("--host-class", "h100-8", "--model", LARGE, "--feature", "eagle"), "eagle3"),
    ],
)
def test_a_name_on_the_command_line_is_proposed(options: tuple[str, ...], meant: str) -> None:
    fault = CliRunner().invoke(app, ["recipe", *options]).exception
    assert isinstance(fault, FleetError)
    assert fault.hint.startswith(f"did you mean {meant}")
    assert fault.exit_code == 2


@pytest.mark.parametrize(
    ("overrides", "meant"),
    [
        ({"args": {"max-nun-seqs": 8}}, "max-num-seqs"),
        ({"args": {"compilation-config": {"cudagraph_mod": "FULL"}}}, "compilation-config.cudagraph_mode"),
        (
            {"args": {"compilation-config": {"pass_config": {"fuse_allreduce_rm": True}}}},
            "compilation-config.pass_config.",
        ),
        ({"env": {"VLLM_LOGING_LEVEL": "DEBUG"}}, "VLLM_LOGGING_LEVEL"),
    ],
)
def test_a_name_in_overrides_is_proposed_from_what_the_release_reads(
    overrides: dict[str, object], meant: str, tmp_path: Path
) -> None:
    pool = {
        "host_class": "h100-8",
        "cloud": "lab",
        "hosts": 1,
        "placement": {"bridge": "vf-x", "subnet": "10.70.0.0/24"},
        "model": LARGE,
        "overrides": {"why": "a test of it", **overrides},
    }
    (tmp_path / "demo").mkdir()
    text = yaml.safe_dump({"fleet": "demo", "pools": {"main": pool}})
    (tmp_path / "demo" / "fleet.yml").write_text(text, encoding="utf-8")
    with pytest.raises(FleetError) as caught:
        plan.load(tmp_path / "demo")
    assert f"did you mean {meant}" in str([caught.value, *caught.value.others])


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("fleet: demo\npool: {}\n", "pools"),
        ("fleet: demo\npools: {main: {host-class: h100-8, cloud: static}}\n", "host_class"),
        ("fleet: demo\npools: {main: {host_class: h100-8, cloud: lab}}\ngateway: {hots: 1}\n", "hosts"),
        ("fleet: demo\npools: {}\naccess: {bastion: {adress: x}}\n", "address"),
    ],
)
def test_a_key_of_fleet_yml_is_proposed(text: str, meant: str, tmp_path: Path) -> None:
    (tmp_path / "fleet.yml").write_text(text, encoding="utf-8")
    with pytest.raises(FleetError) as caught:
        yaml_document.parse(yaml_document.read(tmp_path / "fleet.yml"), Fleet)
    assert f"did you mean {meant}?" in [error.hint for error in (caught.value, *caught.value.others)]


def test_where_nothing_is_like_it_nothing_is_proposed() -> None:
    assert did_you_mean.hint("zzz", ["h100-8"], "known: h100-8") == "known: h100-8"
    assert did_you_mean.nearest("a", ["a100", "b200"]) == []


def test_a_key_with_dots_below_a_flag_is_an_error_as_any_other() -> None:
    asked = ["recipe", "--host-class", "h100-8", "--model", LARGE, "--override", 'compilation-config={".": false}']
    fault = CliRunner().invoke(app, asked).exception
    assert isinstance(fault, FleetError)
    assert "does not read the key 'compilation-config..'" in str(fault)
