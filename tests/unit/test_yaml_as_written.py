"""YAML as people write it: each form is supported, or refused in plain words with line and column."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from host_keys import public_key

from vllm_fleet.base import text_files, yaml_document, yaml_reader
from vllm_fleet.base.errors import FleetError, list_errors
from vllm_fleet.base.yaml_scalars import AmbiguousNumberError, read_plain
from vllm_fleet.fleet import plan
from vllm_fleet.schema.recipe import Strict

INPUT = Path(__file__).parents[1] / "fixtures" / "input"


def written(folder: Path, text: str | bytes) -> Path:
    """A fleet's folder with a file of that text, called as the fixtures call it."""
    folder.mkdir(exist_ok=True)
    (folder / "fleet.yml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def from_fixture(tmp_path: Path, name: str) -> Path:
    text = (INPUT / f"{name}.yml").read_text(encoding="utf-8")
    for letter in "ABC":
        text = text.replace(f"KEY-{letter}", public_key(letter))
    return written(tmp_path / name, text)


def errors_of(folder: Path) -> list[FleetError]:
    with pytest.raises(FleetError) as caught:
        plan.load(folder)
    return list_errors(caught.value)[0]


def places(errors: list[FleetError]) -> list[tuple[int | None, str | None]]:
    return [(error.line, error.key) for error in errors]


# Numbers


def test_every_number_that_two_readers_read_differently_is_named_with_line_column_and_what_to_write(
    tmp_path: Path,
) -> None:
    errors = errors_of(from_fixture(tmp_path, "numbers"))
    assert places(errors) == [
        (9, "pools.rack.static.gpu-a.port"),
        (12, "pools.rack.static.gpu-b.port"),
        (17, "pools.rack.overrides.args.max-num-seqs"),
        (19, "gateway.port"),
    ]
    assert [error.column for error in errors] == [40, 15, 23, 9]
    assert [error.hint.partition(",")[0] for error in errors] == [
        "write 22",
        "write one decimal number",
        "write 256",
        "write 443",
    ]
    assert "fleet.yml:9:40: pools.rack.static.gpu-a.port: 0022 has a leading zero" in str(errors[0])


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("0022", "write 22,"),
        ("010", "write 10,"),
        ("012345678901", "quote it, its zeros count"),
        ("-010", "write -10,"),
        ("0899", "write 899,"),
        ("00", "write 0,"),
        ("0_1", "write 1,"),
        ("007.5", "write 7.5,"),
        ("22:22", "one decimal number"),
        ("1:30", "one decimal number"),
        ("1:30:15.5", "one decimal number"),
        ("0x10", "write 16,"),
        ("-0x10", "write -16,"),
        ("0o17", "write 15,"),
        ("0b101", "write 5,"),
        ("1_0", "write 10,"),
        ("1_000.5", "write 1000.5,"),
        ("1e3", "write 1000.0,"),
        ("1.0e5", "write 100000.0,"),
        ("1e-7", "decimal digits"),
        ("1e999", "decimal digits"),
        ("1.0e+999", "correct the number"),
        (".inf", "write a number"),
        ("-.inf", "write a number"),
        (".nan", "write a number"),
        ("1" * 5000, "correct the number"),
        ("0x" + "f" * 5000, "decimal digits"),
    ],
)
def test_a_number_that_is_not_plainly_decimal_is_refused(word: str, hint: str) -> None:
    with pytest.raises(AmbiguousNumberError) as caught:
        read_plain(word)
    assert hint in caught.value.hint
    assert len(str(caught.value)) < 200


NUMBERS = "0 7 -7 +5 22 8080 0.9 .5 5. -0.25 1.5e+3 yes no on off true False NO ~ null"
TEXT = "2026-01-01 2026-99-01 10.0.0.5 10.0.0.5:22 h100-8 0.32.0 1a 2001:db8::1 - + ."


@pytest.mark.parametrize("word", NUMBERS.split())
def test_what_is_read_is_what_the_parser_itself_reads(word: str) -> None:
    assert read_plain(word) == yaml.load(word, yaml.CSafeLoader)


@pytest.mark.parametrize("word", TEXT.split())
def test_text_stays_text(word: str) -> None:
    assert read_plain(word) == word


# Anchors, aliases and merge keys


def test_merge_keys_give_hosts_what_they_have_in_common(tmp_path: Path) -> None:
    hosts = plan.load(from_fixture(tmp_path, "merge-keys")).spec.pools["rack"].static
    assert {name: (host.address, host.user, host.port) for name, host in hosts.items()} == {
        "gpu-a": ("10.0.0.5", "ubuntu", 2222),
        "gpu-b": ("10.0.0.6", "ubuntu", 2222),
        "gpu-c": ("10.0.0.7", "debian", 2222),
    }


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3, z: 4}\n",
        "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b]}\nd: {y: 0, <<: [*b, *a]}\n",
        "a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc:\n  z: 3\n  <<: *b\n",
        'a: {"<<": 1}\n',
        "a: &a [1, 2]\nb: *a\nc: &c text\nd: *c\n",
    ],
)
def test_anchors_and_merge_keys_are_read_as_ansible_reads_them(text: str) -> None:
    # Ansible reads YAML with PyYAML's own constructor.
    content = yaml_reader.read_text(text, "file.yml")
    assert content.errors == ()
    assert content.data == yaml.load(text, yaml.CSafeLoader)
    assert list(content.data) == list(yaml.load(text, yaml.CSafeLoader))


def test_an_error_in_what_was_merged_names_the_line_where_it_is_written(tmp_path: Path) -> None:
    folder = from_fixture(tmp_path, "merge-keys")
    text = (folder / "fleet.yml").read_text().replace("user: ubuntu", "user: -oProxyCommand=x")
    errors = errors_of(written(folder, text))
    assert [error.line for error in errors] == [9, 9]
    assert {error.key for error in errors} == {
        "pools.rack.static.gpu-a.user",
        "pools.rack.static.gpu-b.user",
    }


@pytest.mark.parametrize(
    ("text", "line", "column", "says", "hint"),
    [
        ("a: {x: 1, x: 2}\n", 1, 11, "duplicate key", "keep one"),
        ("a: &a {x: 1}\nb: {<<: *a, x: 2, x: 3}\n", 2, 19, "duplicate key", "keep one"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}\n", 2, 13, "duplicate key", "'<<: [*a, *b]'"),
        ("a: &a 1\nb: {<<: *a}\n", 2, 9, "merges mappings only", "'<<: *name'"),
        ("a: {<<: [1]}\n", 1, 9, "merges mappings only", "'<<: *name'"),
        ("a: *no\n", 1, 4, "no anchor 'no'", "define &no"),
        ("a: &x [*x]\n", 1, 8, "contains itself", "write the values out"),
        ("a: {b: &x {c: *x}}\n", 1, 15, "contains itself", "write the values out"),
        ("[1]: 2\n", 1, 1, "cannot be a key", "use a word"),
        ("a: !!int 'abc'\n", 1, 4, "the tag '!!int' is not supported", "remove it"),
        ("a: !vault |\n  abc\n", 1, 4, "the tag '!vault' is not supported", "remove it"),
        ("a: !!python/object:os.system {}\n", 1, 4, "is not valid YAML", "remove it"),
        ("a: !!set {b, c}\n", 1, 4, "the tag '!!set'", "remove it"),
        ("a: 1\n---\nb: 2\n", 2, 1, "a second document", "split the file"),
        ("a:\n\tb: 1\n", 2, 1, "a tab", "replace tabs by spaces"),
        ("a: 1\n  b: 2\n", 2, 4, "a second ': '", "quotes"),
        ("a: x: y\n", 1, 5, "a second ': '", "quotes"),
        ("a: 'b\n", 2, 1, "ends inside quotes; what is open begins in line 1", "close the quotes"),
        ("a: {b: 1\nc: 2\n", 2, 2, "what is open begins in line 1", "close it"),
        ("a: @b\n", 1, 4, "cannot begin a value", "quotes"),
        ('a: "\\d"\n', 1, 5, "a backslash in double quotes", "single quotes"),
        ("a: b\0c\n", 1, 5, "U+0000", "remove it"),
        ("a: 1\n# x\u2028b: 2\n", 2, 4, "U+2028 (line separator)", "remove it"),
        ("a: \x85b: 2\n", 1, 4, "U+0085", "remove it"),
        ("a: \u202eb\n", 1, 4, "U+202E (right-to-left override)", "remove it"),
        ("a: 1\nb:\xa02\n", 2, 3, "a no-break space", "replace it by a space"),
        ("a: " + "[" * 100_000, 1, 44, "nested more than 40 levels", "remove levels"),
        ("- " * 100_000, 1, 83, "nested more than 40 levels", "remove levels"),
        ("? " * 100_000, 1, 83, "nested more than 40 levels", "remove levels"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(2000)), 42, 42, "nested more than 40 levels", "remove levels"),
    ],
)
def test_what_is_not_supported_is_refused_in_plain_words_with_line_and_column(
    text: str, line: int, column: int, says: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / "file.yml").write_text(text, encoding="utf-8")
    with pytest.raises(FleetError) as caught:
        yaml_document.read(tmp_path / "file.yml")
    error = caught.value
    assert says in error.message
    assert hint in error.hint
    assert (error.line, error.column) == (line, column)
    assert f"file.yml:{line}:{column}: " in str(error)
    assert "could not" not in str(error)
    assert error.exit_code == 2


def test_aliases_that_multiply_end_at_a_bound() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(FleetError, match="has more than 500000 values, those that aliases repeat included"):
        yaml_reader.read_text("\n".join(lines), "file.yml")


def test_what_an_alias_repeats_is_a_copy() -> None:
    data = yaml_reader.read_text("a: &a {b: [1]}\nc: *a\n", "file.yml").data
    data["a"]["b"].append(2)
    assert data["c"] == {"b": [1]}


# Bytes


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbffleet: x\nport: 1\n",
        b"fleet: x\r\nport: 1\r\n",
        b"---\nfleet: x\nport: 1\n...\n",
        b"%YAML 1.1\n---\nfleet: x\nport: 1\n",
        b"fleet:\tx\nport: 1\t# a comment\n",
    ],
)
def test_marks_and_line_ends_of_other_systems_are_read(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.yml").write_bytes(data)
    assert yaml_document.read(tmp_path / "file.yml").data == {"fleet": "x", "port": 1}


def test_a_file_in_another_encoding_names_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "file.yml").write_bytes("a: 1\nb: größe\n".encode("latin-1"))
    with pytest.raises(FleetError, match="the byte 0xf6 is not UTF-8") as caught:
        yaml_document.read(tmp_path / "file.yml")
    assert (caught.value.line, caught.value.column, caught.value.hint) == (2, 6, "save the file as UTF-8")


def test_what_is_no_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "large.yml").write_bytes(b"#" * (text_files.MOST_BYTES + 1))
    with pytest.raises(FleetError, match="at most 8 MiB are read"):
        yaml_document.read(tmp_path / "large.yml")
    (tmp_path / "endless.yml").symlink_to("/dev/zero")
    with pytest.raises(FleetError, match="not a file"):
        yaml_document.read(tmp_path / "endless.yml")
    with pytest.raises(FleetError, match="not a file"):
        yaml_document.read(tmp_path)


# Every error in one run

ALL_WRONG = """\
fleet: other
colour: red
pools:
  main:
    host_class: h1000-8
    cloud: aws
    hosts: 010
    model: openai/none
    engine: none
    placement: {region: us-east-1, zone: us-east-1a, size: 1}
  next:
    host_class: h100-8
    cloud: aws
    hosts: 1
    model: openai/gpt-oss-20b
    placement: {region: us-east-1, zone: eu-west-1a}
    overrides:
      why: shows every error at once
      args: {nope: 1, data-parallel-size: 2, max-num-seqs: "3"}
      env: {NO_SUCH_NAME: "1"}
gateway:
  port: "80"
artifacts:
  images: {none: "sha256:1111111111111111111111111111111111111111111111111111111111111111"}
"""


def test_every_error_of_a_file_is_reported_in_one_run(tmp_path: Path) -> None:
    errors = errors_of(written(tmp_path / "mine", ALL_WRONG))
    assert sorted(places(errors)) == [
        (1, "fleet"),
        (2, "colour"),
        (5, "pools.main.host_class"),
        (7, "pools.main.hosts"),
        (8, "pools.main.model"),
        (9, "pools.main.engine"),
        (10, "pools.main.placement.size"),
        (16, "pools.next.placement"),
        (19, "pools.next.overrides.args.data-parallel-size"),
        (19, "pools.next.overrides.args.max-num-seqs"),
        (19, "pools.next.overrides.args.nope"),
        (20, "pools.next.overrides.env.NO_SUCH_NAME"),
        (22, "gateway.port"),
        (24, "artifacts.images.none"),
    ]


def test_an_error_that_only_follows_from_another_is_not_reported(tmp_path: Path) -> None:
    text = (
        "fleet: mine\npools:\n  main: {host_class: h100-8, cloud: aws, hosts: 1, model: 1, "
        "placement: {region: us-east-1, zone: us-east-1a}}\nmirror: {host: gateway-0}\ngateway: {hosts: '1'}\n"
    )
    assert places(errors_of(written(tmp_path / "mine", text))) == [(3, "pools.main.model"), (5, "gateway.hosts")]


@pytest.mark.slow
def test_fifty_thousand_errors_are_counted_and_a_few_printed(tmp_path: Path) -> None:
    text = "fleet: mine\n" + "".join(f"key{number}: 1\n" for number in range(50_000))
    with pytest.raises(FleetError) as caught:
        plan.load(written(tmp_path / "mine", text))
    errors, more = list_errors(caught.value)
    assert (len(errors), more) == (50, 49_951)
    assert errors[0].key == "key0"


def test_names_and_values_of_any_size_give_short_messages_in_one_line(tmp_path: Path) -> None:
    text = f'fleet: {"x" * 100_000}\n"a\\nb\\e[31m": 1\n{"k" * 1000}: 1\npools: {"y" * 100_000}\n'
    for error in errors_of(written(tmp_path / "mine", text)):
        assert len(str(error)) < 1000
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("name", "meant"),
    [("~", "nothing"), ("null", "nothing"), ("yes", "true"), ("Off", "false"), ("1.5", "1.5")],
)
def test_a_name_that_is_read_as_a_value_is_told_in_its_line_as_it_is_written(
    tmp_path: Path, name: str, meant: str
) -> None:
    pool = "{host_class: h100-8, cloud: static}"
    (error,) = errors_of(written(tmp_path / "rack", f"fleet: rack\npools:\n  {name}: {pool}\n"))[:1]
    assert (error.line, error.column, error.key) == (3, 3, f"pools.{name}")
    assert (error.message, error.hint) == (f"the key is read as {meant}, not as text", "put it in quotes")


def test_a_conflict_of_git_is_called_so(tmp_path: Path) -> None:
    text = "fleet: demo\n<<<<<<< HEAD\npools: {}\n=======\npools: {a: 1}\n>>>>>>> theirs\n"
    (tmp_path / "fleet.yml").write_text(text, encoding="utf-8")
    with pytest.raises(FleetError, match="a conflict of git begins here") as caught:
        yaml_document.read(tmp_path / "fleet.yml")
    assert caught.value.line == 2


def test_a_word_that_yaml_reads_as_false_is_shown_as_yaml_has_it(tmp_path: Path) -> None:
    (tmp_path / "fleet.yml").write_text("name: off\n", encoding="utf-8")

    class Named(Strict):
        name: str

    with pytest.raises(FleetError, match=r"must be a valid string, not false .put it in quotes: YAML reads yes, no"):
        yaml_document.parse(yaml_document.read(tmp_path / "fleet.yml"), Named)
