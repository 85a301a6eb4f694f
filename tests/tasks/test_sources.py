from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from subspace_lab.errors import UserError
from subspace_lab.tasks.sources import HubSet, read, read_file


@pytest.mark.parametrize("indent", [None, 4])
def test_an_array_reads_as_json_does_and_knows_its_lines(tmp_path: Path, indent: int) -> None:
    values = [{"a": f"text, [{i}] \n {{}}"} for i in range(3)]
    path = tmp_path / "rows.json"
    path.write_text("\n" + json.dumps(values, indent=indent) + "\n")
    rows = read_file(path)
    assert [row.fields for row in rows] == values
    lines = [2, 2, 2] if indent is None else [3, 6, 9]
    assert [row.where for row in rows] == [f"{path}, line {line}" for line in lines]


def test_json_lines_read_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "x"}\n\n{"a": "y\u2028z"}\n', encoding="utf-8")
    assert [(row.text("a"), row.where) for row in read_file(path)] == [
        ("x", f"{path}, line 1"),
        ("y\u2028z", f"{path}, line 3"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "line", "complaint"),
    [
        ("rows.json", '[\n{"a": "x"},\n{"a": }\n]', 3, "not a JSON array"),
        ("rows.json", '[\n{"a": "x"},\n3\n]', 3, "expected a JSON object, found int"),
        ("rows.json", '[\n{"a": "x"}\n', 3, "does not end with ']'"),
        ("rows.json", "version 1", 1, "not a JSON array"),
        ("rows.jsonl", '{"a": "x"}\n{"a": "y"', 2, "this is not JSON"),
        ("rows.jsonl", '{"a": "x"}\n[]', 2, "expected a JSON object, found list"),
    ],
)
def test_malformed_text_is_reported_with_file_and_line(
    tmp_path: Path, name: str, text: str, line: int, complaint: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_file(tmp_path / name)
    assert f"{name}, line {line}:" in str(error.value)
    assert complaint in str(error.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(UserError, match=r"rows\.json cannot be read as UTF-8"):
        read_file(tmp_path / "rows.json")


def test_a_missing_file_names_the_path_and_the_hub(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*math/x\.jsonl: .* read some/set from the hub"):
        read("math/x.jsonl", HubSet("some/set"), split="train", data_dir=tmp_path)


def test_a_missing_hub_set_names_the_file_to_give(hub: Callable[..., None]) -> None:
    hub({})
    with pytest.raises(UserError, match=r"train split of some/set .* holds math/x\.jsonl"):
        read("math/x.jsonl", HubSet("some/set"), split="train", data_dir=None)


def test_a_field_that_is_missing_or_no_text_is_reported(hub: Callable[..., None]) -> None:
    hub({("some/set", "main", None, "test"): [{"a": "x"}, {"a": 3, "b": "y"}]})
    rows = read("x.jsonl", HubSet("some/set", config="main"), split="test", data_dir=None)
    with pytest.raises(UserError, match=r"some/set/main, test example 1: .* field 'b'; it has a"):
        rows[0].text("b")
    with pytest.raises(
        UserError, match=r"some/set/main, test example 2: .* field 'a'; it has a, b"
    ):
        rows[1].text("a")
