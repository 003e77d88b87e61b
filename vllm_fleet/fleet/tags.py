"""A fleet's own tags against the rules of its clouds: the forms of keys and values, and how many a resource takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.host_plan import HostPlan

#: The keys that the project sets itself, in any case: Azure's keys have none.
RESERVED = ("fleet", "managed-by", "name", "host", "pool")


@dataclass(frozen=True)
class TagRules:
    """The rules of one cloud.

    Attributes:
        key: the form of a key.
        key_says: that form in words.
        value: the form of a value.
        value_says: that form in words.
        most: the tags of one resource, with those of the project.
        source: where it was read.
    """

    key: str
    key_says: str
    value: str
    value_says: str
    most: int
    source: str


_AWS = r"\w .:/=+\-@"
RULES: Mapping[str, TagRules] = {
    "aws": TagRules(
        key=rf"(?!(?i:aws:))[{_AWS}]{{1,128}}",
        key_says="1 to 128 letters, digits, blanks and _.:/=+-@, not 'aws:' first",
        value=rf"(?!(?i:aws:))[{_AWS}]{{0,256}}",
        value_says="at most 256 letters, digits, blanks and _.:/=+-@, not 'aws:' first",
        most=50,
        source="AWS: EC2 user guide, Tag your resources, Tag restrictions",
    ),
    "gcp": TagRules(
        key=r"[a-z][a-z0-9_-]{0,62}",
        key_says="1 to 63 lower-case letters, digits, '_' and '-', a letter first",
        value=r"[a-z0-9_-]{0,63}",
        value_says="at most 63 lower-case letters, digits, '_' and '-'",
        # One is left for the provider's own label, goog-pulumi-provisioned.
        most=63,
        source="Google: Compute Engine, Label resources, Requirements for labels",
    ),
    "azure": TagRules(
        key=r"(?!(?i:azure|microsoft|windows))[^<>%&\\?/]{1,512}",
        key_says="1 to 512 letters without <>%&\\?/, not 'azure', 'microsoft' or 'windows' first",
        value=r".{0,256}",
        value_says="at most 256 letters",
        most=50,
        source="Azure: Resource Manager, Use tags, Limitations; hashicorp/go-azure-helpers, tags/validate.go",
    ),
    # From memory of the page, unverified: the page was not to be had.
    "oci": TagRules(
        key=r"[^ .]{1,100}",
        key_says="1 to 100 letters without blanks and periods",
        value=r".{0,256}",
        value_says="at most 256 letters",
        most=10,
        source="Oracle: Overview of Tagging, Limits on Tags (free-form tags)",
    ),
    # A tag is one word there: key:value.
    "digitalocean": TagRules(
        key=r"[A-Za-z0-9_-]{1,100}",
        key_says="1 to 100 letters, digits, '_' and '-', because a tag is 'key:value' of 255 letters",
        value=r"[A-Za-z0-9_:-]{1,150}",
        value_says="1 to 150 letters, digits, '_', ':' and '-', because a tag is 'key:value' of 255 letters",
        most=1000,
        source="DigitalOcean: digitalocean/openapi, specification/resources/tags/models/tags.yml",
    ),
}


def tag_errors(
    hosts: Sequence[HostPlan], tags: Mapping[str, str], document: yaml_document.Document
) -> Iterator[FleetError]:
    """Tags that the project sets itself, and those that a cloud of the fleet does not take.

    Args:
        hosts: of the whole fleet.
        tags: its own tags.
        document: the fleet's file.
    """
    lower: dict[str, str] = {}
    for key in tags:
        if key.lower() in RESERVED:
            yield document.error(("tags", key), f"the stack sets the tag {key!r} itself", "take another key")
        if other := lower.get(key.lower()):
            yield document.error(
                ("tags", key), f"is {other!r} in another case, which is the same tag at Azure", "keep one"
            )
        lower[key.lower()] = key
    for cloud in dict.fromkeys(host.cloud for host in hosts if host.rented):
        # Of a cloud of another package no rule is known: the cloud itself refuses a tag.
        if rules := RULES.get(cloud):
            yield from _against(rules, cloud, tags, document)


def _against(
    rules: TagRules, cloud: str, tags: Mapping[str, str], document: yaml_document.Document
) -> Iterator[FleetError]:
    for key, value in tags.items():
        if not re.fullmatch(rules.key, key):
            yield document.error(
                ("tags", key), f"{cloud} does not take the key of this tag: {rules.key_says}", f"see {rules.source}"
            )
        if not re.fullmatch(rules.value, value):
            yield document.error(
                ("tags", key), f"{cloud} does not take the value of this tag: {rules.value_says}", f"see {rules.source}"
            )
    if len(tags) + len(RESERVED) > rules.most:
        yield document.error(
            ("tags",),
            f"has {len(tags)} tags, and {cloud} takes {rules.most} a resource, {len(RESERVED)} of them the stack's",
            f"see {rules.source}",
        )
