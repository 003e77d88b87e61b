"""The draft that a deployment's speculative decoding names: which record it is, and what memory it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.resolve.device_memory import Served
from vllm_fleet.resolve.provenance import Origin
from vllm_fleet.schema.draft import Draft
from vllm_fleet.schema.recipe import Model

#: Where a deployment names its draft, among the keys of its provenance.
_NAMED_AT = "args.speculative-config.model"


def named_draft(
    catalog: Catalog, model: Model, args: Mapping[str, Any], provenance: Mapping[str, Origin]
) -> Draft | None:
    """The draft in ``speculative-config``; None for a method that needs no second model.

    Args:
        catalog: the recipes.
        model: the model that is served.
        args: vLLM's arguments.
        provenance: where each of them comes from.

    Raises:
        FleetError: ``recipes/drafts`` does not hold it (``bad-input``), or it is for another model (``refused``).
    """
    speculation = args.get("speculative-config")
    name = speculation.get("model") if isinstance(speculation, Mapping) else None
    if name is None:
        return None
    draft = catalog.drafts.get(name)
    origin = provenance[_NAMED_AT]
    place = origin.file + (f", rule {origin.rule}" if origin.rule else "")
    if draft is None:
        raise FleetError(
            f"there is no draft {name!r}",
            f"known drafts: {', '.join(sorted(catalog.drafts))}; add a file to recipes/drafts",
            place,
            key=_NAMED_AT,
        )
    if model.name not in draft.draft_of:
        raise FleetError(
            f"{name} is a draft of {', '.join(draft.draft_of)} and not of {model.name}",
            "remove the draft, or serve the model that it is for",
            place,
            key=_NAMED_AT,
            code=ErrorCode.REFUSED,
        )
    return draft


def served_with_draft(
    catalog: Catalog, model: Model, args: Mapping[str, Any], provenance: Mapping[str, Origin]
) -> tuple[Served, tuple[str, ...]]:
    """The model with its draft's weights on one device, and notes.

    Args:
        catalog: the recipes.
        model: the model that is served.
        args: vLLM's arguments.
        provenance: where each of them comes from.

    Raises:
        FleetError: see :func:`named_draft`; or ``draft_tensor_parallel_size`` is not a number of devices.
    """
    draft = named_draft(catalog, model, args, provenance)
    if draft is None:
        return Served(model.name, model.shape), ()
    spread = args["speculative-config"].get("draft_tensor_parallel_size", 1)
    if type(spread) is not int or spread < 1:
        key = "args.speculative-config.draft_tensor_parallel_size"
        raise FleetError(f"draft_tensor_parallel_size is {spread!r}", "give a whole number above 0", key=key)
    note = f"the draft {draft.name} counts {draft.weights_gib} GiB for each copy, {draft.status}: {draft.evidence}"
    return Served(model.name, model.shape, draft.weights_gib / spread, draft.weights_gib), (note,)


def draft_errors(catalog: Catalog) -> Iterator[FleetError]:
    """Drafts of models that do not exist, and drafts that are models too."""
    for draft in catalog.drafts.values():
        for name in draft.draft_of:
            if name not in catalog.models:
                yield catalog.documents[draft.name].error(
                    ("draft_of",), f"there is no model {name!r}", "correct the name"
                )
        if draft.name in catalog.models:
            yield catalog.documents[draft.name].error(("name",), "is a model too", "rename or remove one")
