"""JSON files are valid JSON, whatever numbers go into them."""

from __future__ import annotations

import json
import math

from subspace_lab.recording import files


def test_numbers_that_json_cannot_hold_become_null(tmp_path):
    content = {"a": [1.5, math.nan, {"b": -math.inf}], "c": (2, "nan"), "d": None}
    files.write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(text, parse_constant=refuse)
    assert found == {"a": [1.5, None, {"b": None}], "c": [2, "nan"], "d": None}
