"""The table of what can be rented: ``docs/clouds.md`` is its output."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_fleet.catalogue import rental
from vllm_fleet.catalogue.catalogue import Catalog

_INTRODUCTION = """# Where host classes can be had

Generated from `recipes/clouds` by `make golden`. This project has rented none of it: types, disks and capacity kinds
come from the sources that each row names there, with the day of the reading; the last column says what none of them
says. A class that a cloud does not have is refused with this list. A class that is not in the table (R9700) is served
on `static` hosts: `vllm-fleet init` writes their fleet.
"""


def markdown(catalog: Catalog) -> str:
    """The document: a row for each instance type, and the classes that no cloud rents."""
    rows = list(_rows(catalog))
    homeless = [sized.id for sized in catalog.sized_classes() if not any(rental.offers(catalog, sized.id))]
    lines = [
        _INTRODUCTION,
        "| class | cloud | instance type | capacity | note | unverified |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join([*lines, f"Only as hosts of your own: {', '.join(homeless)}.", ""])


def _rows(catalog: Catalog) -> Iterator[str]:
    for sized in catalog.sized_classes():
        for cloud, shape, kinds in rental.offers(catalog, sized.id):
            row = catalog.clouds[cloud].shapes[shape]
            cells = (sized.id, cloud, f"`{shape}`", ", ".join(kinds), row.note or "", row.unverified or "")
            yield f"| {' | '.join(cells)} |"
