"""Any record that a host can report is judged: vetoes, repairs, class and notes, with no error but a refusal."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue
from vllm_fleet.facts import host_answer, vetoes
from vllm_fleet.facts.host_answer import HostFacts
from vllm_fleet.facts.notes import describe_state
from vllm_fleet.facts.recognise import recognise
from vllm_fleet.host import drivers
from vllm_fleet.host.manifest import wanted_facts

WORD = st.text(max_size=12) | st.sampled_from(["580.159.03", "6.17.0-8-generic", "NVIDIA H100 PCIe", "sm_90", "CPX"])
WORD |= st.sampled_from(["gfx942", "In Progress", "Node Reboot Required", "None", "6.14.14", "13.0", "docker-ce"])
COUNT = st.sampled_from([0, 1, 8, 79, 154, 149, 20034, 2**53]) | st.integers(0, 2**53)
VENDOR = st.sampled_from(["nvidia", "amd"])
PROBLEM = st.fixed_dictionaries(
    {"state": st.sampled_from(sorted(code.value for code in host_answer.PROBLEMS)), "why": st.text(max_size=20)}
)
PCI_ID = st.sampled_from(["10de:2330", "10de:2331", "1002:74a1", "10de:ffff"])
#: The facts that are no number, text or boolean of their own.
SPECIAL: Mapping[str, st.SearchStrategy[Any]] = {
    "vendor": VENDOR | st.none(),
    "gpus": st.lists(
        st.fixed_dictionaries({"name": WORD | st.none(), "memory_mib": COUNT | st.none(), "arch": WORD | st.none()}),
        max_size=9,
    ),
    "problems": st.dictionaries(VENDOR, PROBLEM),
    "gpu_errors": st.lists(
        st.fixed_dictionaries(
            {
                "kind": st.sampled_from(get_args(host_answer.GpuError.model_fields["kind"].annotation)),
                "code": COUNT,
                "device": WORD,
                "detail": WORD | st.sampled_from(["fatal", "nonfatal"]),
            }
        ),
        max_size=6,
    ),
    "pci_gpus": st.dictionaries(PCI_ID, COUNT, max_size=3),
    "kernel_driver": st.dictionaries(VENDOR, WORD | st.none()),
    "next_kernel_driver": st.dictionaries(VENDOR, st.booleans()),
    "iommu": st.sampled_from(["off", "passthrough", "translated"]),
    "cloud_init": st.sampled_from(["none", "disabled", "running", "done", "error"]),
    "docker": st.fixed_dictionaries({"package": WORD | st.none(), "version": WORD | st.none()}),
    "os": st.fixed_dictionaries({"id": WORD | st.none(), "version": WORD | st.none()}),
    "xid": st.lists(COUNT, max_size=5),
    "memory_gib": st.floats(0, 2**53),
}


def strategy(name: str) -> st.SearchStrategy[Any]:
    """The values of a fact, by its type in the record."""
    if name in SPECIAL:
        return SPECIAL[name]
    kind = str(HostFacts.model_fields[name].annotation)
    if "bool" in kind:
        return st.booleans()
    if "list" in kind:
        return st.lists(WORD, max_size=3)
    return WORD if "str" in kind else COUNT


ANY_FACTS = st.fixed_dictionaries(
    {name: SPECIAL[name] for name in ("vendor", "gpus")},
    optional={
        name: strategy(name) | st.none()
        for name in HostFacts.model_fields
        if name not in ("vendor", "gpus", "problems")
    }
    | {"problems": SPECIAL["problems"]},
)


@cache
def wanted(host_class: str, mode: drivers.DriverMode) -> Mapping[str, Any]:
    catalog = catalogue.load()
    sized = catalog.host_class(host_class)
    driver = drivers.choose_driver(catalog, sized, drivers.DriverChoice(mode=mode))
    return {**wanted_facts(sized), **(driver.facts if driver else {})}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(ANY_FACTS)
def test_any_facts_are_judged(answer: dict[str, Any]) -> None:
    facts = HostFacts.model_validate_json(json.dumps(answer)).model_dump(mode="json")
    for host_class in ("h100-8", "mi300x-8", "gb200-4", "cpu-2"):
        for mode in ("managed", "verified"):
            needed = wanted(host_class, mode)
            found = vetoes.find_vetoes(needed, facts)
            repairs = vetoes.find_repairs(needed, facts)
            assert all(veto.text for veto in (*found, *repairs))
            if host_class != "cpu-2" and not facts["gpus"]:
                # No state of a host is both passed and left as it is.
                assert found or repairs
    with contextlib.suppress(FleetError):
        recognise(facts, catalogue.load())
    assert all(describe_state(facts))


@pytest.mark.parametrize("name", sorted(HostFacts.model_fields))
def test_each_fact_has_a_strategy_of_its_type(name: str) -> None:
    strategy(name).validate()
