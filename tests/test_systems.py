"""docs/systems.md lists what there is, and each of its rows has a test that names it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from analyses.registry import all_analyses
from subspace_lab.adapters.methods import Method
from subspace_lab.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/systems.md").read_text()
ROWS = re.findall(r"^\|.*\| (tests/\S+\.py) \|$", TEXT, re.MULTILINE)
LINES = [line for line in TEXT.splitlines() if line.endswith(".py |")]


def test_every_method_has_a_row():
    assert set(re.findall(r"--method (\w+)", TEXT)) == set(get_args(Method))


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split("|")[1].strip()[:20])
def test_a_rows_test_is_there_and_uses_its_settings(line):
    test = (ROOT / line.rsplit("|", 2)[1].strip()).read_text()
    for method in re.findall(r"--method (\w+)", line):
        assert f'"{method}"' in test
    for field in re.findall(r"`--(\w+)", line):
        if field in TrainConfig.__dataclass_fields__ and field != "method":
            assert field in test
    for kind in re.findall(r"peft_type: (\w+)", line):
        assert kind in test


def test_the_analyses_that_are_named_exist():
    named = set(re.findall(r"`([a-z_]+)`", TEXT)) & set(all_analyses())
    assert {"frame_drift", "subspace_motion", "effective_rank", "mask_theory"} <= named
