"""The locked schemas of providers: what the reader of Go source finds, and whether the data is that of the SDKs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lab.rehearsal.schemas import known, lock
from lab.rehearsal.schemas.go_source import GoSourceError, Package, properties, tokens

SOURCE = """
package compute // a comment with "quotes" { and a bracket

var names = []string{"not", "this"}

func ResourceDisk() *schema.Resource {
	return &schema.Resource{
		Create: create,
		Schema: map[string]*schema.Schema{
			"name": {
				Type:     schema.TypeString,
				Required: true,
				ForceNew: true,
			},
			"size": {Type: schema.TypeInt, Optional: true, Computed: true, DiffSuppressFunc: sizes("a", 1)},
			"labels": tags.Schema(),
			"old": {Type: schema.TypeBool, Optional: true, Default: true, Deprecated: "use new"},
			/* a block of at most one */
			"params": {
				Type: schema.TypeList, Optional: true, MaxItems: 1,
				Elem: &schema.Resource{
					Schema: map[string]*schema.Schema{
						"image": {Type: schema.TypeString, Optional: true, ForceNew: true},
					},
				},
			},
			"rules": {Type: schema.TypeSet, Optional: true, Elem: ruleSchema("source")},
		},
	}
}

func ruleSchema(prefix string) *schema.Resource {
	return &schema.Resource{
		Schema: map[string]*schema.Schema{
			prefix + "addresses": {Type: schema.TypeSet, Optional: true},
		},
	}
}
"""
TAGS = """
package tags

func Schema() *schema.Schema {
	return &schema.Schema{Type: schema.TypeMap, Optional: true}
}
"""
#: The clouds whose data is read by a program; the others' sources cannot be had as a whole.
READ = ("digitalocean", "gcp", "oci")


def package() -> Package:
    return Package({"disk.go": SOURCE}, {"tags": Package({"tags.go": TAGS})})


def test_a_resource_is_read_with_the_line_of_each_property() -> None:
    found = {item.path: item for item in properties(package(), "ResourceDisk")}
    assert list(found) == ["name", "size", "labels", "old", "params", "params.*.image", "rules", "rules.*.*_addresses"]
    assert found["name"].flags == ("required", "force_new")
    assert SOURCE.splitlines()[found["name"].line - 1].strip().startswith('"name"')
    assert (found["size"].flags, found["size"].suppressed) == (("optional", "computed"), "sizes")
    assert (found["labels"].kind, found["labels"].file) == ("Map", "")
    assert (found["old"].default, found["old"].deprecated) == ("true", True)
    assert found["params"].flags == ("optional", "single")
    assert found["params.*.image"].flags == ("optional", "force_new")
    assert found["rules"].flags == ("optional", "set")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("func Other() {}", "no function ResourceDisk"),
        ("func ResourceDisk() *schema.Resource { return &schema.Resource{", "is not closed"),
        ("func ResourceDisk() *schema.Resource { return made }", "no literal"),
    ],
)
def test_a_source_of_another_form_is_an_error(text: str, says: str) -> None:
    with pytest.raises(GoSourceError, match=says):
        properties(Package({"disk.go": text}), "ResourceDisk")


def test_strings_and_comments_are_one_token_each() -> None:
    found = tokens('a "b { \\" }" `c\n}` // d }\n e')
    assert [(token.text, token.line) for token in found] == [
        ("a", 1),
        ('"b { \\" }"', 1),
        ("`c\n}`", 1),
        ("e", 3),
    ]


@pytest.mark.parametrize("cloud", READ)
def test_each_row_names_the_line_that_says_it(cloud: str) -> None:
    data = yaml.safe_load((known.HERE / f"{cloud}.yml").read_text(encoding="utf-8"))
    assert len(data["commit"]) == 40
    assert set(data["resources"]) == set(lock.sources()[cloud]["resources"])
    for token, row in data["resources"].items():
        assert row["file"].endswith(".go")
        assert all(item["line"] > 1 for item in row["properties"].values()), token


def test_a_checkout_that_is_none_is_one_clear_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lab.rehearsal.schemas", "gcp", str(tmp_path), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: ")
    assert "give the provider's git repository" in done.stderr
