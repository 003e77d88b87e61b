"""Everything that is rendered for a fixed fleet, beside its golden copy: --update-golden writes them again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_fleet.base import paths
from vllm_fleet.inventory import Site

COPIES = Path(__file__).parent / "copies"


def rendered(site: Site) -> dict[str, str]:
    files = {"known_hosts": site.known_hosts}
    for host in site.hosts:
        name = host.plan.name
        variables = dict(host.variables)
        for file in variables.pop("vllm_service_files", []):
            files[f"{name}/release/{file['name']}"] = file["content"]
        for variable, file in (
            ("vllm_service_firewall_rules", "firewall.nft"),
            ("gateway_config", "haproxy.cfg"),
            ("gateway_api_key_digests", "api-keys"),
        ):
            if variable in variables:
                files[f"{name}/{file}"] = variables.pop(variable)
        if host.plan.kind == "gateway":
            files[f"{name}/manifest.json"] = host.manifest.text
        text = json.dumps(variables, indent=1, sort_keys=True) + "\n"
        files[f"{name}/variables.json"] = text
    root = str(Path(__file__).resolve().parents[2])
    cache = str(paths.cache_dir())
    return {name: text.replace(root, "ROOT").replace(cache, "CACHE") for name, text in files.items()}


def test_what_is_rendered_is_what_was_reviewed(golden_site: Site, request: pytest.FixtureRequest) -> None:
    files = rendered(golden_site)
    if request.config.getoption("--update-golden"):
        for path in COPIES.rglob("*"):
            if path.is_file():
                path.unlink()
        for name, text in files.items():
            (COPIES / name).parent.mkdir(parents=True, exist_ok=True)
            (COPIES / name).write_text(text, encoding="utf-8")
    there = {str(path.relative_to(COPIES)) for path in COPIES.rglob("*") if path.is_file()}
    assert there == set(files)
    for name, text in files.items():
        assert text == (COPIES / name).read_text(encoding="utf-8"), f"{name} differs: look, then make golden"


def test_rendering_twice_gives_the_same_bytes(golden_site: Site) -> None:
    assert rendered(golden_site) == rendered(golden_site)
